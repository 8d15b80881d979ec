"""Follows the segments of a cluster into a daemon's warehouse."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from prometheus_client import Gauge

from retuned.consumers.cluster import segments
from retuned.consumers.cluster.source import SegmentBatch, SegmentSource
from retuned.consumers.file_import import EVER_SECONDS
from retuned.consumers.formats.files import TOPIC
from retuned.consumers.ingest_loop import IngestLoop
from retuned.consumers.kafka.contract import Batch, Partition
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.writer import QUERIES, stored_offsets

log = logging.getLogger(__name__)


class Follower(IngestLoop):
    """Moves events from segments into the warehouse: rows, offsets and the segment's number in one transaction.

    Ingesters have already redacted the events, counted them (messages, dead letters, redactions), and copied dead
    letters to their topic. Any number of dead letters never stops a follower.
    """

    def __init__(
        self,
        source: SegmentSource,
        warehouse: Warehouse,
        settings: Settings,
        metrics: Metrics,
        store_up: Gauge,
    ) -> None:
        """Creates a follower; raises like `IngestLoop`."""
        super().__init__(source, warehouse, settings, metrics)
        self._store_up = store_up
        self._producers.catching_up, self._producers.on_trial = True, False  # dead letters never stop it
        self._awaited: dict[Future[Rows], tuple[Partition, int]] = {}

    @contextmanager
    def awaiting(self, partition: Partition, offset: int) -> Iterator[Future[Rows]]:
        """Yields a future of the stored rows of the segment that moves a partition to an offset.

        Enter it before the segment is recorded.
        """
        future: Future[Rows] = Future()
        self._awaited[future] = (partition, offset)
        try:
            yield future
        finally:
            del self._awaited[future]

    def _decode(self, batch: Batch) -> Rows:
        assert isinstance(batch, SegmentBatch)
        if batch.expired is not None:
            log.warning(
                "segments up to %d have expired: this warehouse lacks up to %d of their rows",
                batch.expired.number,
                batch.expired.rows,
            )
            rows = Rows.of_segment(batch.expired.number, batch, 0.0, utc_now(), {}, {})
            rows.expired = True
            return rows
        assert batch.segment is not None
        if batch.segment.gone is not None:
            log.warning(
                "segment %d is gone (%s): this warehouse lacks its %d rows",
                batch.segment.number,
                batch.segment.gone,
                batch.segment.gone_rows,
            )
        is_file = any(topic.startswith(TOPIC) for topic, _ in batch.nexts)
        seconds = EVER_SECONDS if is_file else self.settings.ingest.deduplicate_seconds
        rows = segments.rows(batch, batch.segment, batch.content, seconds)
        rows.with_archive = is_file  # daemons archive different rows, but must store the same ones
        return rows

    def _write(self, rows: Rows) -> Rows:
        if rows.expired:
            stored = stored_offsets(self.warehouse)
            rows.starts = {partition: stored[partition] for partition in rows.nexts if partition in stored}
        written = super()._write(rows)
        for future, (partition, offset) in list(self._awaited.items()):
            if rows.nexts.get(partition) == offset:
                future.set_result(rows)
        return written

    def _account(self, rows: Rows) -> None:
        self._metrics.duplicates.inc(rows.duplicates)
        self._metrics.batch_seconds.observe(rows.seconds)

    def _answers(self, problem: str) -> None:
        if bool(problem) != bool(self.broker_problem):
            log.log(logging.WARNING if problem else logging.INFO, "%s", problem or "segments can be read again")
        self.broker_up, self.broker_problem = not problem, problem
        self._store_up.set(not problem)

    def _caught_up(self) -> None:
        """Does nothing: dead letters never stop a follower."""


def followed(warehouse: Warehouse) -> int:
    """Returns the number of the last segment in a warehouse."""
    row = warehouse.row(QUERIES["followed"])
    assert row is not None
    return int(row["number"])
