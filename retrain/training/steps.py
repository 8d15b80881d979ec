"""Defines a step for every engine: its rows, its learning rate, and the check for divergence."""

import math

from retuned.consumers.errors import RetunedError
from retuned.retrain.settings import TrainSettings

BETAS = (0.9, 0.99)
CLIP = 1.0


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Returns the learning rate of a step, counted from 0: a linear warm-up, then a linear decay to zero.

    Args:
        settings: must have a learning rate, as from `for_model`.
    """
    assert settings.learning_rate is not None
    warm = math.ceil(settings.warmup_share * steps)
    share = (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)
    return settings.learning_rate * share


def order(rows: int, epoch: int, settings: TrainSettings) -> list[int]:
    """Returns the order of the rows in an epoch, both counted from 0."""
    import numpy as np

    shuffled: list[int] = np.random.default_rng([settings.seed, epoch]).permutation(rows).tolist()
    return shuffled


def check_finite(step: int, loss: float, norm: float, settings: TrainSettings) -> None:
    """Ends a training that has diverged, before it is evaluated or writes a checkpoint.

    Args:
        norm: the norm of the gradients before clipping.

    Raises:
        RetunedError: loss or norm is not a finite number.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise RetunedError(
            f"training diverged: at step {step} the loss is {loss:g} and the norm of its gradients {norm:g}; lower "
            f"train.learning_rate (it was {settings.learning_rate:g}), or set train.dtype to float32"
        )
