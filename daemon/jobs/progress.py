"""The progress of a run as text."""

from typing import Any

COUNTED = {"train": ("step", "steps"), "evaluate": ("evaluated", "rows")}
"""By stage, what a report counts, and of how many."""
SHOWN = {
    "train": ("fold", "step", "steps", "epoch", "loss"),
    "evaluate": ("fold", "evaluated", "rows"),
}


def words(progress: dict[str, Any]) -> str:
    """Returns a report of a run as text: `train, step 3, steps 90, loss 0.42` or `train, on Ray: PENDING`."""
    if progress["stage"] in SHOWN and progress.get("ray_status") in ("PENDING", "AWAY"):
        return f"{progress['stage']}, on Ray: {progress['ray_status']}"
    shown = (key for key in SHOWN.get(progress["stage"], ()) if isinstance(progress.get(key), int | float))
    return ", ".join([progress["stage"], *(f"{key.replace('_', ' ')} {_short(progress[key])}" for key in shown)])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
