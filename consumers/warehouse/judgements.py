"""The table `judgements`: votes and corrections, each beside the answer that it is about.

It follows the events by the numbers of the transactions that stored them, as the ledger does: what comes late, twice or
by a replay is taken in with its transaction, and all judgements of an interaction are made anew when anything about it
came. So what is asked each minute of each workload reads a narrow table, and nothing joins all events.
"""

import threading
from collections.abc import Sequence

import duckdb

from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.consumers.warehouse", "judgements.sql")
changing = threading.Lock()
"""Held while the table changes: of two transactions that change it at once, the second would fail."""


def follow(warehouse: Warehouse) -> None:
    """Take in what was stored since the last look; call it before the table is read.

    Raises:
        WarehouseError: the warehouse cannot be written.
    """
    with changing:
        if warehouse.row(QUERIES["behind"]) is None:
            return
        with warehouse.transaction() as cursor:
            since, until = cursor.execute(QUERIES["behind"]).fetchall()[0]
            cursor.execute(QUERIES["touched"], {"since": since})
            _renew(cursor)
            cursor.execute(QUERIES["advance"], {"until": until})


def renew(cursor: duckdb.DuckDBPyConnection, interactions: Sequence[str]) -> None:
    """Make the judgements of these interactions anew, in the transaction in which their rows were deleted or changed.

    `changing` is held until the transaction has ended.
    """
    cursor.execute(QUERIES["given"], {"ids": interactions})
    _renew(cursor)


def _renew(cursor: duckdb.DuckDBPyConnection) -> None:
    cursor.execute(QUERIES["drop"])
    cursor.execute(QUERIES["make"])
