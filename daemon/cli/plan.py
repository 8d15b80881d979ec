"""`retuned check --plan`: what a training would load where, and whether it fits, before anything is paid for."""

import json
from pathlib import Path

from retuned.consumers.common.memory import available_bytes
from retuned.daemon.settings import Settings
from retuned.retrain import versions
from retuned.retrain.runners.devices import gpu_memory
from retuned.retrain.training.plan import Plan, Shape, ways_out
from retuned.retrain.training.plan import plan as planned


def plan(
    settings: Settings, workload: str, base: Path | None, gpus: int | None, memory: int | None
) -> tuple[bool, list[str]]:
    """Whether training and evaluation of a workload fit, and the plan in lines for people.

    Args:
        base: another base model than `models.base`; a folder needs to hold no weights.
        gpus: so many GPUs; None: those that this machine has and `train.devices` names.
        memory: bytes of each GPU; None: what those of this machine have.

    Raises:
        RetunedError: the plan needs to know more of the base model or of the GPUs.
    """
    settings = settings.for_workload(workload)
    base = versions.need_base(base or settings.base)
    found = [memory] * (gpus or 0) if memory is not None else gpu_memory(settings.train)
    count = len(found) if gpus is None else gpus
    available = memory or min(found, default=None) if count else available_bytes()
    if count and settings.train.gpu_memory_bytes and available is not None:
        available = min(available, settings.train.gpu_memory_bytes)
    made = planned(base, settings.train, count, available)
    lines = [f"{workload}: {Shape.of(base).model_type} in {base}", *_lines(made, settings)]
    lines.append(f"time          {_measured(settings, workload, base)}")
    if not made.holds(made.total):
        lines.append("DOES NOT FIT  training; it would with:")
        ways = ways_out(base, settings.train, count, available)
        lines += [f"              {way} ({_gigabytes(size)})" for way, size in ways]
        lines += [] if ways else ["              a smaller base model, or more GPUs or memory"]
    if not made.holds(made.evaluation):
        lines.append(
            "DOES NOT FIT  evaluation, which has the base model in whole on one device; with train.method: qlora"
        )
        lines.append("              it is in 4 bits there, and evaluate.engine: server asks where it is served")
    if made.available is None:
        lines.append("whether it fits is not known: name what each GPU has by --gpu-memory")
    return made.holds(made.total) and made.holds(made.evaluation), lines


def _lines(made: Plan, settings: Settings) -> list[str]:
    has = "" if made.available is None else f" of {_gigabytes(made.available)}"
    where = f"{made.devices} GPU{'s' if made.devices > 1 else ''}{has}" if made.devices else "CPU"
    if not made.devices and made.available is not None:
        where += f", {_gigabytes(made.available)} of memory free"
    spread = "sharded over them" if made.sharded else "in whole on each" if made.devices > 1 else "in whole"
    batch = f"{settings.train.batch_size} examples in a step"
    if made.engine.name == "trl":
        batch += f", {made.micro_batch_size} at once on a device"
        batch += ", gradient checkpointing" if made.gradient_checkpointing else ", no gradient checkpointing"
    tokens = settings.train.max_length
    return [
        f"engine        {made.engine.name}: {made.engine.reason}",
        f"devices       {where}; the base model {spread}",
        f"precision     {made.precision}; what is trained in float32",
        f"learning rate {made.learning_rate:.2g} at its peak",
        f"batch         {batch}",
        f"memory        some {_gigabytes(made.total)}{' of each GPU' if made.devices else ''}: weights "
        f"{_gigabytes(made.weights)}, trained {_gigabytes(made.trained)}, activations at {tokens} tokens "
        f"{_gigabytes(made.activations)}, other {_gigabytes(made.reserved)}",
        f"evaluation    {_gigabytes(made.evaluation)} on one device, and what its batches take",
    ]


def _measured(settings: Settings, workload: str, base: Path) -> str:
    """What the champion's training took, if it was on this base model."""
    file = versions.workload_folder(settings.models.directory, workload) / versions.CHAMPION / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        training = manifest["training"]
        if Path(manifest["base_model"]) == base:
            return (
                f"the champion's took {training['seconds']:.0f} s for {training['tokens']} tokens, with engine "
                f"{training.get('engine', 'packed')} in {training['processes']} process(es)"
            )
    except (OSError, ValueError, KeyError):
        pass
    return "not known before a first training on this base model"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
