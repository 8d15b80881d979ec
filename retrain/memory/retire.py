"""Retirement: entries leave once a champion has learned them, as its answers without the memory prove."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import duckdb

from retuned.consumers.warehouse.connection import Warehouse, rows_of
from retuned.retrain.memory.entries import QUERIES, Change, active, apply, changing
from retuned.retrain.settings import Settings

SPLIT = "memory"
"""The split of evaluations on entries: a score of 1 if the answer means the same as the approved one, else 0."""
ENTRIES = 500
"""The most entries that an evaluation asks about, the newest."""
PARAPHRASES = 3
"""The most related questions of an entry that are asked, the newest."""


def questions(warehouse: Warehouse, workload: str) -> list[dict[str, Any]]:
    """Returns the questions of entries in force, and recorded questions that they helped as related, as examples."""
    entries = {row["id"]: row for row in active(warehouse, workload, ENTRIES)}
    if not entries:
        return []
    parameters = {"workload": workload, "entries": list(entries), "most": PARAPHRASES}
    found = [(row, row["messages"]) for row in entries.values()]
    found += [(entries[row["entry_id"]], row["messages"]) for row in warehouse.rows(QUERIES["paraphrases"], parameters)]
    return [
        {
            "row_id": f"{entry['id']}:{number}",
            "messages": messages,
            "context": entry["context"],
            "tools": entry["tools"],
            "completion": entry["answer"],
            "timestamp": str(entry["changed_at"]),
        }
        for number, (entry, messages) in enumerate(found)
    ]


def follow_champion(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> int:
    """Retires the entries that the champion has learned, and puts back those that only a newer version has.

    A champion has learned an entry if all of its answers about the entry meant the same as the approved one, in the
    evaluation before its promotion. Nothing retires while the version before still answers: until the champion is in
    service, which a workload without targets does not know, and until its holdback has ended. Returns the number of
    changes.
    """
    with changing, warehouse.transaction() as cursor:
        changes = list(_changes(cursor, workload, bool(settings.serving.targets)))
        apply(cursor, workload, changes, now)
    return len(changes)


def _changes(cursor: duckdb.DuckDBPyConnection, workload: str, has_targets: bool) -> Iterator[Change]:
    for row in rows_of(cursor.execute(QUERIES["learned"], {"workload": workload, "has_targets": has_targets})):
        reason = f"{workload}@{row['version']} gives the approved answer without it"
        yield Change(row["id"], "retired", reason, row["version"])
    for row in rows_of(cursor.execute(QUERIES["unlearned"], {"workload": workload})):
        yield Change(row["id"], "active", f"{workload}@{row['version']}, which had learned it, does not serve")
