"""An ingester: one of several processes that read the topics together, redact, and write segments.

Exactly once, as `segment_writer` has it. Whatever fails, reading starts again from what is stored.
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
    """Moves events from a source into segments. Used by one thread; others may read the attributes.

    Attributes:
        broker_up, store_up: whether Kafka, and the database and the storage, answered last time.
        problem: what did not answer, and is waited for; empty while all do.
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
        """The publisher is used when settings.kafka.dead_letter_topic is set.

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
        """How long ago the loop last came round."""
        return time.monotonic() - self._progress_at

    @property
    def missing_topics(self) -> list[str]:
        """Topics that are to be read and are not on the broker."""
        return sorted(self._source.missing)

    def run(self, stop: threading.Event) -> None:
        """Read until asked to stop. Kafka, the database and the storage are waited for; other errors come out."""
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
        """One segment: wait for its events, store them. Returns the number of messages in it.

        After an error of these, the next step reads again what is not stored:

        Raises:
            BrokerUnavailable, StoreUnavailable: worth another try.
            Reassigned: a partition has gone to another ingester; nothing of the batch was stored.
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

    # Inside

    def _claim(self, partitions: Sequence[Partition]) -> None:
        """By any thread, before the stored offsets are read."""
        if partitions:
            self._epochs = self._epochs | self._database.claim(partitions)

    def _gather(self) -> Batch:
        """What is to be one segment: polls until it is full, or for store.segment_seconds from its first event on.

        Raises:
            Reassigned: there was an assignment in between, and a part of it would come twice.
        """
        settings, gathered = self._settings.ingest, Batch()
        records, lost, until, size = list(gathered.records), Counter(gathered.lost), None, 0
        while True:
            left = settings.batch_seconds if until is None else until - time.monotonic()
            more = self._source.poll(settings.batch_events - len(records), max(0.0, min(left, settings.batch_seconds)))
            self._answered()
            for key in more.nexts.keys() & gathered.nexts.keys():
                if more.starts.get(key) != gathered.nexts[key]:
                    raise Reassigned(f"{key[0]}[{key[1]}] was assigned anew: it is read again from where it is stored")
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
            raise Reassigned("a partition is not claimed yet: it is read again from where it is stored")
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
        """The broker did, by a poll."""
        lag = self._source.lag()
        self.broker_up = True
        self._metrics.broker_up.set(1)
        self._metrics.lag.set(lag)
        self._counting.waits(self._source.lag_seconds(time.time()))
        self._note_progress()

    def _all_answer(self) -> None:
        """A whole step was made."""
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
