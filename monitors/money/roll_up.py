"""Sums old entries of the ledger by day."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors.money.ledger import QUERIES as LEDGER

QUERIES = {"insert_rolled_moments": LEDGER["add_moments"], **named_queries("retuned.monitors.money", "roll_up.sql")}


def roll_up(warehouse: Warehouse, workloads: Sequence[str], now: datetime, detail: timedelta) -> int:
    """Sums by day the bookings of days that ended more than `detail` ago; no figure of the ledger changes.

    The entries of a day become one for each workload, version, promotion, item, unit and rate, dated like the last of
    them. Sums over conversations are kept by day. Each day is written in its own transaction. No booking may run at the
    same time.

    Returns:
        How many rows fewer there are.
    """
    before = (now - detail).replace(hour=0, minute=0, second=0, microsecond=0)
    given = {"workloads": workloads, "before": before}
    days = [row["booked_on"] for row in warehouse.rows(QUERIES["days_to_roll_up"], given)]
    return (
        sum(_rolled(warehouse, "entries", workloads=workloads, day=day) for day in days)
        + _rolled(warehouse, "left_out", **given)
        + _rolled(warehouse, "moments", **given)
    )


def _rolled(warehouse: Warehouse, rows: str, **parameters: Any) -> int:
    with warehouse.transaction() as cursor:
        cursor.execute(QUERIES[f"rolled_{rows}"], parameters)
        (deleted,) = cursor.execute(QUERIES[f"delete_rolled_{rows}"]).fetchall()[0]
        (inserted,) = cursor.execute(QUERIES[f"insert_rolled_{rows}"]).fetchall()[0]
    return int(deleted - inserted)
