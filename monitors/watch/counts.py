"""What the watch counts, from the warehouse: votes by who gave them, and slow answers by the hour."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import duckdb

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries, rows_of
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.comparison import COMPARED, Against, Counts, seconds_to_find, votes_per_day

QUERIES = named_queries("retuned.monitors.watch", "watch.sql")
ENOUGH_VOTES = 500
"""The reference reaches back until it holds so many votes of one kind: what is longer ago is less like today."""
DAY = timedelta(days=1)
PERIODS: dict[Against, timedelta] = {"week": 7 * DAY, "day": DAY}
# A version that a weekly retraining replaced has served for hardly a week when its successor comes.
_ALMOST = 6 / 7
SPLIT_NOW = timedelta(hours=6)
"""Traffic is split when the champion before answered within so long: not by apps that were slow to change over."""
WARM_UP = timedelta(minutes=15)
"""The first answers of an adapter wait for it to be loaded: they are not compared."""
LATENCY_FOR = timedelta(days=3)
"""Slow answers are counted for so long after the warm-up; what is slow from then on has another reason."""
ALL_VOTES = 2**31 - 1
"""Of an account: they are one observation."""


@dataclass(frozen=True)
class Watched:
    """A promotion that is watched, or a step of a canary, and the time up to which it is looked at (UTC)."""

    id: str
    workload: str
    version: str
    previous_version: str | None
    since: datetime
    end: datetime

    @property
    def elapsed(self) -> timedelta:
        """The age of the watch."""
        return self.end - self.since

    @property
    def names(self) -> dict[str, str]:
        """The workload and both versions, as parameters."""
        return {"workload": self.workload, "version": self.version, "previous": self.previous_version or "base"}


@dataclass(frozen=True)
class Reference:
    """The champion before, in so many periods before the promotion."""

    against: Against
    period: timedelta
    periods: int

    @property
    def span(self) -> timedelta:
        """How far back it reaches."""
        return self.period * self.periods


Kinds = dict[tuple[str, str], list[Counts]]


def count(warehouse: Warehouse, settings: WatchSettings, watched: Watched) -> Kinds:
    """Counts by metric and source, against each reference that the evidence must hold against.

    Equal maturity: votes come hours late, so each answer before the promotion is taken as it stood when it was as old
    as its counterpart is now, a whole number of periods later. A vote counts when it came within `vote_seconds` of its
    answer. Once the watch is older than the longest period, later answers count when they are that old.
    """
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        back = timedelta(seconds=settings.compare_seconds)
        history = _history(cursor, watched, watched.since - back)
        references = _references(history, watched.since, back)
        longest = max((reference.period for reference in references), default=DAY)
        within = min(timedelta(seconds=settings.vote_seconds), longest)
        span = max((reference.span for reference in references), default=timedelta(0))
        start, end = watched.since - span, watched.end
        # Answers that are younger than `within` count as well: `now` is not what they are cut at.
        judgements.comparable_votes(
            cursor, watched.workload, start, end, now=end + within, mature_after=within, per_account=ALL_VOTES
        )
        cut = {"since": watched.since, "end": end, "longest": longest, "within": within}
        cut |= {name: watched.names[name] for name in ("version", "previous")}
        before: Kinds = defaultdict(list)
        for reference in references:
            _add(before, cursor, cut, reference)
        beside: Kinds = defaultdict(list)
        _add(beside, cursor, cut, Reference("same_time", timedelta(0), 0))
        share = _share(cursor, watched)
        _slow(before, beside, cursor, settings, watched)
    return {
        kind: _fairest(kind, before.get(kind, []), beside.get(kind, []), share, watched.elapsed, settings)
        for kind in COMPARED
        if kind in before or kind in beside
    }


def _history(cursor: duckdb.DuckDBPyConnection, watched: Watched, start: datetime) -> list[dict[str, Any]]:
    names = {name: watched.names[name] for name in ("workload", "previous")}
    return rows_of(cursor.execute(QUERIES["history"], {**names, "start": start, "since": watched.since}))


def _references(history: Iterable[Mapping[str, Any]], since: datetime, back: timedelta) -> list[Reference]:
    """Which periods before the promotion are compared with: as few as hold enough votes of one kind."""
    days = [(row["days_before"], row["votes"], row["first"], row["name"], row["source"]) for row in history]
    if not days:
        return []
    served = since - min(first for _, _, first, _, _ in days)
    fitting = {against: period for against, period in PERIODS.items() if served >= period * _ALMOST}
    if not fitting:
        return [Reference("all", served, 1)]
    references = []
    for against, period in fitting.items():
        most = max(back // period, 1)
        kinds = defaultdict[tuple[str, str], dict[int, int]](lambda: defaultdict(int))
        for day, votes, _, name, source in days:
            kinds[name, source][math.ceil(day * DAY / period)] += votes
        needed = most
        for counted in kinds.values():
            total = 0
            for number in range(1, most + 1):
                total += counted[number]
                if total >= ENOUGH_VOTES:
                    needed = min(needed, number)
                    break
        references.append(Reference(against, period, needed))
    return references


def _add(kinds: Kinds, cursor: duckdb.DuckDBPyConnection, cut: Mapping[str, Any], reference: Reference) -> None:
    parameters = {**cut, "period": reference.period, "periods": reference.periods}
    for row in rows_of(cursor.execute(QUERIES["votes"], parameters)):
        kind = row.pop("name"), row.pop("source")
        per_day = row["known"] / (reference.span / DAY) if reference.span else 0.0
        kinds[kind].append(Counts(reference.against, **row, period=reference.period, per_day=per_day))


def answers(cursor: duckdb.DuckDBPyConnection, watched: Watched, since: datetime) -> tuple[int, int]:
    """How many answers the champion before and the version that is watched gave since a time."""
    ((before, after),) = cursor.execute(
        QUERIES["answers"], watched.names | {"start": since, "end": watched.end}
    ).fetchall()
    return before, after


def slow_beside(
    cursor: duckdb.DuckDBPyConnection, step: Watched, began: datetime, settings: WatchSettings
) -> list[Counts]:
    """Slow answers in a step of a canary that began then, at the same time; empty where one of both gave none."""
    warm = step.since + WARM_UP
    end = min(step.end, warm + LATENCY_FOR)
    if warm >= end:
        return []
    rows = _hours(cursor, step, {"start": began - DAY, "since": began, "warm": warm, "end": end}, settings)
    return [counts for counts in rows if counts.against == "same_time"]


def _share(cursor: duckdb.DuckDBPyConnection, watched: Watched) -> float:
    """Of the latest answers since the promotion, those that the champion before gave."""
    before, after = answers(cursor, watched, max(watched.since, watched.end - SPLIT_NOW))
    return before / (before + after) if before else 0.0


def _slow(
    before: Kinds, beside: Kinds, cursor: duckdb.DuckDBPyConnection, settings: WatchSettings, watched: Watched
) -> None:
    warm = watched.since + WARM_UP
    if not warm < watched.end < warm + LATENCY_FOR:
        return
    times = {"start": watched.since - DAY, "since": watched.since, "warm": warm, "end": watched.end}
    for counts in _hours(cursor, watched, times, settings):
        kinds = beside if counts.against == "same_time" else before
        kinds["latency", "app"].append(counts)


def _hours(
    cursor: duckdb.DuckDBPyConnection, watched: Watched, times: Mapping[str, datetime], settings: WatchSettings
) -> list[Counts]:
    rows = rows_of(cursor.execute(QUERIES["latency"], {**watched.names, **times, "ratio": settings.latency_ratio}))
    return [Counts("same_time" if row.pop("same_time") else "all", **row) for row in rows]


def _fairest(
    kind: tuple[str, str],
    before: list[Counts],
    beside: list[Counts],
    share: float,
    elapsed: timedelta,
    settings: WatchSettings,
) -> list[Counts]:
    """The same time, if as many still ask the champion before as it takes to find a fall; else before and after.

    That depends on how many ask and vote, never on what they vote of the version that is watched.
    """
    if kind[0] == "latency" or not beside or (before and not share):
        return beside if kind[0] == "latency" and beside else before
    if not before:
        rate = (beside[0].n_before + beside[0].n_after) / max(elapsed / DAY, 1 / 24)
        return [replace(beside[0], share=share, per_day=rate)]
    known = before[0]
    at_once = replace(known, share=share, per_day=known.per_day)
    found = seconds_to_find(kind, [at_once], votes_per_day([at_once], elapsed), settings)
    if found is None or found > settings.duration_seconds:
        return before
    return [replace(beside[0], share=share, per_day=known.per_day)]
