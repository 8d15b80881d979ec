"""Counts for the watch, from the warehouse: votes, and slow answers by the hour."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import duckdb
import numpy as np

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries, rows_of
from retuned.monitors.rates.days import variance_between
from retuned.monitors.rates.estimate import evidence_effect
from retuned.monitors.rates.votes import Array, Votes, read_votes
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.comparison import COMPARED, Against, Baseline, Counts, seconds_to_find

QUERIES = named_queries("retuned.monitors.watch", "watch.sql")
DAY = timedelta(days=1)
ENOUGH_VOTES, ENOUGH_DAYS = 500, 7
"""The reference reaches back until it holds this many votes of one kind and this many days: older traffic is less
similar to today's, and a single day may be exceptional."""
PERIODS: dict[Against, timedelta] = {"week": 7 * DAY, "day": DAY}
# With weekly retraining, a version has served slightly less than a week when its successor arrives.
_ALMOST = 6 / 7
CHANGING_OVER, SETTLED = timedelta(hours=6), timedelta(hours=12)
"""The ages of the watch between which it is decided whether traffic is split; apps that switch slowly do not split it.
Until then the weaker evidence counts."""
SPLIT = 0.01
"""Traffic is split if both versions answer, the former champion at least this share."""
WARM_UP = timedelta(minutes=15)
"""Latency is not compared at first, while the adapter is loaded."""
LATENCY_FOR = timedelta(days=3)
"""Latency is compared for this long after the warm-up; later changes have other causes."""


NO_VOTES = Votes(np.zeros((0, 5)), np.zeros((0, 4)))


@dataclass(frozen=True)
class Watched:
    """A watched promotion or a step of a canary, up to `end` (UTC)."""

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
    """The former champion in a number of periods before the promotion."""

    against: Against
    period: timedelta
    periods: int

    @property
    def span(self) -> timedelta:
        """The length of the reference."""
        return self.period * self.periods


Kinds = dict[tuple[str, str], list[Counts]]


def count(warehouse: Warehouse, settings: WatchSettings, watched: Watched) -> Kinds:
    """Returns the counts by metric and source, against each reference.

    Equal maturity: votes arrive hours late, so an answer before the promotion counts with the votes it had when it was
    as old as its counterpart, a whole number of periods later, is now. A vote counts if it arrived within
    `vote_seconds` of its answer. Once the watch is older than the longest period, answers after that count when they
    have reached that age.
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
        # Answers younger than `within` count as well, so `now` is later than the end.
        judgements.comparable_votes(cursor, watched.workload, start, end, now=end + within, mature_after=within)
        cut = {"since": watched.since, "end": end, "longest": longest, "within": within}
        cut |= {name: watched.names[name] for name in ("version", "previous")}
        before: Kinds = defaultdict(list)
        for reference in references:
            _add(before, cursor, cut, reference, history)
        beside: Kinds = defaultdict(list)
        _add(beside, cursor, cut, Reference("same_time", timedelta(0), 0), history)
        share = _share(cursor, watched)
        _slow(before, beside, cursor, settings, watched)
    chosen: Kinds = {}
    for kind in COMPARED:
        earlier, same_time = before.get(kind, []), beside.get(kind, [])
        if watched.elapsed >= SETTLED:
            chosen[kind] = _settled(kind, earlier, same_time, share, settings)
        else:
            chosen[kind] = [*earlier, *(same_time if share >= SPLIT or not earlier else [])]
    return {kind: counts for kind, counts in chosen.items() if counts}


def _history(cursor: duckdb.DuckDBPyConnection, watched: Watched, start: datetime) -> list[dict[str, Any]]:
    names = {name: watched.names[name] for name in ("workload", "previous")}
    return rows_of(cursor.execute(QUERIES["history"], {**names, "start": start, "since": watched.since}))


def _references(history: Iterable[Mapping[str, Any]], since: datetime, back: timedelta) -> list[Reference]:
    """Returns the references: for each fitting period, the fewest periods that hold enough votes of one kind."""
    days = [(row["days_before"], row["votes"], row["first"], row["name"], row["source"]) for row in history]
    if not days:
        return []
    served = since - min(first for _, _, first, _, _ in days)
    fitting = {against: period for against, period in PERIODS.items() if served >= period * _ALMOST}
    if not fitting:
        return [Reference("all", served, 1)]
    references = []
    for against, period in fitting.items():
        most = max(math.ceil(min(back, served) / period), 1)
        kinds = defaultdict[tuple[str, str], dict[int, int]](lambda: defaultdict(int))
        for day, votes, _, name, source in days:
            kinds[name, source][math.ceil(day * DAY / period)] += votes
        needed, least = most, min(ENOUGH_DAYS * DAY // period, most)
        for counted in kinds.values():
            total = 0
            for number in range(1, most + 1):
                total += counted[number]
                if total >= ENOUGH_VOTES:
                    needed = min(needed, max(number, least))
                    break
        references.append(Reference(against, period, needed))
    return references


def _add(
    kinds: Kinds,
    cursor: duckdb.DuckDBPyConnection,
    cut: Mapping[str, Any],
    reference: Reference,
    history: Sequence[Mapping[str, Any]],
) -> None:
    cursor.execute(QUERIES["votes"], {**cut, "period": reference.period, "periods": reference.periods})
    by_key = read_votes(cursor)
    for (name, source, part), known in by_key.items():
        if part == "known":
            days = [(row["bad"], row["votes"]) for row in history if (row["name"], row["source"]) == (name, source)]
            stood = by_key.get((name, source, "stood"), NO_VOTES)
            kinds[name, source].append(counts_of(reference, known, stood, np.array(days).reshape(-1, 2)))


def counts_of(reference: Reference, known: Votes, stood: Votes, days: Array) -> Counts:
    """Returns the counts of one comparison against one reference.

    Args:
        known: all votes.
        stood: the votes that had arrived when both sides were equally old.
        days: shape (days, 2): bad votes and all votes of each day before the promotion.
    """
    bad, votes, _, _ = known.sums
    effect = evidence_effect(stood)
    between = variance_between((days,), effect) if reference.periods else 0.0
    return Counts(
        reference.against,
        *stood.sums,
        effect=evidence_effect(stood, between),
        votes=stood,
        baseline=Baseline(
            bad=bad,
            votes=votes,
            period=reference.period,
            per_day=votes / (reference.span / DAY) if reference.span else 0.0,
            effect=effect,
            between_days=between,
        ),
    )


def answers(cursor: duckdb.DuckDBPyConnection, watched: Watched, since: datetime) -> tuple[int, int]:
    """Returns the number of answers of the former champion and of the watched version since a time."""
    ((before, after),) = cursor.execute(
        QUERIES["answers"], watched.names | {"start": since, "end": watched.end}
    ).fetchall()
    return before, after


def slow_beside(
    cursor: duckdb.DuckDBPyConnection, step: Watched, began: datetime, settings: WatchSettings
) -> list[Counts]:
    """Returns the slow answers in a step of a canary, compared at the same time; empty: one side has none.

    Args:
        began: when the canary began.
    """
    warm = step.since + WARM_UP
    end = min(step.end, warm + LATENCY_FOR)
    if warm >= end:
        return []
    rows = _hours(cursor, step, {"start": began - DAY, "since": began, "warm": warm, "end": end}, settings)
    return [counts for counts in rows if counts.against == "same_time"]


def _share(cursor: duckdb.DuckDBPyConnection, watched: Watched) -> float:
    """Returns the share of the answers that the former champion gave: since the promotion, or while it was settled."""
    start = watched.since
    if watched.elapsed >= SETTLED:
        start, watched = start + CHANGING_OVER, replace(watched, end=start + SETTLED)
    before, after = answers(cursor, watched, start)
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


def _settled(
    kind: tuple[str, str], before: list[Counts], beside: list[Counts], share: float, settings: WatchSettings
) -> list[Counts]:
    """Chooses the reference: the same time if it has enough power to find a fall, else before the promotion.

    The choice depends only on data from before, so every later check makes the same choice, and the error is that of
    one comparison. It does not depend on votes on the watched version.
    """
    if not before or not SPLIT <= share < 1:
        return before or [_beside(counts, share) for counts in beside]
    if kind[0] == "latency":
        return beside
    baseline = replace(before[0].baseline, share=share, between_days=0.0)
    seconds = seconds_to_find(kind, [baseline], baseline.per_day, settings)
    if seconds is None or seconds > settings.duration_seconds:
        return before
    return [_beside(counts, share, baseline.per_day) for counts in beside]


def _beside(counts: Counts, share: float, per_day: float | None = None) -> Counts:
    """Adds the share of the traffic and the votes a day to counts at the same time."""
    per_day = counts.baseline.per_day if per_day is None else per_day
    return replace(counts, baseline=replace(counts.baseline, share=share, per_day=per_day))
