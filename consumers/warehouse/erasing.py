"""Finds and deletes the rows of a warehouse that have a tombstone. No list of tables is kept: a row belongs to an
erased event if one of its columns names it."""

import json
import re
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args

import duckdb
import numpy as np
import pyarrow as pa

from retuned.consumers.privacy.pseudonyms import UserKeys
from retuned.consumers.warehouse import answer_minutes, judgements, mentions
from retuned.consumers.warehouse.connection import NAME, literal, rows_of
from retuned.consumers.warehouse.tombstones import (
    QUERIES,
    TEXTS,
    Kind,
    Span,
    Tombstones,
    pseudonyms_under,
)

_OF_COLUMN: dict[str, Kind] = {
    "interaction_id": "interaction",
    "feedback_id": "feedback",
    "other_feedback_id": "feedback",
    "first_feedback_id": "feedback",
    "second_feedback_id": "feedback",
}
_OF_TABLE: dict[str, tuple[str, Kind]] = {
    "interactions": ("id", "interaction"),
    "feedback": ("id", "feedback"),
    "shadow_answers": ("id", "feedback"),
    "account_decisions": ("user_id", "user"),
}
_NAMES: Sequence[tuple[str, str, Kind]] = (
    ("interactions", "conversation_id", "conversation"),
    ("interactions", "user_id", "user"),
    ("interactions", "attributes", "user"),
    ("interactions", "messages", "user"),
    ("interactions", "context", "user"),
    ("feedback", "user_id", "user"),
    ("feedback", "value", "user"),
    ("shadow_answers", "user_id", "user"),
    ("shadow_answers", "value", "user"),
)
"""The columns of events that name a conversation or users: table, column, kind."""
_WITHOUT_MENTIONS = {"audit", "dead_letters"}
"""Tables whose texts are not searched for erased ids. Rows of the audit cannot change, and hold no conversations. Dead
letters are searched as a whole."""
PROSE = {"reason", "reasons", "detail", "error", "figures", "release_reason", "comment"}
"""Columns with sentences, which may quote an id. All other columns have keys, names and figures, where a word that
equals an id is no mention of it."""
_QUOTING = {"memory_entries", "row_states"}
"""Tables whose sentences may quote the text of an event beside its id, so that all of such a sentence goes."""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?')
"""A string in JSON; with the group, it is a key."""
ERASED = "<ERASED>"
AT_ONCE = 100_000
"""The ids that are compared with the tombstones at once."""
LETTERS_AT_ONCE = 100
"""The dead letters in memory at once."""


def versions(cursor: duckdb.DuckDBPyConnection, datasets: Mapping[str, int]) -> list[dict[str, Any]]:
    """Returns the versions that were trained on datasets with erased rows, and their descendants.

    Args:
        datasets: how many erased rows each has.

    Returns:
        `workload`, `version`, `dataset_version` and `rows` of each; rows 0: only an ancestor learned erased rows.
    """
    given = {"datasets": list(datasets), "rows": list(datasets.values())}
    return list(rows_of(cursor.execute(QUERIES["taught_versions"], given)))


class Letters:
    """Finds the dead letters that quote an erased id. Each is read once, because that takes long: 20,000 letters of
    16 KB take 4 s on two busy cores, and 0.4 s when they are known.

    Attributes:
        tombstones: those of the ids.
    """

    def __init__(self, tombstones: Tombstones) -> None:
        self.tombstones = tombstones
        self._rows: set[tuple[Any, ...]] | None = None
        self._digests, self._quoting = array("Q"), array("B")

    @classmethod
    def stored(cls, keys: UserKeys, cursor: duckdb.DuckDBPyConnection, known: "Letters | None" = None) -> "Letters":
        """Returns the letters of the tombstones that a warehouse has now; the known ones if they are of the same
        tombstones."""
        rows = set(cursor.execute(QUERIES["tombstones"]).fetchall())
        if known is not None and known._rows == rows:
            return known
        found = cls(Tombstones(keys))
        found.tombstones.use(rows)
        found._rows = rows
        return found

    def quoting(self, cursor: duckdb.DuckDBPyConnection) -> list[int]:
        """Returns the rows that quote an erased id, after letters were read that are stored since the last call."""
        known = {"digest": pa.array(np.array(self._digests)), "is_quoting": pa.array(np.array(self._quoting) > 0)}
        cursor.register("known_letters", pa.table(known))
        found = []
        letters = cursor.execute(QUERIES["letters"])
        while some := letters.fetchmany(LETTERS_AT_ONCE):
            for row, digest, is_quoting, payload, received_at in some:
                if is_quoting is None:
                    is_quoting = self.tombstones.quoted(payload, received_at)
                    self._digests.append(digest)
                    self._quoting.append(is_quoting)
                if is_quoting:
                    found.append(row)
        cursor.unregister("known_letters")
        return found


class ErasedRows:
    """The rows of a warehouse that have a tombstone, within one transaction."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, letters: Letters, followed: Collection[str] = ()) -> None:
        """Finds the ids.

        Args:
            letters: of the tombstones.
            followed: tables that are left alone, because the leader of a cluster changes them.
        """
        tombstones = letters.tombstones
        self._cursor, self._tombstones = cursor, tombstones
        columns = cursor.execute(QUERIES["columns"], {"database": NAME}).fetchall()
        self._columns = [column for column in columns if column[0] not in followed]
        self._followed = followed
        self._registered: dict[str, list[str]] = {}
        for kind in get_args(Kind):
            self._register(f"erased_{kind}", sorted({*self._erased(kind), *self._at_their_time(kind)}))
        cursor.register("erased_letter", pa.table({"id": pa.array(letters.quoting(cursor), pa.int64())}))
        experts = cursor.execute(QUERIES["experts"]).fetchall()
        spans = [(name, *span) for (name,) in experts if (span := tombstones.of_user(name))]
        names, starts, ends = zip(*spans, strict=True) if spans else ((), (), ())
        times = {"since": pa.array(starts, pa.timestamp("us")), "until": pa.array(ends, pa.timestamp("us"))}
        cursor.register("erased_expert", pa.table({"name": pa.array(names, pa.string())} | times))

    def conditions(self) -> dict[str, str]:
        """Returns the condition of the erased rows of each table, in the order of deletion."""
        conditions: dict[str, list[str]] = {}
        for table, column, kind in self._ids():
            conditions.setdefault(table, []).append(f"{column} IN (SELECT id FROM erased_{kind})")
        found = {table: " OR ".join(parts) for table, parts in conditions.items()}
        first = {"dead_letters": "rowid IN (SELECT id FROM erased_letter)"}
        if not self._followed:
            rows, requests = found["dataset_rows"], found["label_requests"]
            first["evaluations"] = f"row_id IN (SELECT row_id FROM dataset_rows WHERE {rows})"
            first["label_work"] = QUERIES["erased_work"].format(requests=requests)
        return first | found

    def count(self) -> dict[str, int]:
        """Returns the number of erased rows of each table that has some."""
        counts = {}
        for table, condition in self.conditions().items():
            (rows,) = self._cursor.execute(f"SELECT count(*) FROM {table} WHERE {condition}").fetchall()[0]
            if rows:
                counts[table] = rows
        if entries := self.entries():
            counts["memory_entries"] = len(entries)
        return counts

    def entries(self) -> list[str]:
        """Returns the entries of the memory that rest on erased feedback, or have the wording of an erased user. They
        are emptied by `memory.entries.erase`, and stay."""
        if "memory_entries" in self._followed:
            return []
        rows = self._cursor.execute(QUERIES["entries"]).fetchall()
        authors = self._tombstones.matching("user", {author for _, _, author, _ in rows if author})
        return [
            id
            for id, is_resting, author, since in rows
            if is_resting or ((span := authors.get(author)) is not None and span[0] <= since < span[1])
        ]

    def datasets(self) -> dict[str, int]:
        """Returns the datasets with erased rows that a version may be trained on, and how many each has."""
        return dict(self._cursor.execute(QUERIES["erased_datasets"]).fetchall())

    def delete(self) -> None:
        """Deletes the rows, and renews what is derived from them. The caller is alone in the warehouse."""
        cursor = self._cursor
        judged = [id for (id,) in cursor.execute(QUERIES["judged_otherwise"]).fetchall()]
        minutes = cursor.execute(QUERIES["answered"]).fetchall()
        for table, condition in self.conditions().items():
            cursor.execute(f"DELETE FROM {table} WHERE {condition}")
        judgements.renew(cursor, judged)
        answer_minutes.renew(cursor, minutes)
        self._blank_mentions()

    def _blank_mentions(self) -> None:
        """Replaces erased ids in sentences of rows that stay, such as the reasons of decisions."""
        for table, column, kind in self._columns:
            is_rule = (table, column) == ("row_states", "reason")
            if table in _WITHOUT_MENTIONS or column not in PROSE or is_rule:
                continue
            texts = self._cursor.execute(
                f'SELECT DISTINCT "{column}"::VARCHAR FROM {table} WHERE "{column}" IS NOT NULL'
            ).fetchall()
            words = {text: _words(text, kind) for (text,) in texts}
            erased = self._mentioned(set[str]().union(*words.values()))
            for text, of_text in words.items():
                if (
                    not erased.keys().isdisjoint(of_text)
                    and (blanked := ERASED if table in _QUOTING else _blanked(text, kind, erased)) != text
                ):
                    self._cursor.execute(
                        f'UPDATE {table} SET "{column}" = $blanked WHERE "{column}"::VARCHAR = $text',
                        {"blanked": blanked, "text": text},
                    )

    def _mentioned(self, words: Collection[str]) -> dict[str, str]:
        """Returns the words that are erased ids, each with what replaces it; of users, as apps name them, too."""
        found = {id for kind in get_args(Kind) for id in self._tombstones.matching(kind, words)}
        if "user" in self._tombstones.kinds:
            found |= {word for word in words if self._tombstones.of_user(word)}
        return dict.fromkeys(found, ERASED)

    def _ids(self) -> Iterable[tuple[str, str, Kind]]:
        """Yields the columns that name events: table, column, kind."""
        for table, column, _ in self._columns:
            if table in ("tombstones", "erasures"):
                continue
            if column in _OF_COLUMN:
                yield table, column, _OF_COLUMN[column]
            elif table in _OF_TABLE and _OF_TABLE[table][0] == column:
                yield table, column, _OF_TABLE[table][1]

    def _erased(self, kind: Kind) -> list[str]:
        """Returns the erased ids of a kind that any row names."""
        sources = [
            f"SELECT {column} AS id FROM {table} WHERE {column} IS NOT NULL"
            for table, column, of in self._ids()
            if of == kind
        ]
        if kind == "feedback" and "memory_entries" not in self._followed:
            sources.append(QUERIES["entries_feedback"])
        found: list[str] = []
        if sources:
            self._cursor.execute(" UNION ".join(sources))
            while rows := self._cursor.fetchmany(AT_ONCE):
                found += self._tombstones.matching(kind, [id for (id,) in rows])
        return found

    def _at_their_time(self, kind: Kind) -> Iterator[str]:
        """Yields the ids of events of a kind whose conversation or user has a tombstone at their time."""
        for table, column, of in _NAMES:
            if of not in self._tombstones.kinds or kind != _OF_TABLE[table][1]:
                continue
            source = f"SELECT id, timestamp, {column} AS name FROM {table}"
            if column in TEXTS:
                about = {"pattern": literal(pseudonyms_under(self._tombstones.key_ids))}
                prefixes = (literal(f"{key_id}:") for key_id in self._tombstones.key_ids)
                about["found"] = " OR ".join(f"contains({column}::VARCHAR, {prefix})" for prefix in prefixes)
                source = QUERIES["users_in_texts"].format(table=table, column=column, **about)
            spans: dict[str, Span] = {}
            self._cursor.execute(f"SELECT DISTINCT name FROM ({source}) WHERE name IS NOT NULL")
            while names := self._cursor.fetchmany(AT_ONCE):
                spans |= self._tombstones.matching(of, [name for (name,) in names])
            if spans:
                columns = zip(*((name, *span) for name, span in spans.items()), strict=True)
                self._cursor.register("spans", pa.table(dict(zip(("name", "since", "until"), columns, strict=True))))
                for (id,) in self._cursor.execute(QUERIES["within_spans"].format(source=source)).fetchall():
                    yield id

    def _register(self, name: str, ids: list[str]) -> None:
        self._cursor.register(name, pa.table({"id": pa.array(ids, pa.string())}))


def _words(text: str, kind: str) -> set[str]:
    """Returns the words of the sentences in a text that may be ids."""
    sentences = list[str]()

    def read(sentence: str) -> str:
        sentences.append(sentence)
        return sentence

    _each(text, kind, read)
    return set[str]().union(*map(mentions.words, sentences))


def _blanked(text: str, kind: str, erased: Mapping[str, str]) -> str:
    """Returns a text without erased ids."""
    return _each(text, kind, lambda sentence: mentions.replaced(sentence, erased))


def _each(text: str, kind: str, change: Callable[[str], str]) -> str:
    """Returns a text whose sentences are changed: all of it, or the strings of JSON that are no keys."""
    if kind != "JSON":
        return change(text)

    def value(string: re.Match[str]) -> str:
        if string[1] is not None:
            return string[0]
        content = json.loads(string[0])
        changed = change(content)
        return string[0] if changed == content else json.dumps(changed, ensure_ascii=False)

    return _STRING.sub(value, text)
