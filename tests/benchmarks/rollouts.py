"""Whole rollouts of a service, simulated hour by hour: the steps of the canary, then the watch, with a holdback.

The votes are those of watching.py. Each is drawn for both versions, in groups of conversations that change sides
together, so that the same conversations may be answered by either. What a look counts and decides is computed here a
second time, without a database; `stored` puts the same votes into a warehouse, for the checks themselves.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fixtures.feedback.traffic import START, new_warehouse, registered, store
from fixtures.feedback.votes import (
    BEFORE,
    DAY,
    DELAYS,
    HOUR,
    WATCHED,
    WEEK,
    Numbers,
    Service,
    Votes,
    Watches,
    evidence,
    rated,
    rates_of,
)
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings
from retuned.monitors.rates.sequential import log_e_value
from retuned.monitors.settings import Settings, WatchSettings
from retuned.monitors.watch import canary
from retuned.monitors.watch import check as watch_check
from retuned.monitors.watch.comparison import COMPARED, FALL, MISSED, Baseline, half_of_error, seconds_to_find
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import ModelsSettings
from retuned.retrain.settings import Settings as ReleaseSettings

CANARY = 14 * DAY + 8
"""Hours in which a canary ends: watch.duration_seconds, and a look for each step that is left."""
HOURS = CANARY + WATCHED
NEVER = HOURS + 1
HELPFUL = ("helpful", "user")


@dataclass(frozen=True)
class Rollouts:
    """Rollouts of one service. Hours count from the first step on; shape (runs, …).

    Attributes:
        steps: shape (runs, steps): the hour at which each step began, the last one is the promotion; NEVER: it did not.
        taken_back: the hour at which the version was taken back, as a canary or by the watch; NEVER: it was not.
        exposed: share of the answers of four weeks that the new version gave.
    """

    steps: Numbers
    taken_back: Numbers
    exposed: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drawn:
    """The votes of some rollouts.

    Attributes:
        bounds: shares at which the groups of conversations end.
        answers: shape (hours,), of all traffic.
        before: of the champion in the weeks before.
        n, old, new: shape (runs, hours of answers, hours of delay, groups): votes, and those of them that are bad if
            the champion answers, or the new version.
    """

    bounds: list[float]
    answers: npt.NDArray[np.float64]
    before: Votes
    n: Numbers
    old: Numbers
    new: Numbers


def draw(service: Service, settings: RolloutSettings, runs: int, rng: np.random.Generator) -> Drawn:
    """Votes of a rollout that begins at a random hour of the week."""
    rates = rates_of(service, np.arange(BEFORE + HOURS) + rng.integers(WEEK))
    share = np.clip(rates.bad, 0, 1)
    before = rng.poisson(rates.votes[:BEFORE], (runs, BEFORE, DELAYS)).astype(np.int32)
    bounds = sorted({*settings.steps[:-1], round(1 - settings.holdback, 4), 1.0})
    parts = np.diff([0.0, *bounds])
    n = rng.poisson(rates.votes[BEFORE:, :, None] * parts, (runs, HOURS, DELAYS, len(parts))).astype(np.int32)
    of = share[BEFORE:, :, None]
    return Drawn(
        bounds,
        rates.answers[BEFORE:],
        Votes(before, rng.binomial(before, share[:BEFORE])),
        n,
        rng.binomial(n, of).astype(np.int32),
        rng.binomial(n, np.clip(of + service.fall, 0, 1)).astype(np.int32),
    )


def simulate(service: Service, drawn: Drawn, settings: RolloutSettings, watch: WatchSettings) -> Rollouts:
    """What becomes of each rollout, looked at every hour. `watch` has the error of the whole rollout."""
    runs, canaries = len(drawn.n), len(settings.steps) - 1
    steps = np.full((runs, canaries + 1), NEVER)
    steps[:, 0] = 0
    taken_back = np.full(runs, NEVER)
    rules = half_of_error(watch) if canaries else watch
    new = np.array([[bound <= share for bound in drawn.bounds] for share in settings.steps[:-1]] or [[False]])
    reached = np.zeros((runs, CANARY), dtype=np.int64)  # the step in force in each hour
    at = np.zeros(runs, dtype=np.int64)
    counts = np.zeros((4, runs, max(canaries, 1)))  # bad and all of the champion, bad and all of the canary
    under_way = np.full(runs, canaries > 0)
    for hour in range(CANARY if canaries else 0):
        reached[:, hour] = at
        delays = np.arange(min(DELAYS, hour + 1))
        hours = hour - delays
        n, old, worse = (of[:, hours, delays] for of in (drawn.n, drawn.old, drawn.new))
        is_new = new[np.minimum(reached[:, hours], canaries - 1)]
        for number, votes in enumerate((old * ~is_new, n * ~is_new, worse * is_new, n * is_new)):
            for step in range(canaries):
                counts[number, :, step] += np.where(reached[:, hours] == step, votes.sum(axis=2), 0).sum(axis=1)
        log = log_e_value(*counts, watch.margin).sum(axis=1) + math.log(COMPARED[HELPFUL])
        enough = counts[1::2].sum(axis=2).min(axis=0) >= watch.minimum_votes
        harm = under_way & enough & (log >= math.log(1 / rules.false_rollback_rate))
        taken_back[harm] = hour + 1
        under_way &= ~harm
        age = hour + 1 - np.take_along_axis(steps, at[:, None], axis=1)[:, 0]
        given = np.array([
            drawn.answers[since : hour + 1].sum() * settings.steps[step]
            for since, step in zip(hour + 1 - age, at, strict=True)
        ])  # fmt: skip
        leans = enough & (log > math.log(COMPARED[HELPFUL]))
        bad_old, n_old, bad_new, n_new = counts
        held = leans | (age * 3_600 < settings.minimum_seconds) | (given < settings.minimum_answers)
        if (under_way & ~held).any():
            fine = log_e_value(n_old - bad_old, n_old, n_new - bad_new, n_new, -FALL).sum(axis=1)
            held |= fine < math.log(1 / (MISSED * COMPARED[HELPFUL]))
        over = (age * 3_600 >= settings.maximum_seconds) | ((hour + 1) * 3_600 >= watch.duration_seconds)
        over &= age * 3_600 >= settings.minimum_seconds
        given_up = under_way & over & leans
        taken_back[given_up] = hour + 1
        under_way &= ~given_up
        goes_on = under_way & (~held | over)
        at[goes_on] += 1
        steps[goes_on, at[goes_on]] = hour + 1
        under_way &= at < canaries
        if not under_way.any():
            reached[:, hour + 1 :] = at[:, None]
            break
    promoted = np.flatnonzero(steps[:, -1] < NEVER)
    if len(promoted):
        _watch(service, drawn, settings, rules, steps, reached, new, promoted, taken_back)
    return Rollouts(steps, taken_back, _exposed(drawn, settings, steps, taken_back))


def _watch(
    service: Service,
    drawn: Drawn,
    settings: RolloutSettings,
    rules: WatchSettings,
    steps: Numbers,
    reached: Numbers,
    new: npt.NDArray[np.bool_],
    promoted: Numbers,
    taken_back: Numbers,
) -> None:
    """The watch over those that were promoted; `taken_back` is filled in."""
    since = steps[promoted, -1]
    champions = ~new[np.minimum(reached[promoted], len(new) - 1)][:, :, None, :]

    def before(weeks: Numbers, votes: Numbers) -> Numbers:
        beside = (votes[promoted, :CANARY] * champions).sum(axis=3)
        return np.concatenate([weeks[promoted], beside], axis=1)[
            np.arange(len(promoted))[:, None], since[:, None] + np.arange(BEFORE)
        ]

    def after(votes: Numbers, groups: slice) -> Numbers:
        rows = votes[..., groups].sum(axis=3)
        return np.asarray(rows[promoted[:, None], since[:, None] + np.arange(WATCHED)])

    held = len(drawn.bounds) - bool(settings.holdback)
    watches = Watches(
        Votes(before(drawn.before.n, drawn.n), before(drawn.before.bad, drawn.old)),
        Votes(after(drawn.n, slice(held)), after(drawn.new, slice(held))),
        Votes(after(drawn.n, slice(held, None)), after(drawn.old, slice(held, None)))
        if settings.holdback and beside_is_enough(service, settings, rules)
        else None,
    )
    shown = evidence(watches, rules.margin, rules) >= 1
    taken_back[promoted] = np.where(shown.any(axis=1), since + shown.argmax(axis=1) + 1, NEVER)


def beside_is_enough(service: Service, settings: RolloutSettings, rules: WatchSettings) -> bool:
    """Whether the watch compares with the holdback: it would find a fall of 20 points in time."""
    per_day = service.answers * service.rated
    known = Baseline(bad=service.bad * per_day, votes=round(per_day), share=settings.holdback)
    found = seconds_to_find(HELPFUL, [known], per_day, rules)
    return found is not None and found <= rules.duration_seconds


def _exposed(drawn: Drawn, settings: RolloutSettings, steps: Numbers, taken_back: Numbers) -> npt.NDArray[np.float64]:
    hours = np.arange(4 * WEEK)
    shares = np.array([0.0, *settings.steps[:-1], 1 - settings.holdback])
    share = shares[(steps[:, :, None] <= hours).sum(axis=1)] * (hours < taken_back[:, None])
    ended = (hours >= steps[:, -1:] + WATCHED) & (hours < taken_back[:, None])
    answers = drawn.answers[: 4 * WEEK]
    return np.asarray((np.where(ended, 1.0, share) * answers).sum(axis=1) / answers.sum())


def stored(
    drawn: Drawn, rollouts: Rollouts, run: int, settings: RolloutSettings, since: datetime, workload: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `interactions` and of `feedback` of a rollout: the votes on answers of v1, and of v2 as far as it
    answered."""
    answers, votes = list[dict[str, Any]](), list[dict[str, Any]]()

    def add(version: str, hour: int, delay: int, n: int, bad: int) -> None:
        rated(answers, votes, f"{workload}@{version}", since + hour * HOUR, delay, n, bad)

    for hour, delay in zip(*np.nonzero(drawn.before.n[run]), strict=True):
        add("v1", int(hour) - BEFORE, int(delay), drawn.before.n[run, hour, delay], drawn.before.bad[run, hour, delay])
    shares = [0.0, *settings.steps[:-1], round(1 - settings.holdback, 4)]
    for hour, delay, group in zip(*np.nonzero(drawn.n[run]), strict=True):
        share = shares[int((rollouts.steps[run] <= hour).sum())] if hour < rollouts.taken_back[run] else 0.0
        version, bad = ("v2", drawn.new) if drawn.bounds[group] <= share else ("v1", drawn.old)
        add(version, int(hour), int(delay), drawn.n[run, hour, delay, group], bad[run, hour, delay, group])
    return answers, votes


def through_the_checks(service: Service, settings: RolloutSettings, folder: Path, seed: int) -> list[str]:
    """Carry one rollout out by the real checks, on a warehouse in this folder; returns what happened in which hour.

    Raises:
        AssertionError: a check decided otherwise than the simulation, or in another hour.
    """
    drawn = draw(service, settings, 1, np.random.default_rng(seed))
    found = simulate(service, drawn, settings, WatchSettings())
    steps, back = found.steps[0], int(found.taken_back[0])
    warehouse = new_warehouse(folder)
    answers, votes = stored(drawn, found, 0, settings, START, "support")
    store(warehouse, "interactions", answers)
    store(warehouse, "feedback", votes)
    for version in ("v1", "v2"):
        registered(warehouse, version)
    # Only answers that somebody voted on are in the warehouse: one is enough, where the simulation counts all.
    told = RolloutSettings(**settings.model_dump() | {"minimum_answers": 1})
    rollout = Rollout(
        warehouse,
        ReleaseSettings(models=ModelsSettings(directory=folder / "models"), rollout=told),
        MemoryPublisher(),
        "events",
    )
    watched = Settings(rollout=told)
    rollout.promote("support", "v1", "operator", "the first", START - BEFORE * HOUR)
    rollout.begin("support", "v2", "gate", "better", START)
    went = []
    for step, hour in enumerate(steps[1:]):
        last = min(int(hour), back)
        if last == NEVER:
            break
        if last - 1 > steps[step]:
            before = canary.check(warehouse, watched, "support", START + (last - 1) * HOUR)
            assert before is not None
            assert before.verdict == "hold", (last, before)
        seen = canary.check(warehouse, watched, "support", START + last * HOUR)
        assert seen is not None
        assert seen.verdict == ("roll_back" if back <= hour else "advance"), (last, seen)
        went.append(f"{seen.verdict} after {last} hours")
        if back <= hour:
            break
        rollout.advance("support", seen.experiment, seen.share, "as decided", START + last * HOUR)
    if steps[-1] < NEVER:
        last = back if back < NEVER else int(steps[-1]) + WATCHED - 1
        looks = [watch_check.check(warehouse, watched, "support", START + hour * HOUR) for hour in (last - 1, last)]
        verdicts = [look.verdict if look else "keep" for look in looks]
        if back < NEVER:
            assert verdicts == ["go_on", "roll_back"], (last, looks)
        assert back < NEVER or "roll_back" not in verdicts, (last, looks)
        went.append(f"the watch after {last} hours: {verdicts[1]}")
    warehouse.close()
    return went
