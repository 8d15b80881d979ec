"""The table `answer_minutes`: the number of answers of each workload in each minute, and the time of the first.

It follows the events, see `following`. With it, queries that run every minute over the whole history read no events.
"""

import threading
from collections.abc import Sequence
from datetime import datetime

import duckdb

from retuned.consumers.warehouse import following
from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.consumers.warehouse", "answer_minutes.sql")
changing = threading.Lock()
"""Held while the table changes: the second of two concurrent transactions would fail."""


def follow(warehouse: Warehouse) -> None:
    """Counts everything stored since the last call; call it before reading the table.

    Raises:
        WarehouseError: the warehouse cannot be written.
    """
    following.follow(warehouse, changing, QUERIES, _update)


def _update(cursor: duckdb.DuckDBPyConnection, since: int) -> None:
    cursor.execute(QUERIES["fresh"], {"since": since})
    for step in ("add_counted", "delete_counted", "store"):
        cursor.execute(QUERIES[step])


def renew(cursor: duckdb.DuckDBPyConnection, minutes: Sequence[tuple[str, datetime]]) -> None:
    """Recounts minutes of workloads, in the transaction that deleted interactions.

    The caller holds `changing` until the transaction has ended.
    """
    if not minutes:
        return
    times = [minute for _, minute in minutes]
    cursor.execute(QUERIES["given"], {"workloads": [workload for workload, _ in minutes], "minutes": times})
    cursor.execute(QUERIES["drop"])
    cursor.execute(QUERIES["make"], {"first": min(times), "last": max(times)})
