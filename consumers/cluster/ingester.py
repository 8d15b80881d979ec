"""An ingester: one of several processes that share the topics, redact events and write segments.

Events are stored exactly once (see `segment_writer`). After any failure, reading restarts from the stored offsets.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from retuned.consumers.cluster.database import Database
from retuned.consumers.cluster.metrics import Metrics as SegmentMetrics
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.cluster.segment_writer import SegmentWriter
from retuned.consumers.counting import Counting
from retuned.consumers.dead_letter_topic import DeadLetterTopic
from retuned.consumers.decoding import Decoder
from retuned.consumers.errors import BrokerUnavailable, Reassigned, RetunedError, StoreUnavailable
from retuned.consumers.kafka.contract import BATCH_BYTES, Batch, Partition, Publisher, Source
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import Settings

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0


class Ingester:
    """Moves events from a source into segments. For one thread; others may read the attributes.

    Attributes:
        broker_up, store_up: whether Kafka, and the database with the storage, answered last time.
        problem: what does not answer; empty: everything answers.
    """

    def __init__(
        self,
        source: Source,
        database: Database,
        objects: Objects,
        settings: Settings,
        metrics: Metrics,
        segment_metrics: SegmentMetrics,
        publisher: Publisher | None = None,
    ) -> None:
        """Creates an ingester.

        Args:
            publisher: used if settings.kafka.dead_letter_topic is set.

        Raises:
            ConfigurationError: the key of the user hash is not set or cannot be read, or privacy.names lacks its extra.
        """
        self._writer = SegmentWriter(database, objects, settings, self._note_progress)
        self._source, self._database, self._settings = source, database, settings
        self._metrics, self._segment_metrics = metrics, segment_metrics
        self._counting = Counting(metrics, settings.kafka.topics)
        self._dead_letter_topic = DeadLetterTopic(publisher, settings.kafka.dead_letter_topic, metrics)
        self._decoder = Decoder(settings, self._note_progress)
        self._rewinding = False
        self._epochs: dict[Partition, int] = {}
        source.before_assignment = self._claim
        self.broker_up = self.store_up = False
        self.problem = ""
        self._note_progress()

    @property
    def seconds_without_progress(self) -> float:
        """The time since the last iteration of the loop."""
        return time.monotonic() - self._progress_at

    @property
    def missing_topics(self) -> list[str]:
        """The configured topics that do not exist on the broker."""
        return sorted(self._source.missing)

    def run(self, stop: threading.Event) -> None:
        """Reads until `stop` is set. Waits for Kafka, the database and the storage; raises all other errors."""
        pause = FIRST_PAUSE_SECONDS
        while not stop.is_set():
            try:
                self.step()
                pause = FIRST_PAUSE_SECONDS
            except Reassigned as error:
                log.info("%s", error)
            except (BrokerUnavailable, StoreUnavailable) as error:
                self._wait_for(error)
                stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def step(self) -> int:
        """Gathers and stores one segment, and returns the number of its messages.

        After one of these errors, the next step restarts from the stored offsets:

        Raises:
            BrokerUnavailable, StoreUnavailable: a retry may help.
            Reassigned: another ingester has a partition; nothing of the batch was stored.
        """
        try:
            self._writer.share_keys()
            if self._rewinding:
                self._source.rewind()
                self._rewinding = False
            batch = self._gather()
            stored = self._store(batch) if batch.nexts else 0
            self._all_answer()
            return stored
        except (BrokerUnavailable, StoreUnavailable, Reassigned) as error:
            self._rewinding = True
            if isinstance(error, Reassigned):
                self._segment_metrics.reassigned.inc()
            raise
        finally:
            self._note_progress()

    def _claim(self, partitions: Sequence[Partition]) -> None:
        """Claims partitions before the stored offsets are read; called by any thread."""
        if partitions:
            self._epochs = self._epochs | self._database.claim(partitions)

    def _gather(self) -> Batch:
        """Polls until a segment is full, or store.segment_seconds after its first event.

        Raises:
            Reassigned: an assignment happened in between, so a part would come twice.
        """
        settings, gathered = self._settings.ingest, Batch()
        records, lost, until, size = list(gathered.records), Counter(gathered.lost), None, 0
        while True:
            left = settings.batch_seconds if until is None else until - time.monotonic()
            more = self._source.poll(settings.batch_events - len(records), max(0.0, min(left, settings.batch_seconds)))
            self._answered()
            for key in more.nexts.keys() & gathered.nexts.keys():
                if more.starts.get(key) != gathered.nexts[key]:
                    raise Reassigned(f"{key[0]}[{key[1]}] was reassigned: it is read again from the stored offset")
            records += more.records
            size += sum(len(record.value or b"") for record in more.records)
            lost.update(more.lost)
            gathered = Batch(
                records,
                {key: start for key, start in more.starts.items() if key not in gathered.nexts} | gathered.starts,
                gathered.nexts | more.nexts,
                dict(lost),
                gathered.identities | more.identities,
                [*gathered.remade, *more.remade],
            )
            if until is None:
                if not gathered.nexts:
                    return gathered
                until = time.monotonic() + self._settings.store.segment_seconds
            if time.monotonic() >= until or len(records) >= settings.batch_events or size >= BATCH_BYTES:
                return gathered

    def _store(self, batch: Batch) -> int:
        epochs = self._epochs
        if not batch.nexts.keys() <= epochs.keys():
            raise Reassigned("a partition is not claimed yet: it is read again from the stored offset")
        rows = self._decoder.rows(batch, self._settings.ingest.deduplicate_seconds, self._writer.keys.pseudonym)
        self._writer.redact(rows)
        written = self._writer.write(rows, epochs)
        self._source.commit(rows.nexts)
        self._segment_metrics.segments.inc()
        self._segment_metrics.bytes.inc(written)
        if rows.messages:
            self._metrics.last_event.set_to_current_time()
        self._counting.moved(rows)
        self._counting.stored(rows)
        self._dead_letter_topic.copy(rows.dead)
        pa.default_memory_pool().release_unused()
        return rows.messages.total()

    def _answered(self) -> None:
        """Records a successful poll."""
        lag = self._source.lag()
        self.broker_up = True
        self._metrics.broker_up.set(1)
        self._metrics.lag.set(lag)
        self._counting.waits(self._source.lag_seconds(time.time()))
        self._note_progress()

    def _all_answer(self) -> None:
        """Records a successful step."""
        if self.problem:
            log.info("events flow again")
        self.problem, self.store_up = "", True
        self._segment_metrics.store_up.set(1)

    def _wait_for(self, error: RetunedError) -> None:
        if not self.problem:
            log.warning("%s; trying again until it answers", error)
        self.problem = str(error)
        if isinstance(error, BrokerUnavailable):
            self._counting.waits({})
            self.broker_up = False
            self._metrics.broker_up.set(0)
        else:
            self.store_up = False
            self._segment_metrics.store_up.set(0)

    def _note_progress(self) -> None:
        self._progress_at = time.monotonic()
        self._metrics.last_progress.set_to_current_time()
