"""Tombstones: keyed hashes of erased ids. Events that match one are not stored again, whatever brings them.

A tombstone of a conversation or a user has a time: events from before it are erased, and later ones are stored. The
hashes are keyed with the key of pseudonyms, so that nobody without the key can find out whether an id was erased.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, Literal

import duckdb

from retuned.consumers.privacy.pseudonyms import UserKeys
from retuned.consumers.warehouse.connection import named_queries
from retuned.consumers.warehouse.rows import Rows

QUERIES = named_queries("retuned.consumers.warehouse", "erasing.sql")

Kind = Literal["interaction", "feedback", "conversation", "user"]
Tombstone = tuple[Kind, str, datetime | None]
"""The kind, the id, and for a conversation or a user the time until which events are erased."""

TOKEN = re.compile(r"[^\s\"'\\,;{}\[\]()]+")
_COLUMNS: dict[str, tuple[tuple[str, Kind], ...]] = {
    "interactions": (("id", "interaction"), ("conversation_id", "conversation"), ("user_id", "user")),
    "feedback": (("id", "feedback"), ("interaction_id", "interaction"), ("user_id", "user")),
    "shadow_answers": (("id", "feedback"), ("interaction_id", "interaction"), ("user_id", "user")),
}


def tokens(text: str) -> set[str]:
    """Returns the parts of a text that may be ids: what stands between quotes, brackets, commas and spaces."""
    return set(TOKEN.findall(text))


class Tombstones:
    """Tombstones in memory. For one thread at a time."""

    def __init__(self, keys: UserKeys) -> None:
        self._keys = dict(zip(keys.ids, keys.derived("tombstones"), strict=True))
        self._newest = keys.ids[0]
        self._known: dict[Kind, dict[str, dict[str, datetime | None]]] = {}
        self._state: tuple[int, datetime | None] = (0, None)

    def refresh(self, cursor: duckdb.DuckDBPyConnection) -> None:
        """Reads the tombstones of a warehouse if there are others than before."""
        (state,) = cursor.execute(QUERIES["state_of_tombstones"]).fetchall()
        if state != self._state:
            self.use(cursor.execute(QUERIES["tombstones"]).fetchall())
            self._state = state

    def use(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Uses these tombstones: kind, key_id, hash, until."""
        self._known = defaultdict(lambda: defaultdict(dict))
        for kind, key_id, digest, until in rows:
            if key_id in self._keys:
                latest = self._known[kind][key_id].get(digest)
                self._known[kind][key_id][digest] = max(latest, until) if latest and until else until

    def rows(self, found: Iterable[Tombstone]) -> list[tuple[Kind, str, str, datetime | None]]:
        """Returns the rows of new tombstones: kind, key_id, hash, until."""
        key = self._keys[self._newest]
        return sorted({(kind, self._newest, _hash(key, kind, id), until) for kind, id, until in found}, key=str)

    def matching(self, kind: Kind, ids: Iterable[str]) -> dict[str, datetime | None]:
        """Returns those of the ids that have a tombstone, with its time."""
        found = {}
        for key_id, known in self._known.get(kind, {}).items():
            key = self._keys[key_id]
            for id in ids:
                if (digest := _hash(key, kind, id)) in known:
                    found[id] = known[digest]
        return found

    def quoted(self, text: str, at: datetime) -> bool:
        """Whether a text of that time contains an id with a tombstone."""
        words = tokens(text)
        if any(self.matching(kind, words) for kind in ("interaction", "feedback")):
            return True
        return any(
            until is None or at < until
            for kind in ("conversation", "user")
            for until in self.matching(kind, words).values()
        )

    def take_out(self, rows: Rows) -> None:
        """Removes events that have a tombstone from redacted rows. A dead letter that quotes an erased id loses its
        content."""
        if not self._known:
            return
        for table in list(rows.tables):
            rows.erase(table, self._erased(rows.tables[table], _COLUMNS[table]))
        rows.empty(letter for letter in rows.dead if letter.payload and self.quoted(letter.payload, rows.received_at))

    def _erased(self, table: Any, columns: Sequence[tuple[str, Kind]]) -> list[int]:
        erased: set[int] = set()
        for column, kind in columns:
            ids = table[column].to_pylist()
            if not (found := self.matching(kind, set(ids) - {None})):
                continue
            at = table["timestamp"].to_pylist()
            for row, id in enumerate(ids):
                if id in found and ((until := found[id]) is None or at[row] < until):
                    erased.add(row)
        return sorted(erased)


def _hash(key: bytes, kind: str, id: str) -> str:
    return blake2b(id.encode("utf-8", "surrogatepass"), key=key, person=kind.encode(), digest_size=16).hexdigest()
