"""A run under way, as the daemon tracks it."""

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from retuned.daemon.jobs.progress import COUNTED
from retuned.retrain.runner_settings import RunnerSettings

POLL_SECONDS = 0.1
MOST_LOSSES = 200
"""Points of the loss curve that are kept; beyond, every other one goes."""


class UnderWay(threading.Event):
    """A run under way. The event is set when the run has to stop: by a command, with the daemon, or when the training
    hours end.

    Attributes:
        progress: what the run has reported of its present stage.
        losses: training loss by step, of the training under way.
        logged_at: when a report was last logged.
    """

    def __init__(
        self, row: dict[str, Any], runner: RunnerSettings, since: datetime, must_stop: Callable[[], bool]
    ) -> None:
        """
        Args:
            row: the run's row.
            must_stop: whether the run has to stop for another reason than a command.
        """
        super().__init__()
        self.run_id, self.workload, self.kind = row["id"], row["workload"], row["kind"]
        self.runner, self.since, self._must_stop = runner, since, must_stop
        self.progress: dict[str, Any] = {"stage": "starting"}
        self.logged_at = since
        self.losses: list[tuple[int, float]] = []
        self._counts: list[tuple[datetime, int]] = []

    def is_set(self) -> bool:
        return super().is_set() or self._must_stop()

    def wait(self, timeout: float | None = None) -> bool:
        left = timeout
        while not self.is_set() and (left is None or left > 0):
            super().wait(POLL_SECONDS if left is None else min(left, POLL_SECONDS))
            left = None if left is None else left - POLL_SECONDS
        return self.is_set()

    def report(self, line: dict[str, Any], now: datetime) -> None:
        """Take a report of the run."""
        is_new_stage = line["stage"] != self.progress["stage"]
        self.progress = line if is_new_stage else self.progress | line
        name, _ = COUNTED.get(line["stage"], (None, None))
        count = line.get(name) if name else None
        if is_new_stage or (isinstance(count, int) and self._counts and count < self._counts[-1][1]):  # or a new fold
            self._counts, self.losses = [], []
        if not isinstance(count, int):
            return
        self._counts = [*self._counts[:1], (now, count)]
        if isinstance(loss := line.get("loss"), float):
            self.losses = [*self.losses[:: 2 if len(self.losses) >= MOST_LOSSES else 1], (count, loss)]

    def seconds_left(self) -> float | None:
        """Returns how long the stage goes on at its speed so far; None: unknown."""
        _, total = COUNTED.get(self.progress["stage"], (None, None))
        whole = self.progress.get(total) if total else None
        if not isinstance(whole, int) or len(self._counts) < 2:
            return None
        (began, first), (now, last) = self._counts
        return (whole - last) * (now - began).total_seconds() / (last - first) if last > first else None

    def as_dict(self) -> dict[str, Any]:
        """Returns the run as the status shows it."""
        return self.progress | {
            "run_id": self.run_id,
            "workload": self.workload,
            "kind": self.kind,
            "runner": self.runner.kind,
            "since": self.since,
            "losses": self.losses,
            "seconds_left": self.seconds_left(),
        }
