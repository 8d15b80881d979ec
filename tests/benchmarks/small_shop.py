"""The life of a small shop, week by week: how long a real gain waits for its promotion, and how often none is promoted.

A shop has 12 facts. Customers correct answers to questions about them, and once a week a candidate is trained on the
rows there are and compared with the model in service. Some facts have changed: the model in service answers these
wrong, and a candidate answers one right the better the more of its rows it learned. Rows of one fact change together.

What a fact's rows teach: a model of 135 million parameters answered 28% of unseen questions right after 1.1 rows of
each fact and 59% after 2.6 (the demo's company, eight facts, trained as retuned does): 1 - exp(-rows / 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from retuned.retrain.decision.interval import error_of_try, interval
from retuned.retrain.settings import GateSettings

FACTS = 12
ROWS_TO_LEARN = 3.0
KNOWN, UNKNOWN = 0.9, 0.05
"""Chances of a right answer where a fact is known, and where it has changed."""
VALUES = 3
"""An answer states so many values, each right or not; a change is of one of them."""
BETS = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
MINIMUM = GateSettings().minimum_examples

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """What is true of a shop.

    Attributes:
        gain: what a candidate that learned everything gains on the rows; None: candidates are no better.
        equal: of those that are no better: `rows`: each question is answered anew; `facts`: a candidate is better at
            half of the facts and as much worse at the others; `bursts`: the same with facts that come once, four
            questions each, and never again; `worse`: it is worse by 0.03.
        start, weekly: corrections at first, and in each week after.
    """

    gain: float | None = None
    equal: str = "rows"
    start: int = 40
    weekly: float = 5.0


@dataclass(frozen=True)
class Policy:
    """How evidence is gathered.

    Attributes:
        kind: `holdout`; `folds`: what was learned is judged too, always, or where the holdout was not enough
            (`lacking`); `fresh`: a bet on what of the holdout was not judged before; `ordered`: on all that came after
            the candidate had learned; `same`: the first candidate is never trained again, and judged on all that comes.
        share: held out; where rows are few up to `most_share`, so that the gate has its examples.
        halved: the error is halved with each try on a holdout, which is drawn anew after four; else it is spent once.
        graded: the share of right values counts, not the answer as a whole.
        signs: an exact sign test in place of the interval.
        by_fact: of the sums of each fact's differences.
        folds: number of them.
    """

    kind: str = "holdout"
    share: float = 0.25
    most_share: float = 0.25
    halved: bool = False
    graded: bool = False
    signs: bool = False
    by_fact: bool = False
    lacking: bool = False
    folds: int = 4


class Shop:
    """The rows of one shop and what models answer to them."""

    def __init__(self, world: World, weeks: int, rng: np.random.Generator) -> None:
        self.world, self.rng = world, rng
        self.rows = world.start + round(world.weekly * weeks)
        later = np.arange(self.rows - world.start) / world.weekly
        self.week = np.concatenate([np.zeros(world.start), 1 + np.floor(later)])
        gain = (world.gain or 0.0) / (KNOWN - UNKNOWN)
        self.changed = round(FACTS * gain)
        weights = np.full(FACTS, (1 - gain) / (FACTS - self.changed))
        weights[: self.changed] = gain / max(self.changed, 1)
        bursts = np.arange(self.rows) // 4
        self.fact = bursts if world.equal == "bursts" else rng.choice(FACTS, self.rows, p=weights)
        known = KNOWN if world.gain else 0.5
        self.chance = np.where((self.fact < self.changed) & (world.gain is not None), UNKNOWN, known)
        self.before = self._answers(self.chance)

    def _answers(self, chance: Floats) -> npt.NDArray[np.bool_]:
        """Which values of each answer are right: the first with what the fact's chance leaves it."""
        sure = KNOWN ** (1 / VALUES)
        first = np.minimum(chance / sure ** (VALUES - 1), 1.0)
        drawn = self.rng.random((len(chance), VALUES))
        return drawn < np.column_stack([first, *[np.full(len(chance), sure)] * (VALUES - 1)])

    def candidate(self) -> "Candidate":
        """A training; what it makes of each fact is drawn once, for the models of its folds too."""
        facts = int(self.fact.max()) + 1
        signs = self.rng.permutation(np.resize([-1.0, 1.0], facts))
        return Candidate(self, self.rng.uniform(size=FACTS), signs)


@dataclass(frozen=True)
class Candidate:
    """One candidate, or the models of its folds: the same luck with each fact, other rows to learn from."""

    shop: Shop
    luck: Floats
    signs: Floats

    def differences(self, learned: Rows, judged: Rows, graded: bool) -> Floats:
        """The candidate's scores less those of the model in service."""
        shop, fact = self.shop, self.shop.fact[judged]
        chance = shop.chance[judged]
        if shop.world.gain is not None:
            taught = 1 - np.exp(-np.bincount(shop.fact[learned], minlength=FACTS) / ROWS_TO_LEARN)
            # From rows that teach a fact to 60%, one training gets a bit more and another a bit less.
            level = np.clip(taught + (self.luck - 0.5) * 2 * np.minimum(taught, 1 - taught), 0, 1)
            chance = np.where(fact < shop.changed, UNKNOWN + (KNOWN - UNKNOWN) * level[fact], chance)
        elif shop.world.equal in ("facts", "bursts"):
            chance = chance + 0.4 * self.signs[fact]
        elif shop.world.equal == "worse":
            chance = chance - 0.03
        after, before = shop._answers(chance), shop.before[judged]
        if graded:
            return np.asarray(after.mean(axis=1) - before.mean(axis=1))
        return after.all(axis=1).astype(float) - before.all(axis=1)


def weeks_until_promoted(shop: Shop, policy: Policy, weeks: int) -> float:
    """When the first candidate was promoted: infinite, if none was within so many weeks."""
    settings, rng = GateSettings(), shop.rng
    draw, held, taught = rng.random(shop.rows), set[int](), set[int]()
    spent = np.zeros(shop.rows, bool)
    seen, capital, first = np.zeros(shop.rows, bool), np.zeros(len(BETS)), None
    tries = 0
    for week in range(weeks + 1):
        there = np.flatnonzero((shop.week <= week) & ~spent)
        share = min(policy.most_share, max(policy.share, MINIMUM / len(there)))
        for row in sorted(set(there.tolist()) - held - taught, key=lambda row: draw[row]):
            (held if len(held) < round(share * len(there)) else taught).add(row)
        holdout, learned = np.array(sorted(held), int), np.array(sorted(taught), int)
        candidate = shop.candidate()
        if policy.kind in ("fresh", "ordered", "same"):
            judged = holdout[~seen[holdout]]
            if policy.kind != "fresh" and first is not None:
                judged = np.flatnonzero((shop.week <= week) & ~seen)
            if policy.kind == "ordered":
                learned = np.flatnonzero(seen) if first is not None else learned
            if policy.kind == "same" and first is not None:
                candidate, learned = first
            first = first or (candidate, learned)
            seen[judged] = seen[learned] = True
            gains = candidate.differences(learned, judged, policy.graded)
            capital += np.log1p(BETS[:, None] * gains).sum(axis=1)
            if np.log(np.exp(capital - capital.max()).mean()) + capital.max() >= np.log(20):
                return week
            continue
        gains, facts = candidate.differences(learned, holdout, policy.graded), shop.fact[holdout]
        alone = len(holdout) >= MINIMUM and not (policy.kind == "folds" and not policy.lacking)
        if alone:
            if _shown(gains, facts, policy, settings, tries):
                return week
            tries += 1
        if policy.kind == "folds" and (not alone or gains.mean() > 0):
            dealt = rng.permutation(len(learned)) % policy.folds
            parts = [
                candidate.differences(learned[dealt != k], learned[dealt == k], policy.graded)
                for k in range(policy.folds)
            ]
            facts = np.concatenate([facts, *(shop.fact[learned[dealt == k]] for k in range(policy.folds))])
            if _shown(np.concatenate([gains, *parts]), facts, policy, settings, tries):
                return week
            tries += 1
        if policy.halved and tries == 4:
            spent[holdout], tries = True, 0
            draw, held, taught = rng.random(shop.rows), set(), set()
    return np.inf


def _shown(gains: Floats, facts: Rows, policy: Policy, settings: GateSettings, tries: int) -> bool:
    error = (1 - settings.confidence) / 2 ** (tries + 1) if policy.halved else error_of_try(settings, tries)
    if gains.mean() * len(gains) ** 0.5 <= gains.std():
        return False  # it shows nothing at any level that a try has
    if policy.by_fact:
        gains = np.bincount(facts, gains)
    if policy.signs or policy.by_fact:
        return _by_signs(np.rint(VALUES * gains).astype(int)) <= error
    values, counts = np.unique(np.rint(VALUES * gains).astype(int), return_counts=True)
    return _low(tuple(values.tolist()), tuple(counts.tolist()), error) > 0


@cache
def _low(values: Sequence[int], counts: Sequence[int], error: float) -> float:
    return interval(np.repeat(np.array(values) / VALUES, counts), error)[0]


def _by_signs(gains: npt.NDArray[np.int64]) -> float:
    """The chance of so large a sum if each difference had either sign as likely."""
    chances = np.array([1.0])
    for size in np.abs(gains[gains != 0]):
        grown = np.zeros(len(chances) + size)
        grown[: len(chances)] = chances / 2
        grown[size:] += chances / 2
        chances = grown
    return float(chances[gains[gains > 0].sum() :].sum())


def waits(world: World, policy: Policy, *, weeks: int, runs: int) -> Floats:
    """Weeks until the first promotion in each of so many shops; infinite where there was none."""
    rngs = (np.random.default_rng([run, weeks]) for run in range(runs))
    return np.array([weeks_until_promoted(Shop(world, weeks, rng), policy, weeks) for rng in rngs])


def promoted_at_first_try(facts: int, policy: Policy, *, gain: float, rows: int, holdout: int, runs: int) -> float:
    """The share of companies of which so many of the 12 facts changed that promote a candidate with this true gain over
    the holdout, which the models of its folds nearly have. The base model serves, and has the facts before the change.
    """
    settings, promoted = GateSettings(), 0
    for run in range(runs):
        rng = np.random.default_rng(run)
        fact = rng.integers(0, FACTS, rows)
        before = rng.random(rows) < np.where(fact < facts, UNKNOWN, KNOWN)
        level = gain * FACTS / facts
        less = np.where(np.arange(rows) < holdout, level, 0.9 * level)  # the folds' models learn from three quarters
        after = rng.random(rows) < np.where(fact < facts, UNKNOWN + less, KNOWN)
        gains = after.astype(float) - before
        promoted += _shown(gains[:holdout], fact[:holdout], policy, settings, 0) or (
            policy.lacking and gains[:holdout].mean() > 0 and _shown(gains, fact, policy, settings, 1)
        )
    return promoted / runs
