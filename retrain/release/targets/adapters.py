"""Checks before loading whether model servers support an adapter of PEFT."""

import json

from retuned.retrain.release.targets.target import Unservable
from retuned.retrain.serving_settings import ServerTarget
from retuned.retrain.settings import Settings
from retuned.retrain.training.base_model import has_experts
from retuned.retrain.versions import Version


def check(version: Version, server: str, maximum_rank: int) -> None:
    """
    Raises:
        Unservable: servers of this kind do not support the adapter.
    """
    file = version.path / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unservable(
            f"{version.name}: {file} cannot be read ({error.strerror}); restore it from a backup"
        ) from error
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    anew = f"retrain from the base model (`retuned promote {version.workload} base`, then `retuned retrain`)"
    if config.get("modules_to_save"):
        raise Unservable(
            f"{version.name}: it has whole layers (modules_to_save), which {server} does not load: set train.method "
            f"to lora and {anew}, or serve it merged"
        )
    if config.get("use_dora"):
        raise Unservable(
            f"{version.name}: it is a DoRA adapter, which {server} does not load: set train.use_dora to "
            f"false and {anew}"
        )
    if config.get("bias", "none") != "none":
        raise Unservable(
            f"{version.name}: it trains biases (bias: {config['bias']}), which {server} does not load: {anew}"
        )
    if server == "sglang" and config.get("target_parameters"):
        raise Unservable(
            f"{version.name}: it adapts experts (target_parameters), which sglang does not load: serve it by vllm, or "
            f"name the layers beside the experts in train.target_modules and {anew}"
        )
    if rank > maximum_rank:
        raise Unservable(
            f"{version.name}: its rank is {rank}, and the server takes {maximum_rank} (maximum_rank): start {server} "
            f"with --max-lora-rank {rank} or more and set maximum_rank to that, or set train.rank to {maximum_rank} "
            f"and {anew}"
        )


def adapts_experts(settings: Settings) -> bool:
    """Returns whether adapters by these settings cover fused experts of the base model."""
    train, base = settings.train, settings.base
    return train.method != "full" and not train.target_modules and base is not None and has_experts(base)


def check_settings(settings: Settings, target: ServerTarget) -> list[str]:
    """Returns the settings of a workload that a server does not support, each with advice."""
    train, problems = settings.train, []
    if train.method == "full":
        problems.append(f"train.method full: {target.kind} loads adapters only; set it to lora or qlora")
    if train.use_dora:
        problems.append(f"train.use_dora: {target.kind} does not load DoRA; set it to false")
    if target.kind == "sglang" and adapts_experts(settings):
        problems.append(
            f"models.base: {settings.base} has experts, on which sglang loads no adapter; serve it by vllm, or name "
            "the layers beside the experts in train.target_modules"
        )
    if train.rank > target.maximum_rank:
        problems.append(
            f"train.rank {train.rank}: {target.kind} takes {target.maximum_rank} (serving.targets maximum_rank); "
            f"start it with --max-lora-rank {train.rank} and set maximum_rank to that, or lower train.rank"
        )
    return problems
