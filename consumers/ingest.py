"""The loop that gets events in: read, decode, redact, and write rows and offsets in one transaction."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

from retuned.consumers.dead_letter import DeadLetter, DeadLetterLimit, dead_letter
from retuned.consumers.errors import BrokerUnavailable, Fenced
from retuned.consumers.events import BadEvent, Feedback, Interaction, Kind, decode, to_json
from retuned.consumers.kafka import Batch, Offsets, Publisher, Record, Source
from retuned.consumers.metrics import Metrics
from retuned.consumers.privacy import Redactor, load_user_key, user_hash
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse import MIGRATIONS, Warehouse, first_line, named_queries, utc_now

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0

_WHERE = [("topic", pa.string()), ("partition", pa.int32()), ("offset", pa.int64())]
_RECEIVED = ("received_at", pa.timestamp("us"))
_INTERACTIONS = pa.schema(
    [("id", pa.string()), ("timestamp", pa.timestamp("us"))]
    + [
        (name, pa.string())
        for name in ("workload", "model", "messages", "response", "context", "conversation_id", "user_id")
    ]
    + [("latency_seconds", pa.float64()), ("time_to_first_token_seconds", pa.float64())]
    + [("input_tokens", pa.int64()), ("output_tokens", pa.int64()), ("cost", pa.float64())]
    + [("finish_reason", pa.string()), ("attributes", pa.string()), *_WHERE, _RECEIVED]
)
_FEEDBACK = pa.schema(
    [("id", pa.string()), ("timestamp", pa.timestamp("us"))]
    + [(name, pa.string()) for name in ("interaction_id", "name", "value", "source", "user_id")]
    + [*_WHERE, _RECEIVED]
)
_DEAD_LETTERS = pa.schema(
    [*_WHERE, ("reason", pa.string()), ("detail", pa.string()), ("payload", pa.string()), _RECEIVED]
)
_OFFSETS = pa.schema(
    [("topic", pa.string()), ("partition", pa.int32()), ("start_offset", pa.int64()), ("next_offset", pa.int64())]
)

Row = tuple[Any, ...]


def stored_offsets(warehouse: Warehouse) -> Offsets:
    """The next offset of each partition, as a source asks for it."""
    rows = warehouse.rows(named_queries(MIGRATIONS, "ingest.sql")["stored_offsets"])
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


class Ingest:
    """Moves events from a source into the warehouse. One thread.

    Attributes:
        events_seen: messages read since the start.
        last_event_at: when the last batch with messages was stored, naive UTC; None before the first.
        broker_up: whether the broker answered last time.
        lag: events that wait on the broker, as of the last batch.
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
            ConfigurationError: the key of the user hash cannot be read or made.
        """
        self._source, self._warehouse, self._settings, self._metrics = source, warehouse, settings, metrics
        self._publisher = publisher
        self._queries = named_queries(MIGRATIONS, "ingest.sql")
        self._redactor = Redactor(settings.privacy.redact)
        self._user_key = load_user_key(settings.privacy, warehouse.path)
        self._limit = DeadLetterLimit(settings.ingest.dead_letter_share_limit, settings.ingest.dead_letter_window)
        self.events_seen = 0
        self.last_event_at: datetime | None = None
        self.broker_up = False
        self.lag = 0

    @property
    def caught_up(self) -> bool:
        """Whether everything that the broker has on our partitions is stored."""
        return self._source.caught_up()

    def run(self, stop: threading.Event) -> None:
        """Read until asked to stop. A broker that is away is waited for; every other error comes out."""
        pause = FIRST_PAUSE_SECONDS
        away = False
        while not stop.is_set():
            try:
                self.step()
            except BrokerUnavailable as error:
                self._broker_is(up=False)
                if not away:
                    log.warning("%s; trying again until it does", error)
                away = True
                stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                if away:
                    log.info("kafka %s: answers again", self._settings.kafka.bootstrap_servers)
                away, pause = False, FIRST_PAUSE_SECONDS

    def step(self) -> int:
        """One batch: wait for it, store it. Returns the number of messages read.

        Raises:
            BrokerUnavailable: worth another try.
            Fenced: another consumer moved an offset; nothing of the batch was stored.
            TooManyDeadLetters: raised after the batch is stored.
            WarehouseError: nothing of the batch was stored.
        """
        batch = self._source.poll(self._settings.ingest.batch_events, self._settings.ingest.batch_seconds)
        self._broker_is(up=True)
        if not batch.nexts:
            return 0
        started = time.perf_counter()
        received_at = utc_now()
        rows = self._decoded(batch.records, received_at)
        duplicates = self._write(batch, rows)
        self._source.commit(batch.nexts)
        self._count(batch, rows, duplicates, received_at, time.perf_counter() - started)
        self._publish(rows.dead)
        self._limit.check(len(batch.records), len(rows.dead), rows.dead[-1] if rows.dead else None)
        return len(batch.records)

    def _decoded(self, records: Sequence[Record], received_at: datetime) -> "_Rows":
        rows = _Rows(self._settings.ingest.deduplicate_seconds, received_at)
        feedback_topic, max_bytes = self._settings.kafka.feedback_topic, self._settings.ingest.max_event_bytes
        for record in records:
            kind: Kind = "feedback" if record.topic == feedback_topic else "interactions"
            try:
                event = decode(kind, record.value, max_bytes)
            except BadEvent as bad:
                rows.dead.append(dead_letter(record, bad, self._redactor, self._user_key))
                continue
            if isinstance(event, Interaction):
                if rows.is_new(event):
                    rows.interactions.append(self._interaction(event, record, received_at))
            elif rows.is_new(event):
                rows.feedback.append(self._feedback(event, record, received_at))
        return rows

    def _interaction(self, event: Interaction, record: Record, received_at: datetime) -> Row:
        return (
            event.id, event.timestamp, event.workload, event.model,
            self._json(event.messages), self._redactor.text(event.response), self._json(event.context),
            event.conversation_id, self._user(event.user_id),
            event.latency_seconds, event.time_to_first_token_seconds, event.input_tokens, event.output_tokens,
            event.cost, event.finish_reason, self._json(event.attributes),
            record.topic, record.partition, record.offset, received_at,
        )  # fmt: skip

    def _feedback(self, event: Feedback, record: Record, received_at: datetime) -> Row:
        value = self._redactor.text(event.value) if isinstance(event.value, str) else event.value
        return (
            event.id, event.timestamp, event.interaction_id, event.name, to_json(value), event.source,
            self._user(event.user_id), record.topic, record.partition, record.offset, received_at,
        )  # fmt: skip

    def _json(self, value: Any) -> str | None:
        if value is None:
            return None
        text = to_json(value)
        return to_json(self._redactor.value(value)) if self._redactor.may_hold(text.encode()) else text

    def _user(self, user_id: str | None) -> str | None:
        return None if user_id is None else user_hash(self._user_key, user_id)

    def _write(self, batch: Batch, rows: "_Rows") -> int:
        """Everything of a batch in one transaction. Returns the number of duplicates."""
        duplicates = rows.duplicates
        try:
            with self._warehouse.transaction() as cursor:
                for name, events, schema in (
                    ("interactions", rows.interactions, _INTERACTIONS),
                    ("feedback", rows.feedback, _FEEDBACK),
                ):
                    if events:
                        cursor.register(f"batch_{name}", _table(events, schema))
                        stored = _changed(cursor.execute(self._queries[f"insert_{name}"], rows.bounds(events)))
                        duplicates += len(events) - stored
                if rows.dead:
                    cursor.register("batch_dead_letters", _table(rows.dead_rows(), _DEAD_LETTERS))
                    cursor.execute(self._queries["insert_dead_letters"])
                self._move_offsets(cursor, batch)
        except (duckdb.TransactionException, duckdb.ConstraintException) as error:
            raise Fenced(
                f"the offsets of this batch are being moved by another consumer ({first_line(error)})"
            ) from error
        return duplicates

    def _move_offsets(self, cursor: duckdb.DuckDBPyConnection, batch: Batch) -> None:
        moved = [(*key, batch.starts.get(key), offset) for key, offset in batch.nexts.items()]
        cursor.register("batch_offsets", _table(moved, _OFFSETS))
        updated = _changed(cursor.execute(self._queries["move_offsets"]))
        inserted = _changed(cursor.execute(self._queries["first_offsets"]))
        if updated != len(batch.starts) or inserted != len(batch.nexts) - len(batch.starts):
            raise Fenced(
                f"another consumer of group {self._settings.kafka.group_id!r} moved the offsets of "
                f"{', '.join(f'{topic}[{partition}]' for topic, partition in batch.nexts)}: nothing was stored; "
                "run one daemon for each warehouse"
            )

    def _count(self, batch: Batch, rows: "_Rows", duplicates: int, received_at: datetime, seconds: float) -> None:
        metrics = self._metrics
        for topic, count in Counter(record.topic for record in batch.records).items():
            metrics.events.labels(topic).inc(count)
        for reason, count in Counter(dead.reason for dead in rows.dead).items():
            metrics.dead_letters.labels(reason).inc(count)
        for kind, count in self._redactor.counts.items():
            metrics.redactions.labels(kind).inc(count)
        self._redactor.counts.clear()
        metrics.duplicates.inc(duplicates)
        metrics.batch_seconds.observe(seconds)
        self.lag = self._source.lag()
        metrics.lag.set(self.lag)
        if batch.records:
            self.events_seen += len(batch.records)
            self.last_event_at = received_at
            metrics.last_event.set_to_current_time()

    def _publish(self, dead: list[DeadLetter]) -> None:
        topic = self._settings.kafka.dead_letter_topic
        if not dead or topic is None or self._publisher is None:
            return
        fields = ("topic", "partition", "offset", "reason", "detail", "payload")
        try:
            self._publisher.publish_all(
                topic, [(letter.key, {name: getattr(letter, name) for name in fields}) for letter in dead]
            )
        except BrokerUnavailable as error:
            # Nothing is lost: the warehouse has them. The topic is a copy.
            self._metrics.dead_letter_publish_failures.inc()
            log.warning("dead letters are stored, but not copied to %s: %s", topic, error)

    def _broker_is(self, *, up: bool) -> None:
        self.broker_up = up
        self._metrics.broker_up.set(up)


class _Rows:
    """The rows of a batch, each id once within the deduplication distance."""

    def __init__(self, distance_seconds: float, received_at: datetime) -> None:
        self._distance, self._received_at = timedelta(seconds=distance_seconds), received_at
        self._seen: dict[tuple[type, str], datetime] = {}
        self.interactions: list[Row] = []
        self.feedback: list[Row] = []
        self.dead: list[DeadLetter] = []
        self.duplicates = 0

    def is_new(self, event: Interaction | Feedback) -> bool:
        key = (type(event), event.id)
        before = self._seen.get(key)
        if before is not None and abs(event.timestamp - before) <= self._distance:
            self.duplicates += 1
            return False
        self._seen[key] = event.timestamp
        return True

    def bounds(self, events: list[Row]) -> dict[str, Any]:
        """The parameters of the anti-join: column 1 is the timestamp."""
        times = [event[1] for event in events]
        return {
            "low": min(times) - self._distance,
            "high": max(times) + self._distance,
            "distance": self._distance // timedelta(microseconds=1),
        }

    def dead_rows(self) -> list[Row]:
        return [
            (dead.topic, dead.partition, dead.offset, dead.reason, dead.detail, dead.payload, self._received_at)
            for dead in self.dead
        ]


def _table(rows: Sequence[Row], schema: Any) -> Any:
    return pa.Table.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(zip(*rows, strict=True), schema, strict=True)],
        schema=schema,
    )


def _changed(cursor: duckdb.DuckDBPyConnection) -> int:
    row = cursor.fetchone()
    return int(row[0]) if row else 0
