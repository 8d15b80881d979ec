"""Windows: which events of a workload are the reference, which are the current ones, and samples of both."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.resources import files
from typing import Any

import duckdb

from retuned.consumers.warehouse import Warehouse, named_queries
from retuned.monitors.settings import WindowsSettings

SQL = files("retuned.monitors") / "sql"
QUERIES = named_queries(SQL, "windows.sql")


@dataclass(frozen=True)
class Window:
    """Events with start ≤ timestamp < end (UTC), and how many there are."""

    start: datetime
    end: datetime
    rows: int


@dataclass(frozen=True)
class Windows:
    """The two windows of a workload; the current one begins where the reference ends, or later."""

    workload: str
    reference: Window
    current: Window

    def shortage(self, minimum_rows: int) -> str | None:
        """Why nothing can be said about drift, or None when both windows hold enough rows."""
        if min(self.reference.rows, self.current.rows) >= minimum_rows:
            return None
        return (
            f"{self.reference.rows} events in the reference window and {self.current.rows} in the current one; "
            f"{minimum_rows} are needed in each"
        )


def bounds(
    anchor: datetime, latest_start: datetime, now: datetime, reference_seconds: float
) -> tuple[datetime, datetime, datetime]:
    """Start of the reference, end of the reference, start of the current window.

    The current window reaches back to `latest_start`, never before the anchor: what another champion answered is not
    this one's. The reference is the span from the anchor on, cut where the current window begins; so it grows until
    the span has passed, and there is no time at which a full reference leaves the current window empty.
    """
    current_start = min(max(latest_start, anchor), now)
    start = min(anchor, current_start)
    return start, min(start + timedelta(seconds=reference_seconds), current_start), current_start


def windows(warehouse: Warehouse, settings: WindowsSettings, workload: str, now: datetime) -> Windows | None:
    """The windows of a workload at a time, or None when it has no event yet."""
    anchor = (warehouse.row(QUERIES["anchor"], {"workload": workload, "now": now}) or {})["anchor"]
    if anchor is None:
        return None
    latest_start = now - timedelta(seconds=settings.current_seconds)
    if settings.current_events is not None:
        parameters = {"workload": workload, "start": latest_start, "now": now, "skip": settings.current_events - 1}
        nth = warehouse.row(QUERIES["nth_latest"], parameters)
        if nth is not None:
            latest_start = nth["timestamp"]
    start, end, current_start = bounds(anchor, latest_start, now, settings.reference_seconds)
    return Windows(
        workload,
        Window(start, end, _count(warehouse, workload, start, end)),
        Window(current_start, now, _count(warehouse, workload, current_start, now)),
    )


def sample(cursor: duckdb.DuckDBPyConnection, table: str, workload: str, window: Window, rows: int, seed: str) -> None:
    """Put a sample of a window, at most `rows`, the same for the same seed, into a temporary table of this cursor."""
    parameters: dict[str, Any] = {
        "workload": workload,
        "start": window.start,
        "end": window.end,
        "rows": rows,
        "seed": seed,
    }
    cursor.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS {QUERIES['sample']}", parameters)


def _count(warehouse: Warehouse, workload: str, start: datetime, end: datetime) -> int:
    row = warehouse.row(QUERIES["count"], {"workload": workload, "start": start, "end": end})
    return int(row["rows"]) if row else 0
