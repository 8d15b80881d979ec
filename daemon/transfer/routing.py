"""`retuned export routing`: the deployments as the configuration of other people's routers."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.settings import Settings
from retuned.retrain.release.deployments import Deployment, deployments

WEIGHT = 10_000
"""Of all conversations."""

_GATEWAY_API = """\
# InferenceModelRewrite of the Gateway API inference extension: a request for a workload's name goes to the versions
# that serve it, drawn for each request by weight, not by conversation. Set spec.poolRef.name to your InferencePool.
"""
_LITELLM = """\
# LiteLLM proxy: a request for a workload's name goes to the versions that serve it, drawn for each request by weight,
# not by conversation.
"""


def routing(format: str, warehouse: Warehouse, settings: Settings, workload: str | None) -> bytes:
    """YAML in one of `FORMATS`, of one workload or of all that have versions."""
    serving = [
        one for one in deployments(warehouse) if one.share > 0 and (workload is None or one.workload == workload)
    ]
    by_workload: dict[str, list[Deployment]] = {}
    for one in serving:
        by_workload.setdefault(one.workload, []).append(one)
    return FORMATS[format](by_workload, settings).encode()


def _gateway_api(serving: Mapping[str, list[Deployment]], settings: Settings) -> str:
    return _GATEWAY_API + yaml.safe_dump_all(
        (
            {
                "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
                "kind": "InferenceModelRewrite",
                "metadata": {"name": _object_name(workload)},
                "spec": {
                    "poolRef": {"group": "inference.networking.k8s.io", "name": "POOL"},
                    "rules": [
                        {
                            "matches": [{"model": {"type": "Exact", "value": workload}}],
                            "targets": [
                                {"modelRewrite": _name(one, settings), "weight": _weight(one.share)} for one in parts
                            ],
                        }
                    ],
                },
            }
            for workload, parts in serving.items()
        ),
        sort_keys=False,
        explicit_start=True,
    )


def _litellm(serving: Mapping[str, list[Deployment]], settings: Settings) -> str:
    models = [model for workload, parts in serving.items() for model in _litellm_models(workload, parts, settings)]
    return _LITELLM + yaml.safe_dump(
        {"model_list": models, "router_settings": {"routing_strategy": "simple-shuffle"}}, sort_keys=False
    )


def _litellm_models(workload: str, parts: Iterable[Deployment], settings: Settings) -> Iterable[dict[str, Any]]:
    servers = settings.for_workload(workload).serving.servers
    replicas = [(server.kind, url.rstrip("/")) for server in servers for url in server.urls]
    for one in parts:
        for kind, url in replicas:
            name = _name(one, settings)
            if kind == "sglang" and one.version is not None:  # it has adapters as BASE:NAME in OpenAI's routes
                name = f"{settings.for_workload(workload).base}:{name}"
            params = {
                "model": f"{'hosted_vllm' if kind == 'vllm' else 'openai'}/{name}",
                "api_base": url,
                "weight": _weight(one.share / len(replicas)),
            }
            yield {"model_name": workload, "litellm_params": params}


FORMATS: dict[str, Callable[[Mapping[str, list[Deployment]], Settings], str]] = {
    "gateway-api": _gateway_api,
    "litellm": _litellm,
}


def _name(one: Deployment, settings: Settings) -> str:
    """On a server; the base model has there the name of its folder, unless --served-model-name gives it another."""
    return one.name if one.version is not None else str(settings.for_workload(one.workload).base)


def _weight(share: float) -> int:
    return max(1, round(WEIGHT * share))


def _object_name(workload: str) -> str:
    """A name that Kubernetes allows (RFC 1123)."""
    return re.sub(r"[^a-z0-9.-]+", "-", workload.lower()).strip("-.")[:253] or "workload"
