"""How tables follow the events: by the numbers of the transactions that stored them, so that what comes late or by a
replay is taken in with its transaction."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import duckdb

from retuned.consumers.warehouse.connection import Warehouse


def follow(
    warehouse: Warehouse,
    changing: AbstractContextManager[object],
    queries: Mapping[str, str],
    take_in: Callable[[duckdb.DuckDBPyConnection, int], None],
) -> None:
    """Take in what was stored since the last look, in one transaction.

    Args:
        changing: the lock of the table: of two transactions that change it at once, the second would fail.
        queries: `behind` returns the last transaction that was taken in and the last one that there is, or no row where
            they are the same; `advance` moves the first to $until.
        take_in: changes the table by what the transactions after this one stored.

    Raises:
        WarehouseError: the warehouse cannot be written.
    """
    with changing:
        if warehouse.row(queries["behind"]) is None:
            return
        with warehouse.transaction() as cursor:
            since, until = cursor.execute(queries["behind"]).fetchall()[0]
            take_in(cursor, since)
            cursor.execute(queries["advance"], {"until": until})
