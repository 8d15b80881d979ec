"""Updates the metrics of stored batches and of the age of waiting events."""

import logging
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from retuned.consumers.formats.dialects import PASSED_OVER
from retuned.consumers.kafka.records import BrokenBatch
from retuned.consumers.metrics import Metrics
from retuned.consumers.warehouse.rows import Rows

log = logging.getLogger(__name__)


class Counting:
    """Updates the metrics of ingestion. For one thread; others may read the attributes.

    Attributes:
        passed_over: skipped messages since the start, by the reasons in `dialects.PASSED_OVER`.
        lag_seconds: an upper bound of the age of the oldest unread event, by topic; absent: unknown.
    """

    def __init__(self, metrics: Metrics, topics: Sequence[str]) -> None:
        self._metrics = metrics
        self.passed_over: Counter[str] = Counter()
        self.lag_seconds: dict[str, float] = {}
        for topic in topics:
            metrics.lost.labels(topic)  # series start at 0, so that alerts see their first increase
            metrics.remade.labels(topic)
            metrics.events.labels(topic)

    def moved(self, rows: Rows) -> None:
        """Counts recreated topics, and lost or broken events of a batch from Kafka."""
        metrics = self._metrics
        for topic in rows.remade:
            metrics.remade.labels(topic).inc()
        for topic, count in rows.lost.items():
            metrics.lost.labels(topic).inc(count)
        for record, _ in rows.bad:
            if isinstance(record, BrokenBatch):
                metrics.lost.labels(record.topic).inc(record.events)
                log.error("%s; continuing after it", record.problem)

    def stored(self, rows: Rows) -> None:
        """Counts the content of a stored batch from Kafka or a file."""
        metrics = self._metrics
        for topic, count in rows.messages.items():
            metrics.events.labels(topic.partition(":")[0]).inc(count)  # all files are one series: `import`
        for reason, count in Counter(dead.reason for dead in rows.dead).items():
            metrics.dead_letters.labels(reason).inc(count)
        for reason, count in rows.passed_over.items():
            if reason not in self.passed_over:
                log.info("messages are skipped: %s", PASSED_OVER[reason])
            self.passed_over[reason] += count
            metrics.passed_over.labels(reason).inc(count)
        for place, count in Counter(map(raised_in, rows.unforeseen)).items():
            log.error("%d messages are dead letters because of a bug in retuned (internal_error): %s", count, place)
        for kind, count in rows.redactions.items():
            metrics.redactions.labels(kind).inc(count)
        metrics.duplicates.inc(rows.duplicates)
        metrics.erased.inc(rows.erased)
        metrics.batch_seconds.observe(rows.seconds)

    def waits(self, seconds: dict[str, float]) -> None:
        """Sets the age of the oldest unread event of each topic."""
        for topic in self.lag_seconds.keys() - seconds.keys():
            self._metrics.lag_seconds.remove(topic)
        for topic, age in seconds.items():
            self._metrics.lag_seconds.labels(topic).set(age)
        self.lag_seconds = seconds


def raised_in(error: BaseException) -> str:
    """Describes an error by its type and place; its text may quote unredacted content."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
