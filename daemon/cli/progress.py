"""How far retrainings are, for a person at a terminal."""

import sys
import time
from typing import Any

SHOWN = {
    "train": ("fold", "step", "steps", "epoch", "loss", "validation_loss"),
    "evaluate": ("fold", "evaluated", "rows"),
}
EVERY_SECONDS = 10.0
MOST_NAMED = 10
PLACES = {"local": "on this machine", "ray": "on Ray"}


def words(progress: dict[str, Any]) -> str:
    """What a run reported, as in `train, step 3, steps 90, loss 0.42` or `train, on Ray: PENDING`."""
    if progress["stage"] in SHOWN and progress.get("ray_status") in ("PENDING", "AWAY"):
        return f"{progress['stage']}, on Ray: {progress['ray_status']}"
    shown = (key for key in SHOWN.get(progress["stage"], ()) if isinstance(progress.get(key), int | float))
    return ", ".join([progress["stage"], *(f"{key.replace('_', ' ')} {_short(progress[key])}" for key in shown)])


def queue(status: dict[str, Any]) -> list[str]:
    """The runs under way with where they are made, and those in line, as they come next, with what they wait for."""
    begun = [f"{one['workload']} {PLACES[one['runner']]}" for one in status["under_way"]]
    in_line = [f"{one['workload']} ({one['waits_for']})" for one in status["queue"]]
    return [f"{name:<9} {_some(runs)}" for name, runs in (("training", begun), ("in line", in_line)) if runs]


class Progress:
    """Of the runs that this process makes: a line on its standard error for each stage, and every few seconds."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[str, float]] = {}  # by workload: the stage, and when it was shown

    def show(self, progress: dict[str, Any]) -> None:
        """Show what a run under way reported, if it is time to."""
        now, workload = time.monotonic(), progress["workload"]
        stage, shown_at = self._shown.get(workload, ("", 0.0))
        if progress["stage"] != stage or now - shown_at >= EVERY_SECONDS:
            self._shown[workload] = progress["stage"], now
            print(f"{workload}: {words(progress)}", file=sys.stderr, flush=True)


def _some(named: list[str]) -> str:
    more = len(named) - MOST_NAMED
    return ", ".join(named[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
