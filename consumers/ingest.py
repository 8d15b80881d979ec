"""Ingestion from Kafka: reads, decodes and redacts events, and writes rows and offsets in one transaction."""

import logging

from retuned.consumers.dead_letter_topic import DeadLetterTopic
from retuned.consumers.decoding import Decoder
from retuned.consumers.ingest_loop import IngestLoop
from retuned.consumers.kafka.contract import Batch, Publisher, Source
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.writer import QUERIES

log = logging.getLogger(__name__)


class Ingest(IngestLoop):
    """Moves events from Kafka's topics into the warehouse.

    Attributes:
        decoder: for use in `run_in_ingest_thread` only.
    """

    def __init__(
        self,
        source: Source,
        warehouse: Warehouse,
        settings: Settings,
        metrics: Metrics,
        publisher: Publisher | None = None,
    ) -> None:
        """Creates the loop; raises like `IngestLoop`.

        Args:
            publisher: used if settings.kafka.dead_letter_topic is set.
        """
        super().__init__(source, warehouse, settings, metrics, settings.kafka.topics)
        self._dead_letter_topic = DeadLetterTopic(publisher, settings.kafka.dead_letter_topic, metrics)
        self.decoder = Decoder(settings, self.note_progress)

    def account_for(self, rows: Rows) -> None:
        """Counts a stored batch of Kafka or of a file, and copies its dead letters."""
        self._counting.stored(rows)
        self._dead_letter_topic.copy(rows.dead)

    def resume(self) -> None:
        """Continues after too many dead letters: no number of them stops ingestion until the backlog is read."""

        def record() -> None:
            self.warehouse.execute(QUERIES["resume"], {"now": utc_now()})
            self._producers.catching_up, self._producers.on_trial = True, False

        self.run_in_ingest_thread("dead letters", record)

    def _decode(self, batch: Batch) -> Rows:
        rows = self.decoder.rows(batch, self.settings.ingest.deduplicate_seconds, self.writer.pseudonym)
        if self._producers.on_trial and rows.bad:
            events, (record, bad) = sum(table.num_rows for table in rows.tables.values()), rows.bad[-1]
            example = f"{record.topic}:{record.partition}:{record.offset}, {bad.error.reason}"
            self._producers.try_batch(events, len(rows.bad), example)
        return rows

    def _account(self, rows: Rows) -> None:
        self._counting.moved(rows)
        self.account_for(rows)

    def _answers(self, problem: str) -> None:
        if problem and not self.broker_problem:
            log.warning("%s; trying again until it answers", problem)
        elif not problem and not self.broker_up:
            log.info("kafka %s: answers", self.settings.kafka.bootstrap_servers)
        self.broker_up, self.broker_problem = not problem, problem
        self._metrics.broker_up.set(self.broker_up)

    def _caught_up(self) -> None:
        if self._producers.catching_up:
            self.warehouse.execute(QUERIES["caught_up"], {"now": utc_now()})
            self._producers.forgive()
            log.info("the backlog is read: too many dead letters stop ingestion again")
