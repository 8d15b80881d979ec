"""The table `judgements`: votes and corrections, each with the answer that it is about.

It follows the events, see `following`: new events about an interaction recompute all of its judgements. So queries that
run every minute for each workload read a narrow table, and never join all events.
"""

import threading
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import duckdb

from retuned.consumers.formats.events import RESERVED
from retuned.consumers.warehouse import following
from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.consumers.warehouse", "judgements.sql")
changing = threading.Lock()
"""Held while the table changes: the second of two concurrent transactions would fail."""


def follow(warehouse: Warehouse) -> None:
    """Adds everything stored since the last call; call it before reading the table.

    Raises:
        WarehouseError: the warehouse cannot be written.
    """
    following.follow(warehouse, changing, QUERIES, _update)


def _update(cursor: duckdb.DuckDBPyConnection, since: int) -> None:
    cursor.execute(QUERIES["touched"], {"since": since})
    _renew(cursor, since)
    cursor.execute(QUERIES["count_feedback"], {"since": since, "reserved": sorted(RESERVED)})


def feedback_totals(warehouse: Warehouse, workload: str) -> dict[tuple[str, str], int]:
    """Returns the number of feedback events on answers of a workload, by name and source.

    Names that are not reserved count as `other`. Feedback does not name a workload, so `follow` counts it once its
    answer is stored. It stays counted when the answer is archived.
    """
    rows = warehouse.rows(QUERIES["feedback_totals"], {"workload": workload})
    return {(row["name"], row["source"]): row["total"] for row in rows}


def latest_complaints(
    warehouse: Warehouse, workload: str, since: datetime
) -> dict[tuple[str, str], tuple[str, datetime]]:
    """Returns the latest complaint by name and source: the interaction, and when the complaint was received.

    A complaint is an unhelpful or hallucination vote, or a correction.
    """
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
) -> None:
    """Puts the votes on the answers of a span into the temporary table `comparable_votes` of this cursor.

    This is the one definition of a vote: all code that compares or counts votes reads this table, after `follow`. It
    has one row for each interaction, name (helpful or hallucination) and source:

    - The last vote counts. A correction without a vote counts as unhelpful (see the view `votes`).
    - Every vote of an account counts. Votes of one account are correlated, which `retuned.monitors.rates` takes into
      account. The account is the voter or, if the feedback names none, the user who asked. Votes of other sources have
      no account.
    - With `mature_after`, only votes within that time after the answer count, and only answers of at least that age, so
      old and new answers had the same time to collect votes.
    - With `period`, time is cut into periods of that length, the last of which ends at `now`, and votes until the end
      of the answer's period count. So an earlier period looks as it did when it was the last one, and is comparable
      with the last one, whose newest answers had little time.
    - Demonstrations are excluded, and so are votes of accounts that are banned now, whenever they voted.
    - With `mature_after`, versions are compared on the answers that they are certain of, if the incumbent replaced
      answers of one of them for low confidence (`cascade.helpful_rate`). Each version is calibrated by itself: the
      hard answers of one are replaced, those of another not yet, and votes on them would show only that. So of each
      version the same share of its answers is left out, those that it was the least certain of.

    Columns: interaction_id, conversation, answered_at, model, version (the workload's version that the model names,
    else `base`; null: left out of comparisons), imported (from a file), name, source, value (helpful, or invented),
    account (null: none), voted_at, and unit: the account, else the conversation.

    Args:
        start, end: answers with start ≤ timestamp < end (UTC).
    """
    span = {"workload": workload, "start": start, "end": end if mature_after is None else min(end, now - mature_after)}
    cursor.execute(QUERIES["comparable_votes"], span | {"mature_after": mature_after, "now": now, "period": period})
    if mature_after is not None:
        _leave_out_uncertain(cursor, span)


def _leave_out_uncertain(cursor: duckdb.DuckDBPyConnection, span: Mapping[str, Any]) -> None:
    """Leaves the answers that versions were the least certain of out of `comparable_votes`, the same share of each."""
    if cursor.execute(QUERIES["replaced"]).fetchall() == [(False,)]:
        return  # nearly always: the answers are not read
    cursor.execute(QUERIES["certain"], span)
    ((share,),) = cursor.execute(QUERIES["replaced_share"]).fetchall()
    if share:
        cursor.execute(QUERIES["leave_out"], {**span, "share": share})


def renew(cursor: duckdb.DuckDBPyConnection, interactions: Sequence[str]) -> None:
    """Recomputes the judgements of interactions, in the transaction that deleted or changed their rows.

    The caller holds `changing` until the transaction has ended.
    """
    cursor.execute(QUERIES["given"], {"ids": interactions})
    _renew(cursor)


def _renew(cursor: duckdb.DuckDBPyConnection, since: int | None = None) -> None:
    cursor.execute(QUERIES["located"], {"since": since})
    cursor.execute(QUERIES["drop"])
    cursor.execute(QUERIES["make"])
