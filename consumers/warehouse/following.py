"""Keeps derived tables up to date with the events.

They follow the numbers of the transactions that stored the events, so late and replayed events are included.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import duckdb

from retuned.consumers.warehouse.connection import Warehouse


def follow(
    warehouse: Warehouse,
    changing: AbstractContextManager[object],
    queries: Mapping[str, str],
    update: Callable[[duckdb.DuckDBPyConnection, int], None],
) -> None:
    """Updates a table with everything stored since the last update, in one transaction.

    Args:
        changing: the lock of the table: the second of two concurrent transactions would fail.
        queries: `behind` returns the last transaction included and the last one stored, or no row if they are equal;
            `advance` moves the first to $until.
        update: updates the table with what was stored after the given transaction.

    Raises:
        WarehouseError: the warehouse cannot be written.
    """
    with changing:
        if warehouse.row(queries["behind"]) is None:
            return
        with warehouse.transaction(recorded=False) as cursor:
            since, until = cursor.execute(queries["behind"]).fetchall()[0]
            update(cursor, since)
            cursor.execute(queries["advance"], {"until": until})
