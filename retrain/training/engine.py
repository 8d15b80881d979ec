"""Chooses the engine of a training, and how many rows it computes at once.

`packed.py` trains adapters on CPUs; `trl.py`, TRL's trainers with accelerate, does everything else.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from retuned.consumers.errors import RetunedError
from retuned.retrain.kernels.supported import MODEL_TYPES
from retuned.retrain.settings import TrainSettings


@dataclass(frozen=True)
class Engine:
    """The engine of a training, with the reason for the choice."""

    name: Literal["packed", "trl"]
    reason: str


def choose(model_type: str, settings: TrainSettings, gpus: int) -> Engine:
    """Chooses the engine for a base model.

    Args:
        model_type: as in the base model's config.json.
        gpus: the number of GPUs that the training may use.

    Raises:
        RetunedError: the configured engine does not support the other settings, or is not installed.
    """
    installed, beyond = find_spec("trl") is not None, _beyond_packed(settings, gpus)
    if settings.engine == "packed":
        if beyond:
            raise RetunedError(f"train.engine packed: it trains adapters on a CPU, and {beyond}; set it to trl or auto")
        return Engine("packed", "train.engine is packed")
    if settings.engine == "trl" or beyond:
        reason = beyond if settings.engine == "auto" and beyond else "train.engine is trl"
        if not installed:
            raise RetunedError(
                f"train.engine {settings.engine}: {reason}, and trl is not installed; run pip install 'retuned[trl]'"
            )
        return Engine("trl", reason)
    if model_type in MODEL_TYPES:
        return Engine("packed", f"it computes {model_type} faster on a CPU")
    if not installed:
        return Engine("packed", "trl is not installed (pip install 'retuned[trl]')")
    return Engine("trl", f"packed computes {model_type} no faster")


def _beyond_packed(settings: TrainSettings, gpus: int) -> str | None:
    """Returns the setting that `packed` does not support, in words; None if it supports all."""
    if gpus:
        return "the training runs on a GPU (train.devices)"
    if settings.preference != "none":
        return f"train.preference is {settings.preference}"
    if settings.method == "full":
        return "train.method is full"
    if settings.accelerate_file is not None:
        return "train.accelerate_file is set"
    if (settings.processes or 1) > 1:
        return f"train.processes is {settings.processes}"
    return None


def ways(settings: TrainSettings, processes: int) -> list[tuple[int, bool]]:
    """Returns the ways in which `trl` may compute a step, in the order of trial when memory runs out: the rows at once
    on each device, and whether gradient checkpointing, which keeps little of the forward pass and repeats it, is on.

    A step always has `train.batch_size` rows: gradients of rows that are not computed at once are accumulated.

    Raises:
        RetunedError: the rows of a step cannot be divided among the processes.
    """
    share, rest = divmod(settings.batch_size, processes)
    if rest:
        raise RetunedError(
            f"train.batch_size {settings.batch_size}: trl cannot divide it evenly among {processes} processes; set a "
            f"multiple of {processes}, or set train.processes to a divisor"
        )
    least = 2 if settings.preference == "kto" else 1
    if share < least:
        raise RetunedError(
            f"train.batch_size {settings.batch_size}: kto compares the answers of a step with each other, at least two "
            f"in each of {processes} process(es); set it to {2 * processes} or more"
        )
    options, size = [(share, False)], share
    while size >= least:
        options.append((size, True))
        size = next((less for less in range(size // 2, 0, -1) if share % less == 0), 0)
    return options
