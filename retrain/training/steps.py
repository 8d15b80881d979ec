"""What a step of a training is, whatever the engine: its rows, its learning rate, and when it has diverged."""

import math

from retuned.consumers.errors import RetunedError
from retuned.retrain.settings import TrainSettings

BETAS = (0.9, 0.99)
CLIP = 1.0


def learning_rate(step: int, steps: int, settings: TrainSettings) -> float:
    """Of the step that comes next, counted from 0: a linear rise over the warm-up, then a linear fall to zero.

    Args:
        settings: with a learning rate, as `for_model` gives one.
    """
    assert settings.learning_rate is not None
    warm = math.ceil(settings.warmup_share * steps)
    share = (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)
    return settings.learning_rate * share


def order(rows: int, epoch: int, settings: TrainSettings) -> list[int]:
    """In which order the rows are seen in an epoch, both counted from 0."""
    import numpy as np

    shuffled: list[int] = np.random.default_rng([settings.seed, epoch]).permutation(rows).tolist()
    return shuffled


def check_finite(step: int, loss: float, norm: float, settings: TrainSettings) -> None:
    """Let a training that diverged end, before it is evaluated or goes on from a checkpoint.

    Args:
        norm: of the gradients, before they are clipped.

    Raises:
        RetunedError: loss or norm is not a finite number.
    """
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise RetunedError(
            f"training diverged: at step {step} the loss is {loss:g} and the norm of its gradients {norm:g}; lower "
            f"train.learning_rate (it was {settings.learning_rate:g}), or set train.dtype to float32"
        )
