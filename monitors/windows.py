"""The reference and current window of a workload, and samples of their events."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import duckdb

from retuned.consumers.warehouse import answer_minutes
from retuned.consumers.warehouse.connection import Warehouse, named_queries, parameters_of
from retuned.monitors.settings import WindowsSettings

QUERIES = named_queries("retuned.monitors", "windows.sql")
WEEKS = 4
FEW, ALL = 1, 128
"""The part of the conversations, in 128ths, that a sample is drawn from: first few, then all if few are not enough."""
EVENTS_LOOKED_AT = 20
"""Events per needed conversation that are counted before the whole window is."""
WEEK, DAY, MICROSECOND = timedelta(days=7), timedelta(days=1), timedelta(microseconds=1)


@dataclass(frozen=True)
class Season:
    """Recurring hours: `since` ≤ timestamp < `since + length`, shifted by whole periods."""

    period: timedelta
    since: datetime
    length: timedelta

    def __str__(self) -> str:
        return "the same hours of the week" if self.period == WEEK else "the same hours of the day"


@dataclass(frozen=True)
class Window:
    """Events with start ≤ timestamp < end (UTC), limited to the hours of a season if there is one.

    Attributes:
        conversations: their number; an event without a conversation counts as one.
    """

    start: datetime
    end: datetime
    conversations: int
    season: Season | None = None


@dataclass(frozen=True)
class Windows:
    """The two windows of a workload; the current window starts at the end of the reference, or later.

    Attributes:
        standing: the reference has its full length and no season, so it does not change until the next check.
    """

    workload: str
    reference: Window
    current: Window
    standing: bool

    def missing(self, minimum_rows: int) -> int:
        """Returns the number of conversations that both windows lack together; 0: each holds enough."""
        return sum(max(minimum_rows - window.conversations, 0) for window in (self.reference, self.current))


def bounds(
    anchor: datetime, latest_start: datetime, now: datetime, reference_seconds: float
) -> tuple[datetime, datetime, datetime]:
    """Returns the start of the reference, its end, and the start of the current window.

    The current window starts at `latest_start`, but never before the anchor: earlier answers are another champion's.
    The reference starts at the anchor and ends after `reference_seconds`, or earlier where the current window starts.
    So it grows at first, and a full reference never leaves the current window empty.
    """
    current_start = min(max(latest_start, anchor), now)
    start = min(anchor, current_start)
    return start, min(start + timedelta(seconds=reference_seconds), current_start), current_start


def in_service_since(warehouse: Warehouse, settings: WindowsSettings, workload: str, now: datetime) -> datetime | None:
    """Returns when the champion was promoted or, without a promotion, when traffic began; None: no event yet.

    Traffic begins with the first event that `minimum_rows` events follow within `reference_seconds`: a few events with
    wrong times, years before all others, do not count.
    """
    promoted = warehouse.row(QUERIES["promoted"], {"workload": workload, "now": now})
    if promoted and promoted["since"]:
        since: datetime = promoted["since"]
        return since
    answer_minutes.follow(warehouse)
    reference = int(settings.reference_seconds // 60)
    minutes = max(reference // 64, 1)
    parameters = {
        "workload": workload,
        "now": now,
        "minutes": minutes,
        "following": max(reference // minutes - 1, 0),
        "enough": settings.minimum_rows,
    }
    began: datetime | None = (warehouse.row(QUERIES["began"], parameters) or {})["since"]
    return began


def windows(
    warehouse: Warehouse,
    settings: WindowsSettings,
    workload: str,
    now: datetime,
    accepted: tuple[datetime, datetime] | None = None,
) -> Windows | None:
    """Returns the windows of a workload at a time; None: it has no event yet.

    Args:
        accepted: start and end of the reference that a person accepted. Unless another champion came into service
            since, the reference starts there, and the current window not before its end.
    """
    spans = _bounds(warehouse, settings, workload, now, accepted)
    if spans is None:
        return None
    start, end, current_start = spans
    reference = _seasonal(warehouse, settings, workload, start, end, current_start, now)
    standing = reference.season is None and end - start >= timedelta(seconds=settings.reference_seconds)
    return Windows(workload, reference, counted(warehouse, workload, current_start, now), standing)


def current(warehouse: Warehouse, settings: WindowsSettings, workload: str, now: datetime) -> Window | None:
    """Returns the current window alone; None: there is no event yet.

    If its number of conversations is `minimum_rows` or more, it is a lower bound: not all are counted.
    """
    spans = _bounds(warehouse, settings, workload, now)
    if spans is None:
        return None
    start = spans[2]
    events = EVENTS_LOOKED_AT * settings.minimum_rows
    some = warehouse.row(QUERIES["has_some"], {"workload": workload, "start": start, "end": now, "events": events})
    if some is not None and some["conversations"] >= settings.minimum_rows:
        return Window(start, now, int(some["conversations"]))
    return counted(warehouse, workload, start, now)


def _bounds(
    warehouse: Warehouse,
    settings: WindowsSettings,
    workload: str,
    now: datetime,
    accepted: tuple[datetime, datetime] | None = None,
) -> tuple[datetime, datetime, datetime] | None:
    anchor = in_service_since(warehouse, settings, workload, now)
    if anchor is None:
        return None
    latest_start = now - timedelta(seconds=settings.current_seconds)
    if accepted and accepted[1] >= anchor:
        anchor, latest_start = accepted[0], max(latest_start, accepted[1])
    if settings.current_events is not None:
        parameters = {"workload": workload, "start": latest_start, "now": now, "skip": settings.current_events - 1}
        nth = warehouse.row(QUERIES["nth_latest"], parameters)
        if nth is not None:
            latest_start = nth["timestamp"]
    return bounds(anchor, latest_start, now, settings.reference_seconds)


def _seasonal(
    warehouse: Warehouse,
    settings: WindowsSettings,
    workload: str,
    start: datetime,
    end: datetime,
    current_start: datetime,
    now: datetime,
) -> Window:
    """Returns the reference: the same hours of the week as the current window, or of the day, or all hours.

    Traffic differs between morning and night, and between Sunday and Monday, without drift. The same hours of the day
    are compared once the reference lasts a whole day and holds enough conversations of these hours; the same hours of
    the week once it lasts WEEKS weeks, because one week does not show how weeks differ.
    """
    for period, least in ((WEEK, WEEKS * WEEK), (DAY, DAY)) if settings.seasonal_rows is not None else ():
        season = Season(period, current_start, now - current_start)
        if season.length < period and least <= end - start:
            window = counted(warehouse, workload, start, end, season)
            if window.conversations >= (settings.seasonal_rows or 0):
                return window
    return counted(warehouse, workload, start, end)


def sample(
    cursor: duckdb.DuckDBPyConnection,
    table: str,
    workload: str,
    window: Window,
    rows: int,
    seed: str,
    choose: str = QUERIES["choose"],
    columns: str = "*",
) -> None:
    """Puts a sample of a window into a temporary table of this cursor, the same for the same seed.

    Args:
        rows: the most conversations, with one event each.
        choose: the query that chooses the events.
        columns: the columns that are read.
    """
    parameters = _within(workload, window.start, window.end, window.season) | {"rows": rows, "seed": seed}
    cursor.begin()  # a checkpoint between the two could move rows
    try:
        choose_from(cursor, parameters, choose)
        cursor.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT {columns} FROM ({QUERIES['chosen']})")
    except BaseException:
        cursor.rollback()
        raise
    cursor.commit()


def choose_from(cursor: duckdb.DuckDBPyConnection, parameters: dict[str, Any], choose: str) -> None:
    """Puts the rows of a sample into the temporary table `chosen`.

    The sample is the conversations with the lowest hashes. The query first groups only the conversations with hashes
    below a bound, which is cheaper in a busy window; if these are too few, it groups all of them.
    """
    for parts in (FEW, ALL):
        cursor.execute(choose, parameters_of(choose, parameters | {"parts": parts}))
        ((count,),) = cursor.execute("SELECT count(*) FROM chosen").fetchall()
        if count >= parameters["rows"] or "$parts" not in choose:
            break


def counted(
    warehouse: Warehouse, workload: str, start: datetime, end: datetime, season: Season | None = None
) -> Window:
    """Returns a window with the number of its conversations."""
    row = warehouse.row(QUERIES["count"], _within(workload, start, end, season))
    return Window(start, end, int(row["conversations"]) if row else 0, season)


def _within(workload: str, start: datetime, end: datetime, season: Season | None) -> dict[str, Any]:
    return {
        "workload": workload,
        "start": start,
        "end": end,
        "since": season and season.since,
        "period": season and season.period // MICROSECOND,
        "length": season and season.length // MICROSECOND,
    }
