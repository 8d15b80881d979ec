"""The parts of a job that do not depend on each other: one that fails is reported by name, and the others go on."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import duckdb
from prometheus_client import Counter

from retuned.consumers.common.logfields import about
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import Cancelled, RetunedError, WarehouseError

log = logging.getLogger(__name__)

FATAL = (WarehouseError, duckdb.FatalException)
"""After one of these nothing more can be stored: the daemon stops."""


class PartsFailed(RetunedError):
    """Parts of a job failed, as the text names them with their reasons; the others were done."""


class Parts:
    """What one run of a job is made of, and what of it failed."""

    def __init__(self, job: str, metric: Counter, known: str) -> None:
        """`metric` has the labels task and workload; `known` is what failed at the last run: no news."""
        self._job, self._metric, self._known = job, metric, known
        self.failed: list[str] = []

    @contextmanager
    def step(self, name: str, on_failure: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Whatever fails inside is kept for the end of the job, unless the job or the daemon has to stop. Threads may
        have steps at the same time."""
        try:
            yield
        except (Cancelled, *FATAL):
            raise
        except Exception as error:  # raised when all parts were tried
            expected = isinstance(error, RetunedError)
            text = f"{name}: {error if expected else f'{type(error).__name__}: {first_line(error)}'}"
            self.failed.append(text)
            on_failure()
            if not expected and text not in self._known:
                log.error("job %s: %s", self._job, text, exc_info=error)

    @contextmanager
    def workload(self, name: str) -> Iterator[None]:
        """The step of one workload."""
        with about(workload=name), self.step(f"workload {name}", self._metric.labels(self._job, name).inc):
            yield


@contextmanager
def parts(job: str, metric: Counter, known: str) -> Iterator[Parts]:
    """The parts of one run; a run that is cancelled ends quietly.

    Raises:
        PartsFailed: when all were tried.
    """
    made = Parts(job, metric, known)
    try:
        with about(job=job):
            yield made
    except Cancelled:
        return
    if made.failed:
        raise PartsFailed("; ".join(made.failed))
