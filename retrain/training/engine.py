"""Which engine a training runs on: `packed.py`, this package's own loop (packed), or `trl.py`, TRL's SFTTrainer."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from retuned.consumers.errors import RetunedError
from retuned.retrain.kernels.supported import MODEL_TYPES
from retuned.retrain.settings import TrainSettings


@dataclass(frozen=True)
class Engine:
    """The engine of a training, and why it is that one."""

    name: Literal["packed", "trl"]
    reason: str


def choose(model_type: str, settings: TrainSettings, gpus: int) -> Engine:
    """The engine for a base model.

    Args:
        model_type: as in the base model's config.json.
        gpus: how many GPUs the training may use.

    Raises:
        RetunedError: the engine that was set cannot do what else was set, or is not installed.
    """
    installed = find_spec("trl") is not None
    if settings.engine == "packed":
        if settings.accelerate_file is not None:
            raise RetunedError("train.engine packed: it reads no train.accelerate_file; unset that, or set trl")
        return Engine("packed", "train.engine is packed")
    if settings.engine == "trl":
        if settings.preference != "none":
            raise RetunedError(
                f"train.engine trl: it does not learn train.preference {settings.preference}; set that to none, or "
                "train.engine to packed"
            )
        if not installed:
            raise RetunedError("train.engine trl: trl is not installed; run pip install 'retuned[trl]', or set packed")
        return Engine("trl", "train.engine is trl")
    if settings.preference != "none":
        return Engine("packed", f"train.preference is {settings.preference}, which trl does not learn here")
    if not gpus and model_type in MODEL_TYPES:
        return Engine("packed", f"it computes {model_type} faster on a CPU")
    if not installed:
        return Engine("packed", "trl is not installed (pip install 'retuned[trl]')")
    if gpus:
        return Engine("trl", "it trains on a GPU")
    return Engine("trl", f"packed computes {model_type} no faster")
