"""Tombstones: keyed hashes of erased ids. Events that match one are not stored again, whatever brings them.

A tombstone of a user has an end: events of the user from before it are erased, and later ones are stored. That of a
conversation has a start and no end, because every later turn repeats the erased one. The hashes are keyed with the key
of pseudonyms, so that nobody without the key can find out whether an id was erased.

One rule decides what is erased, wherever it lies: an event is, if one of its columns names an id that has a tombstone,
at the event's time. `Tombstones.erased` applies it to Arrow tables: batches, segments, files of the archive;
`erasing.ErasedRows` to the tables of a warehouse.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from hashlib import blake2b
from typing import Any, Literal

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from retuned.consumers.privacy.pseudonyms import UserKeys
from retuned.consumers.warehouse.connection import named_queries
from retuned.consumers.warehouse.rows import Rows

QUERIES = named_queries("retuned.consumers.warehouse", "erasing.sql")

Kind = Literal["interaction", "feedback", "conversation", "user"]
Tombstone = tuple[Kind, str, datetime | None, datetime | None]
"""The kind, the id, and the times from which and until which its events are erased, for a conversation or a user; None:
no limit."""
Span = tuple[datetime, datetime]
"""An event is erased if its time is in it: start ≤ time < end."""

ALWAYS: Span = (datetime.min, datetime.max)  # noqa: DTZ901  (naive UTC, as in the warehouse)
TEXTS = ("attributes", "messages", "context", "value")
"""Columns with JSON, which may name users."""
TOKEN = re.compile(r"[^\s\"'\\,;{}\[\]()]+")
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_KINDS: dict[str, Kind] = {
    "interaction_id": "interaction",
    "feedback_id": "feedback",
    "conversation_id": "conversation",
    "user_id": "user",
}


def tokens(text: str) -> set[str]:
    """Returns the parts of a text that may be ids: what stands between quotes, brackets, commas and spaces, and the
    strings of JSON as a whole, also of JSON within them."""
    found = set(TOKEN.findall(text))
    for quoted in _STRING.findall(text):
        with suppress(msgspec.DecodeError):
            string = msgspec.json.decode(quoted, type=str)
            found |= {string} | (tokens(string) if '"' in string else set())
    return found


class Tombstones:
    """Tombstones in memory. For one thread at a time."""

    def __init__(self, keys: UserKeys) -> None:
        self._keys = dict(zip(keys.ids, keys.derived("tombstones"), strict=True))
        self._newest = keys.ids[0]
        self._pseudonyms = keys.pseudonyms
        self._known: dict[Kind, dict[str, dict[str, Span]]] = {}
        self._state: tuple[int, int | None] = (0, None)

    @classmethod
    def stored(cls, keys: UserKeys, cursor: duckdb.DuckDBPyConnection) -> "Tombstones":
        """Returns those that a warehouse has now."""
        found = cls(keys)
        found.refresh(cursor)
        return found

    def refresh(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Reads the tombstones of a warehouse if there are others than before."""
        (state,) = cursor.execute(QUERIES["state_of_tombstones"]).fetchall()
        if state != self._state:
            self.use(cursor.execute(QUERIES["tombstones"]).fetchall())
            self._state = state

    def use(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Uses these tombstones: kind, key_id, hash, since, until."""
        self._known = defaultdict(lambda: defaultdict(dict))
        for kind, key_id, digest, since, until in rows:
            if key_id in self._keys:
                start, end = since or ALWAYS[0], until or ALWAYS[1]
                known = self._known[kind][key_id].get(digest, (start, end))
                self._known[kind][key_id][digest] = min(known[0], start), max(known[1], end)

    def rows(self, found: Iterable[Tombstone]) -> list[tuple[Kind, str, str, datetime | None, datetime | None]]:
        """Returns the rows of new tombstones: kind, key_id, hash, since, until."""
        key = self._keys[self._newest]
        made = {(kind, self._newest, _hash(key, kind, id), since, until) for kind, id, since, until in found}
        return sorted(made, key=str)

    def matching(self, kind: Kind, ids: Iterable[str]) -> dict[str, Span]:
        """Returns those of the ids that have a tombstone, with its span."""
        found = {}
        for key_id, known in self._known.get(kind, {}).items():
            key = self._keys[key_id]
            for id in ids:
                if (digest := _hash(key, kind, id)) in known:
                    found[id] = known[digest]
        return found

    def of_user(self, user_id: str) -> Span | None:
        """Returns the span of a user's tombstone, by the id of which pseudonyms are made; None: there is none."""
        return next(iter(self.matching("user", self._pseudonyms(user_id)).values()), None)

    @property
    def kinds(self) -> Collection[Kind]:
        """The kinds of ids that have tombstones."""
        return self._known.keys()

    @property
    def key_ids(self) -> Collection[str]:
        """The ids of the keys, with which pseudonyms begin."""
        return self._keys.keys()

    def quoted(self, text: str, at: datetime | None) -> bool:
        """Whether a text of that time (None: unknown) contains an id with a tombstone."""
        words = tokens(text)
        return any(_within(span, at) for kind in self.kinds for span in self.matching(kind, words).values())

    def columns(self, names: Collection[str]) -> list[str]:
        """Returns the columns that `erased` reads of a table with these columns."""
        texts = TEXTS if "user" in self.kinds else ()
        return [name for name in ("id", *_KINDS, *texts, "timestamp", "payload", "received_at") if name in names]

    def erased(self, table: Any) -> list[int]:
        """Returns the rows of an Arrow table that have a tombstone: of events, of dead letters or of a dataset."""
        names = table.column_names
        kinds = {name: kind for name, kind in _KINDS.items() if name in names}
        if "id" in names:
            kinds["id"] = "feedback" if "interaction_id" in names else "interaction"
        found: list[tuple[int, Span]] = []
        for name, kind in kinds.items():
            if kind in self.kinds:
                ids = table[name].to_pylist()
                spans = self.matching(kind, set(ids) - {None})
                found += [(row, spans[id]) for row, id in enumerate(ids) if id in spans]
        for name in (name for name in TEXTS if name in names and "user" in self.kinds):
            for row, users in self._named(table[name]):
                found += [(row, span) for span in self.matching("user", users).values()]
        erased: set[int] = set()
        if found:
            at = _times(table, "timestamp")
            erased.update(row for row, span in found if _within(span, at[row]))
        if "payload" in names:
            at = _times(table, "received_at")
            payloads = enumerate(table["payload"].to_pylist())
            erased.update(row for row, text in payloads if text and self.quoted(text, at[row]))
        return sorted(erased)

    def _named(self, column: Any) -> Iterator[tuple[int, list[str]]]:
        """Yields the rows of a column with JSON that name users, with the pseudonyms."""
        texts, pseudonyms = _plain(column), re.compile(pseudonyms_under(self.key_ids))
        # Searched for a fixed text first, because few events name a user there.
        named = (pc.match_substring(texts, f"{key_id}:") for key_id in self.key_ids)
        for row in sorted({row for rows in named for row in pc.indices_nonzero(pc.fill_null(rows, False)).to_pylist()}):
            if users := pseudonyms.findall(texts[row].as_py()):
                yield row, users

    def take_out(self, rows: Rows) -> None:
        """Removes events that have a tombstone from redacted rows. A dead letter that quotes an erased id loses its
        content."""
        if not self._known:
            return
        for table in list(rows.tables):
            rows.erase(table, self.erased(rows.tables[table]))
        rows.empty(one for one in rows.dead if one.payload and self.quoted(one.payload, rows.written_at(one)))


def pseudonyms_under(key_ids: Iterable[str]) -> str:
    """Returns the pattern (RE2) of pseudonyms under some keys."""
    return f"(?:{'|'.join(key_ids)}):[0-9a-f]{{32}}"


def _plain(column: Any) -> Any:
    """Returns a column that is marked as JSON as texts."""
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    return pa.chunked_array([chunk.storage for chunk in column.chunks], type=column.type.storage_type)


def _times(table: Any, name: str) -> list[datetime | None]:
    times: list[datetime | None] = table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
    return times


def _within(span: Span, at: datetime | None) -> bool:
    return at is None or span[0] <= at < span[1]


def _hash(key: bytes, kind: str, id: str) -> str:
    return blake2b(id.encode("utf-8", "surrogatepass"), key=key, person=kind.encode(), digest_size=16).hexdigest()
