"""Entries of the memory: made from approved corrections, changed by newer ones, decisions and budgets.

`transitions` is the rule; `follow` applies it to what is new.
"""

import json
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, get_args

import duckdb

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries, rows_of
from retuned.retrain.data.examples import rules_of
from retuned.retrain.data.question import Rules, question
from retuned.retrain.data.table import Decided
from retuned.retrain.memory import statements
from retuned.retrain.memory.consensus import Approved, Findings, find, form_of, metric_of
from retuned.retrain.memory.settings import MemorySettings
from retuned.retrain.settings import Settings

QUERIES = named_queries("retuned.retrain.memory", "memory.sql")

State = Literal["active", "frozen", "superseded", "overruled", "withdrawn", "retired", "expired", "removed"]
STATES: tuple[State, ...] = get_args(State)
_ENDED: tuple[State, ...] = ("withdrawn", "retired", "expired", "removed")
"""The same answer does not come back from these states without a newer statement."""
_NOT_IDENTIFIED = (
    "something was redacted in what the model read, so the answer may be about one person: it is given to nobody else"
)
_SAME_QUESTION = "its question is the same as that of entry {}, which is newer"
_UNSUPPORTED = "no two independent accounts give this answer any more"
changing = threading.Lock()
"""Held while entries change: the second of two concurrent transactions would fail."""


@dataclass(frozen=True)
class Entry:
    """An entry, as the rule needs it."""

    id: str
    question_key: str
    answer: str
    source: str
    feedback_ids: tuple[str, ...]
    since: datetime
    state: State
    changed_at: datetime

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Entry":
        """Returns an entry from its row."""
        values = {name: row[name] for name in cls.__dataclass_fields__}
        return cls(**values | {"feedback_ids": tuple(json.loads(row["feedback_ids"]))})


@dataclass(frozen=True)
class Add:
    """Adds an entry."""

    approved: Approved


@dataclass(frozen=True)
class Change:
    """Changes the state of an entry; `reason` is for a person, `version` has learned it."""

    id: str
    state: State
    reason: str
    version: str | None = None


Action = Add | Change


def transitions(
    entries: Sequence[Entry],
    approved: Approved | None,
    states: Mapping[str, Decided | None],
    until: datetime | None = None,
) -> Iterator[Action]:
    """Yields the changes of the entries of one question.

    An answer of users is replaced by any other approved answer, that of an expert by an expert's, and that of a person
    by an expert's newer one. An entry leaves once its answer is not approved any more, unless it rests on a person. So
    does a retired one, which would come back otherwise.

    Args:
        entries: all entries of the question, the latest change last.
        approved: the approved answer, if there is one.
        states: the decision on each statement, as in `Findings`.
        until: the champion has learned from statements up to this time, which make no entry.
    """
    current = None
    for one in entries:
        if one.state in ("active", "frozen", "retired"):
            if (reason := _gone(one, approved, states)) is not None:
                yield Change(one.id, *reason)
            elif one.state != "retired":
                current = one
    if approved is None:
        return
    is_learned = until is not None and approved.since <= until
    if current is None:
        past = [one for one in entries if one.state in _ENDED and one.answer == approved.answer]
        if not is_learned and not any(one.changed_at >= approved.since for one in past):
            yield Add(approved)
        return
    outranked = current.source != "users" and approved.source == "users"
    outdated = current.source == "person" and approved.since <= current.since
    if current.answer == approved.answer or outranked or outdated:
        return
    yield Change(current.id, "superseded", f"a newer answer is approved: {', '.join(approved.feedback_ids)}")
    if not is_learned:
        yield Add(approved)


def _gone(entry: Entry, approved: Approved | None, states: Mapping[str, Decided | None]) -> tuple[State, str] | None:
    """Returns the state and the reason for which an entry leaves; None: it stays.

    It stays by the rule by which it entered: its answer is the approved one. It also stays if it rests on a person, or
    if retention has removed all of its statements.
    """
    known = [states[id] for id in entry.feedback_ids if id in states]
    counted = [one for one in known if one is not None]
    is_approved = approved is not None and any(one.state == "taught" for one in counted)
    if entry.source == "person" or not known or is_approved:
        return None
    if (overruled := next((one for one in counted if one.state == "overruled"), None)) is not None:
        return "overruled", f"{overruled.reason}: {overruled.detail}"
    against = [one for one in counted if one.state != "taught"]
    return "superseded", f"{against[-1].reason}: {against[-1].detail}" if against else _UNSUPPORTED


def newest(warehouse: Warehouse) -> dict[str, Any] | None:
    """Returns what changes with each event and each decision."""
    return warehouse.row(QUERIES["newest"])


def follow(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> int:
    """Applies new feedback and decisions to the entries of a workload, and returns the number of changes.

    New feedback is found by the number of its transaction, as in the ledger. When the memory is switched on, also after
    a time in which it was off, feedback counts from which the champion has not learned. Such feedback is decided again
    when the form that programs read has changed. What is erased while the answers are being decided does not count.
    """
    rules = rules_of(warehouse, workload, settings.dataset)
    behind = statements.Behind.of(warehouse, workload, now, form_of(metric_of(warehouse, settings, workload)), rules)
    if behind is None:
        return 0
    anew = behind.since is None
    learned = warehouse.row(QUERIES["learned_until"], {"workload": workload}) if anew or behind.new_form else None
    until = learned["until"] if learned else None
    with changing, warehouse.transaction() as cursor:
        if anew:
            _identify(cursor, workload, rules, now)
        keys = statements.store(cursor, workload, behind, rules, now, settings.dataset.maximum_rows, until)
    while True:  # to find takes long where a judge compares answers, so nobody waits for it
        with warehouse.cursor() as cursor:
            read = statements.count(cursor, workload)
        found = find(warehouse, settings, workload, keys) if keys else Findings({}, {})
        with changing, warehouse.transaction() as cursor:
            if statements.count(cursor, workload) == read:
                return _carry_out(cursor, settings, workload, behind, keys, found, until if anew else None, now)


def _identify(cursor: duckdb.DuckDBPyConnection, workload: str, rules: Rules, now: datetime) -> None:
    """Gives entries the keys that their questions have by today's rules; one without a key, or without an answer that
    applies to it any more, is retired."""
    (last,) = cursor.execute(QUERIES["last_sequence"]).fetchall()[0]
    known: dict[str, str] = {}
    ended = []
    for row in rows_of(cursor.execute(QUERIES["to_identify"], {"workload": workload})):
        messages, context, tools, extras = (
            json.loads(row[name]) if row[name] else None for name in ("messages", "context", "tools", "extras")
        )
        asked = question(messages, context, tools, extras, rules)
        key = asked.key.hex() if asked else ""
        if row["state"] != "retired" and (not key or key in known):
            ended.append(Change(row["id"], "retired", _SAME_QUESTION.format(known[key]) if key else _NOT_IDENTIFIED))
            continue
        if row["state"] != "retired":
            known[key] = row["id"]
        if key not in ("", row["key"]):
            last += 1
            cursor.execute(QUERIES["set_key"], {"id": row["id"], "key": key, "sequence": last})
    apply(cursor, workload, ended, now)


def _carry_out(
    cursor: duckdb.DuckDBPyConnection,
    settings: Settings,
    workload: str,
    behind: statements.Behind,
    keys: Iterable[str],
    found: Findings,
    until: datetime | None,
    now: datetime,
) -> int:
    actions = list(_actions(cursor, workload, keys, found, until))
    apply(cursor, workload, actions, now)
    actions += (expired := list(_beyond_budget(cursor, settings.memory, workload)) if actions else [])
    apply(cursor, workload, expired, now)
    cursor.execute(QUERIES["begin_epoch"], {"epoch": uuid.uuid4().hex})
    position = {"workload": workload, "until": behind.until, "decided": behind.decided}
    cursor.execute(QUERIES["set_position"], position)
    cursor.execute(QUERIES["move_position"], position)
    return len(actions)


def _actions(
    cursor: duckdb.DuckDBPyConnection, workload: str, keys: Iterable[str], found: Findings, until: datetime | None
) -> Iterator[Action]:
    of_key: dict[str, list[Entry]] = defaultdict(list)
    for row in rows_of(cursor.execute(QUERIES["of_keys"], {"workload": workload, "keys": sorted(keys)})):
        of_key[row["question_key"]].append(Entry.of(row))
    for key in sorted(keys):
        yield from transitions(of_key[key], found.approved.get(key), found.states, until)


def _beyond_budget(cursor: duckdb.DuckDBPyConnection, settings: MemorySettings, workload: str) -> Iterator[Change]:
    """Yields the expiry of the oldest entries beyond a budget."""
    for query, most, key in (
        ("beyond_account", settings.entries_per_account, "entries_per_account"),
        ("beyond_all", settings.max_entries, "max_entries"),
    ):
        rows = cursor.execute(QUERIES[query], {"workload": workload, "most": most}).fetchall()
        yield from (
            Change(id, "expired", f"memory.{key} ({most:,}) is reached, and it is the oldest") for (id,) in rows
        )


def apply(
    cursor: duckdb.DuckDBPyConnection,
    workload: str,
    actions: Iterable[Action],
    now: datetime,
    by: str | None = None,
    reason: str = "",
) -> list[str]:
    """Carries out actions within a transaction; the caller holds `changing`. Returns the ids of added entries.

    An entry does not come back in place of a newer one of its question: it ends as superseded.

    Args:
        by: who asked for it; None: retuned.
        reason: of entries that are added.
    """
    (last,) = cursor.execute(QUERIES["last_sequence"]).fetchall()[0]
    added = []
    for sequence, action in enumerate(actions, last + 1):
        shared = {"now": now, "sequence": sequence, "by": by}
        if isinstance(action, Change):
            if action.state == "active" and (newer := _newer(cursor, action.id)) is not None:
                action = Change(action.id, "superseded", f"a newer entry answers the question: {newer['id']}")
            cursor.execute(QUERIES["change"], asdict(action) | shared)
            continue
        values = asdict(action.approved)
        added.append(id := uuid.uuid4().hex[:16])
        insert(
            cursor,
            "memory_entries",
            id=id,
            workload=workload,
            question_key=values.pop("key"),
            feedback_ids=json.dumps(values.pop("feedback_ids")),
            added_at=now,
            state="active",
            reason=reason,
            changed_by=by,
            changed_at=now,
            sequence=sequence,
            **values,
        )
    return added


def _newer(cursor: duckdb.DuckDBPyConnection, id: str) -> dict[str, Any] | None:
    """Returns the `id` and `state` of the newest entry that an entry must not come back in place of."""
    return next(iter(rows_of(cursor.execute(QUERIES["newer"], {"id": id}))), None)


def add(warehouse: Warehouse, workload: str, approved: Approved, now: datetime, author: str, reason: str) -> str:
    """Adds the answer of a person to a question in place of its current entry, and returns the new entry's id."""
    with changing, warehouse.transaction() as cursor:
        cursor.execute(QUERIES["begin_epoch"], {"epoch": uuid.uuid4().hex})
        rows = rows_of(cursor.execute(QUERIES["of_keys"], {"workload": workload, "keys": [approved.key]}))
        current = [row["id"] for row in rows if row["state"] in ("active", "frozen")]
        old = [Change(id, "superseded", f"{author} has added another answer: {reason}") for id in current]
        (id,) = apply(cursor, workload, [*old, Add(approved)], now, author, reason)
    return id


Decision = Literal["edit", "freeze", "unfreeze", "remove"]
_FROM: Mapping[Decision, tuple[State, ...]] = {
    "edit": ("active", "frozen"),
    "freeze": ("active",),
    "unfreeze": ("frozen", "withdrawn"),
    "remove": ("active", "frozen", "retired"),
}
_TO: Mapping[Decision, State] = {
    "edit": "superseded", "freeze": "frozen", "unfreeze": "active", "remove": "removed"
}  # fmt: skip


def decide(
    warehouse: Warehouse,
    action: Decision,
    ids: Sequence[str],
    reason: str,
    author: str,
    now: datetime,
    answer: str | None = None,
    check: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Carries out a person's decision about entries; about all of them, or none.

    Args:
        answer: the answer of an edit, without personal data.
        check: called with the workload of each entry; raises where it may not be decided about.

    Returns:
        `id`, `workload` and `state` of each entry; an edit makes a new one.

    Raises:
        RetunedError: an id is unknown, the action does not apply in the entry's state, an edit changes nothing, or a
            newer entry answers the question of one that is to come back.
    """
    with changing, warehouse.transaction() as cursor:
        known = {row["id"]: row for row in rows_of(cursor.execute(QUERIES["of_ids"], {"ids": list(ids)}))}
        if unknown := [id for id in ids if id not in known]:
            raise RetunedError(
                f"memory: no entry has the id {', '.join(unknown)}; nothing is changed. `retuned memory list WORKLOAD` "
                "lists the entries"
            )
        for row in known.values():
            check(row["workload"])
            if row["state"] not in _FROM[action]:
                raise RetunedError(
                    f"memory {action}: entry {row['id']} is {row['state']}; this applies to entries that are "
                    f"{' or '.join(_FROM[action])}. Nothing is changed"
                )
            if action == "edit" and row["answer"] == answer:
                raise RetunedError(f"memory edit: entry {row['id']} has this answer already. Nothing is changed")
            if _TO[action] == "active" and (newer := _newer(cursor, row["id"])) is not None:
                raise RetunedError(
                    f"memory {action}: entry {newer['id']}, which is {newer['state']}, is newer than {row['id']} and "
                    "answers the same question. Nothing is changed. `retuned memory add` puts an answer in its place"
                )
        results = []
        for id, row in known.items():
            actions: list[Action] = [Change(id, _TO[action], reason)]
            if action == "edit":
                assert answer is not None
                actions.append(Add(_edited(row, answer, author, now)))
            added = apply(cursor, row["workload"], actions, now, author, reason)
            results.append(
                {"id": (added or [id])[0], "workload": row["workload"], "state": "active" if added else _TO[action]}
            )
    return results


def _edited(row: Mapping[str, Any], answer: str, author: str, now: datetime) -> Approved:
    """Returns an entry with a person's answer. It keeps the feedback, because the question is from there: an erasure of
    the feedback takes it along."""
    return Approved(
        key=row["question_key"],
        answer=answer,
        source="person",
        author=author,
        feedback_ids=tuple(json.loads(row["feedback_ids"])),
        since=now,
        **{name: row[name] for name in ("messages", "question", "context", "tools", "extras")},
    )


def set_thresholds(warehouse: Warehouse, thresholds: Mapping[str, float | None]) -> int:
    """Sets the thresholds of entries, and returns their number."""
    if not thresholds:
        return 0
    with changing, warehouse.transaction() as cursor:
        (last,) = cursor.execute(QUERIES["last_sequence"]).fetchall()[0]
        for sequence, (id, threshold) in enumerate(thresholds.items(), last + 1):
            cursor.execute(QUERIES["set_threshold"], {"id": id, "threshold": threshold, "sequence": sequence})
    return len(thresholds)


def withdraw(warehouse: Warehouse, workload: str, reasons: Mapping[str, str], now: datetime) -> None:
    """Withdraws entries that make answers worse; `reasons` by their ids."""
    with changing, warehouse.transaction() as cursor:
        rows = rows_of(cursor.execute(QUERIES["of_ids"], {"ids": list(reasons)}))
        active = [row["id"] for row in rows if row["state"] == "active"]
        apply(cursor, workload, [Change(id, "withdrawn", reasons[id]) for id in active], now)


def active(warehouse: Warehouse, workload: str, limit: int = 100_000) -> list[dict[str, Any]]:
    """Returns the entries in force, the newest first."""
    return warehouse.rows(QUERIES["active"], {"workload": workload, "limit": limit})


def counts(warehouse: Warehouse) -> dict[str, dict[str, int]]:
    """Returns the number of entries by workload and state."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in warehouse.rows(QUERIES["counts"]):
        found[row["workload"]][row["state"]] = row["entries"]
    return found


def erase(cursor: duckdb.DuckDBPyConnection, ids: Sequence[str], now: datetime) -> None:
    """Removes entries, with their texts, in the transaction that deletes the events that they rest on.

    The caller holds `changing` until the transaction has ended.
    """
    (last,) = cursor.execute(QUERIES["last_sequence"]).fetchall()[0]
    for sequence, id in enumerate(ids, last + 1):
        cursor.execute(QUERIES["blank"], {"id": id, "now": now, "sequence": sequence})


def forget(warehouse: Warehouse, workloads: Sequence[str], before: datetime) -> int:
    """Deletes entries that left the memory before a time, and returns how many."""
    with changing:
        return warehouse.delete(QUERIES["forget_ended"], {"workloads": workloads, "before": before})
