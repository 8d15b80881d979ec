"""How far retrainings are, for a person at a terminal."""

import sys
import time
from typing import Any

from retuned.daemon.jobs.progress import words

EVERY_SECONDS = 10.0
MOST_NAMED = 10
PLACES = {"local": "on this machine", "ray": "on Ray"}


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
