"""Packs events into Arrow tables, each id once."""

from bisect import bisect
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, Raw
from msgspec.structs import astuple

from retuned.consumers.formats.dialects import BadPart
from retuned.consumers.formats.events import NESTED, BadEvent, Event, Feedback, Interaction, to_json
from retuned.consumers.kafka.contract import Record

Table = Literal["interactions", "feedback", "shadow_answers"]
"""The tables that events are stored in."""
DEEPEST = 64
"""The most levels of JSON: later readers recurse, and Python's stack ends below a thousand levels."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NULL = Raw(b"null")
PLACE = [("topic", pa.string()), ("partition", pa.int32()), ("offset", pa.int64())]
RECEIVED = ("received_at", pa.timestamp("us"))
INTERACTIONS = pa.schema(
    [("id", pa.string()), ("timestamp", pa.timestamp("us"))]
    + [
        (name, pa.string())
        for name in ("workload", "model", "messages", "response", "context", "conversation_id", "user_id")
    ]
    + [("latency_seconds", pa.float64()), ("time_to_first_token_seconds", pa.float64())]
    + [("input_tokens", pa.int64()), ("output_tokens", pa.int64()), ("cost", pa.float64())]
    + [("finish_reason", pa.string()), ("attributes", pa.string()), *PLACE, RECEIVED]
)
FEEDBACK = pa.schema(
    [("id", pa.string()), ("timestamp", pa.timestamp("us"))]
    + [(name, pa.string()) for name in ("interaction_id", "name", "value", "source", "user_id")]
    + [*PLACE, RECEIVED]
)
DEAD_LETTERS = pa.schema(
    [
        *PLACE,
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("payload", pa.string()),
        RECEIVED,
        ("workload", pa.string()),
    ]
)
REPLAYED_LETTERS = pa.schema([*PLACE, ("payload", pa.string())])

SCHEMAS: dict[Table, Any] = {"interactions": INTERACTIONS, "feedback": FEEDBACK, "shadow_answers": FEEDBACK}


def fitted(table: Any, schema: Any) -> Any:
    """Returns a table with the columns of a schema; missing columns are null."""
    names = table.column_names
    columns = [table[field.name] if field.name in names else pa.nulls(table.num_rows, field.type) for field in schema]
    return pa.Table.from_arrays(columns, names=schema.names).cast(schema)


_TOGETHER = 2_048
"""The events that are packed at a time, while their objects are still in the CPU's cache."""


class Packer:
    """Packs the events of one table in a batch, each id once within a distance.

    Attributes:
        ids: the ids of the packed events, in order.
        bad: the events that cannot be packed.
    """

    def __init__(
        self,
        schema: Any,
        columns: Callable[[Any, Callable[[str], str]], dict[str, Any]],
        received_at: datetime,
        pseudonym: Callable[[str], str],
    ) -> None:
        self._schema, self._columns, self._received_at, self._pseudonym = schema, columns, received_at, pseudonym
        self._seen: dict[str, datetime] = {}
        self._times: dict[str, list[datetime]] = {}  # of the few ids with several events, in order
        self._events: list[Event] = []
        self._records: list[Record] = []
        self._batches: list[Any] = []
        self.ids: list[str] = []
        self.bad: list[tuple[Record, BadPart]] = []

    def add(self, event: Event, record: Record, distance: timedelta) -> bool:
        """Adds an event; returns False for a duplicate of an event that was added before, at whatever place."""
        first = self._seen.setdefault(event.id, event.timestamp)
        if first is not event.timestamp:
            times = self._times.get(event.id, [first])
            place = bisect(times, event.timestamp)
            if any(abs(event.timestamp - time) <= distance for time in times[max(place - 1, 0) : place + 1]):
                return False
            times.insert(place, event.timestamp)
            self._times[event.id] = times
        self._events.append(event)
        self._records.append(record)
        if len(self._events) == _TOGETHER:
            self._pack()
        return True

    def table(self) -> Any:
        """Packs all events, and returns them as an Arrow table; None: there are none."""
        if self._events:
            self._pack()
        batches, self._batches = self._batches, []
        self._seen, self._times = {}, {}  # frees memory before the batch is stored
        return pa.Table.from_batches(batches).combine_chunks() if batches else None

    def _pack(self) -> None:
        events, records = self._events, self._records
        self._events, self._records = [], []
        self._pack_some(events, records)

    def _pack_some(self, events: list[Event], records: list[Record]) -> None:
        """Packs some events; one that fails is found by bisection, and is bad."""
        try:
            columns = self._columns(events, self._pseudonym)
            columns["topic"] = [record.topic for record in records]
            columns["partition"] = [record.partition for record in records]
            columns["offset"] = [record.offset for record in records]
            arrays = [_array(columns[field.name], field) for field in self._schema if field.name != RECEIVED[0]]
        except Exception as error:  # noqa: BLE001  (the content of an event must not stop the stream)
            if len(events) == 1:
                bad = error if isinstance(error, BadEvent) else BadEvent.unforeseen(error)
                self.bad.append((records[0], BadPart(bad)))
                return
            middle = len(events) // 2
            self._pack_some(events[:middle], records[:middle])
            self._pack_some(events[middle:], records[middle:])
            return
        arrays.append(pa.repeat(pa.scalar(self._received_at, RECEIVED[1]), len(records)))
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        self.ids += columns["id"]


def _columns(kind: type[Event], events: Sequence[Event], pseudonym: Callable[[str], str]) -> dict[str, Any]:
    """Returns the values of each field by its name, with pseudonyms of users."""
    columns = dict(zip(kind.__struct_fields__, zip(*map(astuple, events), strict=True), strict=True))
    return columns | {"user_id": [user and pseudonym(user) for user in columns["user_id"]]}


def interaction_columns(events: list[Interaction], pseudonym: Callable[[str], str]) -> dict[str, Any]:
    columns = _columns(Interaction, events, pseudonym)
    columns |= {name: _json_array(columns[name]) for name in NESTED}
    return columns


def feedback_columns(events: list[Feedback], pseudonym: Callable[[str], str]) -> dict[str, Any]:
    columns = _columns(Feedback, events, pseudonym)
    for value in columns["value"]:
        if isinstance(value, dict | list) and _depth(value) > DEEPEST:
            raise BadEvent("too_deep", f"nested more than {DEEPEST} levels deep")
    return columns | {"value": [to_json(value) for value in columns["value"]]}


def _json_array(nested: Sequence[Any]) -> Any:
    """Returns an Arrow array of JSON texts without creating Python objects; absent values and `null` are null.

    Args:
        nested: `Raw` or UNSET.

    Raises:
        BadEvent: a text is nested too deeply.
    """
    if nested.count(UNSET) == len(nested):
        return pa.nulls(len(nested), pa.string())
    texts = [_NULL if text is UNSET else text for text in nested]
    lengths = [len(memoryview(text)) for text in texts]
    ends = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(lengths, out=ends[1:])
    joined = b"".join(texts)
    array = pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(joined))
    # Only texts with many brackets can be nested too deeply, and few have them.
    signs = np.frombuffer(joined, np.uint8)
    opened = np.flatnonzero((signs == ord("{")) | (signs == ord("[")))
    for place in np.flatnonzero(np.diff(np.searchsorted(opened, ends)) > DEEPEST):
        if _depth(msgspec.json.decode(texts[place])) > DEEPEST:
            raise BadEvent("too_deep", f"nested more than {DEEPEST} levels deep")
    return pc.if_else(pc.equal(array, "null"), None, array) if len("null") in lengths else array


def _depth(value: Any) -> int:
    """Counts the levels of objects and lists of a decoded JSON value, without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _array(values: Any, field: Any) -> Any:
    if isinstance(values, pa.Array):
        return values
    if field.name == "timestamp":  # in UTC; Arrow's own conversion of time zones is slower
        return pa.array([timestamp - _EPOCH for timestamp in values], pa.duration("us")).view(field.type)
    return pa.array(values, field.type)
