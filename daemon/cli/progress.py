"""How far a retraining is, for a person at a terminal."""

import sys
import time
from typing import Any

SHOWN = {
    "train": ("fold", "step", "steps", "epoch", "loss", "validation_loss"),
    "evaluate": ("fold", "evaluated", "rows"),
}
EVERY_SECONDS = 10.0


def words(progress: dict[str, Any]) -> str:
    """What a run reported, as in `train, step 3, steps 90, loss 0.42` or `train, on Ray: PENDING`."""
    if progress["stage"] in SHOWN and progress.get("ray_status") in ("PENDING", "AWAY"):
        return f"{progress['stage']}, on Ray: {progress['ray_status']}"
    shown = (key for key in SHOWN.get(progress["stage"], ()) if isinstance(progress.get(key), int | float))
    return ", ".join([progress["stage"], *(f"{key.replace('_', ' ')} {_short(progress[key])}" for key in shown)])


class Progress:
    """Of a run that this process makes: a line on its standard error for each stage, and every few seconds."""

    def __init__(self) -> None:
        self._stage, self._shown_at = "", 0.0

    def show(self, progress: dict[str, Any]) -> None:
        """Show what the run under way reported, if it is time to."""
        now = time.monotonic()
        if progress["stage"] != self._stage or now - self._shown_at >= EVERY_SECONDS:
            self._stage, self._shown_at = progress["stage"], now
            print(f"{progress['workload']}: {words(progress)}", file=sys.stderr, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
