"""The loop that reads batches from a source and writes them into the warehouse, whatever the source is."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime, timedelta
from functools import partial
from traceback import format_tb
from typing import Any, TypeVar

import pyarrow as pa

from retuned.consumers.counting import Counting, raised_in
from retuned.consumers.errors import BrokerUnavailable, RetunedError, StoreUnavailable
from retuned.consumers.kafka.contract import Batch, Offsets, Partition, Source
from retuned.consumers.metrics import Metrics
from retuned.consumers.producers import Producer, Producers, SetAside
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.writer import Writer

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
REQUEST_SECONDS = 25.0
# The poll while requests arrive, which would have to wait for the broker.
BUSY_SECONDS, BUSY_POLL_SECONDS = 1.0, 0.005

T = TypeVar("T")


class IngestLoop(ABC):
    """Moves events from a source into the warehouse. For one thread; others may read the attributes.

    Attributes:
        writer: for use in `run_in_ingest_thread` only.
        events_seen: the number of messages stored since the start, including dead letters and duplicates.
        last_event_at: when the last one arrived, naive UTC; None: none yet.
        broker_up: whether the source answered last time.
        broker_problem: why it did not; empty while it answers, and before the first poll.
        lag: the number of waiting events after the last poll.
    """

    def __init__(
        self, source: Source, warehouse: Warehouse, settings: Settings, metrics: Metrics, topics: Sequence[str] = ()
    ) -> None:
        """Creates a loop.

        Args:
            topics: the topics whose messages are counted here.

        Raises:
            ConfigurationError: the key of the user hash cannot be read or created, or privacy.names lacks its extra.
        """
        self._source, self.warehouse, self.settings, self._metrics = source, warehouse, settings, metrics
        self._producers = Producers.known(settings.ingest, warehouse)
        self.writer = Writer(warehouse, settings, self.note_progress)
        self._counting = Counting(metrics, topics)
        self._topics = frozenset(topics)
        for topic in settings.kafka.topics:
            metrics.set_aside.labels(topic).set_function(partial(self._count_set_aside, topic))
        self.events_seen = 0
        self.last_event_at: datetime | None = None
        self.broker_up, self.broker_problem = False, ""
        self._lock = threading.Lock()
        self._running = False
        self._requests: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._busy_until = 0.0
        self._read_to: Offsets = {}  # the end of all batches that were read, stored or about to be
        self._rewinding = False
        self.lag = 0
        self._read_all = False
        self._reached: datetime | None = None
        self.known_until: datetime | None = None
        """All events that were written to the topics until then are stored; None: unknown since the start."""
        self.note_progress()

    @property
    def seconds_without_progress(self) -> float:
        """The time since the last iteration of the loop, with or without events and broker."""
        return time.monotonic() - self._progress_at

    @property
    def lag_seconds(self) -> dict[str, float]:
        """An upper bound of the age of the oldest waiting event, by topic; absent: unknown."""
        return self._counting.lag_seconds

    @property
    def passed_over(self) -> Counter[str]:
        """The number of skipped messages since the start, by the reasons in `dialects.PASSED_OVER`."""
        return self._counting.passed_over

    @property
    def caught_up(self) -> bool:
        """Whether all events on the assigned partitions were read."""
        return self._source.caught_up() and not self._rewinding

    @property
    def missing_topics(self) -> list[str]:
        """The configured topics that do not exist on the broker."""
        return sorted(self._source.missing)

    @property
    def waiting_for(self) -> str:
        """Why reading waits although the broker answers, for a person; empty: it does not wait."""
        return self._source.waiting_for

    def set_aside(self) -> list[SetAside]:
        """Returns the producers that mostly send dead letters."""
        return self._producers.set_aside(utc_now())

    def step(self) -> int:
        """Reads and stores one batch, and returns the number of its messages.

        Raises:
            BrokerUnavailable, StoreUnavailable: a retry may help.
            Fenced: another consumer of the group is active; nothing of the batch was stored.
            TooManyDeadLetters: raised after the batch is stored; after a restart because of it, before.
            WarehouseError: nothing of the batch was stored.
        """
        rows = self._read()
        if rows is None:
            self._note_read_all()
            return 0
        self._write(rows)
        self._finish(rows)
        return rows.messages.total()

    def read_until(self, when: datetime) -> None:
        """Reads and stores what was written to the topics until a time, although events keep coming.

        Raises:
            Whatever `step` raises.
        """
        while self.step() or not self.caught_up:
            is_read = self.known_until is not None and self.known_until >= when
            if is_read or self._source.missing.issuperset(self.settings.kafka.topics):
                return

    def run(self, stop: threading.Event) -> None:
        """Reads until `stop` is set. Waits while the broker is away; raises all other errors of `step`.

        The next batch is read and decoded while the last one is redacted and written: reading is mostly Python, and
        Arrow and DuckDB work outside of its lock.
        """
        pending: Future[Rows] | None = None

        def settle(_: Sequence[Partition]) -> None:
            if pending is not None:
                wait([pending])

        # An assignment starts from the stored offsets. One that comes too early for the pending batch is noticed by
        # `_repeats`; one during a poll waits for it.
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
                        self._counting.waits({})  # first: a lag must not be shown while the broker is away
                        self._answers(str(error))
                        self.note_progress()
                        self._wait_for_request(stop, pause)
                        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                    written, pending = pending, None
                    if written is not None:
                        self._finish(written.result())
                        written = None  # frees the batch before another one is read
                    if rows is None:
                        self._note_read_all()
                    self._serve_requests()  # no batch is being written now
                    if rows is not None:
                        pending = writer.submit(self._write, rows)
            finally:
                if pending is not None:
                    self._finish(pending.result())
                with self._lock:
                    self._running = False
                    self._serve_requests()

    def run_in_ingest_thread(self, name: str, work: Callable[[], T]) -> T:
        """Runs work that needs the writer. While `run` is active, its thread does it between two batches.

        Work that fails stops nothing else: it writes in one transaction, and ingestion continues.

        Raises:
            RetunedError: the work failed, or the thread of `run` has no time and does it later.
        """
        work = partial(_named, name, work)
        with self._lock:
            if not self._running:
                return work()
            request: Future[T] = Future()
            self._requests.append((work, request))
        try:
            return request.result(REQUEST_SECONDS)
        except TimeoutError as error:
            raise RetunedError(
                f"{name}: not done within {REQUEST_SECONDS:g} s; the daemon continues with it, try again"
            ) from error

    def note_progress(self) -> None:
        """Records that the loop makes progress."""
        self._progress_at = time.monotonic()
        self._metrics.last_progress.set_to_current_time()

    @abstractmethod
    def _decode(self, batch: Batch) -> Rows:
        """Decodes a batch."""

    @abstractmethod
    def _account(self, rows: Rows) -> None:
        """Counts a stored batch."""

    @abstractmethod
    def _answers(self, problem: str) -> None:
        """Records whether the source answers.

        Args:
            problem: why it does not; empty: it answers.
        """

    @abstractmethod
    def _caught_up(self) -> None:
        """Called when everything that waited is read and stored."""

    def _write(self, rows: Rows) -> Rows:
        return self.writer.write(rows)

    def _read(self) -> Rows | None:
        """Reads and decodes the next batch; None: no partition moved, or the batch repeats events."""
        settings = self.settings.ingest
        if self._rewinding:  # all earlier batches are stored by now
            self._source.rewind()
            self._read_to, self._rewinding = {}, False
        busy = self._requests or time.monotonic() < self._busy_until
        batch = self._source.poll(settings.batch_events, BUSY_POLL_SECONDS if busy else settings.batch_seconds)
        self._answers("")
        self.lag = self._source.lag()
        self._metrics.lag.set(self.lag)
        self._counting.waits(self._source.lag_seconds(time.time()))
        self.note_progress()
        self._rewinding = self._repeats(batch)
        self._read_all = self.caught_up
        if self._rewinding:
            return None
        ages = self.lag_seconds
        if ages and ages.keys() >= self._topics - self._source.missing:
            self._reached = utc_now() - timedelta(seconds=max(ages.values()))
        if not batch.nexts:
            self.known_until = self._reached
            return None
        rows = self._decode(batch)
        rows.read_all = self._read_all
        self._read_to |= batch.nexts
        return rows

    def _repeats(self, batch: Batch) -> bool:
        """Whether a batch does not continue the last one of a partition.

        A rebalance may come at any time, on a thread of the source, and then starts from the stored offsets: those
        before a batch that is still being written. Stored, its events would come twice.
        """
        return any(self._read_to[key] != batch.starts.get(key) for key in self._read_to.keys() & batch.nexts.keys())

    def _finish(self, rows: Rows) -> None:
        """Commits and counts a stored batch."""
        self.known_until = self._reached
        self._source.commit(rows.nexts)
        if rows.is_traffic:
            if (interactions := rows.tables.get("interactions")) is not None:
                self._metrics.traffic.add(interactions, rows.received_at)
            if messages := rows.messages.total():
                self.events_seen += messages
                self.last_event_at = rows.received_at
                self._metrics.last_event.set_to_current_time()
        self._account(rows)
        pa.default_memory_pool().release_unused()  # of this thread, which would keep fragmented memory forever
        if rows.is_traffic:
            self._judge_producers(rows)
        if rows.read_all:
            self._caught_up()

    def _judge_producers(self, rows: Rows) -> None:
        events: Counter[Producer] = Counter()
        for table in rows.tables.values():
            for topic, workload, count in _producers(table):
                events[topic, workload] += count
        for producer in self._producers.add(events, rows.dead, rows.received_at):
            log.error("%s; it is set aside: correct it, then run retuned dead-letters replay", producer)

    def _note_read_all(self) -> None:
        """Handles an empty poll; all earlier batches are stored."""
        if self._read_all:
            self._caught_up()

    def _count_set_aside(self, topic: str) -> int:
        return sum(producer.topic == topic for producer in self.set_aside())

    def _serve_requests(self) -> None:
        while self._requests:
            work, request = self._requests.popleft()
            try:
                request.set_result(work())
            except RetunedError as error:
                request.set_exception(error)
            self._busy_until = time.monotonic() + BUSY_SECONDS

    def _wait_for_request(self, stop: threading.Event, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._requests and time.monotonic() < until and not stop.wait(0.1):
            pass


def _named(name: str, work: Callable[[], T]) -> T:
    """Does work. Raises a RetunedError for an error that nobody foresaw, without its text, which may quote content."""
    try:
        return work()
    except RetunedError:
        raise
    except Exception as error:
        where = raised_in(error)
        log.error("%s failed because of a bug in retuned: %s\n%s", name, where, "".join(format_tb(error.__traceback__)))
        raise RetunedError(
            f"{name}: failed because of a bug in retuned ({where}); what it writes is stored whole or not at all, and "
            "ingestion continues: the daemon's log has the details, and the command may be run again"
        ) from error


def _producers(table: Any) -> list[tuple[str, str | None, int]]:
    """Counts the events of an Arrow table by producer: topic, workload (None: none named), events."""
    keys = ["topic", "workload"] if "workload" in table.column_names else ["topic"]
    counts = table.select(keys).group_by(keys).aggregate([([], "count_all")]).to_pylist()
    return [(row["topic"], row.get("workload"), row["count_all"]) for row in counts]
