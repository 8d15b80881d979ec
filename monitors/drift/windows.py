"""The windows that a drift check compares: by time, widened where they hold too few rows, or accepted by a person."""

from dataclasses import replace
from datetime import datetime, timedelta

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors import windows as by_time
from retuned.monitors.settings import WindowsSettings
from retuned.monitors.windows import MICROSECOND, Windows, counted

QUERIES = named_queries("retuned.monitors.drift", "windows.sql")


def windows(warehouse: Warehouse, settings: WindowsSettings, workload: str, now: datetime) -> Windows | None:
    """Returns the windows of a workload at a time; None: it has no event yet.

    A window with fewer than `minimum_rows` conversations is widened until it holds that many, if there are enough since
    the champion's promotion: the reference towards now, the current window back in time.
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
    # Widened windows may last many days, so seasons do not apply.
    widened = replace(
        found,
        reference=counted(warehouse, workload, since, end),
        current=counted(warehouse, workload, start, now),
        standing=standing,
    )
    return found if widened.missing(settings.minimum_rows) else widened


def _nth(warehouse: Warehouse, query: str, workload: str, start: datetime, end: datetime, n: int) -> datetime | None:
    row = warehouse.row(QUERIES[query], {"workload": workload, "start": start, "end": end, "skip": n - 1})
    timestamp: datetime | None = row["timestamp"] if row else None
    return timestamp


def accept(warehouse: Warehouse, workload: str, found: Windows, actor: str, reason: str) -> None:
    """Makes the current window the reference until another champion comes into service."""
    warehouse.insert(
        "drift_references",
        workload=workload,
        created_at=found.current.end,
        start=found.current.start,
        actor=actor,
        reason=reason,
    )
