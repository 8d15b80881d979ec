"""The rows of a batch on their way into the warehouse: packed, redacted and filtered."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw

from retuned.consumers.common.text import first_line
from retuned.consumers.errors import RetunedError
from retuned.consumers.formats.dialects import BadPart
from retuned.consumers.formats.events import (
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
from retuned.consumers.privacy.pseudonyms import UserKeys
from retuned.consumers.privacy.redactor import Failed, Redactor
from retuned.consumers.warehouse.dead_letters import DeadLetter, dead_letter, unredacted
from retuned.consumers.warehouse.packing import (
    DEAD_LETTERS,
    FEEDBACK,
    INTERACTIONS,
    PLACE,
    RECEIVED,
    REPLAYED_LETTERS,
    SCHEMAS,
    Packer,
    Table,
    feedback_columns,
    fitted,
    interaction_columns,
)
from retuned.consumers.warehouse.selection import Request

REPLAYED = "replayed_dead_letters"
"""The table of replayed dead letters in segments."""


ERASED_DETAIL = "the message quotes an id that was erased; its content was not stored"

# Texts of users, in reading order; JSON columns are redacted inside.
_INTERACTION_TEXTS = ("messages", "response", "context", "attributes", "finish_reason")
_FEEDBACK_TEXTS = ("name", "value")
_OURS = frozenset({"topic", "partition", "offset", "received_at"})
_JSON = frozenset({"messages", "context", "attributes", "value"})


class Rows:
    """The rows of one batch, each id once within the deduplication distance.

    Call `add` for each event, then `pack`, then `redact`.

    Attributes:
        starts, nexts, lost, identities, remade: see `Batch`.
        messages: the number of messages by topic.
        bad: records that are not events, unredacted.
        passed_over: the number of skipped records by reason.
        unforeseen: the errors behind dead letters with the reason internal_error.
        tables: Arrow tables of the events; redacted after `redact`.
        ids: the ids of the events, in the order of their tables.
        dead: the dead letters.
        erased: the number of events that were removed because they have a tombstone.
        requests: requests to erase events, each with its message.
        replayed: stored dead letters whose events are in the tables: topic, partition, offset, payload.
        read_all: whether the broker had no more records.
        segment: the number of the cluster's segment that it was read from; None: Kafka or a file.
        expired: whether it stands for all segments up to that number.
        with_archive: whether ids in the archive are duplicates as well.
    """

    def __init__(
        self, batch: Batch, distance_seconds: float, received_at: datetime, pseudonym: Callable[[str], str]
    ) -> None:
        """Creates empty rows.

        Args:
            pseudonym: returns the pseudonym of a user named by an event.
        """
        self.starts, self.nexts, self.lost = batch.starts, batch.nexts, batch.lost
        self.identities, self.remade = batch.identities, batch.remade
        self.messages = Counter([record.topic for record in batch.records])
        self.received_at = received_at
        self._distance = timedelta(seconds=distance_seconds)
        self._interactions = Packer(INTERACTIONS, interaction_columns, received_at, pseudonym)
        self._feedback = Packer(FEEDBACK, feedback_columns, received_at, pseudonym)
        self._shadow_answers = Packer(FEEDBACK, feedback_columns, received_at, pseudonym)
        self.bad: list[tuple[Record, BadPart]] = []
        self.passed_over: Counter[str] = Counter()
        self.unforeseen: list[BaseException] = []
        self.tables: dict[Table, Any] = {}
        self.ids: dict[Table, list[str]] = {}
        self.dead: list[DeadLetter] = []
        self._written: dict[str, float | None] = {}
        self.requests: list[tuple[Record, Request]] = []
        self.replayed: list[dict[str, Any]] = []
        self.stored: dict[Table, int] = {}
        self.duplicates = self.erased = 0
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
        """Returns the rows of a segment, which an ingester has redacted and written.

        Columns that an older release did not write are null.

        Args:
            tables: by their names.
        """
        rows = cls(batch, distance_seconds, received_at, lambda user: user)
        rows.segment, rows.messages = segment, Counter(messages)
        for kind, schema in SCHEMAS.items():
            if kind in tables:
                rows.tables[kind] = _ready(fitted(tables[kind], schema), {})
                rows.ids[kind] = rows.tables[kind]["id"].to_pylist()
        if "dead_letters" in tables:
            names = ("topic", "partition", "offset", "reason", "detail", "payload", "workload")
            rows.dead = [DeadLetter(**row) for row in tables["dead_letters"].select(names).to_pylist()]
        if REPLAYED in tables:
            rows.replayed = tables[REPLAYED].to_pylist()
        return rows

    def add(self, found: Event | PassedOver | BadPart, record: Record) -> None:
        """Adds the result of decoding a record; an event is a duplicate if the batch already has its id."""
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

    def ask(self, record: Record) -> None:
        """Adds a request to erase events. One that is malformed becomes a dead letter without content."""
        try:
            self.requests.append((record, msgspec.json.decode(record.value or b"", type=Request)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.refuse(record, f"expected a request to erase events: {first_line(error)}")

    def erasures(self, keys: UserKeys) -> list[dict[str, Any]]:
        """Returns the rows of requests to erase events; those that select nothing become dead letters.

        A message that is read again has the same id. Another message has another one, even at the same offset: of a
        topic that was made anew, or whose log lost its end.
        """
        found, key = [], keys.derived("erasures")[0]
        for record, request in self.requests:
            try:
                selection = request.selection(keys)
            except RetunedError as error:
                self.refuse(record, str(error))
                continue
            identity = self.identities.get(record.topic)
            own = f"-{identity.topic_id}" if identity and identity.topic_id else ""
            # Its time, because a person may ask again in the same words.
            digest = blake2b(b"%r %b" % (record.timestamp, record.value or b""), key=key, digest_size=8).hexdigest()
            found.append(
                {
                    "id": f"{record.topic}-{record.partition}-{record.offset}{own}-{digest}",
                    "requested_at": self.received_at,
                    "requested_by": f"kafka {record.topic}",
                    "reason": request.reason,
                    "selection": msgspec.json.encode(selection).decode(),
                }
            )
        return found

    def written_at(self, letter: DeadLetter) -> datetime | None:
        """Returns when the message of a dead letter was written to its topic; None: unknown.

        A message may be read again long after it was written. Of a segment it is when the ingester read it.
        """
        if self.segment is not None:
            return self.received_at
        written = self._written.get(letter.key)
        return None if written is None else datetime.fromtimestamp(written, UTC).replace(tzinfo=None)

    def refuse(self, record: Record, detail: str) -> None:
        """Makes a dead letter without content of a request to erase events."""
        place = record.topic, record.partition, record.offset
        self.dead.append(DeadLetter(*place, "bad_erasure", detail, None))

    def pack(self) -> None:
        """Makes the unredacted `tables` and `ids` from all added events."""
        kinds: dict[Table, Packer] = {
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

    def redact(self, redactor: Redactor, pseudonym: Callable[[str], str], seal_key: bytes = b"") -> None:
        """Removes personal data from `tables`, and makes dead letters of `bad`.

        Users become pseudonyms wherever JSON names them. A conversation id that is an address becomes its pseudonym.
        Rows that cannot be redacted become dead letters. Segments are already redacted.

        Args:
            pseudonym: returns the pseudonym of a user; pseudonyms are unchanged.
            seal_key: seals redacted instructions; empty: nothing is sealed, as what is only looked at.

        Raises:
            StoreUnavailable: the database with the numbers of placeholders does not answer.
        """
        if self.segment is not None:
            return
        self.requests = [(record, request.redacted(redactor.text)) for record, request in self.requests]
        failed: dict[Table, dict[int, Exception]] = {kind: {} for kind in self.tables}
        users = Pseudonyms(pseudonym)
        redacted = {kind: self._take_out(kind, redactor, users, failed[kind].__setitem__) for kind in failed}
        if seal_key and "interactions" in redacted:
            redacted["interactions"].seal_instructions(seal_key)
        bad = [dead_letter(record, bad, redactor, pseudonym) for record, bad in self.bad]
        self._written = {letter.key: record.timestamp for letter, (record, _) in zip(bad, self.bad, strict=True)}
        self.redactions = redactor.take_counts()
        redactor.number(list(redacted.values()))
        for kind, pending in redacted.items():
            clean = pending.columns()
            if kind == "interactions":
                ids = self.tables[kind]["conversation_id"].combine_chunks()
                clean["conversation_id"] = redactor.identifiers(ids, pseudonym, failed[kind].__setitem__)
            self.tables[kind] = _ready(self.tables[kind], clean)
            for row, place in self._remove(kind, failed[kind]).items():
                error = failed[kind][row]
                # Nested values are decoded here for the first time.
                is_number = isinstance(error, msgspec.ValidationError)
                self.dead.append(unredacted(*place, error, "bad_value" if is_number else UNFORESEEN))
                if not is_number:
                    self.unforeseen.append(error)
        self.dead += bad

    def reject(self, kind: Table, failed: dict[int, Exception]) -> None:
        """Makes dead letters of redacted rows that cannot be stored."""
        if not failed:
            return
        self.unforeseen += failed.values()
        texts = {row: self.tables[kind].slice(row, 1).to_pylist()[0] for row in failed}
        for row, place in self._remove(kind, failed).items():
            bad, values = BadEvent.unforeseen(failed[row]), texts[row]
            self.dead.append(DeadLetter(*place, bad.reason, bad.detail, _event_json(values), values.get("workload")))

    def erase(self, kind: Table, rows: Iterable[int]) -> None:
        """Removes events that have a tombstone."""
        self.erased += len(self._remove(kind, rows))

    def empty(self, letters: Iterable[DeadLetter]) -> None:
        """Removes the content of dead letters that quote an erased id."""
        emptied = {id(letter): replace(letter, payload=None, detail=ERASED_DETAIL) for letter in letters}
        self.erased += len(emptied)
        self.dead = [emptied.get(id(letter), letter) for letter in self.dead]

    def _remove(self, kind: Table, rows: Iterable[int]) -> dict[int, tuple[str, int, int]]:
        """Removes rows from a table, and returns the topic, partition and offset of each."""
        removed = sorted(rows)
        if not removed:
            return {}
        table = self.tables[kind]
        places = {row: tuple(table[name][row].as_py() for name in ("topic", "partition", "offset")) for row in removed}
        kept = np.ones(table.num_rows, bool)
        kept[removed] = False
        self.ids[kind] = [id for id, keep in zip(self.ids[kind], kept, strict=True) if keep]
        if self.ids[kind]:
            self.tables[kind] = table.filter(pa.array(kept)).combine_chunks()
        else:
            del self.tables[kind], self.ids[kind]
        return places

    def _take_out(self, kind: Table, redactor: Redactor, users: Pseudonyms, failed: Failed) -> Redacted:
        table = self.tables[kind]
        letters = _letters(table) if self.replayed else None
        if kind == "interactions":
            ids, conversations = table["id"].combine_chunks(), table["conversation_id"].combine_chunks()
            redactor.remember(ids, conversations)
            texts = _select(table, _INTERACTION_TEXTS)
            return redactor.take_out(texts, _JSON, ids, conversations, failed, letters, users)
        # Feedback continues the numbers of its conversation.
        answers, texts = table["interaction_id"].combine_chunks(), _select(table, _FEEDBACK_TEXTS)
        return redactor.take_out(texts, _JSON, answers, failed=failed, letters=letters, users=users)

    @property
    def is_traffic(self) -> bool:
        """Whether it was read from Kafka, not from a file or replayed letters, which have no producer."""
        return not any(":" in topic for topic, _ in self.nexts)  # names of Kafka's topics have no colon

    def bounds(self, table: Any) -> dict[str, Any]:
        """Returns the parameters of the anti-join of a table of events with the stored ones."""
        span = pc.min_max(table["timestamp"]).as_py()
        return {
            "low": span["min"] - self._distance,
            "high": span["max"] + self._distance,
            "distance": self._distance // timedelta(microseconds=1),
        }

    def keep_bad_letters(self) -> None:
        """Keeps replayed letters with a bad event in the warehouse, unchanged."""
        if self.replayed:
            bad = {(dead.topic, dead.partition, dead.offset) for dead in self.dead}
            self.replayed = [row for row in self.replayed if (row["topic"], row["partition"], row["offset"]) not in bad]
            self.dead = []

    def replayed_table(self) -> Any:
        """Returns an Arrow table of the replayed letters."""
        return pa.Table.from_pylist(self.replayed, REPLAYED_LETTERS)

    def dead_letters_table(self) -> Any:
        """Returns an Arrow table of the dead letters, which are always redacted."""
        fields = ("topic", "partition", "offset", "reason", "detail", "payload")
        columns = [pa.array([getattr(dead, name) for dead in self.dead]) for name in fields]
        received = pa.repeat(pa.scalar(self.received_at, RECEIVED[1]), len(self.dead))
        workloads = pa.array([dead.workload for dead in self.dead])
        return pa.Table.from_arrays([*columns, received, workloads], names=DEAD_LETTERS.names).cast(DEAD_LETTERS)


def _event_json(row: dict[str, Any]) -> str:
    """Returns the JSON of a row's event."""
    fields = {name: value for name, value in row.items() if value is not None and name not in _OURS}
    fields |= {name: Raw(fields[name].encode()) for name in _JSON if name in fields}
    return to_json(fields | {"timestamp": fields["timestamp"].isoformat() + "Z"})


def _letters(table: Any) -> list[str]:
    """Returns a key of each row's former dead letter."""
    places = (table[name].to_pylist() for name, _ in PLACE)
    return [f"{topic} {partition} {offset}" for topic, partition, offset in zip(*places, strict=True)]


def _select(table: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: table[name].combine_chunks() for name in names}


def _ready(table: Any, columns: dict[str, Any]) -> Any:
    """Replaces columns of a table, and marks JSON columns.

    JSON was validated by the decoder, so DuckDB does not parse it again.
    """
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table.cast(
        pa.schema([pa.field(field.name, pa.json_() if field.name in _JSON else field.type) for field in table.schema])
    )
