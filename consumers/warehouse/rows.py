"""A batch on its way into the warehouse: rows of each table, each id once, as Arrow tables."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, Raw
from msgspec.structs import astuple

from retuned.consumers.formats.dialects import BadPart
from retuned.consumers.formats.events import (
    NESTED,
    SHADOW_ANSWER,
    UNFORESEEN,
    BadEvent,
    Event,
    Feedback,
    Interaction,
    PassedOver,
    to_json,
)
from retuned.consumers.formats.users import Pseudonyms
from retuned.consumers.kafka.contract import Batch, Record
from retuned.consumers.privacy.columns import Redacted
from retuned.consumers.privacy.redactor import Failed, Redactor
from retuned.consumers.warehouse.dead_letters import DeadLetter, dead_letter, unredacted

Table = Literal["interactions", "feedback", "shadow_answers"]
"""What events are stored in."""
REPLAYED = "replayed_dead_letters"
"""In segments, letters that were replayed."""
DEEPEST = 64
"""Levels of JSON. What reads an event later recurses, and Python's stack ends some way below a thousand."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NULL = Raw(b"null")
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
    [
        *_WHERE,
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("payload", pa.string()),
        _RECEIVED,
        ("workload", pa.string()),
    ]
)
_REPLAYED = pa.schema([*_WHERE, ("payload", pa.string())])

_SCHEMAS: dict[Table, Any] = {"interactions": _INTERACTIONS, "feedback": _FEEDBACK, "shadow_answers": _FEEDBACK}

# What people write, in the order in which it is read; JSON columns are redacted inside.
_INTERACTION_TEXTS = ("messages", "response", "context", "attributes", "finish_reason")
_FEEDBACK_TEXTS = ("name", "value")
_OURS = frozenset({"topic", "partition", "offset", "received_at"})
_JSON = frozenset({"messages", "context", "attributes", "value"})


# Events that become Arrow arrays together: their objects are let go while the processor still has them at hand.
_TOGETHER = 2_048


class _Events:
    """The events of one kind in a batch, each id once within a distance."""

    def __init__(
        self,
        schema: Any,
        columns: Callable[[Any, Callable[[str], str]], dict[str, Any]],
        received_at: datetime,
        pseudonym: Callable[[str], str],
    ) -> None:
        self._schema, self._columns, self._received_at, self._pseudonym = schema, columns, received_at, pseudonym
        self._seen: dict[str, datetime] = {}
        self._events: list[Event] = []
        self._records: list[Record] = []
        self._batches: list[Any] = []
        self.ids: list[str] = []
        self.bad: list[tuple[Record, BadPart]] = []

    def add(self, event: Event, record: Record, distance: timedelta) -> bool:
        """Whether it is new here."""
        before = self._seen.setdefault(event.id, event.timestamp)
        if before is not event.timestamp:
            if abs(event.timestamp - before) <= distance:
                return False
            self._seen[event.id] = event.timestamp
        self._events.append(event)
        self._records.append(record)
        if len(self._events) == _TOGETHER:
            self._pack()
        return True

    def table(self) -> Any:
        """All of them as an Arrow table; None when there are none."""
        if self._events:
            self._pack()
        batches, self._batches, self._seen = self._batches, [], {}  # else they stay until the batch is stored
        return pa.Table.from_batches(batches).combine_chunks() if batches else None

    def _pack(self) -> None:
        events, records = self._events, self._records
        self._events, self._records = [], []
        self._pack_some(events, records)

    def _pack_some(self, events: list[Event], records: list[Record]) -> None:
        """Where one of them fails, it is found by halving, and is bad."""
        try:
            columns = self._columns(events, self._pseudonym)
            columns["topic"] = [record.topic for record in records]
            columns["partition"] = [record.partition for record in records]
            columns["offset"] = [record.offset for record in records]
            arrays = [_array(columns[field.name], field) for field in self._schema if field.name != _RECEIVED[0]]
        except Exception as error:  # noqa: BLE001  (what one event holds must not stop the stream)
            if len(events) == 1:
                bad = error if isinstance(error, BadEvent) else BadEvent.unforeseen(error)
                self.bad.append((records[0], BadPart(bad)))
                return
            middle = len(events) // 2
            self._pack_some(events[:middle], records[:middle])
            self._pack_some(events[middle:], records[middle:])
            return
        arrays.append(pa.repeat(pa.scalar(self._received_at, _RECEIVED[1]), len(records)))
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self.ids += columns["id"]


class Rows:
    """The rows of one batch, each id once within the deduplication distance.

    Filled by `add`; `pack` and then `redact` make of it what is stored.

    Attributes:
        starts, nexts, lost, identities, remade: as those of the batch.
        messages: how many came, by topic.
        bad: what is no event, as it came.
        passed_over: how much is known to be none, by reason.
        unforeseen: the errors for which a message is a dead letter with the reason internal_error.
        tables: Arrow tables of the events, redacted.
        ids: of the events, in the order of their tables.
        dead: the dead letters.
        replayed: stored letters that are events now, which are in the tables: topic, partition, offset, payload.
        read_all: whether nothing more was on the broker.
        segment: the number of the segment that it is, of a cluster; None: it was read from Kafka or a file.
        expired: it stands for all segments up to that number.
        with_archive: an id that is in the archive is a duplicate, too.
    """

    def __init__(
        self, batch: Batch, distance_seconds: float, received_at: datetime, pseudonym: Callable[[str], str]
    ) -> None:
        """`pseudonym` is of a user as the events name one."""
        self.starts, self.nexts, self.lost = batch.starts, batch.nexts, batch.lost
        self.identities, self.remade = batch.identities, batch.remade
        self.messages = Counter([record.topic for record in batch.records])
        self.received_at = received_at
        self._distance = timedelta(seconds=distance_seconds)
        self._interactions = _Events(_INTERACTIONS, _interaction_columns, received_at, pseudonym)
        self._feedback = _Events(_FEEDBACK, _feedback_columns, received_at, pseudonym)
        self._shadow_answers = _Events(_FEEDBACK, _feedback_columns, received_at, pseudonym)
        self.bad: list[tuple[Record, BadPart]] = []
        self.passed_over: Counter[str] = Counter()
        self.unforeseen: list[BaseException] = []
        self.tables: dict[Table, Any] = {}
        self.ids: dict[Table, list[str]] = {}
        self.dead: list[DeadLetter] = []
        self.replayed: list[dict[str, Any]] = []
        self.stored: dict[Table, int] = {}
        self.duplicates = 0
        self.redactions: Counter[str] = Counter()
        self.seconds = 0.0
        self.read_all = False
        self.segment: int | None = None
        self.expired = self.with_archive = False

    @classmethod
    def of_segment(
        cls,
        segment: int,
        batch: Batch,
        distance_seconds: float,
        received_at: datetime,
        messages: Mapping[str, int],
        tables: Mapping[str, Any],
    ) -> "Rows":
        """The rows of a segment, which are redacted: what an ingester wrote, by the names of the tables.

        Columns that an older version did not write are null.
        """
        rows = cls(batch, distance_seconds, received_at, lambda user: user)
        rows.segment, rows.messages = segment, Counter(messages)
        for kind, schema in _SCHEMAS.items():
            if kind in tables:
                rows.tables[kind] = _ready(_fitted(tables[kind], schema), {})
                rows.ids[kind] = rows.tables[kind]["id"].to_pylist()
        if "dead_letters" in tables:
            names = ("topic", "partition", "offset", "reason", "detail", "payload", "workload")
            rows.dead = [DeadLetter(**row) for row in tables["dead_letters"].select(names).to_pylist()]
        if REPLAYED in tables:
            rows.replayed = tables[REPLAYED].to_pylist()
        return rows

    def add(self, found: Event | PassedOver | BadPart, record: Record) -> None:
        """Add what was found in a record; an event, unless the batch has its id already."""
        if type(found) is Interaction:
            new = self._interactions.add(found, record, self._distance)
        elif type(found) is Feedback:
            events = self._shadow_answers if found.name == SHADOW_ANSWER else self._feedback
            new = events.add(found, record, self._distance)
        elif isinstance(found, BadPart):
            self.bad.append((record, found))
            return
        else:
            assert isinstance(found, PassedOver)
            self.passed_over[found.reason] += 1
            return
        self.duplicates += not new

    def pack(self) -> None:
        """Nothing more comes: make `tables`, with personal data, and `ids`."""
        kinds: dict[Table, _Events] = {
            "interactions": self._interactions,
            "feedback": self._feedback,
            "shadow_answers": self._shadow_answers,
        }
        for kind, events in kinds.items():
            if (table := events.table()) is not None:
                self.tables[kind], self.ids[kind] = table, events.ids
            self.bad += events.bad
        errors = [bad.error for _, bad in self.bad if bad.error.reason == UNFORESEEN]
        self.unforeseen += [error.__cause__ or error for error in errors]

    def redact(self, redactor: Redactor, pseudonym: Callable[[str], str]) -> None:
        """Take personal data out of `tables`, and make `dead` of what was bad.

        Users become pseudonyms wherever JSON names them; `pseudonym` is of what may be one already. A
        conversation id that is an address becomes its pseudonym. What cannot be redacted leaves the table. Of a
        segment, all was done before.

        Raises:
            StoreUnavailable: the database that has the numbers of placeholders does not answer.
        """
        if self.segment is not None:
            return
        failed: dict[Table, dict[int, Exception]] = {kind: {} for kind in self.tables}
        users = Pseudonyms(pseudonym)
        redacted = {kind: self._take_out(kind, redactor, users, failed[kind].__setitem__) for kind in failed}
        bad = [dead_letter(record, bad, redactor, pseudonym) for record, bad in self.bad]
        self.redactions = redactor.take_counts()
        redactor.number(list(redacted.values()))
        for kind, found in redacted.items():
            clean = found.columns()
            if kind == "interactions":
                ids = self.tables[kind]["conversation_id"].combine_chunks()
                clean["conversation_id"] = redactor.identifiers(ids, pseudonym, failed[kind].__setitem__)
            self.tables[kind] = _ready(self.tables[kind], clean)
            for row, where in self._remove(kind, failed[kind]).items():
                error = failed[kind][row]
                # What is nested is decoded here for the first time.
                is_number = isinstance(error, msgspec.ValidationError)
                self.dead.append(unredacted(*where, error, "bad_value" if is_number else UNFORESEEN))
                if not is_number:
                    self.unforeseen.append(error)
        self.dead += bad

    def reject(self, kind: Table, failed: dict[int, Exception]) -> None:
        """Make dead letters of rows that cannot be stored; they are redacted."""
        if not failed:
            return
        self.unforeseen += failed.values()
        texts = {row: self.tables[kind].slice(row, 1).to_pylist()[0] for row in failed}
        for row, where in self._remove(kind, failed).items():
            bad = BadEvent.unforeseen(failed[row])
            self.dead.append(
                DeadLetter(*where, bad.reason, bad.detail, _event_of(texts[row]), texts[row].get("workload"))
            )

    def _remove(self, kind: Table, rows: Iterable[int]) -> dict[int, tuple[str, int, int]]:
        """Take rows out of a table. Returns where each of them lies: topic, partition, offset."""
        gone = sorted(rows)
        if not gone:
            return {}
        table = self.tables[kind]
        where = {row: tuple(table[name][row].as_py() for name in ("topic", "partition", "offset")) for row in gone}
        kept = np.ones(table.num_rows, bool)
        kept[gone] = False
        self.ids[kind] = [id for id, keep in zip(self.ids[kind], kept, strict=True) if keep]
        if self.ids[kind]:
            self.tables[kind] = table.filter(pa.array(kept)).combine_chunks()
        else:
            del self.tables[kind], self.ids[kind]
        return where

    def _take_out(self, kind: Table, redactor: Redactor, users: Pseudonyms, failed: Failed) -> Redacted:
        table = self.tables[kind]
        letters = _letters(table) if self.replayed else None
        if kind == "interactions":
            ids, conversations = table["id"].combine_chunks(), table["conversation_id"].combine_chunks()
            redactor.remember(ids, conversations)
            texts = _some(table, _INTERACTION_TEXTS)
            return redactor.take_out(texts, _JSON, ids, conversations, failed, letters, users)
        # With the numbers of the conversations that the feedback is on.
        on = table["interaction_id"].combine_chunks()
        return redactor.take_out(_some(table, _FEEDBACK_TEXTS), _JSON, on, failed=failed, letters=letters, users=users)

    @property
    def is_traffic(self) -> bool:
        """Whether it was read from Kafka: files and replayed letters are no traffic of now, and of no producer."""
        return not any(":" in topic for topic, _ in self.nexts)  # which no topic of Kafka's has in its name

    def bounds(self, table: Any) -> dict[str, Any]:
        """The parameters of the anti-join over a table of events."""
        span = pc.min_max(table["timestamp"]).as_py()
        return {
            "low": span["min"] - self._distance,
            "high": span["max"] + self._distance,
            "distance": self._distance // timedelta(microseconds=1),
        }

    def keep_bad_letters(self) -> None:
        """Of letters that are replayed, those of which some event was found to be bad meanwhile stay as they are."""
        if self.replayed:
            bad = {(dead.topic, dead.partition, dead.offset) for dead in self.dead}
            self.replayed = [one for one in self.replayed if (one["topic"], one["partition"], one["offset"]) not in bad]
            self.dead = []

    def replayed_table(self) -> Any:
        """An Arrow table of the letters that are replayed."""
        return pa.Table.from_pylist(self.replayed, _REPLAYED)

    def dead_letters_table(self) -> Any:
        """An Arrow table; dead letters are redacted when they are made."""
        fields = ("topic", "partition", "offset", "reason", "detail", "payload")
        columns = [pa.array([getattr(dead, name) for dead in self.dead]) for name in fields]
        received = pa.repeat(pa.scalar(self.received_at, _RECEIVED[1]), len(self.dead))
        workloads = pa.array([dead.workload for dead in self.dead])
        return pa.Table.from_arrays([*columns, received, workloads], names=_DEAD_LETTERS.names).cast(_DEAD_LETTERS)


def _event_of(row: dict[str, Any]) -> str:
    """The JSON of an event, as it was stored or would have been."""
    fields = {name: value for name, value in row.items() if value is not None and name not in _OURS}
    fields |= {name: Raw(fields[name].encode()) for name in _JSON if name in fields}
    return to_json(fields | {"timestamp": fields["timestamp"].isoformat() + "Z"})


def _letters(table: Any) -> list[str]:
    """Of each row, the dead letter that it was."""
    where = (table[name].to_pylist() for name, _ in _WHERE)
    return [f"{topic} {partition} {offset}" for topic, partition, offset in zip(*where, strict=True)]


def _some(table: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: table[name].combine_chunks() for name in names}


def _fitted(table: Any, schema: Any) -> Any:
    """A table with the columns of a schema; those that it lacks are null."""
    names = table.column_names
    columns = [table[one.name] if one.name in names else pa.nulls(table.num_rows, one.type) for one in schema]
    return pa.Table.from_arrays(columns, names=schema.names).cast(schema)


def _ready(table: Any, columns: dict[str, Any]) -> Any:
    """The table with these columns in the place of its own, and JSON marked as such.

    It was checked when it was decoded: DuckDB need not parse it again.
    """
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table.cast(
        pa.schema([pa.field(field.name, pa.json_() if field.name in _JSON else field.type) for field in table.schema])
    )


def _columns(kind: type[Event], events: Sequence[Event], pseudonym: Callable[[str], str]) -> dict[str, Any]:
    """The values of each field, by its name; of users their pseudonyms."""
    columns = dict(zip(kind.__struct_fields__, zip(*map(astuple, events), strict=True), strict=True))
    return columns | {"user_id": [user and pseudonym(user) for user in columns["user_id"]]}


def _interaction_columns(events: list[Interaction], pseudonym: Callable[[str], str]) -> dict[str, Any]:
    columns = _columns(Interaction, events, pseudonym)
    columns |= {name: _json_array(columns[name]) for name in NESTED}
    return columns


def _feedback_columns(events: list[Feedback], pseudonym: Callable[[str], str]) -> dict[str, Any]:
    columns = _columns(Feedback, events, pseudonym)
    for value in columns["value"]:
        if isinstance(value, dict | list) and _depth(value) > DEEPEST:
            raise BadEvent("too_deep", f"nested more than {DEEPEST} levels deep")
    return columns | {"value": [to_json(value) for value in columns["value"]]}


def _json_array(nested: Sequence[Any]) -> Any:
    """An Arrow array of JSON texts, made without a Python object for each; null for what is absent or `null`.

    Args:
        nested: `Raw` or UNSET.

    Raises:
        BadEvent: one of them is nested too deeply.
    """
    if nested.count(UNSET) == len(nested):
        return pa.nulls(len(nested), pa.string())
    texts = [_NULL if text is UNSET else text for text in nested]
    lengths = [len(memoryview(text)) for text in texts]
    ends = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(lengths, out=ends[1:])
    joined = b"".join(texts)
    array = pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(joined))
    # Few have so many brackets that they could be nested so deeply.
    signs = np.frombuffer(joined, np.uint8)
    opened = np.flatnonzero((signs == ord("{")) | (signs == ord("[")))
    for place in np.flatnonzero(np.diff(np.searchsorted(opened, ends)) > DEEPEST):
        if _depth(msgspec.json.decode(texts[place])) > DEEPEST:
            raise BadEvent("too_deep", f"nested more than {DEEPEST} levels deep")
    return pc.if_else(pc.equal(array, "null"), None, array) if len("null") in lengths else array


def _depth(value: Any) -> int:
    """How many levels of objects and lists a decoded JSON value has. Without recursion: it may have many."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _array(values: Any, field: Any) -> Any:
    if isinstance(values, pa.Array):
        return values
    if field.name == "timestamp":  # whatever its zone, as UTC; Arrow would ask each for its zone, which is slower
        return pa.array([timestamp - _EPOCH for timestamp in values], pa.duration("us")).view(field.type)
    return pa.array(values, field.type)
