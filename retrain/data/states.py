"""The state of each row: taught, held out, waiting, set aside or overruled, each for one reason."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from retuned.consumers.common.times import iso
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.data.overrides import Overrides
from retuned.retrain.data.selection import Selection
from retuned.retrain.data.table import QUARANTINED, Decided, State

QUERIES = named_queries("retuned.retrain.data", "states.sql")

STATES: tuple[State, ...] = get_args(State)
MOST = 2**62
"""All rows."""
_ROWS = 1_000


def row_states(chosen: Selection, overrides: Overrides) -> list[Decided]:
    """Returns the states of a selection. If a person wants a row taught, that decision is the reason."""
    return [
        replace(one, reason=why[0], detail=why[1])
        if one.state in ("taught", "held_out") and (why := overrides.why(one.row))[0]
        else one
        for one in chosen.states
    ]


def as_rows(states: Sequence[Decided]) -> list[dict[str, Any]]:
    """Returns the states as rows of the table `row_states`."""
    return [
        {
            "feedback_id": one.row.feedback_id,
            "interaction_id": one.row.interaction_id,
            "user_id": one.row.user_id,
            "state": one.state,
            "reason": one.reason,
            "detail": one.detail,
            "quarantined": one.reason in QUARANTINED,
            "other_feedback_id": one.other,
        }
        for one in states
    ]


def write_preview(
    warehouse: Warehouse, states: Sequence[Decided], workload: str, rows: str, limit: int | None
) -> dict[str, Any]:
    """Writes rows as JSON Lines, by state and reason, newest first, each with its change since the last dataset.

    Args:
        rows: path of the file.
        limit: the maximum number of rows of each state and reason; None writes all.

    Returns:
        `against`, the last dataset; `total`, the number of rows; and `counts`: by state and reason the numbers of
        `rows`, and of those that are `new` or `changed`.
    """
    before = {row["feedback_id"]: row["state"] for row in warehouse.rows(QUERIES["before"])}
    counts: dict[str, dict[str, Counter[str]]] = {}
    newest_first = sorted(states, key=lambda one: (one.row.timestamp, one.row.feedback_id), reverse=True)
    with Path(rows).open("w", encoding="utf-8") as lines:
        for one in sorted(newest_first, key=lambda one: (STATES.index(one.state), one.reason)):
            was = before.get(one.row.feedback_id)
            change = "new" if was is None else "same" if was == one.state else f"was {was}"
            count = counts.setdefault(one.state, {}).setdefault(one.reason, Counter(rows=0, new=0, changed=0))
            count.update(["rows", *(["new"] if was is None else ["changed"] if was != one.state else [])])
            if limit is None or count["rows"] <= limit:
                lines.write(json.dumps(_shown(one) | {"change": change}, ensure_ascii=False) + "\n")
    against = warehouse.row(QUERIES["against"], {"workload": workload}) or {}
    return {"against": against.get("version"), "total": len(states), "counts": counts}


def _shown(one: Decided) -> dict[str, Any]:
    row = one.row
    asked = [turn["content"] for turn in json.loads(row.messages) if turn["role"] == "user"]
    return {
        "state": one.state,
        "reason": one.reason,
        "detail": one.detail,
        "question": asked[-1],
        "answer": row.completion,
        "source": row.source,
        "account": row.user_id,
        "feedback_id": row.feedback_id,
        "interaction_id": row.interaction_id,
        "timestamp": iso(row.timestamp),
    }


def counts(warehouse: Warehouse, workload: str) -> list[dict[str, Any]]:
    """Returns how many rows `listed` yields of each `state` and `reason`: `rows`."""
    return warehouse.rows(QUERIES["known"] + QUERIES["counts"], {"workload": workload})


def interactions(warehouse: Warehouse, workload: str, ids: Sequence[str]) -> dict[str, str]:
    """Returns the interactions of those of these ids that are rows of a workload, by the id of their feedback."""
    found = warehouse.rows(QUERIES["known"] + QUERIES["interactions"], {"workload": workload, "ids": ids})
    return {row["feedback_id"]: row["interaction_id"] for row in found}


def listed(
    warehouse: Warehouse,
    workload: str,
    state: str | None = None,
    reason: str | None = None,
    *,
    ids: Sequence[str] | None = None,
    limit: int = MOST,
    skipped: int = 0,
) -> Iterator[dict[str, Any]]:
    """Yields the rows of a workload with their state in the last dataset, and the rows that wait for the next one.

    Each has `state`, `reason`, `detail`, `question`, `answer`, `source`, `account`, `feedback_id`, `interaction_id`,
    `timestamp`, `dataset_version` (None if it waits) and `decision`, the decision of a person, if any, and
    whether the last dataset `followed` it.

    Args:
        ids: only the rows of this feedback.
        limit: the most rows, after so many that are `skipped`.

    States and decisions are those of one moment. Texts are read in parts, so that no cursor stays open while a slow
    client reads.
    """
    asked = {"workload": workload, "state": state, "reason": reason, "ids": ids, "limit": limit, "skipped": skipped}
    rows = warehouse.rows(QUERIES["known"] + QUERIES["listed"], asked)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        named = {
            "feedback": [row["feedback_id"] for row in part],
            "interactions": [row["interaction_id"] for row in part],
        }
        texts = {row["feedback_id"]: row for row in warehouse.rows(QUERIES["texts"], named)}
        yield from (row | texts[row["feedback_id"]] for row in part)
