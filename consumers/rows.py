"""A batch on its way into the warehouse: rows of each table, each id once, as Arrow tables."""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from retuned.consumers.dead_letter import DeadLetter
from retuned.consumers.events import Feedback, Interaction, to_json
from retuned.consumers.kafka import Batch, Record
from retuned.consumers.privacy import Redactor

Row = tuple[Any, ...]

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


# What people write, in the order in which it is read; JSON columns are redacted inside.
_INTERACTION_TEXTS = ("messages", "response", "context", "attributes", "finish_reason")
_FEEDBACK_TEXTS = ("name", "value")
_JSON = frozenset({"messages", "context", "attributes", "value"})


class Rows:
    """The rows of one batch, each id once within the deduplication distance."""

    def __init__(self, batch: Batch, distance_seconds: float, received_at: datetime) -> None:
        self.batch, self.received_at = batch, received_at
        self._distance = timedelta(seconds=distance_seconds)
        self._interactions_seen: dict[str, datetime] = {}
        self._feedback_seen: dict[str, datetime] = {}
        self.interactions: list[Row] = []
        self.feedback: list[Row] = []
        self.dead: list[DeadLetter] = []
        self.duplicates = 0
        self.redactions: Counter[str] = Counter()
        self.seconds = 0.0

    def add(self, event: Interaction | Feedback, record: Record, user: str | None) -> None:
        """Add an event, unless the batch has its id already. `user` is the pseudonym."""
        if isinstance(event, Interaction):
            if self._is_new(event, self._interactions_seen):
                self.interactions.append(
                    (
                        event.id, event.timestamp, event.workload, event.model, to_json(event.messages), event.response,
                        None if event.context is None else to_json(event.context), event.conversation_id, user,
                        event.latency_seconds, event.time_to_first_token_seconds, event.input_tokens,
                        event.output_tokens, event.cost, event.finish_reason,
                        None if event.attributes is None else to_json(event.attributes),
                        record.topic, record.partition, record.offset, self.received_at,
                    )
                )  # fmt: skip
        elif self._is_new(event, self._feedback_seen):
            self.feedback.append(
                (
                    event.id, event.timestamp, event.interaction_id, event.name, to_json(event.value), event.source,
                    user, record.topic, record.partition, record.offset, self.received_at,
                )
            )  # fmt: skip

    def _is_new(self, event: Interaction | Feedback, seen: dict[str, datetime]) -> bool:
        before = seen.setdefault(event.id, event.timestamp)
        if before is not event.timestamp:
            if abs(event.timestamp - before) <= self._distance:
                self.duplicates += 1
                return False
            seen[event.id] = event.timestamp
        return True

    def bounds(self, events: list[Row]) -> dict[str, Any]:
        """The parameters of the anti-join: column 1 is the timestamp."""
        times = [event[1] for event in events]
        return {
            "low": min(times) - self._distance,
            "high": max(times) + self._distance,
            "distance": self._distance // timedelta(microseconds=1),
        }

    def interactions_table(self, redactor: Redactor, pseudonym: Callable[[str], str]) -> Any:
        """An Arrow table, redacted; a conversation id that is an address becomes its pseudonym."""
        columns = _columns(self.interactions, _INTERACTIONS)
        ids, conversations = columns["id"], columns["conversation_id"]
        redactor.remember(ids, conversations)
        texts = {name: columns[name] for name in _INTERACTION_TEXTS}
        columns |= redactor.columns(texts, _JSON, ids, conversations)
        columns["conversation_id"] = redactor.identifiers(conversations, pseudonym)
        return _table(columns, _INTERACTIONS)

    def feedback_table(self, redactor: Redactor) -> Any:
        """An Arrow table, redacted, with the numbers of the conversations that the feedback is on."""
        columns = _columns(self.feedback, _FEEDBACK)
        ids = columns["interaction_id"]
        texts = {name: columns[name] for name in _FEEDBACK_TEXTS}
        columns |= redactor.columns(texts, _JSON, ids, redactor.conversations_of(ids))
        return _table(columns, _FEEDBACK)

    def dead_letters_table(self) -> Any:
        """An Arrow table; dead letters are redacted when they are made."""
        fields = ("topic", "partition", "offset", "reason", "detail", "payload")
        rows = [(*(getattr(dead, name) for name in fields), self.received_at) for dead in self.dead]
        return _table(_columns(rows, _DEAD_LETTERS), _DEAD_LETTERS)

    def offsets_table(self) -> Any:
        """An Arrow table of the offsets that the batch moves."""
        moved = [(*key, self.batch.starts.get(key), offset) for key, offset in self.batch.nexts.items()]
        return _table(_columns(moved, _OFFSETS), _OFFSETS)


def _columns(rows: Sequence[Row], schema: Any) -> dict[str, Any]:
    return dict(zip(schema.names, zip(*rows, strict=True), strict=True))


def _table(columns: dict[str, Any], schema: Any) -> Any:
    return pa.Table.from_arrays(
        [
            column if isinstance(column, pa.Array | pa.ChunkedArray) else pa.array(column, type=field.type)
            for column, field in zip(columns.values(), schema, strict=True)
        ],
        schema=schema,
    )
