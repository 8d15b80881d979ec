"""Updates a run's row (state, attempts, times and costs) and reports its progress."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

from retuned.consumers.common.process import Emit
from retuned.consumers.errors import Cancelled, RetunedError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.queue import changing

T = TypeVar("T")


class RunRecord:
    """A row of `runs`. Only the run's thread uses it; other threads may cancel the run."""

    def __init__(
        self,
        warehouse: Warehouse,
        workload: str,
        run_id: str,
        folder: Path,
        now: Callable[[], datetime],
        on_progress: Emit,
    ) -> None:
        self._warehouse, self._workload, self._id, self._folder = warehouse, workload, run_id, folder
        self._now, self._on_progress = now, on_progress
        self._waited = 0.0
        self._waits_since: float | None = None

    def row(self) -> dict[str, Any]:
        """Reads the row."""
        row = self._warehouse.row("SELECT * FROM runs WHERE id = ?", [self._id])
        assert row is not None
        return row

    def begin(self, most: int) -> None:
        """Counts the attempt before the run starts, because a crash of the daemon leaves no other trace.

        Raises:
            Cancelled: the run was cancelled.
            RetunedError: there were `most` attempts before.
        """
        with changing:
            row = self.row()
            if row["state"] == "cancelled":
                raise Cancelled(row["error"])
            attempts = row["attempts"] or 0
            if attempts >= most:
                raise RetunedError(
                    f"run {self._id}: given up after {attempts} attempts in which the daemon was killed "
                    "(train.attempts), most likely for want of memory: give it more, or lower train.batch_size, "
                    "train.max_length or train.rank, and retrain"
                )
            started_at = self._now() if row["state"] == "waiting" else row["started_at"]
            self._set(state="running", attempts=attempts + 1, started_at=started_at)

    def interrupted(self) -> dict[str, Any]:
        """Marks a stopped run as interrupted, which is no failed attempt, unless it is cancelled. Returns the row."""
        with changing:
            row = self.row()
            if row["state"] == "running":
                self._set(state="interrupted", attempts=max(0, (row["attempts"] or 0) - 1))
            return self.row()

    def finish(self, **values: Any) -> dict[str, Any]:
        """Stores the end of a run, unless it is cancelled. Returns the row."""
        with changing:
            if self.row()["state"] != "cancelled":
                self._set(finished_at=self._now(), **values)
            return self.row()

    def update(self, **values: Any) -> None:
        """Sets columns."""
        with changing:
            self._set(**values)

    def paid(self, judge_tokens: int) -> None:
        """Adds the tokens of a judge."""
        if judge_tokens:
            self.update(judge_tokens=(self.row()["judge_tokens"] or 0) + judge_tokens)

    def timed(self, column: str, work: Callable[[], T]) -> T:
        """Adds the seconds that `work` takes to a column, even if it fails, whatever happens to the clock. Time spent
        waiting for a cluster is excluded."""
        started, self._waited = monotonic(), 0.0
        try:
            return work()
        finally:
            self._count_waiting(waits=False)
            spent = monotonic() - started - self._waited
            self.update(**{column: (self.row()[column] or 0.0) + spent})

    def report(self, stage: str, **line: Any) -> None:
        """Reports progress."""
        if "ray_status" in line:
            self._count_waiting(waits=line["ray_status"] == "PENDING")
        self._on_progress({"stage": stage, "workload": self._workload, "run_id": self._id} | line)

    def _count_waiting(self, *, waits: bool) -> None:
        """Starts or ends a period of waiting for a cluster's resources."""
        if self._waits_since is not None:
            self._waited += monotonic() - self._waits_since
        self._waits_since = monotonic() if waits else None

    def _set(self, **values: Any) -> None:
        columns = ", ".join(f"{name} = ?" for name in values)
        self._warehouse.execute(f"UPDATE runs SET {columns} WHERE id = ?", [*values.values(), self._id])
