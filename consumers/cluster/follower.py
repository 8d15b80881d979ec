"""A daemon's side of a cluster: segments go into its warehouse, as the messages of Kafka do without a cluster."""

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

import pyarrow as pa
from prometheus_client import Gauge

from retuned.consumers.cluster import segments
from retuned.consumers.cluster.source import SegmentBatch, SegmentSource
from retuned.consumers.file_import import EVER_SECONDS
from retuned.consumers.formats.files import TOPIC
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.contract import Batch, Partition
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.writer import QUERIES, stored_offsets

log = logging.getLogger(__name__)


class Follower(Ingest):
    """Moves events from segments into the warehouse: rows, offsets and the segment's number in one transaction.

    What ingesters count (messages, dead letters, redactions) is not counted again; they, and nobody here, redact, copy
    dead letters to their topic, and take in too many of them.
    """

    counts_messages = False

    def __init__(
        self,
        source: SegmentSource,
        warehouse: Warehouse,
        settings: Settings,
        metrics: Metrics,
        store_up: Gauge,
    ) -> None:
        """
        Raises:
            ConfigurationError: as `Ingest`.
        """
        super().__init__(source, warehouse, settings, metrics)
        self._store_up = store_up
        self._producers.catching_up, self._producers.on_trial = True, False  # they never stop it
        self._awaited: dict[Future[Rows], tuple[Partition, int]] = {}

    @contextmanager
    def awaiting(self, partition: Partition, offset: int) -> Iterator[Future[Rows]]:
        """What became of the segment that moves a partition there, from before it is recorded: its rows, as they were
        stored here."""
        future: Future[Rows] = Future()
        self._awaited[future] = (partition, offset)
        try:
            yield future
        finally:
            del self._awaited[future]

    def _decoded(self, batch: Batch) -> Rows:
        assert isinstance(batch, SegmentBatch)
        if batch.expired is not None:
            log.warning(
                "segments up to %d have expired: this warehouse lacks up to %d rows of them",
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
        of_file = any(topic.startswith(TOPIC) for topic, _ in batch.nexts)
        seconds = EVER_SECONDS if of_file else self.settings.ingest.deduplicate_seconds
        rows = segments.rows(batch, batch.segment, batch.content, seconds)
        rows.with_archive = of_file  # which archive has what differs between daemons, and their rows must not
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

    def _finish(self, rows: Rows) -> None:
        if rows.is_traffic:
            super()._finish(rows)
            return
        self._metrics.duplicates.inc(rows.duplicates)
        self._metrics.batch_seconds.observe(rows.seconds)
        pa.default_memory_pool().release_unused()

    def _answers(self, problem: str) -> None:
        if bool(problem) != bool(self.broker_problem):
            log.log(logging.WARNING if problem else logging.INFO, "%s", problem or "segments are read again")
        self.broker_up, self.broker_problem = not problem, problem
        self._store_up.set(not problem)

    def _caught_up(self) -> None:
        """Nothing that a number of dead letters had stopped goes on."""


def followed(warehouse: Warehouse) -> int:
    """The number of the last segment that a warehouse has."""
    found = warehouse.row(QUERIES["followed"])
    assert found is not None
    return int(found["number"])
