"""A batch on its way into the warehouse: rows of each table, each id once, as Arrow tables."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, Raw

from retuned.consumers.dead_letter import DeadLetter, dead_letter
from retuned.consumers.dialects import BadPart
from retuned.consumers.events import Event, Feedback, Interaction, Kind, to_json
from retuned.consumers.kafka import Batch, Record
from retuned.consumers.privacy import Redactor

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

# What people write, in the order in which it is read; JSON columns are redacted inside.
_INTERACTION_TEXTS = ("messages", "response", "context", "attributes", "finish_reason")
_FEEDBACK_TEXTS = ("name", "value")
_JSON = frozenset({"messages", "context", "attributes", "value"})


# Events that become Arrow arrays together: their objects are let go while the processor still has them at hand.
_TOGETHER = 2_048


class _Events:
    """The events of one kind in a batch, each id once within a distance."""

    def __init__(self, schema: Any, columns: Callable[[Any], dict[str, Any]], received_at: datetime) -> None:
        self._schema, self._columns, self._received_at = schema, columns, received_at
        self._seen: dict[str, datetime] = {}
        self._events: list[Event] = []
        self._records: list[Record] = []
        self._batches: list[Any] = []
        self.ids: list[str] = []

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
        return pa.Table.from_batches(self._batches).combine_chunks() if self._batches else None

    def _pack(self) -> None:
        events, records = self._events, self._records
        self._events, self._records = [], []
        columns = self._columns(events)
        columns["topic"] = [record.topic for record in records]
        columns["partition"] = [record.partition for record in records]
        columns["offset"] = [record.offset for record in records]
        arrays = [_array(columns[field.name], field) for field in self._schema if field.name != _RECEIVED[0]]
        arrays.append(pa.repeat(pa.scalar(self._received_at, _RECEIVED[1]), len(records)))
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self.ids += columns["id"]


class Rows:
    """The rows of one batch, each id once within the deduplication distance.

    Filled by `add` and `add_bad`; `pack` and then `redact` make of it what is stored.

    Attributes:
        starts, nexts, lost: as those of the batch.
        messages: how many came, by topic.
        bad: what is no event, as it came.
        tables: Arrow tables of the events, redacted.
        ids: of the events, in the order of their tables.
        dead: the dead letters.
    """

    def __init__(self, batch: Batch, distance_seconds: float, received_at: datetime) -> None:
        self.starts, self.nexts, self.lost = batch.starts, batch.nexts, batch.lost
        self.messages = Counter([record.topic for record in batch.records])
        self.received_at = received_at
        self._distance = timedelta(seconds=distance_seconds)
        self._interactions = _Events(_INTERACTIONS, _interaction_columns, received_at)
        self._feedback = _Events(_FEEDBACK, _feedback_columns, received_at)
        self.bad: list[tuple[Record, BadPart]] = []
        self.tables: dict[Kind, Any] = {}
        self.ids: dict[Kind, list[str]] = {}
        self.dead: list[DeadLetter] = []
        self.stored: dict[Kind, int] = {}
        self.duplicates = 0
        self.redactions: Counter[str] = Counter()
        self.seconds = 0.0

    def add(self, event: Event, record: Record) -> None:
        """Add an event, unless the batch has its id already. Its user is the pseudonym."""
        events = self._interactions if type(event) is Interaction else self._feedback
        if not events.add(event, record, self._distance):
            self.duplicates += 1

    def add_bad(self, record: Record, bad: BadPart) -> None:
        """Add what is no event."""
        self.bad.append((record, bad))

    def pack(self) -> None:
        """Nothing more comes: make `tables`, with personal data, and `ids`."""
        kinds: dict[Kind, _Events] = {"interactions": self._interactions, "feedback": self._feedback}
        for kind, events in kinds.items():
            if (table := events.table()) is not None:
                self.tables[kind], self.ids[kind] = table, events.ids

    def redact(self, redactor: Redactor, pseudonym: Callable[[str], str]) -> None:
        """Take personal data out of `tables`, and make `dead` of what was bad.

        A conversation id that is an address becomes its pseudonym.
        """
        self._redact(redactor, pseudonym)
        self.dead = [dead_letter(record, bad, redactor, pseudonym) for record, bad in self.bad]
        self.redactions = redactor.take_counts()

    def _redact(self, redactor: Redactor, pseudonym: Callable[[str], str]) -> None:
        if (table := self.tables.get("interactions")) is not None:
            conversations = table["conversation_id"].to_pylist()
            redactor.remember(self.ids["interactions"], conversations)
            clean = redactor.columns(_some(table, _INTERACTION_TEXTS), _JSON, self.ids["interactions"], conversations)
            clean["conversation_id"] = redactor.identifiers(conversations, pseudonym)
            self.tables["interactions"] = _with(table, clean)
        if (table := self.tables.get("feedback")) is not None:
            # With the numbers of the conversations that the feedback is on.
            ids = table["interaction_id"].to_pylist()
            clean = redactor.columns(_some(table, _FEEDBACK_TEXTS), _JSON, ids, redactor.conversations_of(ids))
            self.tables["feedback"] = _with(table, clean)

    def bounds(self, table: Any) -> dict[str, Any]:
        """The parameters of the anti-join over a table of events."""
        span = pc.min_max(table["timestamp"]).as_py()
        return {
            "low": span["min"] - self._distance,
            "high": span["max"] + self._distance,
            "distance": self._distance // timedelta(microseconds=1),
        }

    def dead_letters_table(self) -> Any:
        """An Arrow table; dead letters are redacted when they are made."""
        fields = ("topic", "partition", "offset", "reason", "detail", "payload")
        columns = [pa.array([getattr(dead, name) for dead in self.dead]) for name in fields]
        received = pa.repeat(pa.scalar(self.received_at, _RECEIVED[1]), len(self.dead))
        return pa.Table.from_arrays([*columns, received], names=_DEAD_LETTERS.names).cast(_DEAD_LETTERS)


def _some(table: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: table[name].combine_chunks() for name in names}


def _with(table: Any, columns: dict[str, Any]) -> Any:
    """The table with these columns in the place of its own."""
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def _interaction_columns(events: list[Interaction]) -> dict[str, Any]:
    return {
        "id": [event.id for event in events],
        "timestamp": [event.timestamp for event in events],
        "workload": [event.workload for event in events],
        "model": [event.model for event in events],
        "messages": _joined([event.messages for event in events]),
        "response": [event.response for event in events],
        "context": [_json_or_none(event.context) for event in events],
        "conversation_id": [event.conversation_id for event in events],
        "user_id": [event.user_id for event in events],
        "latency_seconds": [event.latency_seconds for event in events],
        "time_to_first_token_seconds": [event.time_to_first_token_seconds for event in events],
        "input_tokens": [event.input_tokens for event in events],
        "output_tokens": [event.output_tokens for event in events],
        "cost": [event.cost for event in events],
        "finish_reason": [event.finish_reason for event in events],
        "attributes": [_json_or_none(event.attributes) for event in events],
    }


def _feedback_columns(events: list[Feedback]) -> dict[str, Any]:
    return {
        "id": [event.id for event in events],
        "timestamp": [event.timestamp for event in events],
        "interaction_id": [event.interaction_id for event in events],
        "name": [event.name for event in events],
        "value": [to_json(event.value) for event in events],
        "source": [event.source for event in events],
        "user_id": [event.user_id for event in events],
    }


def _joined(texts: list[Raw]) -> Any:
    """An Arrow array of strings, from UTF-8, without a Python string for each."""
    ends = np.zeros(len(texts) + 1, np.int32)
    np.cumsum([len(memoryview(text)) for text in texts], out=ends[1:])
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(b"".join(texts)))


def _array(values: Any, field: Any) -> Any:
    if isinstance(values, pa.Array):
        return values
    if field.name == "timestamp":  # whatever its zone, as UTC
        return pa.array(values, pa.timestamp("us", "UTC")).cast(field.type)
    return pa.array(values, field.type)


def _json_or_none(nested: Any) -> str | None:
    if nested is UNSET:
        return None
    text = str(nested, "utf-8")
    return None if text == "null" else text
