"""Reports how much of a base model an adapter would cover, before training.

A child process builds the model from its config.json, without allocating its weights.
"""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.errors import ConfigurationError
from retuned.retrain.runners.devices import has_gpu
from retuned.retrain.settings import Settings, TrainSettings
from retuned.retrain.training import engine
from retuned.retrain.training.base_model import check_base_model, load_config, model_type

_SECONDS = 600.0


def check(settings: Settings) -> str | None:
    """Returns what an adapter would cover under a workload's settings. None if no adapter is trained, or if the base
    model's folder holds no model, which `check_base_model` reports.

    Raises:
        RetunedError: the base model cannot be trained with these settings, or an adapter would cover too little.
    """
    base, train = settings.base, settings.train
    if not isinstance(base, Path):
        return None
    try:
        check_base_model(base)
    except ConfigurationError:
        return None
    if settings.runner.kind == "local":
        engine.choose(model_type(base), train, int(has_gpu(train)))
    if train.method == "full":
        return None
    decisive = train.model_dump(mode="json", include={"target_modules", "dropout", "use_dora"})
    return f"covers {_covered(json.dumps({'base': str(base), 'settings': decisive}))}"


@cache
def _covered(job: str) -> str:
    """Runs the child once for all workloads with the same settings."""
    with TemporaryDirectory() as folder:
        result = run_child("retuned.retrain.training.coverage", json.loads(job), Path(folder), timeout_seconds=_SECONDS)
    return str(result["covered"])


def work(job: dict[str, Any], _: Emit) -> dict[str, Any]:
    """Builds the model and measures the coverage, in the child process."""
    import torch
    from transformers import AutoModelForCausalLM

    from retuned.retrain.training import targets
    from retuned.retrain.training.adapter import new_adapter

    base, settings = Path(job["base"]), TrainSettings.model_validate(job["settings"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(base), dtype=torch.bfloat16)
        covered = targets.coverage(new_adapter(model, base, settings))
    if not settings.target_modules:
        targets.check(covered, base)
    return {"covered": str(covered)}


if __name__ == "__main__":
    child_main(work)
