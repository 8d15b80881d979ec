"""The table `answer_minutes`: how many answers each workload has in each minute, and when the first of them was.

It follows the events by the numbers of the transactions that stored them, as `judgements` does: what comes late or by a
replay is counted with its transaction. So no query that asks each minute about all of history reads its events.
"""

import threading
from collections.abc import Sequence
from datetime import datetime

import duckdb

from retuned.consumers.warehouse import following
from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.consumers.warehouse", "answer_minutes.sql")
changing = threading.Lock()
"""Held while the table changes: of two transactions that change it at once, the second would fail."""


def follow(warehouse: Warehouse) -> None:
    """Count what was stored since the last look; call it before the table is read.

    Raises:
        WarehouseError: the warehouse cannot be written.
    """
    following.follow(warehouse, changing, QUERIES, _take_in)


def _take_in(cursor: duckdb.DuckDBPyConnection, since: int) -> None:
    cursor.execute(QUERIES["fresh"], {"since": since})
    for step in ("take_up", "replace", "store"):
        cursor.execute(QUERIES[step])


def renew(cursor: duckdb.DuckDBPyConnection, minutes: Sequence[tuple[str, datetime]]) -> None:
    """Count these minutes of workloads anew, in the transaction in which rows of interactions were deleted.

    `changing` is held until the transaction has ended.
    """
    if not minutes:
        return
    times = [minute for _, minute in minutes]
    cursor.execute(QUERIES["given"], {"workloads": [workload for workload, _ in minutes], "minutes": times})
    cursor.execute(QUERIES["drop"])
    cursor.execute(QUERIES["make"], {"first": min(times), "last": max(times)})
