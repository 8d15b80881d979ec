"""Independent parts of a job: if one fails, the others still run, and the job fails at its end with the reasons."""

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
"""Errors after which nothing can be stored any more: the daemon stops."""


class PartsFailed(RetunedError):
    """Parts of a job failed; the text has their names and reasons. The others succeeded."""


class Parts:
    """The parts of one run of a job.

    Attributes:
        failed: names and reasons of the parts that failed.
    """

    def __init__(self, job: str, metric: Counter, known: str) -> None:
        """
        Args:
            metric: counts failures; labels task and workload.
            known: the error of the last run, which is not logged again.
        """
        self._job, self._metric, self._known = job, metric, known
        self.failed: list[str] = []

    @contextmanager
    def step(self, name: str, on_failure: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Run a part. Its failure is noted for the end of the job, unless the job or the daemon has to stop. Safe for
        threads."""
        try:
            yield
        except (Cancelled, *FATAL):
            raise
        except Exception as error:  # raised once all parts have run
            expected = isinstance(error, RetunedError)
            text = f"{name}: {error if expected else f'{type(error).__name__}: {first_line(error)}'}"
            self.failed.append(text)
            on_failure()
            if not expected and text not in self._known:
                log.error("job %s: %s", self._job, text, exc_info=error)

    @contextmanager
    def workload(self, name: str) -> Iterator[None]:
        """Run the part of one workload."""
        with about(workload=name), self.step(f"workload {name}", self._metric.labels(self._job, name).inc):
            yield


@contextmanager
def parts(job: str, metric: Counter, known: str) -> Iterator[Parts]:
    """Run a job in parts. A cancelled job ends without an error.

    Raises:
        PartsFailed: parts failed; raised at the end.
    """
    run = Parts(job, metric, known)
    try:
        with about(job=job):
            yield run
    except Cancelled:
        return
    if run.failed:
        raise PartsFailed("; ".join(run.failed))
