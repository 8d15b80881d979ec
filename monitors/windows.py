"""Windows: which events of a workload are the reference, which are the current ones, and samples of both."""

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
"""128ths of the conversations that a sample is chosen from: of few first, and of all where that is not enough."""
EVENTS_LOOKED_AT = 20
"""For each conversation that a window needs, so many of its events are looked at before all are."""
WEEK, DAY, MICROSECOND = timedelta(days=7), timedelta(days=1), timedelta(microseconds=1)


@dataclass(frozen=True)
class Season:
    """Hours that come again: `since` ≤ timestamp < `since + length`, and whole periods before and after that."""

    period: timedelta
    since: datetime
    length: timedelta

    def __str__(self) -> str:
        return "the same hours of the week" if self.period == WEEK else "the same hours of the day"


@dataclass(frozen=True)
class Window:
    """Events with start ≤ timestamp < end (UTC), of these hours alone if there is a season, and their conversations.

    An event without a conversation counts as one.
    """

    start: datetime
    end: datetime
    conversations: int
    season: Season | None = None


@dataclass(frozen=True)
class Windows:
    """The two windows of a workload; the current one begins where the reference ends, or later.

    `standing`: the reference has its full length and is of all hours, so that it is the same at the next check.
    """

    workload: str
    reference: Window
    current: Window
    standing: bool

    def missing(self, minimum_rows: int) -> int:
        """Conversations that the windows together lack; 0: each holds enough."""
        return sum(max(minimum_rows - window.conversations, 0) for window in (self.reference, self.current))


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


def in_service_since(warehouse: Warehouse, settings: WindowsSettings, workload: str, now: datetime) -> datetime | None:
    """When the champion was promoted or, before its promotion, when traffic began; None: there is no event yet.

    Traffic begins with the first event from which on `reference_seconds` hold `minimum_rows`: a few events with wrong
    times, years before the others, are not its beginning.
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
    """The windows of a workload at a time, or None when it has no event yet.

    Args:
        accepted: start and end of what a person made the reference: unless another champion came into service since,
            the reference begins there, and the current window no earlier than its end.
    """
    spans = _bounds(warehouse, settings, workload, now, accepted)
    if spans is None:
        return None
    start, end, current_start = spans
    reference = _seasonal(warehouse, settings, workload, start, end, current_start, now)
    standing = reference.season is None and end - start >= timedelta(seconds=settings.reference_seconds)
    return Windows(workload, reference, counted(warehouse, workload, current_start, now), standing)


def current(warehouse: Warehouse, settings: WindowsSettings, workload: str, now: datetime) -> Window | None:
    """The current window alone, or None when there is no event yet.

    Where it holds `minimum_rows` conversations or more, it may hold more than it says: they are not all counted.
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
    """The reference: of the hours of the week that the current window is of, or of the day, or of all hours.

    What people ask in the morning or on a Sunday is not what they ask at night or on a Monday, and no drift. Hours of
    the day are told apart as soon as the reference has lasted a whole day and holds enough conversations of them, those
    of the week as soon as it has lasted WEEKS weeks: how much one week differs from another cannot be seen in one.
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
    """Put a sample of a window into a temporary table of this cursor: one event each of at most `rows` conversations,
    the same for the same seed; `choose` is the query that chooses them. No other column than `columns` is read."""
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
    """Put the rows of a sample into the temporary table `chosen`.

    The conversations with the lowest hashes of all are those with the lowest of a part that holds the lowest, if that
    part holds enough: so a busy window is not grouped as a whole.
    """
    for parts in (FEW, ALL):
        cursor.execute(choose, parameters_of(choose, parameters | {"parts": parts}))
        ((found,),) = cursor.execute("SELECT count(*) FROM chosen").fetchall()
        if found >= parameters["rows"] or "$parts" not in choose:
            break


def counted(
    warehouse: Warehouse, workload: str, start: datetime, end: datetime, season: Season | None = None
) -> Window:
    """A window with its conversations."""
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
