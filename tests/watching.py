"""Votes on answers of a service, hour by hour, and what the watch counts of them: thousands of watches in a minute.

Votes are numbers of an hour of the answer and of an hour of delay. What the watch counts is computed here a second
time, without a database; `stored` puts the same votes into a warehouse, for the watch itself to count.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from retuned.monitors.rates.days import variance_between
from retuned.monitors.rates.sequential import log_e_value
from retuned.monitors.settings import WatchSettings
from retuned.monitors.statistics import Z95
from retuned.monitors.watch.comparison import COMPARED
from retuned.monitors.watch.counts import ENOUGH_DAYS, ENOUGH_VOTES

Numbers = npt.NDArray[np.int64]
HOUR = timedelta(hours=1)
DAY, WEEK = 24, 7 * 24
WATCHED = 14 * DAY
BEFORE = 4 * WEEK
DELAYS = 24
"""Hours in which a vote may come and count."""


@dataclass(frozen=True)
class Service:
    """A service whose champion is replaced by one that is worse by `fall`.

    Attributes:
        answers: a day.
        rated: share of them that users vote on.
        bad: share of the votes that call an answer bad, with the champion before.
        weekend, night: so much higher is that share then, with either version.
        early: so much higher among the votes of the first three hours, and lower by a third of it later.
        delay: hours after which half of the votes have come.
        holdback: share of the traffic that stays with the champion before.
    """

    answers: float
    fall: float = 0.0
    rated: float = 0.015
    bad: float = 0.2
    weekend: float = 0.06
    night: float = 0.03
    early: float = 0.0
    delay: float = 6.0
    holdback: float = 0.0


@dataclass(frozen=True)
class Votes:
    """Shape (runs, hours of answers, hours of delay): how many there are, and how many of them are bad."""

    n: Numbers
    bad: Numbers


@dataclass(frozen=True)
class Watches:
    """Watches of one service that begin in the same hour of the week: `before` ends and the others begin with it."""

    before: Votes
    after: Votes
    beside: Votes | None


@dataclass(frozen=True)
class Rates:
    """What is expected of the traffic of some hours.

    Attributes:
        answers: shape (hours,), of all traffic.
        votes, bad: shape (hours, hours of delay): votes on them, and the share of these that are bad with the champion
            before.
    """

    answers: npt.NDArray[np.float64]
    votes: npt.NDArray[np.float64]
    bad: npt.NDArray[np.float64]


def rates_of(service: Service, hours: Numbers) -> Rates:
    """Rates in consecutive hours, a week or more of them, counted from a Monday at midnight."""
    weekend, day = hours // DAY % 7 >= 5, (hours % DAY >= 8) & (hours % DAY < 20)
    traffic = np.where(day, 1.6, 0.4) * np.where(weekend, 0.5, 1.2)
    traffic = traffic / traffic[:WEEK].mean()
    worse = service.weekend * weekend + service.night * ~day
    worse = worse - (worse * traffic)[:WEEK].mean()
    come = np.diff(1 - 0.5 ** (np.arange(DELAYS + 1) / service.delay))
    temper = service.early * np.where(np.arange(DELAYS) < 3, 1.0, -1 / 3)
    answers = service.answers / DAY * traffic
    return Rates(answers, (answers * service.rated)[:, None] * come, service.bad + worse[:, None] + temper)


def draw(service: Service, runs: int, rng: np.random.Generator) -> Watches:
    """Votes on the answers of four weeks before a promotion and two weeks after it, at a random hour of the week."""
    rates = rates_of(service, np.arange(BEFORE + WATCHED) + rng.integers(WEEK))
    expected, share = rates.votes, rates.bad

    def votes(hours: slice, of_traffic: float, fall: float) -> Votes:
        n = rng.poisson(expected[hours] * of_traffic, (runs, *expected[hours].shape))
        return Votes(n, rng.binomial(n, np.clip(share[hours] + fall, 0, 1)))

    since = slice(BEFORE, None)
    return Watches(
        before=votes(slice(0, BEFORE), 1.0, 0.0),
        after=votes(since, 1 - service.holdback, service.fall),
        beside=votes(since, service.holdback, 0.0) if service.holdback else None,
    )


def evidence(watches: Watches, margin: float, settings: WatchSettings) -> npt.NDArray[np.float64]:
    """Evidence of harm in the users' votes, of what takes back (1): shape (runs, hours of the watch)."""
    between = None if watches.beside is not None else _between_days(watches.before)
    logs = [
        np.where(
            np.minimum(before.n, after.n) >= settings.minimum_votes,
            log_e_value(before.bad / effect, before.n / effect, after.bad / effect, after.n / effect, margin),
            0.0,
        )
        for before, after, concentration in counted(watches)
        for effect in [1.0 if between is None else _effect(before, after, between[:, None] * concentration)]
    ]
    weight = COMPARED["helpful", "user"]
    least: npt.NDArray[np.float64] = np.minimum.reduce(logs)
    return (least + math.log(weight)) / math.log(1 / settings.false_rollback_rate)


def _between_days(before: Votes) -> npt.NDArray[np.float64]:
    """Of each run, the variance of the rate between the days before the promotion."""
    bad, n = (of.sum(axis=2).reshape(len(of), -1, DAY).sum(axis=2) for of in (before.bad, before.n))
    return np.array([variance_between((np.column_stack(days),), 1.0) for days in zip(bad, n, strict=True)])


def _effect(before: Votes, after: Votes, between_days: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The design effect, of votes that are each of another account."""
    independent = np.zeros(before.n.shape)
    for side in (before, after):
        middle = (side.bad + Z95 * Z95 / 2) / (side.n + Z95 * Z95)
        independent += middle * (1 - middle) / np.maximum(side.n, 1)
    effect: npt.NDArray[np.float64] = 1 + between_days / independent
    return effect


def counted(watches: Watches) -> Iterator[tuple[Votes, Votes, npt.NDArray[np.float64]]]:
    """What a look after each hour counts of either side, of each reference, and how few days the votes are of (the sum
    of the squares of their shares); shape (runs, hours of the watch)."""
    hours = np.arange(WATCHED)
    if watches.beside is not None:
        yield _stood(watches.beside, hours), _stood(watches.after, hours), np.zeros(1)
        return
    first = Votes(watches.after.n[:, :WEEK], watches.after.bad[:, :WEEK])
    after = _stood(first, hours[:WEEK])
    for side, late in ((after.n, watches.after.n), (after.bad, watches.after.bad)):
        # Of later answers, those that are as old as a vote may be.
        side[:, WEEK + DELAYS - 1 :] += late[:, WEEK : WATCHED - DELAYS + 1].sum(axis=2).cumsum(axis=1)
    few_days = _few_days(first.n, hours[:WEEK], hours[:WEEK] // DAY, after.n, watches.after.n)
    for period in (DAY, WEEK):
        ago = np.arange(BEFORE, 0, -1)
        number = -(-ago // period)
        total = np.stack([watches.before.n[:, number <= k].sum(axis=(1, 2)) for k in range(1, BEFORE // period + 1)])
        needed = np.clip((total < ENOUGH_VOTES).sum(axis=0) + 1, ENOUGH_DAYS * DAY // period, BEFORE // period)
        kept = (number <= needed[:, None])[:, :, None]
        before = Votes(watches.before.n * kept, watches.before.bad * kept)
        placed = number * period - ago
        stood = _stood(before, placed)
        yield stood, after, few_days + _few_days(before.n, placed, -(-ago // DAY), stood.n)


def _few_days(
    n: Numbers, placed: Numbers, days: Numbers, total: Numbers, late: Numbers | None = None
) -> npt.NDArray[np.float64]:
    """The sum of the squares of the shares that days have of the votes; `late`: all votes of the watch, of which those
    of later days join, a day at a time."""
    squares = np.zeros(total.shape)
    for day in np.unique(days):
        rows = days == day
        squares += _total(n[:, rows], placed[rows]).astype(np.float64) ** 2
    if late is not None:
        by_hour = late.sum(axis=2)
        for hour in range(WEEK, WATCHED, DAY):
            come = np.zeros(total.shape)
            part = by_hour[:, hour : hour + DAY].cumsum(axis=1)
            first = hour + DELAYS - 1
            come[:, first : first + DAY] = part[:, : max(WATCHED - first, 0)]
            come[:, first + DAY :] = part[:, -1:]
            squares += come**2
    return squares / np.maximum(total, 1) ** 2


def _stood(votes: Votes, placed: Numbers) -> Votes:
    """Votes up to the end of each hour of the watch, where answers stand at these hours of it."""
    return Votes(_total(votes.n, placed), _total(votes.bad, placed))


def _total(numbers: Numbers, placed: Numbers) -> Numbers:
    summed = np.zeros((WATCHED + DELAYS, len(numbers)), dtype=np.int64)
    for delay in range(DELAYS):
        np.add.at(summed, placed + delay, numbers[:, :, delay].T)
    return summed[:WATCHED].cumsum(axis=0).T


def stored(watches: Watches, run: int, since: datetime, workload: str) -> tuple[list[Any], list[Any]]:
    """Rows of `interactions` and of `feedback`: the votes of one run, on answers of v1, and from `since` on of v2."""
    sides = [(watches.before, "v1", -BEFORE), (watches.after, "v2", 0)]
    if watches.beside is not None:
        sides.append((watches.beside, "v1", 0))
    answers, votes = [], []
    for side, version, first in sides:
        for hour, delay in zip(*np.nonzero(side.n[run]), strict=True):
            n, bad = side.n[run, hour, delay], side.bad[run, hour, delay]
            when = since + (int(hour) + first) * HOUR
            for number in range(n):
                id = f"{workload}-{len(answers)}"
                place = {"topic": "t", "partition": 0, "offset": len(answers), "received_at": when}
                about = {"workload": workload, "model": f"{workload}@{version}", "messages": "[]", "response": ""}
                answers.append({"id": id, "timestamp": when, **about, **place})
                vote = {"interaction_id": id, "name": "helpful", "value": json.dumps(bool(number >= bad))}
                later = when + (int(delay) + 0.5) * HOUR
                votes.append({"id": f"{id}-vote", "timestamp": later, "source": "user", **vote, **place})
    return answers, votes
