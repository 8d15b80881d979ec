"""The windows that a drift check compares: by time, by count where time does not fill them, or as a person accepted."""

from dataclasses import replace
from datetime import datetime, timedelta

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors import windows as by_time
from retuned.monitors.settings import WindowsSettings
from retuned.monitors.windows import MICROSECOND, Windows, counted

QUERIES = named_queries("retuned.monitors.drift", "windows.sql")


def windows(warehouse: Warehouse, settings: WindowsSettings, workload: str, now: datetime) -> Windows | None:
    """The windows of a workload at a time, or None when it has no event yet.

    A window that holds fewer than `minimum_rows` conversations is widened until it holds them: the reference towards
    now, the current one back in time, where enough came since the champion's promotion.
    """
    row = warehouse.row(QUERIES["accepted"], {"workload": workload, "now": now})
    accepted = (row["start"], row["created_at"]) if row else None
    found = by_time.windows(warehouse, settings, workload, now, accepted)
    if found is None or not found.missing(settings.minimum_rows):
        return found
    since = found.reference.start
    accepted_until = accepted[1] if accepted and accepted[0] == since else since
    reference_full = _nth(warehouse, "nth_conversation", workload, since, now, settings.minimum_rows)
    current_full = _nth(warehouse, "nth_latest_conversation", workload, accepted_until, now, settings.minimum_rows)
    if reference_full is None or current_full is None or reference_full >= current_full:
        return found
    end = max(reference_full + MICROSECOND, min(found.reference.end, current_full))
    start = max(min(found.current.start, current_full), end)
    standing = end == since + timedelta(seconds=settings.reference_seconds) or end == reference_full + MICROSECOND
    # Which hours come again is not asked of windows of many days.
    widened = replace(
        found,
        reference=counted(warehouse, workload, since, end),
        current=counted(warehouse, workload, start, now),
        standing=standing,
    )
    return found if widened.missing(settings.minimum_rows) else widened


def _nth(warehouse: Warehouse, query: str, workload: str, start: datetime, end: datetime, n: int) -> datetime | None:
    row = warehouse.row(QUERIES[query], {"workload": workload, "start": start, "end": end, "skip": n - 1})
    found: datetime | None = row["timestamp"] if row else None
    return found


def accept(warehouse: Warehouse, workload: str, found: Windows, actor: str, reason: str) -> None:
    """Make the current window the reference, from now on and until another champion comes into service."""
    warehouse.insert(
        "drift_references",
        workload=workload,
        created_at=found.current.end,
        start=found.current.start,
        actor=actor,
        reason=reason,
    )
