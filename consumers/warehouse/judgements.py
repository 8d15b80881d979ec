"""The table `judgements`: votes and corrections, each beside the answer that it is about.

It follows the events by the numbers of the transactions that stored them, as the ledger does: what comes late, twice or
by a replay is taken in with its transaction, and all judgements of an interaction are made anew when anything about it
came. So what is asked each minute of each workload reads a narrow table, and nothing joins all events.
"""

import threading
from collections.abc import Sequence
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.formats.events import RESERVED
from retuned.consumers.warehouse import following
from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.consumers.warehouse", "judgements.sql")
changing = threading.Lock()
"""Held while the table changes: of two transactions that change it at once, the second would fail."""
VOTES_PER_ACCOUNT = 5
"""So many votes of an account count, of each name, about each version: nobody decides alone."""


def follow(warehouse: Warehouse) -> None:
    """Take in what was stored since the last look; call it before the table is read.

    Raises:
        WarehouseError: the warehouse cannot be written.
    """
    following.follow(warehouse, changing, QUERIES, _take_in)


def _take_in(cursor: duckdb.DuckDBPyConnection, since: int) -> None:
    cursor.execute(QUERIES["touched"], {"since": since})
    _renew(cursor, since)
    cursor.execute(QUERIES["count_feedback"], {"since": since, "reserved": sorted(RESERVED)})


def feedback_totals(warehouse: Warehouse, workload: str) -> dict[tuple[str, str], int]:
    """By name (`other`: not one of the reserved ones) and source, all feedback so far on answers of the workload.

    Feedback names no workload: `follow` counts it once its answer is there. It stays counted when that has left the
    warehouse.
    """
    rows = warehouse.rows(QUERIES["feedback_totals"], {"workload": workload})
    return {(row["name"], row["source"]): row["total"] for row in rows}


def latest_complaints(
    warehouse: Warehouse, workload: str, since: datetime
) -> dict[tuple[str, str], tuple[str, datetime]]:
    """By name and source, the interaction of the last answer that was called unhelpful or invented, or was corrected;
    and when that was received."""
    rows = warehouse.rows(QUERIES["latest_complaints"], {"workload": workload, "since": since})
    return {(row["name"], row["source"]): (row["interaction_id"], row["received_at"]) for row in rows}


def comparable_votes(
    cursor: duckdb.DuckDBPyConnection,
    workload: str,
    start: datetime,
    end: datetime,
    *,
    now: datetime,
    mature_after: timedelta | None = None,
    period: timedelta | None = None,
    per_account: int = VOTES_PER_ACCOUNT,
) -> None:
    """Put the votes on the answers of a span into the temporary table `comparable_votes` of this cursor.

    It is the one definition of a vote: what compares or counts votes reads this table, after `follow`. A row for each
    interaction, name (helpful or hallucination) and source:

    - The last vote counts. Whoever corrects an answer without a vote found it unhelpful (see the view `votes`).
    - Of a user's account the first `per_account` answers that it voted on count, of each name and version: votes of an
      account are alike, and nobody decides alone. The account is that of the voter or, where the feedback names none,
      of who asked. Votes of other sources have none.
    - With `mature_after`, votes that came within that time after the answer count, and only of answers that are at
      least so old: old answers and new ones then had the same time to be voted on.
    - With `period`, time is cut into periods of that length, the last of which ends at `now`, and votes count that came
      by the end of the answer's period. So an earlier period is seen as it was when it was the last one, and can be
      compared with that one, whose newest answers had little time.
    - What answered is traffic: no demonstration.

    Columns: interaction_id, conversation, answered_at, model, version (of the workload that the model names, else
    `base`), imported (from a file), name, source, value (helpful, or invented), account (null: none), voted_at, and
    unit: what may be taken for independent, the account or else the conversation.

    Args:
        start, end: answers with start ≤ timestamp < end (UTC).
    """
    cursor.execute(
        QUERIES["comparable_votes"],
        {
            "workload": workload,
            "start": start,
            "end": end if mature_after is None else min(end, now - mature_after),
            "mature_after": mature_after,
            "now": now,
            "period": period,
            "per_account": per_account,
        },
    )


def renew(cursor: duckdb.DuckDBPyConnection, interactions: Sequence[str]) -> None:
    """Make the judgements of these interactions anew, in the transaction in which their rows were deleted or changed.

    `changing` is held until the transaction has ended.
    """
    cursor.execute(QUERIES["given"], {"ids": interactions})
    _renew(cursor)


def _renew(cursor: duckdb.DuckDBPyConnection, since: int | None = None) -> None:
    cursor.execute(QUERIES["located"], {"since": since})
    cursor.execute(QUERIES["drop"])
    cursor.execute(QUERIES["make"])
