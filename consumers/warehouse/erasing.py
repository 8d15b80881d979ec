"""Finds and deletes the rows of a warehouse that have a tombstone. No list of tables is kept: a row belongs to an
erased event if one of its columns names it."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import duckdb
import pyarrow as pa

from retuned.consumers.warehouse import answer_minutes, judgements, rewriting
from retuned.consumers.warehouse.connection import NAME, Warehouse, literal, rows_of
from retuned.consumers.warehouse.selection import Selection
from retuned.consumers.warehouse.tombstones import (
    QUERIES,
    TEXTS,
    TOKEN,
    Kind,
    Span,
    Tombstone,
    Tombstones,
    pseudonyms_under,
    tokens,
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
_WITHOUT_MENTIONS = {"audit"}
"""Tables whose texts are not searched for erased ids. Rows of the audit cannot change, and hold no conversations."""
PROSE = {"reason", "reasons", "detail", "error", "figures", "release_reason"}
"""Columns with sentences, which may quote an id. All other columns have keys, names and figures, where a word that
equals an id is no mention of it."""
_QUOTING = {"memory_entries", "row_states"}
"""Tables whose sentences may quote the text of an event beside its id, so that all of such a sentence goes."""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?')
"""A string in JSON; with the group, it is a key."""
_MARKS = ".:!?"
"""They end a word in a sentence, and may also be part of an id."""
ERASED = "<ERASED>"
AT_ONCE = 100_000
"""The ids that are compared with the tombstones at once."""


@dataclass(frozen=True)
class Chosen:
    """What a selection chooses: tombstones, interactions, conversations of which nothing is left, the workloads, the
    users (pseudonyms), whether some feedback belongs to no workload because its answer is unknown, the time of the
    first event (None: there is none), and the files of the archive that cannot be read, each with the reason."""

    tombstones: list[Tombstone]
    interactions: list[str]
    conversations: list[str]
    workloads: list[str]
    users: list[str]
    is_unplaced: bool
    first: datetime | None
    unread: dict[Path, str]


def choose(
    warehouse: Warehouse, selection: Selection, archive: Path, now: datetime, before: datetime | None = None
) -> Chosen:
    """Finds the events of a selection in the warehouse and in the archive.

    Args:
        now: until when events of its users and conversations are erased.
        before: only events that were received before this time; None: all.
    """
    files = sorted(archive.glob("*/day=*/*.parquet"))
    try:
        return _choose(warehouse, selection, files, now, before, {})
    except duckdb.FatalException:
        raise
    except duckdb.Error:
        unread = {file: problem for file in files if (problem := rewriting.problem_of(file))}
        if not unread:
            raise
    return _choose(warehouse, selection, [file for file in files if file not in unread], now, before, unread)


def _choose(
    warehouse: Warehouse,
    selection: Selection,
    files: Sequence[Path],
    now: datetime,
    before: datetime | None,
    unread: dict[Path, str],
) -> Chosen:
    by_fields = bool(selection.workload or selection.after or selection.before or selection.attributes)
    ids = {"users": list(selection.users), "interactions": list(selection.interactions)}
    given = ids | {
        "conversations": list(selection.conversations),
        "by_fields": by_fields,
        "workload": selection.workload,
        "after": selection.after,
        "before": selection.before,
        "names": list(selection.attributes),
        "values": list(selection.attributes.values()),
    }
    answers = ("id", "timestamp", "workload", "conversation_id", "user_id", "attributes", "messages", "context")
    votes = ("id", "timestamp", "interaction_id", "user_id", "value")
    interactions = _everywhere(("interactions",), answers, files, before)
    feedback = _everywhere(("feedback", "shadow_answers"), votes, files, before)
    with warehouse.cursor() as cursor:
        cursor.execute(QUERIES["chosen"].format(interactions=interactions), given)
        chosen = cursor.execute("SELECT id FROM chosen").fetchall()
        cursor.execute(QUERIES["chosen_feedback"].format(feedback=feedback), ids)
        feedbacks = cursor.execute("SELECT id FROM chosen_feedback").fetchall()
        workloads = cursor.execute(QUERIES["workloads"].format(interactions=interactions)).fetchall()
        conversations = cursor.execute(QUERIES["chosen_conversations"].format(interactions=interactions)).fetchall()
        users = cursor.execute(QUERIES["chosen_users"]).fetchall()
        ((is_unplaced,),) = cursor.execute(QUERIES["unplaced"].format(interactions=interactions)).fetchall()
        starts = cursor.execute(QUERIES["starts"]).fetchall()
        (first,) = cursor.execute(QUERIES["first"]).fetchall()[0]
    found: list[Tombstone] = [("interaction", id, None, None) for (id,) in chosen]
    found += [("feedback", id, None, None) for (id,) in feedbacks]
    found += [("conversation", id, since, None) for id, since in starts]
    return Chosen(
        [*found, *named(selection, now)],
        [*selection.interactions, *(id for (id,) in chosen)],
        [*selection.conversations, *(id for (id,) in conversations)],
        [workload for (workload,) in workloads],
        [*selection.users, *(user for (user,) in users)],
        is_unplaced,
        first,
        unread,
    )


def named(selection: Selection, now: datetime) -> list[Tombstone]:
    """Returns the tombstones of the ids that a selection names."""
    # What is of that id is not known before it arrives.
    kinds: tuple[Kind, ...] = ("interaction", "feedback")
    found: list[Tombstone] = [(kind, id, None, None) for id in selection.interactions for kind in kinds]
    found += [("user", id, None, now) for id in selection.users]
    found += [("conversation", id, None, None) for id in selection.conversations]
    return found


def _everywhere(tables: Sequence[str], columns: Sequence[str], files: Sequence[Path], before: datetime | None) -> str:
    """Returns the query of all rows of tables of events, archived ones included. JSON columns are texts."""
    cast = ", ".join(f"{name}::VARCHAR AS {name}" if name in TEXTS else name for name in columns)
    received = f" WHERE received_at < {literal(before)}::TIMESTAMP" if before else ""
    sources = [f"SELECT {cast} FROM {table}{received}" for table in tables]
    for table in tables:
        if own := [file for file in files if file.parts[-3] == table]:
            names = ", ".join(map(literal, own))
            sources.append(
                f"SELECT {cast} FROM read_parquet([{names}], union_by_name = true, hive_partitioning = false){received}"
            )
    return " UNION ALL ".join(sources)


def versions(cursor: duckdb.DuckDBPyConnection, datasets: Mapping[str, int]) -> list[dict[str, Any]]:
    """Returns the versions that were trained on datasets with erased rows, and their descendants.

    Args:
        datasets: how many erased rows each has.

    Returns:
        `workload`, `version`, `dataset_version` and `rows` of each; rows 0: only an ancestor learned erased rows.
    """
    given = {"datasets": list(datasets), "rows": list(datasets.values())}
    return list(rows_of(cursor.execute(QUERIES["taught_versions"], given)))


class ErasedRows:
    """The rows of a warehouse that have a tombstone, within one transaction."""

    def __init__(
        self, cursor: duckdb.DuckDBPyConnection, tombstones: Tombstones, followed: Collection[str] = ()
    ) -> None:
        """Finds the ids.

        Args:
            followed: tables that are left alone, because the leader of a cluster changes them.
        """
        self._cursor, self._tombstones = cursor, tombstones
        columns = cursor.execute(QUERIES["columns"], {"database": NAME}).fetchall()
        self._columns = [column for column in columns if column[0] not in followed]
        self._followed = followed
        self._registered: dict[str, list[str]] = {}
        for kind in get_args(Kind):
            self._register(f"erased_{kind}", sorted({*self._erased(kind), *self._at_their_time(kind)}))
        letters = cursor.execute(QUERIES["letters"]).fetchall()
        quoting = [row for row, text, received_at in letters if tombstones.quoted(text, received_at)]
        cursor.register("erased_letter", pa.table({"id": pa.array(quoting, pa.int64())}))
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
        """Replaces erased ids in sentences, such as the reasons of decisions, of tables whose rows stay."""
        others = {*_WITHOUT_MENTIONS, *self.conditions()} - _QUOTING
        for table, column, kind in self._columns:
            if table in others or column not in PROSE or (table, column) == ("row_states", "reason"):  # a rule's name
                continue
            texts = self._cursor.execute(
                f'SELECT DISTINCT "{column}"::VARCHAR FROM {table} WHERE "{column}" IS NOT NULL'
            ).fetchall()
            words = {text: _words(text, kind) for (text,) in texts}
            known = set[str]().union(*words.values())
            erased = {id for kind_ in ("interaction", "feedback") for id in self._tombstones.matching(kind_, known)}
            for text, of_text in words.items():
                if (
                    not erased.isdisjoint(of_text)
                    and (blanked := ERASED if table in _QUOTING else _blanked(text, kind, erased)) != text
                ):
                    self._cursor.execute(
                        f'UPDATE {table} SET "{column}" = $blanked WHERE "{column}"::VARCHAR = $text',
                        {"blanked": blanked, "text": text},
                    )

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
    """Returns the words of the sentences in a text, and what they are without a mark at their end."""
    sentences = list[str]()

    def read(sentence: str) -> str:
        sentences.append(sentence)
        return sentence

    _each(text, kind, read)
    found = set[str]().union(*map(tokens, sentences))
    return found | {word.rstrip(_MARKS) for word in found}


def _blanked(text: str, kind: str, erased: Collection[str]) -> str:
    """Returns a text without erased ids."""
    return _each(text, kind, lambda sentence: TOKEN.sub(lambda word: _without(word[0], erased), sentence))


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


def _without(word: str, erased: Collection[str]) -> str:
    if word in erased:
        return ERASED
    bare = word.rstrip(_MARKS)
    return ERASED + word[len(bare) :] if bare in erased else word
