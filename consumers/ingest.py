"""The pipeline that gets events in: read, decode, redact, and write rows and offsets in one transaction."""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from retuned.consumers.counting import Counting
from retuned.consumers.dead_letter_topic import DeadLetterTopic
from retuned.consumers.decoding import Decoder
from retuned.consumers.errors import BrokerUnavailable, Busy, MemoryLimit, OutOfStep, RetunedError, StoreUnavailable
from retuned.consumers.kafka.contract import Batch, Partition, Publisher, Source
from retuned.consumers.metrics import Metrics
from retuned.consumers.producers import Producer, Producers, SetAside
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.writer import QUERIES, Writer

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
REQUEST_SECONDS = 25.0
# While requests come, the broker is not waited for: they have to wait for that too.
BUSY_SECONDS, BUSY_POLL_SECONDS = 1.0, 0.005

T = TypeVar("T")


class Ingest:
    """Moves events from a source into the warehouse. Used by one thread.

    Attributes:
        decoder, writer: for `replay` and `file_import`; used in `run_in_ingest_thread` alone.
        events_seen: messages stored since the start, dead letters and duplicates among them.
        last_event_at: when the last of them came, naive UTC; None before the first.
        broker_up: whether the broker answered last time.
        broker_problem: what was wrong then; empty while it answers, and before it was asked.
        lag: events that waited on the broker after the last poll.
    """

    counts_messages = True
    """Whether messages are counted here: what they held, what became of their topics."""

    def __init__(
        self,
        source: Source,
        warehouse: Warehouse,
        settings: Settings,
        metrics: Metrics,
        publisher: Publisher | None = None,
    ) -> None:
        """The publisher is used when settings.kafka.dead_letter_topic is set.

        Raises:
            ConfigurationError: the key of the user hash cannot be read or made, or privacy.names lacks its extra.
        """
        self._source, self.warehouse, self.settings, self._metrics = source, warehouse, settings, metrics
        self._producers = Producers.known(settings.ingest, warehouse)
        self._dead_letter_topic = DeadLetterTopic(publisher, settings.kafka.dead_letter_topic, metrics)
        self.decoder = Decoder(settings, self.note_progress)
        self.writer = Writer(warehouse, settings, self.note_progress)
        self._counting = Counting(metrics, settings.kafka.topics if self.counts_messages else ())
        for topic in settings.kafka.topics:
            metrics.set_aside.labels(topic).set_function(partial(self._count_set_aside, topic))
        self.events_seen = 0
        self.last_event_at: datetime | None = None
        self.broker_up, self.broker_problem = False, ""
        self._lock = threading.Lock()
        self._running = False
        self._requests: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._busy_until = 0.0
        self.lag = 0
        self._read_all = False
        self.note_progress()

    @property
    def seconds_without_progress(self) -> float:
        """How long ago the loop last came round: a poll ended, events or no events, or the broker was found away."""
        return time.monotonic() - self._progress_at

    @property
    def lag_seconds(self) -> dict[str, float]:
        """How long the oldest event that waits has waited, at most, by topic; absent where that is not known."""
        return self._counting.lag_seconds

    @property
    def passed_over(self) -> Counter[str]:
        """Messages that are known to be no events, since the start, by the reasons in `dialects.PASSED_OVER`."""
        return self._counting.passed_over

    @property
    def caught_up(self) -> bool:
        """Whether everything that the broker has on our partitions was read."""
        return self._source.caught_up()

    @property
    def missing_topics(self) -> list[str]:
        """Topics that are to be read and are not on the broker."""
        return sorted(self._source.missing)

    @property
    def waiting_for(self) -> str:
        """What reading waits for although the broker answers, in words; empty: nothing."""
        return self._source.waiting_for

    def set_aside(self) -> list[SetAside]:
        """The producers most of whose messages are no events."""
        return self._producers.set_aside(utc_now())

    def step(self) -> int:
        """One batch: wait for it, store it. Returns the number of messages in it.

        Raises:
            BrokerUnavailable, StoreUnavailable: worth another try.
            Fenced: another consumer of the group is at work; nothing of the batch was stored.
            TooManyDeadLetters: raised after the batch is stored; at the start after such a stop, before it is.
            WarehouseError: nothing of the batch was stored.
        """
        rows = self._read()
        if rows is None:
            self._note_read_all()
            return 0
        self._write(rows)
        self._finish(rows)
        return rows.messages.total()

    def run(self, stop: threading.Event) -> None:
        """Read until asked to stop. A broker that is away is waited for; every other error comes out, as from `step`.

        The next batch is read and decoded while the last one is redacted and written: the one is Python's work, and
        what Arrow and DuckDB do in the other is done outside of its lock.
        """
        pending: Future[Rows] | None = None

        def settle(_: Sequence[Partition]) -> None:
            if pending is not None:
                wait([pending])

        # A new assignment starts from the stored offsets, so what is being written has to be stored first.
        self._source.before_assignment = settle
        pause = FIRST_PAUSE_SECONDS
        with self._lock:
            self._running = True
        with ThreadPoolExecutor(1, "retuned-writer") as writer:
            try:
                while not stop.is_set():
                    rows: Rows | None = None
                    try:
                        rows = self._read()
                        pause = FIRST_PAUSE_SECONDS
                    except (BrokerUnavailable, StoreUnavailable) as error:
                        self._counting.waits({})  # first: no lag is shown beside a broker that is away
                        self._answers(str(error))
                        self.note_progress()
                        self._wait_for_request(stop, pause)
                        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                    written, pending = pending, None
                    if written is not None:
                        self._finish(written.result())
                        written = None  # else it stays until the next batch but one is read
                    if rows is None:
                        self._note_read_all()
                    self._serve_requests()  # nothing is being written now
                    if rows is not None:
                        pending = writer.submit(self._write, rows)
            finally:
                if pending is not None:
                    self._finish(pending.result())
                with self._lock:
                    self._running = False
                    self._serve_requests()

    def run_in_ingest_thread(self, name: str, work: Callable[[], T]) -> T:
        """Do what needs the writer. While `run` is at work, its thread does it between two batches.

        Raises:
            RetunedError: the thread of `run` does not come to it in time; it does it later.
        """
        with self._lock:
            if not self._running:
                return work()
            request: Future[T] = Future()
            self._requests.append((work, request))
        try:
            return request.result(REQUEST_SECONDS)
        except TimeoutError as error:
            raise RetunedError(
                f"{name}: not done within {REQUEST_SECONDS:g} s; the daemon goes on with it, ask again"
            ) from error

    def account_for(self, rows: Rows) -> None:
        """What follows every batch that is stored, of Kafka or of a file: metrics, and copies of dead letters."""
        self._counting.stored(rows)
        self._dead_letter_topic.copy(rows.dead)

    def resume(self) -> None:
        """Go on after too many dead letters: until all that waits on the broker is read, no number of them stops it."""

        def kept() -> None:
            self.warehouse.execute(QUERIES["resume"], {"now": utc_now()})
            self._producers.catching_up, self._producers.on_trial = True, False

        self.run_in_ingest_thread("dead letters", kept)

    def note_progress(self) -> None:
        """The loop came round, or what it does takes its time and goes on."""
        self._progress_at = time.monotonic()
        self._metrics.last_progress.set_to_current_time()

    def _serve_requests(self) -> None:
        while self._requests:
            work, request = self._requests.popleft()
            try:
                request.set_result(work())
            except (Busy, MemoryLimit, OutOfStep) as error:  # the caller's: nothing was stored, and ingestion goes on
                request.set_exception(error)
            except BaseException as error:
                request.set_exception(error)
                raise
            self._busy_until = time.monotonic() + BUSY_SECONDS

    def _wait_for_request(self, stop: threading.Event, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._requests and time.monotonic() < until and not stop.wait(0.1):
            pass

    def _read(self) -> Rows | None:
        """The next batch, decoded; None when no partition moved."""
        settings = self.settings.ingest
        busy = self._requests or time.monotonic() < self._busy_until
        batch = self._source.poll(settings.batch_events, BUSY_POLL_SECONDS if busy else settings.batch_seconds)
        self._answers("")
        self.lag = self._source.lag()
        self._metrics.lag.set(self.lag)
        self._counting.waits(self._source.lag_seconds(time.time()))
        self.note_progress()
        self._read_all = self._source.caught_up()
        if not batch.nexts:
            return None
        rows = self._decoded(batch)
        rows.read_all = self._read_all
        if self._producers.on_trial and rows.bad:
            events, last = sum(table.num_rows for table in rows.tables.values()), rows.bad[-1][0]
            where = f"{last.topic}:{last.partition}:{last.offset}"
            self._producers.try_batch(events, len(rows.bad), f"{where}, {rows.bad[-1][1].error.reason}")
        return rows

    def _decoded(self, batch: Batch) -> Rows:
        return self.decoder.rows(batch, self.settings.ingest.deduplicate_seconds, self.writer.pseudonym)

    def _write(self, rows: Rows) -> Rows:
        return self.writer.write(rows)

    def _finish(self, rows: Rows) -> None:
        """What follows a batch of the source that is stored."""
        self._source.commit(rows.nexts)
        messages = rows.messages.total()
        if (interactions := rows.tables.get("interactions")) is not None:
            self._metrics.traffic.add(interactions, rows.received_at)  # those of files are no traffic of now
        if messages:
            self.events_seen += messages
            self.last_event_at = rows.received_at
            self._metrics.last_event.set_to_current_time()
        if self.counts_messages:
            self._counting.moved(rows)
            self.account_for(rows)
        else:
            self._metrics.duplicates.inc(rows.duplicates)
            self._metrics.batch_seconds.observe(rows.seconds)
        pa.default_memory_pool().release_unused()  # of this thread: else it keeps for good what is in pieces
        self._judge_producers(rows)
        if rows.read_all:
            self._caught_up()

    def _judge_producers(self, rows: Rows) -> None:
        events: Counter[Producer] = Counter()
        for table in rows.tables.values():
            for topic, workload, count in _producers(table):
                events[topic, workload] += count
        for found in self._producers.add(events, rows.dead, rows.received_at):
            log.error("%s; it is set aside: correct it, then run retuned dead-letters replay", found)

    def _note_read_all(self) -> None:
        """Nothing was read, and what was is stored."""
        if self._read_all:
            self._caught_up()

    def _caught_up(self) -> None:
        if self._producers.catching_up:
            self.warehouse.execute(QUERIES["caught_up"], {"now": utc_now()})
            self._producers.forgive()
            log.info("everything that waited is read: too many dead letters stop ingestion again")

    def _count_set_aside(self, topic: str) -> int:
        return sum(found.topic == topic for found in self.set_aside())

    def _answers(self, problem: str) -> None:
        """What is read from answers, or does not, for this reason."""
        if problem and not self.broker_problem:
            log.warning("%s; trying again until it answers", problem)
        elif not problem and not self.broker_up:
            log.info("kafka %s: answers", self.settings.kafka.bootstrap_servers)
        self.broker_up, self.broker_problem = not problem, problem
        self._metrics.broker_up.set(self.broker_up)


def _producers(table: Any) -> list[tuple[str, str | None, int]]:
    """How many events of an Arrow table each producer sent: topic, workload (None: it names none), events."""
    keys = ["topic", "workload"] if "workload" in table.column_names else ["topic"]
    counted = table.select(keys).group_by(keys).aggregate([([], "count_all")]).to_pylist()
    return [(row["topic"], row.get("workload"), row["count_all"]) for row in counted]
