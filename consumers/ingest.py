"""The loop that gets events in: read, decode, redact, and write rows and offsets in one transaction."""

import logging
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from retuned.consumers.common.text import first_line
from retuned.consumers.errors import BrokerRefused, BrokerUnavailable, Busy, Fenced, OutOfStep, RetunedError
from retuned.consumers.formats.dialects import PASSED_OVER, BadPart, Found, decode_any
from retuned.consumers.formats.events import BadEvent, Bounds, Kind, decode
from retuned.consumers.formats.files import TOPIC
from retuned.consumers.kafka.contract import Batch, Offsets, Publisher, Record, Source
from retuned.consumers.kafka.records import BrokenBatch, FetchedRecord
from retuned.consumers.metrics import Metrics
from retuned.consumers.privacy.pseudonyms import is_pseudonym, load_user_keys
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.producers import Producer, Producers, SetAside
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.connection import Warehouse, named_queries, utc_now
from retuned.consumers.warehouse.dead_letters import DeadLetter
from retuned.consumers.warehouse.duplicates import Stored
from retuned.consumers.warehouse.rows import Rows

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
COPY_PAUSE_SECONDS = 30.0
REPLAY_LETTERS = 1_000
ASKED_SECONDS = 25.0
# While somebody asks, the broker is not waited for: what is asked for has to wait for that too.
BUSY_SECONDS, BUSY_POLL_SECONDS = 1.0, 0.005
# Files hold years, and an id in them is a duplicate when it is stored at any time: farther apart than events can be.
EVER_SECONDS = 231 * 366 * 86_400.0
REFUSALS = 5
# More often costs time, less often costs memory: measured with `make bench`.
DROP_CACHE_BYTES = 8 << 20
# What DuckDB raises for what a row holds, as against a file, a transaction or its own state.
REFUSED_BY_DUCKDB = (duckdb.DataError, duckdb.ProgrammingError, duckdb.NotSupportedError)

T = TypeVar("T")


@dataclass(frozen=True)
class Refusal:
    """A row of a file that is no event, redacted; the dead letter has the rest."""

    offset: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Taken:
    """What became of a batch of rows: events stored, of each kind, and what was not stored and why.

    Attributes:
        passed_over: what is known to be no event, by the reasons in `dialects.PASSED_OVER`.
    """

    stored: dict[Kind, int]
    duplicates: int
    refused: dict[str, int]
    examples: list[Refusal]
    passed_over: dict[str, int] = field(default_factory=dict)


def stored_offsets(warehouse: Warehouse) -> Offsets:
    """The next offset of each partition, as a source asks for it."""
    rows = warehouse.rows(named_queries("retuned.consumers.warehouse", "ingest.sql")["stored_offsets"])
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


class Ingest:
    """Moves events from a source into the warehouse. Used by one thread.

    Attributes:
        events_seen: messages stored since the start, dead letters and duplicates among them.
        last_event_at: when the last of them came, naive UTC; None before the first.
        broker_up: whether the broker answered last time.
        lag: events that waited on the broker after the last poll.
        passed_over: since the start, by the reasons in `dialects.PASSED_OVER`.
    """

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
        self._source, self._warehouse, self._settings, self._metrics = source, warehouse, settings, metrics
        self._publisher = publisher
        self._queries = named_queries("retuned.consumers.warehouse", "ingest.sql")
        self._producers = Producers.known(settings.ingest, warehouse, utc_now())
        self._redactor = Redactor(settings.privacy)
        self._pseudonym = load_user_keys(settings.privacy, warehouse.path).pseudonym
        distance = timedelta(seconds=settings.ingest.deduplicate_seconds)
        kinds: tuple[Kind, Kind] = ("interactions", "feedback")
        self._stored = {kind: Stored(warehouse, kind, distance) for kind in kinds}
        for topic in (settings.kafka.interactions_topic, settings.kafka.feedback_topic):
            metrics.lost.labels(topic)  # series that begin at 0, so that an alert sees their first rise, or none
            metrics.events.labels(topic)
            metrics.set_aside.labels(topic).set_function(partial(self._count_set_aside, topic))
        self.passed_over: Counter[str] = Counter()
        self.events_seen = 0
        self.last_event_at: datetime | None = None
        self.broker_up = False
        self._copy_from = 0.0
        self._lock = threading.Lock()
        self._running = False
        self._asked: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._busy_until = 0.0
        self._cached_bytes = 0
        self.lag = 0
        self._progress_at = time.monotonic()

    @property
    def seconds_without_progress(self) -> float:
        """How long ago the loop last came round: a poll ended, events or no events, or the broker was found away."""
        return time.monotonic() - self._progress_at

    @property
    def caught_up(self) -> bool:
        """Whether everything that the broker has on our partitions was read."""
        return self._source.caught_up()

    def set_aside(self) -> list[SetAside]:
        """The producers most of whose messages are no events."""
        return self._producers.set_aside(utc_now())

    def step(self) -> int:
        """One batch: wait for it, store it. Returns the number of messages in it.

        Raises:
            BrokerUnavailable: worth another try.
            Fenced: another consumer of the group is at work; nothing of the batch was stored.
            TooManyDeadLetters: raised after the batch is stored.
            WarehouseError: nothing of the batch was stored.
        """
        rows = self._read()
        if rows is None:
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

        def settle() -> None:
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
                    except BrokerUnavailable as error:
                        self._broker_is(up=False, why=str(error))
                        self._progress()
                        self._rest(stop, pause)
                        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
                    written, pending = pending, None
                    if written is not None:
                        self._finish(written.result())
                        written = None  # else it stays until the next batch but one is read
                    self._answer()  # nothing is being written now
                    if rows is not None:
                        pending = writer.submit(self._write, rows)
            finally:
                if pending is not None:
                    self._finish(pending.result())
                with self._lock:
                    self._running = False
                    self._answer()

    def replay(self) -> dict[str, int]:
        """Decode the dead letters again, after a fix, and move those that are events now to where they belong.

        Letters that were cut are kept, as are all that are still no events.

        Returns:
            How many letters were `tried` and how many `replayed`, and how many events were `stored`: one letter may
            hold several, and a duplicate is stored once.

        Raises:
            Busy: some letters are being archived; those before them were replayed.
            RetunedError: the thread of `run` does not come to it in time.
        """
        return self._between_batches("dead letters", self._replay)

    def position(self, topic: str) -> int | None:
        """The next row to take of a file (`files.EventFile.topic`); None when nothing of it was taken."""
        return stored_offsets(self._warehouse).get((topic, 0))

    def take(self, batch: Batch) -> Taken:
        """Store a batch of rows of one file as `step` stores a batch of Kafka's.

        Pseudonyms stay as they are, and an id that is stored at any time is a duplicate.

        Raises:
            OutOfStep: the batch does not begin where the last one of this file ended. Nothing was stored.
            RetunedError: the thread of `run` does not come to it in time; it may store the batch later.
        """
        return self._between_batches("import", lambda: self._take(batch))

    def _between_batches(self, name: str, work: Callable[[], T]) -> T:
        """While `run` is at work, its thread does it between two batches: one writer knows which ids are stored."""
        with self._lock:
            if not self._running:
                return work()
            asked: Future[T] = Future()
            self._asked.append((work, asked))
        try:
            return asked.result(ASKED_SECONDS)
        except TimeoutError as error:
            raise RetunedError(
                f"{name}: not done within {ASKED_SECONDS:g} s; the daemon goes on with it, ask again"
            ) from error

    def _answer(self) -> None:
        while self._asked:
            work, asked = self._asked.popleft()
            try:
                asked.set_result(work())
            except (Busy, OutOfStep) as error:  # for who asks, and no fault of ours
                asked.set_exception(error)
            except BaseException as error:
                asked.set_exception(error)
                raise
            self._busy_until = time.monotonic() + BUSY_SECONDS

    def _rest(self, stop: threading.Event, seconds: float) -> None:
        """Wait, but not with an answer."""
        until = time.monotonic() + seconds
        while not self._asked and time.monotonic() < until and not stop.wait(0.1):
            pass

    def _take(self, batch: Batch) -> Taken:
        for (topic, partition), end in batch.nexts.items():
            stored = self.position(topic)
            if stored != batch.starts.get((topic, partition)):
                raise OutOfStep(
                    f"{topic}: row {stored or 0} is next, not one before {end}; is it imported twice at once?"
                )
        rows = self._rows(batch, EVER_SECONDS, self._once)
        self._write(rows)
        self._count(rows)
        self._publish(rows.dead)
        return Taken(
            rows.stored,
            rows.duplicates,
            dict(Counter(dead.reason for dead in rows.dead)),
            [Refusal(dead.offset, dead.reason, dead.detail) for dead in rows.dead[:REFUSALS]],
            dict(rows.passed_over),
        )

    def _replay(self) -> dict[str, int]:
        total = Counter(tried=0, replayed=0, stored=0)
        with self._warehouse.cursor() as reading:
            reading.execute(self._queries["letters_to_replay"])
            while letters := reading.fetchmany(REPLAY_LETTERS):
                total.update(self._replay_some(letters))
                self._progress()
        return dict(total)

    def _replay_some(self, letters: list[Any]) -> Counter[str]:
        rows = Rows(Batch(), self._settings.ingest.deduplicate_seconds, utc_now(), self._once)
        done = []
        for topic, partition, offset, payload in letters:
            record = FetchedRecord(topic, partition, offset, payload.encode())
            found = self._decode(self._kind(topic), record, self._bounds(rows, topic))
            if any(isinstance(part, BadPart) for part in found):
                continue
            done.append({"topic": topic, "partition": partition, "offset": offset, "payload": payload})
            for part in found:
                rows.add(part, record)
        rows.pack()
        rows.redact(self._redactor, self._pseudonym)
        replayed = 0

        def delete_replayed(cursor: duckdb.DuckDBPyConnection) -> None:
            nonlocal replayed
            still_bad = {(dead.topic, dead.partition, dead.offset) for dead in rows.dead}
            gone = [
                letter for letter in done if (letter["topic"], letter["partition"], letter["offset"]) not in still_bad
            ]
            replayed = len(gone)
            if gone:
                cursor.register("batch_replayed", pa.Table.from_pylist(gone))
                cursor.execute(self._queries["delete_replayed"])

        try:
            self._store(rows, delete_replayed)
        except duckdb.TransactionException as error:
            raise Busy(
                "dead letters: some are being archived just now, and they and the rest were not replayed; ask again"
            ) from error
        return Counter(tried=len(letters), replayed=replayed, stored=sum(rows.stored.values()))

    def _decode(self, kind: Kind, record: Record, bounds: Bounds) -> list[Found | BadPart]:
        if record.problem is not None:
            reason = "unreadable" if isinstance(record, BrokenBatch) else "not_an_event"
            return [BadPart(BadEvent(reason, record.problem))]
        return decode_any(kind, record.value, record.headers, bounds)

    def _bounds(self, rows: Rows, topic: str) -> Bounds:
        """What events of a topic may hold."""
        return Bounds.of(self._settings.ingest, rows.received_at, history=topic.startswith(TOPIC))

    def _kind(self, topic: str) -> Kind:
        """What a topic is for."""
        return "feedback" if topic == self._settings.kafka.feedback_topic else "interactions"

    def _read(self) -> Rows | None:
        """The next batch, decoded; None when no partition moved."""
        settings = self._settings.ingest
        busy = self._asked or time.monotonic() < self._busy_until
        batch = self._source.poll(settings.batch_events, BUSY_POLL_SECONDS if busy else settings.batch_seconds)
        self._broker_is(up=True)
        self.lag = self._source.lag()
        self._metrics.lag.set(self.lag)
        self._progress()
        return self._rows(batch, settings.deduplicate_seconds, self._pseudonym) if batch.nexts else None

    def _rows(self, batch: Batch, distance_seconds: float, pseudonym: Callable[[str], str]) -> Rows:
        """The rows of a batch, decoded; `pseudonym` is of a user as the batch names one."""
        started = time.perf_counter()
        rows = Rows(batch, distance_seconds, utc_now(), pseudonym)
        topics = {topic: (self._kind(topic), self._bounds(rows, topic)) for topic in rows.messages}
        for record in batch.records:
            kind, bounds = topics[record.topic]
            try:  # nearly all are events of ours
                event = decode(kind, record.value, bounds)
            except Exception:  # noqa: BLE001  (looked into below, where nothing is raised)
                for found in self._decode(kind, record, bounds):
                    rows.add(found, record)
            else:
                rows.add(event, record)
        rows.pack()
        rows.seconds += time.perf_counter() - started
        return rows

    def _once(self, user_id: str) -> str:
        """The pseudonym of what may be one already, as in letters and exports; an app always sends the user itself."""
        return user_id if is_pseudonym(user_id) else self._pseudonym(user_id)

    def _write(self, rows: Rows) -> Rows:
        """Everything of a batch, redacted, in one transaction."""
        started = time.perf_counter()
        rows.redact(self._redactor, self._pseudonym)
        pa.default_memory_pool().release_unused()  # of this thread: what redaction took

        def finish(cursor: duckdb.DuckDBPyConnection) -> None:
            if rows.dead:
                cursor.register("batch_dead_letters", rows.dead_letters_table())
                cursor.execute(self._queries["insert_dead_letters"])
            self._move_offsets(cursor, rows)

        try:
            self._store(rows, finish)
        except (duckdb.TransactionException, duckdb.ConstraintException) as error:
            raise Fenced(f"another consumer is moving the offsets of this batch ({first_line(error)})") from error
        self._cached_bytes += sum(table.nbytes for table in rows.tables.values())
        if self._cached_bytes >= DROP_CACHE_BYTES:
            self._warehouse.drop_cache()
            self._cached_bytes = 0
        rows.seconds += time.perf_counter() - started
        return rows

    def _store(self, rows: Rows, finish: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        """The events and what belongs with them, in one transaction. A row that DuckDB refuses is a dead letter."""
        try:
            self._insert_all(rows, finish)
        except REFUSED_BY_DUCKDB:
            if any(self._refusal(kind, table.slice(0, 0)) for kind, table in rows.tables.items()):
                raise  # not for what a row holds
            for kind, table in list(rows.tables.items()):
                rows.reject(kind, self._refused(kind, table))
            self._insert_all(rows, finish)

    def _insert_all(self, rows: Rows, finish: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        with self._warehouse.transaction() as cursor:
            known = {name: self._insert(cursor, name, rows) for name in rows.tables}
            finish(cursor)
        rows.stored = {name: rows.tables[name].num_rows - known[name] for name in known}
        rows.duplicates += sum(known.values())

    def _refused(self, name: Kind, table: Any, start: int = 0) -> dict[int, Exception]:
        """The rows of a table that DuckDB refuses to insert, found by halving."""
        refusal = self._refusal(name, table)
        if refusal is None:
            return {}
        if table.num_rows == 1:
            return {start: refusal}
        middle = table.num_rows // 2
        return {
            **self._refused(name, table.slice(0, middle), start),
            **self._refused(name, table.slice(middle), start + middle),
        }

    def _refusal(self, name: Kind, table: Any) -> Exception | None:
        """Why DuckDB refuses to insert a table, tried and taken back."""
        with self._warehouse.cursor() as cursor:
            cursor.begin()
            try:
                cursor.register(f"batch_{name}", table)
                cursor.execute(self._queries[f"insert_{name}"])
            except REFUSED_BY_DUCKDB as error:
                return error
            finally:
                cursor.rollback()
        return None

    def _insert(self, cursor: duckdb.DuckDBPyConnection, name: Kind, rows: Rows) -> int:
        """The events of one kind, those apart whose id may be stored. Returns how many were."""
        table = rows.tables[name]
        bounds = rows.bounds(table)
        doubted = self._stored[name].may_have(rows.ids[name], bounds["low"])
        known = 0
        if doubted.any():
            doubtful, table = table.filter(pa.array(doubted)), table.filter(pa.array(~doubted))
            cursor.register(f"batch_{name}", doubtful)
            new = _changed(cursor.execute(self._queries[f"insert_new_{name}"], rows.bounds(doubtful)))
            known = doubtful.num_rows - new
        if table.num_rows:
            cursor.register(f"batch_{name}", table)
            cursor.execute(self._queries[f"insert_{name}"])
        return known

    def _move_offsets(self, cursor: duckdb.DuckDBPyConnection, rows: Rows) -> None:
        starts, nexts = rows.starts, rows.nexts
        first = {key: offset for key, offset in nexts.items() if key not in starts}
        updated = 0
        if starts:
            moved = {"starts": list(starts.values()), **_columns({key: nexts[key] for key in starts})}
            updated = _changed(cursor.execute(self._queries["move_offsets"], moved))
        if first:
            # The primary key refuses a second first one.
            cursor.execute(self._queries["first_offsets"], _columns(first))
        if updated != len(starts):
            raise Fenced(
                f"another consumer of group {self._settings.kafka.group_id!r} moved the offsets of "
                f"{', '.join(f'{topic}[{partition}]' for topic, partition in nexts)}: nothing of this batch was "
                "stored; run one daemon for each warehouse"
            )

    def _finish(self, rows: Rows) -> None:
        """What follows a batch that is stored."""
        self._source.commit(rows.nexts)
        self._count(rows)
        metrics, messages = self._metrics, rows.messages.total()
        if (interactions := rows.tables.get("interactions")) is not None:
            metrics.traffic.add(interactions, rows.received_at)  # those of files are no traffic of now
        for topic, count in rows.lost.items():
            metrics.lost.labels(topic).inc(count)
        for record, _ in rows.bad:
            if isinstance(record, BrokenBatch):
                metrics.lost.labels(record.topic).inc(record.events)
                log.error("%s; going on behind it", record.problem)
        if messages:
            self.events_seen += messages
            self.last_event_at = rows.received_at
            metrics.last_event.set_to_current_time()
        self._publish(rows.dead)
        pa.default_memory_pool().release_unused()  # of this thread: else it keeps for good what is in pieces
        self._judge_producers(rows)

    def _judge_producers(self, rows: Rows) -> None:
        events: Counter[Producer] = Counter()
        for table in rows.tables.values():
            for topic, workload, count in _producers(table):
                events[topic, workload] += count
        for found in self._producers.add(events, rows.dead, rows.received_at):
            log.error("%s; it is set aside: correct it, then run retuned dead-letters replay", found)

    def _count_set_aside(self, topic: str) -> int:
        return sum(found.topic == topic for found in self.set_aside())

    def _count(self, rows: Rows) -> None:
        metrics = self._metrics
        for topic, count in rows.messages.items():
            metrics.events.labels(topic.partition(":")[0]).inc(count)  # all files are one series: `import`
        for reason, count in Counter(dead.reason for dead in rows.dead).items():
            metrics.dead_letters.labels(reason).inc(count)
        for reason, count in rows.passed_over.items():
            if reason not in self.passed_over:
                log.info("messages are passed over: %s", PASSED_OVER[reason])
            self.passed_over[reason] += count
            metrics.passed_over.labels(reason).inc(count)
        for place, count in Counter(map(_place, rows.unforeseen)).items():
            log.error("%d messages are dead letters (internal_error), a fault of retuned: %s", count, place)
        for kind, count in rows.redactions.items():
            metrics.redactions.labels(kind).inc(count)
        metrics.duplicates.inc(rows.duplicates)
        metrics.batch_seconds.observe(rows.seconds)

    def _publish(self, dead: list[DeadLetter]) -> None:
        topic = self._settings.kafka.dead_letter_topic
        if not dead or topic is None or self._publisher is None or time.monotonic() < self._copy_from:
            return
        try:
            self._publisher.publish_all(topic, [(letter.key, letter.message()) for letter in dead])
        except (BrokerUnavailable, BrokerRefused) as error:
            # Nothing is lost: the warehouse has them, the topic is a copy.
            self._metrics.dead_letter_publish_failures.inc()
            self._copy_from = time.monotonic() + COPY_PAUSE_SECONDS
            log.warning("dead letters are stored, but for a while not copied to %s: %s", topic, error)

    def _progress(self) -> None:
        self._progress_at = time.monotonic()
        self._metrics.last_progress.set_to_current_time()

    def _broker_is(self, *, up: bool, why: str = "") -> None:
        if self.broker_up and not up:
            log.warning("%s; trying again until it answers", why)
        elif up and not self.broker_up:
            log.info("kafka %s: answers", self._settings.kafka.bootstrap_servers)
        self.broker_up = up
        self._metrics.broker_up.set(up)


def _columns(offsets: Offsets) -> dict[str, list[Any]]:
    return {
        "topics": [topic for topic, _ in offsets],
        "partitions": [partition for _, partition in offsets],
        "nexts": list(offsets.values()),
    }


def _place(error: BaseException) -> str:
    """The type of an error and where it was raised; its text may quote what is not redacted."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].name}, {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


def _producers(table: Any) -> list[tuple[str, str | None, int]]:
    """How many events of an Arrow table each producer sent: topic, workload (None: it names none), events."""
    keys = ["topic", "workload"] if "workload" in table.column_names else ["topic"]
    counted = table.select(keys).group_by(keys).aggregate([([], "count_all")]).to_pylist()
    return [(row["topic"], row.get("workload"), row["count_all"]) for row in counted]


def _changed(cursor: duckdb.DuckDBPyConnection) -> int:
    row = cursor.fetchone()
    return int(row[0]) if row else 0
