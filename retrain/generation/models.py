"""The models of an evaluation: what makes them ready, and which engine answers for them.

Where champion and candidate have different base models, one base model is in memory after the other.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.consumers.settings import PrivacySettings
from retuned.retrain import versions
from retuned.retrain.data import chat
from retuned.retrain.data.redaction import check_redacted
from retuned.retrain.generation.engine import Engine, Row
from retuned.retrain.generation.kept import KeptAnswers
from retuned.retrain.generation.lora_server import covers_experts
from retuned.retrain.generation.provider import ANSWERS, ProviderEngine
from retuned.retrain.generation.server import Server, ServerEngine, visible
from retuned.retrain.settings import Base, EvaluateSettings, ProviderModel, Settings, TrainSettings
from retuned.retrain.training import provider

KEPT = "answers.jsonl"
"""In the folder of the workload: answers of earlier evaluations (see `kept`)."""
_TOKEN = "RETUNED_EVALUATE_TOKEN"
"""In the environment of the child: what the server asks for."""


@dataclass(frozen=True)
class Group:
    """Models that are asked together: those of one base model, or all that a provider has.

    Attributes:
        models: names, and where a training left each; None: the bare base model.
    """

    base: Base
    models: dict[str, Path | None]


def secrets(settings: Settings) -> dict[str, str]:
    """The environment in which a child may ask what generates."""
    return {
        _TOKEN: settings.evaluate.bearer_token() or "",
        provider.TOKEN: (settings.train.bearer_token() or "") if settings.train.engine == "api" else "",
    }


@contextmanager
def ready(groups: Sequence[Group], workload: str, settings: Settings, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """The groups as the child gets them. With a server it has the adapters meanwhile, each under a name of this
    evaluation alone."""
    if isinstance(groups[0].base, ProviderModel):
        yield [
            {
                "models": {
                    name: str(one.base) if path is None else versions.provider_model_in(path)
                    for name, path in one.models.items()
                },
                "bare": [name for name, path in one.models.items() if path is None],
                "provider": settings.train.model_dump(
                    mode="json", include={"engine", "api_url", "api_timeout_seconds"}
                ),
                "privacy": settings.privacy.model_dump(mode="json", exclude={"user_key"}),
                "answers": str(folder.resolve() / ANSWERS),
            }
            for one in groups
        ]
        return
    if settings.evaluate.engine == "transformers":
        yield [
            {
                "base": str(one.base),
                "models": {name: path and str(path) for name, path in one.models.items()},
                "weights": _weights(one),
            }
            for one in groups
        ]
        return
    if len(groups) > 1:
        raise RetunedError(
            "evaluate.engine server: the champion and the candidate have different base models, and a server has one; "
            "set evaluate.engine to transformers to compare them"
        )
    (group,) = groups
    evaluation = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]
    names: dict[str, str | None] = {}
    paths: dict[str, Path] = {}
    fused = set[str]()
    for model, path in group.models.items():
        if path is None:
            names[model] = None
            continue
        names[model] = name = f"{workload}@{versions.content_hash(path)}-evaluation-{evaluation}"
        paths[name] = visible(path, settings.models.directory, settings.evaluate)
        if covers_experts(path):
            fused.add(name)
    with Server(settings.evaluate, settings.evaluate.bearer_token()).loaded(paths, fused):
        yield [{"base": str(group.base), "models": names, "weights": _weights(group)}]


def _weights(group: Group) -> dict[str, str]:
    """What identifies the weights of each model."""
    base = versions.base_hash(group.base)
    return {
        name: base if path is None else f"{base}+{versions.content_hash(path)}" for name, path in group.models.items()
    }


def engine(group: Mapping[str, Any], job: Mapping[str, Any], settings: EvaluateSettings, rows: Iterable[Row]) -> Engine:
    """What answers for a group of `ready`, in the child: models in its process, on the server, or at the provider.

    Args:
        job: of the evaluation.
        rows: that it will be asked. A provider is sent nothing if one of them holds personal data.

    Raises:
        PersonalData: one does.
    """
    if "provider" in group:
        sent = ((row["row_id"], chat.request(row, job["encoding"]["context"])) for row in rows)
        check_redacted(sent, PrivacySettings.model_validate(group["privacy"]))
        client = provider.client(TrainSettings.model_validate(group["provider"]), os.environ.get(provider.TOKEN))
        context = job["encoding"]["context"]
        return ProviderEngine(client, group["models"], group["bare"], settings, context, Path(group["answers"]))
    base = Path(group["base"])
    scope = [settings.engine, settings.url, job["dtype"], job["quantized"], version("retuned"), version("transformers")]
    kept = KeptAnswers(Path(job["kept"]), group["weights"], json.dumps(scope))
    if settings.engine == "server":
        from retuned.retrain.training.base_model import load_tokenizer

        server = Server(settings, os.environ.get(_TOKEN))
        return ServerEngine(server, load_tokenizer(base), group["models"], settings, job["encoding"], kept)
    import torch

    from retuned.retrain.generation.transformers import TransformersEngine

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    paths = {name: path and Path(path) for name, path in group["models"].items()}
    return TransformersEngine(
        base, paths, settings, dtype=job["dtype"], quantized=job["quantized"], encoding=job["encoding"], kept=kept
    )
