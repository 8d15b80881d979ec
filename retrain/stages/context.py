"""The state that the stages of a run share."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime

from retuned.consumers.common.process import Emit
from retuned.consumers.common.spans import Span, span
from retuned.consumers.errors import Cancelled
from retuned.retrain.data.build import this_machine
from retuned.retrain.queue import folder_of
from retuned.retrain.record import RunRecord
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.versions import Version

Clock = Callable[[], datetime]

_WAIT_SECONDS = 0.5


class Context:
    """A run in progress.

    Attributes:
        settings: the workload's settings. The dataset stage sets `models.base` to the base model of the run.
        folder: the run's files; removed once it has ended.
        rebases: the run trains on another base model, so it starts without the champion.
        start: the version from which the training starts, None for the base model; set by the dataset stage. It is the
            champion, except in a rebase or if the champion learned erased rows.
        forgets: the champion learned erased rows, and the candidate is to replace it without them.
        rebased_from: the hash of the configured base model, if the run uses another one.
    """

    def __init__(
        self, rollout: Rollout, workload: str, run_id: str, now: Clock, stop: threading.Event, on_progress: Emit
    ) -> None:
        self.rollout, self.warehouse = rollout, rollout.warehouse
        self.settings = rollout.settings.for_workload(workload)
        self.workload, self.id, self.now, self.stop = workload, run_id, now, stop
        self.folder = folder_of(self.settings, workload, run_id)
        self.record = RunRecord(self.warehouse, workload, run_id, self.folder, now, on_progress)
        self.rebases = self.record.row()["kind"] == "rebase"
        self.rebased_from: str | None = None
        self.start: Version | None = None
        self.forgets = False

    def span(self, stage: str) -> AbstractContextManager[Span]:
        """Traces a stage."""
        return span(stage, run=self.id, workload=self.workload)

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Holds the lock on this machine for a dataset or a decision; waits while another run holds it.

        Raises:
            Cancelled: the run was stopped while it waited.
        """
        while not this_machine.acquire(timeout=_WAIT_SECONDS):
            self.check_stop()
            self.record.report("waits for another run's dataset or decision")
        try:
            yield
        finally:
            this_machine.release()

    def check_stop(self) -> None:
        """Raises Cancelled if the run was stopped."""
        if self.stop.is_set():
            raise Cancelled(f"run {self.id}: stopped before it was done")
