"""Statements: the feedback on each question, found by the question's key and read with its events.

No query here reads all events: new feedback is found by the number of its transaction, and known feedback by the days
of its events.
"""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import duckdb

from retuned.consumers.warehouse.connection import Warehouse, named_queries, rows_of
from retuned.retrain.data.examples import Among, Statements, read_statements
from retuned.retrain.data.question import Question, Rules, question
from retuned.retrain.settings import DatasetSettings

QUERIES = named_queries("retuned.retrain.memory", "memory.sql")

RECENT = timedelta(days=1)
"""Answers that are older when feedback comes are not looked for, except for the corrections of experts. A memory that
has read nothing for longer, because it was off, starts anew."""
SHARED, SHARED_ACCOUNTS, SHARED_WITHIN = 0.95, 20, timedelta(days=7)
"""Redacted instructions are the workload's if this share of its newest 1,000 requests has them, word for word, in
requests of this many accounts or conversations."""
ON_A_QUESTION = 200
"""The most statements of a kind on a question that are read, the newest. Those that an entry rests on, and those about
which people have decided, are always read."""
ELSEWHERE = 50
"""The most other questions of an account that are read: they show whether it is reliable."""


@dataclass(frozen=True)
class Behind:
    """What the memory of a workload has not read yet.

    Attributes:
        since: the last transaction that it has read; None: it reads the history, as it never read or not for RECENT.
        applied, decided: fingerprints of the decisions and of the form that are applied, and of today's.
        decided_since: no older decision is new; None: any may be.
        new_form: the form has changed since: what programs could not read may be readable now.
        new_rules: what makes no difference in a question has changed since: it reads the history by the new keys.
    """

    until: int
    since: int | None
    applied: str | None
    decided: str
    decided_since: datetime | None
    new_form: bool
    new_rules: bool

    @classmethod
    def of(cls, warehouse: Warehouse, workload: str, now: datetime, form: str, rules: Rules) -> "Behind | None":
        """Returns None if it has read all.

        Args:
            form: a fingerprint of the form that programs read: of the labels or the schema.
        """
        row = warehouse.row(QUERIES["behind"], {"workload": workload, "form": form, "rules": str(rules)})
        assert row is not None
        behind = cls(**row)
        if (behind.since, behind.applied) == (behind.until, behind.decided):
            return None
        missed = {"since": behind.since, "recent": now - RECENT}
        if behind.new_rules or (behind.since != behind.until and warehouse.row(QUERIES["missed"], missed)):
            return replace(behind, since=None, applied=None, decided_since=None)
        return behind


def store(
    cursor: duckdb.DuckDBPyConnection,
    workload: str,
    behind: Behind,
    rules: Rules,
    now: datetime,
    limit: int,
    learned_until: datetime | None,
) -> frozenset[str]:
    """Stores new statements, and returns the keys of corrected questions with new feedback or decisions.

    With a new form these are all that the champion has not learned.

    Args:
        limit: the most statements that are read when the memory is switched on.
        learned_until: then, and with a new form, only questions with later feedback count as new. When it is switched
            on, those that have an entry do, too.
    """
    found = _new(cursor, workload, behind, now, limit)
    asked = {row["interaction_id"]: _question(row["asked"], rules) for row in found}
    shared = shared_seals(cursor, workload, now) if any(one and one.seal for one in asked.values()) else frozenset()
    rows = [
        row | {"question_key": one.key.hex()}
        for row in found
        if (one := asked[row["interaction_id"]]) and (one.seal is None or one.seal in shared)
    ]
    _add(cursor, workload, rows)
    since = learned_until if behind.since is None else None
    touched = {row["question_key"] for row in rows if since is None or row["feedback_at"] > since}
    if behind.since is None:
        touched |= {key for (key,) in cursor.execute(QUERIES["standing"], {"workload": workload}).fetchall()}
    elif behind.new_form:
        parameters: dict[str, Any] = {"workload": workload, "since": learned_until}
        touched |= {key for (key,) in cursor.execute(QUERIES["stated_since"], parameters).fetchall()}
    if behind.applied != behind.decided:
        parameters = {"workload": workload, "since": behind.decided_since}
        touched |= {key for (key,) in cursor.execute(QUERIES["decided_about"], parameters).fetchall()}
    if not touched:
        return frozenset()
    parameters = {"workload": workload, "keys": sorted(touched)}
    return frozenset(key for (key,) in cursor.execute(QUERIES["corrected"], parameters).fetchall())


def shared_seals(cursor: duckdb.DuckDBPyConnection, workload: str, now: datetime) -> frozenset[str]:
    """Returns the seals of instructions that are the workload's: nearly all recent requests have the same."""
    about = {"workload": workload, "since": now - SHARED_WITHIN, "share": SHARED, "accounts": SHARED_ACCOUNTS}
    return frozenset(seal for (seal,) in cursor.execute(QUERIES["shared_seals"], about).fetchall())


def _new(
    cursor: duckdb.DuckDBPyConnection, workload: str, behind: Behind, now: datetime, limit: int
) -> list[dict[str, Any]]:
    """Returns new statements, each once."""
    if behind.since is None:
        cursor.execute(QUERIES["forget_statements"], {"workload": workload})
        return rows_of(cursor.execute(QUERIES["history"], {"workload": workload, "limit": limit}))
    if behind.since == behind.until:
        return []
    since, recent = {"since": behind.since}, {"recent": now - RECENT}
    rows = rows_of(cursor.execute(QUERIES["fresh"], {"workload": workload} | since | recent))
    found = {row["feedback_id"] for row in rows}
    ids = [id for (id,) in cursor.execute(QUERIES["of_experts"], since).fetchall() if id not in found]
    if ids:
        unmatched = cursor.execute(QUERIES["experts_unmatched"], {"ids": ids} | since | recent).fetchall()
        older = {"workload": workload, "ids": [id for (id,) in unmatched]} | since
        rows += rows_of(cursor.execute(QUERIES["older"], older)) if unmatched else []
    return list({row["feedback_id"]: row for row in rows}.values())


def _add(cursor: duckdb.DuckDBPyConnection, workload: str, rows: Sequence[dict[str, Any]]) -> None:
    """Adds the statements that are not stored yet, which some are after a crash."""
    found = {"workload": workload, "ids": [row["feedback_id"] for row in rows]}
    known = {id for (id,) in cursor.execute(QUERIES["known_statements"], found).fetchall()} if rows else set()
    rows = [row for row in rows if row["feedback_id"] not in known]
    if not rows:
        return
    columns = {
        "keys": "question_key",
        "feedback": "feedback_id",
        "feedback_at": "feedback_at",
        "interactions": "interaction_id",
        "answered_at": "answered_at",
        "accounts": "account",
        "corrections": "correction",
        "experts": "expert",
    }
    lists = {name: [row[column] for row in rows] for name, column in columns.items()}
    cursor.execute(QUERIES["add_statements"], {"workload": workload} | lists)


def count(cursor: duckdb.DuckDBPyConnection, workload: str) -> int:
    """Returns the number of stored statements. Between two calls of `store` it changes only if some are deleted."""
    (statements,) = cursor.execute(QUERIES["count_statements"], {"workload": workload}).fetchall()[0]
    return int(statements)


def read(
    warehouse: Warehouse, workload: str, settings: DatasetSettings, keys: Collection[str]
) -> tuple[Statements, dict[str, str], frozenset[str]]:
    """Returns the statements on some questions, newest first, the key of the question of each interaction, and the ids
    of the feedback that was looked for, of which some may not count any more.

    Statements on other questions of the same accounts are included.
    """
    limits = {"most": ON_A_QUESTION, "elsewhere": ELSEWHERE}
    found = warehouse.rows(QUERIES["statements"], {"workload": workload, "keys": sorted(keys)} | limits)
    parts = [read_statements(warehouse, workload, settings, among) for among in _by_day(found)]
    rows = sorted((row for part in parts for row in part.rows), key=lambda row: row.timestamp, reverse=True)
    cut: frozenset[str] = frozenset().union(*(part.cut for part in parts))
    bought: frozenset[str] = frozenset().union(*(part.bought for part in parts))
    key_of = {row["interaction_id"]: row["question_key"] for row in found}
    helped = {name: answers for part in parts for name, answers in part.helped.items()}
    return Statements(rows, cut, bought, helped=helped), key_of, frozenset(row["feedback_id"] for row in found)


def _by_day(rows: Iterable[dict[str, Any]]) -> list[Among]:
    """Groups statements by the day of the answer, so that few row groups of the events are read."""
    days: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        days[row["answered_at"].date()].append(row)
    return [
        Among(
            [row["interaction_id"] for row in own],
            [row["feedback_id"] for row in own],
            min(row["answered_at"] for row in own),
            max(row["answered_at"] for row in own),
            min(row["feedback_at"] for row in own),
            max(row["feedback_at"] for row in own),
        )
        for own in days.values()
    ]


def _question(read: Sequence[str | None], rules: Rules) -> Question | None:
    messages, context, tools, extras = (json.loads(text) if text else None for text in read)
    return question(messages, context, tools, extras, rules)


def forget(warehouse: Warehouse, workloads: Sequence[str], before: datetime) -> int:
    """Deletes statements of before a time, and returns how many. Entries that rest on them stay."""
    return warehouse.delete(QUERIES["forget_old"], {"workloads": workloads, "before": before})
