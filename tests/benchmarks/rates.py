"""Rates of votes, simulated where activity and opinion go together: intervals, false rollbacks, harms that are found.

    python tests/benchmarks/run.py rates.votes

A service has accounts that vote now and then and, one in ten, regulars, who vote 16 times as often. Regulars are
happier (15% of their votes are bad, 35% of the others') or angrier; accounts of one kind differ, too. Arms are of
conversations, so one account votes in both. Days differ in some scenes by 5 points (standard deviation), weekends
are 6 points worse; an account gives a fifth of all votes in others, or five bots do, which call every answer bad.

- `rates_coverage_…`: how often the 95% intervals hold the truth: of a rate (windows of an hour to four weeks, arms of
  1% to 100%), of a difference at the same time, and of one between before and after. `rates_coverage_min` is the least.
- `watch_false_rollbacks_activity`, `canary_false_rollbacks_activity`: the greatest share over the scenes of identical
  versions that are taken back within 14 days, looked at 13 times.
- `…_found_15`, `…_found_20`, `…_votes_…`: harms that are found in 14 days, and after how many votes (median), with
  equal accounts, and by the rule of before in which each account is one observation (`_by_accounts`).
- `rates_holdback_gap`: the mean difference of the two bars of a holdback of 5%, in points, by either rule.

A few watches run through the real check on a real warehouse, with early votes that are angrier.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
import rates_dark
import rates_grounding
import rates_money

from fixtures.feedback.traffic import START, new_warehouse, promoted, serves, store
from retuned.monitors.rates.days import variance_between
from retuned.monitors.rates.estimate import design_effect, difference, evidence_effect, rate
from retuned.monitors.rates.votes import Votes
from retuned.monitors.settings import Settings, WatchSettings
from retuned.monitors.watch.check import check
from retuned.monitors.watch.comparison import (
    Against,
    Comparison,
    Counts,
    compare,
    compare_steps,
    half_of_error,
    shown_worse,
)
from retuned.monitors.watch.counts import ENOUGH_DAYS, ENOUGH_VOTES, Reference, counts_of

Numbers = npt.NDArray[np.float64]
BEFORE, AFTER, HALVES = 28, 14, 2
"""Days, and parts of a day."""
NOBODY = (np.zeros(0),) * 4
WATCH = WatchSettings()
HELPFUL = ("helpful", "user")
RUNS, INTERVALS = 200, 600


@dataclass(frozen=True)
class Scene:
    """A service: votes a day, how bad regulars and others find its answers, and what else differs.

    Attributes:
        busier: so many times as often regulars vote.
        alike: correlation of the votes of one account beyond its kind.
        days, weekend: standard deviation of days, and how much worse weekends are.
        one, bots: share of the votes that one account gives; bots, which give a twenty-fifth each.
        served: days that the champion before served.
    """

    votes: float = 150.0
    accounts: int = 500
    regulars: float = 0.2
    others: float = 0.2
    busier: float = 1.0
    alike: float = 0.2
    days: float = 0.0
    weekend: float = 0.0
    one: float = 0.0
    bots: int = 0
    served: int = 28


SCENES = {
    "equal": Scene(),
    "happier": Scene(regulars=0.15, others=0.35, busier=16),
    "angrier": Scene(regulars=0.35, others=0.15, busier=16),
    "happier_large": Scene(votes=1_000, accounts=2_000, regulars=0.15, others=0.35, busier=16),
    "angrier_few": Scene(votes=150, accounts=150, regulars=0.35, others=0.15, busier=16),
    "days": Scene(days=0.05, weekend=0.06),
    "days_large": Scene(votes=1_000, accounts=2_000, days=0.05, weekend=0.06, regulars=0.15, others=0.35, busier=16),
    "happier_young": Scene(votes=4_000, accounts=10_000, regulars=0.1, others=0.4, busier=40, alike=0.05, served=3),
    "days_young": Scene(days=0.05, weekend=0.06, served=3),
    "one": Scene(one=0.2, regulars=0.15, others=0.35, busier=16),
    "bots": Scene(bots=5, regulars=0.15, others=0.35, busier=16),
}


@dataclass(frozen=True)
class People:
    """The accounts of one run: votes of each a day, and the share of them that are bad."""

    activity: Numbers
    bad: Numbers
    mean: float

    def shifted(self, worse: Numbers) -> Numbers:
        """By half, the share of bad votes of each account: so that all of them together are worse by just so much."""
        bad = self.bad[:, None]
        more, less = np.maximum(worse, 0) / (1 - self.mean), np.maximum(-worse, 0) / self.mean
        shifted: Numbers = ((bad + (1 - bad) * more) * (1 - less)).clip(0, 1)
        return shifted


def people(scene: Scene, rng: np.random.Generator) -> People:
    """Accounts, drawn anew; their expected votes are those of the scene."""
    regular = rng.random(scene.accounts) < 0.1
    activity = np.where(regular, scene.busier, 1.0) * rng.gamma(2.0, 0.5, scene.accounts)
    activity *= scene.votes / ((0.9 + 0.1 * scene.busier) * scene.accounts)
    mean = np.where(regular, scene.regulars, scene.others)
    scale = (1 - scene.alike) / scene.alike
    bad = rng.beta(mean * scale, (1 - mean) * scale)
    if scene.one:
        activity[0], bad[0] = scene.votes * scene.one, rng.random()
    if scene.bots:
        activity[: scene.bots], bad[: scene.bots] = scene.votes * 0.04, 1.0
    return People(activity, bad, truth(scene))


def truth(scene: Scene) -> float:
    """The share of bad votes of all that is expected."""
    busy = 0.1 * scene.busier
    return (busy * scene.regulars + 0.9 * scene.others) / (busy + 0.9)


@dataclass(frozen=True)
class Drawn:
    """Votes of a run: shape (accounts, half days), all and those with yes."""

    n: npt.NDArray[np.int64]
    yes: npt.NDArray[np.int64]

    def of(
        self, blocks: slice | npt.NDArray[Any]
    ) -> tuple[Numbers, Numbers, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """By account and by half day."""
        yes, n = self.yes[:, blocks], self.n[:, blocks]
        return yes.sum(axis=1), n.sum(axis=1), yes.sum(axis=0), n.sum(axis=0)


def effects(scene: Scene, first: int, days: int, rng: np.random.Generator) -> Numbers:
    """What each half day adds to the share of bad votes; the promotion is on a random day of the week."""
    number = np.arange(first, first + days) + rng.integers(7)
    worse = rng.normal(0, scene.days, days) + scene.weekend * ((number % 7 >= 5) - 2 / 7)
    return np.repeat(worse, HALVES)


def vote(who: People, worse: Numbers, share: float, rng: np.random.Generator) -> Drawn:
    """Votes on the answers of one arm, which gets a share of the conversations."""
    n = rng.poisson(who.activity[:, None] * share / HALVES, (len(who.activity), len(worse)))
    return Drawn(n, rng.binomial(n, who.shifted(worse)))


def guarded(yes: Numbers, n: Numbers) -> tuple[Numbers, Numbers]:
    """As rates.sql weighs accounts that gave more than a tenth of an arm's votes."""
    weight = np.minimum(1.0, max(5.0, n.sum() / 10) / np.maximum(n, 1))
    return yes * weight, n * weight


def votes_of(before: Any, after: Any, days: bool = True) -> Votes:
    """What the query delivers of two arms; half days are added up by day."""
    (yes0, n0, day_yes0, day_n0), (yes1, n1, day_yes1, day_n1) = before, after
    if not len(n1):
        yes1 = n1 = np.zeros(len(n0))
    units = np.column_stack([*guarded(yes0, n0), *guarded(yes1, n1), np.ones(len(n0))])
    rows = [(y, n, 0, 0) for y, n in by_day(day_yes0, day_n0)] + [(0, 0, y, n) for y, n in by_day(day_yes1, day_n1)]
    return Votes(units[(n0 > 0) | (n1 > 0)], np.array(rows if days else [], dtype=np.float64).reshape(-1, 4))


def by_day(yes: npt.NDArray[Any], n: npt.NDArray[Any]) -> Iterator[tuple[float, float]]:
    for first in range(0, len(n), HALVES):
        yield float(yes[first : first + HALVES].sum()), float(n[first : first + HALVES].sum())


def by_accounts(votes: Votes) -> tuple[float, int, float, int]:
    """The rule of before: an account is one observation, the mean of its votes."""
    yes, n = votes.units[:, (0, 2)], votes.units[:, (1, 3)]
    means = np.divide(yes, n, out=np.zeros_like(yes), where=n > 0).sum(axis=0)
    (k0, k1), (n0, n1) = means.tolist(), (n > 0).sum(axis=0).tolist()
    return k0, n0, k1, n1


LOOKS = np.array([1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28])
"""Half days after which a version is looked at."""


def summed(drawn: Drawn, kept: npt.NDArray[np.bool_]) -> list[Any]:
    """Of each look, the votes of some half days (shape (half days, looks)): by account and by half day."""
    weights = kept.astype(np.float32)
    yes, n = (np.asarray(of.astype(np.float32) @ weights, dtype=np.float64) for of in (drawn.yes, drawn.n))
    all_yes, all_n = drawn.yes.sum(axis=0), drawn.n.sum(axis=0)
    return [(yes[:, k], n[:, k], all_yes * kept[:, k], all_n * kept[:, k]) for k in range(kept.shape[1])]


def watched(scene: Scene, harm: float, rng: np.random.Generator) -> tuple[int | None, int | None, Numbers]:
    """The look at which a champion that came on day 28 is taken back, by votes and by the rule of before; and the votes
    up to each look."""
    who = people(scene, rng)
    worse = effects(scene, 0, BEFORE + AFTER, rng)
    old = vote(who, worse[: BEFORE * HALVES], 1.0, rng)
    new = vote(who, worse[BEFORE * HALVES :] + harm, 1.0, rng)
    days = np.array(list(by_day(*old.of(slice(None))[2:])))
    days = days[BEFORE - scene.served :]
    place = np.arange(BEFORE * HALVES)
    ago = -(-(BEFORE * HALVES - place) // HALVES)
    after = summed(new, np.arange(AFTER * HALVES)[:, None] < LOOKS)
    references = []
    periods_of: tuple[tuple[Against, int], ...] = (("week", 7), ("day", 1))
    for against, period in [one for one in periods_of if one[1] <= scene.served]:
        totals = [old.n[:, ago <= period * k].sum() for k in range(1, scene.served // period + 1)]
        enough = max(int(np.searchsorted(totals, ENOUGH_VOTES)) + 1, ENOUGH_DAYS // period)
        periods = min(enough, scene.served // period)
        kept = (ago <= period * periods)[:, None]
        inside = ((place - BEFORE * HALVES) % (period * HALVES))[:, None] < LOOKS
        reference = Reference(against, timedelta(days=period), periods)
        references.append((reference, summed(old, kept)[0], summed(old, kept & inside)))
    found: list[int | None] = [None, None]
    for look in range(len(LOOKS)):
        stood = [(reference, known, votes_of(sides[look], after[look])) for reference, known, sides in references]
        rules: tuple[list[Counts], list[Counts]] = (
            [counts_of(reference, votes_of(known, NOBODY), votes, days) for reference, known, votes in stood],
            [Counts(reference.against, *by_accounts(votes)) for reference, _, votes in stood],
        )
        for rule, counts in enumerate(rules):
            if found[rule] is None and leans(counts) and shown_worse([compare(*HELPFUL, counts, WATCH)], WATCH):
                found[rule] = look
        if None not in found:
            break
    return found[0], found[1], new.n.sum(axis=0).cumsum()[LOOKS - 1]


def leans(counts: list[Counts]) -> bool:
    """Whether more is bad than the margin allows against each reference: otherwise there is no evidence to compute."""
    return all(
        one.n_before and one.n_after and one.bad_after / one.n_after > one.bad_before / one.n_before + WATCH.margin
        for one in counts
    )


def beside(scene: Scene, harm: float, rng: np.random.Generator) -> tuple[int | None, int | None, Numbers]:
    """As `watched`, of a canary: 5% for four days, 25% for four days, then 50%."""
    who = people(scene, rng)
    worse = effects(scene, 0, AFTER, rng)
    number = np.repeat([0] * 4 + [1] * 4 + [2] * 6, HALVES)
    share = np.array([0.05, 0.25, 0.5])[number]
    n = rng.poisson(who.activity[:, None] / HALVES, (scene.accounts, len(worse)))
    of_new = rng.binomial(n, share)
    old = Drawn(n - of_new, rng.binomial(n - of_new, who.shifted(worse)))
    new = Drawn(of_new, rng.binomial(of_new, who.shifted(worse + harm)))
    until = np.arange(len(worse))[:, None] < LOOKS
    sides = summed(old, until), summed(new, until)
    by_step = [[summed(drawn, until & (number == step)[:, None]) for drawn in (old, new)] for step in range(3)]
    settings = half_of_error(WATCH)
    found: list[int | None] = [None, None]
    for look in range(len(LOOKS)):
        votes = votes_of(sides[0][look], sides[1][look])
        effect = evidence_effect(votes)
        steps, accounts = list[Counts](), list[Counts]()
        for before, after in by_step[: number[LOOKS[look] - 1] + 1]:
            counts = [float(of[look][which].sum()) for of in (before, after) for which in (0, 1)]
            steps.append(Counts("same_time", *counts, effect=effect))
            accounts.append(Counts("same_time", *by_accounts(votes_of(before[look], after[look]))))
        for rule, counted in enumerate((steps, accounts)):
            one = None if found[rule] is not None or not any(leans([of]) for of in counted) else counted
            if one and shown_worse([compare_steps(*HELPFUL, one, settings)], settings):
                found[rule] = look
        if None not in found:
            break
    return found[0], found[1], new.n.sum(axis=0).cumsum()[LOOKS - 1]


def taken_back(
    run: Callable[..., tuple[int | None, int | None, Numbers]], scene: Scene, harm: float, runs: int, seed: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """By either rule the share that is taken back, and after how many votes (median)."""
    rng = np.random.default_rng(seed)
    outcomes = [run(scene, harm, rng) for _ in range(runs)]
    found = []
    for rule in (0, 1):
        took = [float(votes[look]) for *looks, votes in outcomes if (look := looks[rule]) is not None]
        found.append((len(took) / runs, float(np.median(took)) if took else float("nan")))
    return found[0], found[1]


def rollbacks() -> dict[str, float]:
    """Identical versions that are taken back, and harms that are found."""
    figures: dict[str, float] = {}
    for name, run in (("watch", watched), ("canary", beside)):
        worst = {"": 0.0, "_by_accounts": 0.0}
        for number, (kind, scene) in enumerate(SCENES.items()):
            runs = RUNS if scene.votes < 4_000 else RUNS // 8
            votes, accounts = taken_back(run, scene, 0.0, runs, number)
            say(f"{name}, {kind}: identical versions taken back {votes[0]:.3f}, by accounts {accounts[0]:.3f}")
            worst = {"": max(worst[""], votes[0]), "_by_accounts": max(worst["_by_accounts"], accounts[0])}
        figures |= {f"{name}_false_rollbacks_activity{rule}": share for rule, share in worst.items()}
        for points in (15, 20):
            rules = taken_back(run, SCENES["equal"], points / 100, RUNS // 2, points)
            for rule, (share, needed) in zip(("", "_by_accounts"), rules, strict=True):
                figures |= {f"{name}_found_{points}{rule}": share, f"{name}_votes_{points}{rule}": needed}
                say(f"{name}, {points} points worse{rule}: found {share:.2f}, after {needed:.0f} votes")
    return figures


def coverage() -> dict[str, float]:
    """How often intervals hold the truth."""
    found: dict[str, float] = {}
    for number, (kind, scene) in enumerate(SCENES.items()):
        if scene.bots or scene.one or scene.served < BEFORE:
            continue  # what is true of few who give most votes is a matter of definition
        rng = np.random.default_rng(100 + number)
        right: dict[str, list[bool]] = {}
        for _ in range(INTERVALS):
            who = people(scene, rng)
            worse = effects(scene, 0, BEFORE + AFTER, rng)
            for days, share in ((0.05, 1.0), (1, 1.0), (1, 0.5), (7, 0.05), (28, 0.01), (28, 1.0)):
                if days * share * scene.votes < 20 and days < 28:
                    continue
                if days < 1:
                    half = Drawn(*(of[:, None] for of in _hour(who, worse[0], rng)))
                    drawn, mean = half, worse[0]
                else:
                    drawn, mean = vote(who, worse[: days * HALVES], share, rng), worse[: days * HALVES].mean()
                side = drawn.of(slice(None))
                if side[1].sum() < 20:
                    continue
                _, low, high = rate(votes_of(side, NOBODY, days=False))
                right.setdefault(f"rate_{days}d_{share:g}", []).append(bool(low <= truth(scene) + mean <= high))
            for share in (0.05, 0.5):
                sides = [vote(who, worse[: 7 * HALVES], part, rng) for part in (1 - share, share)]
                interval = difference(votes_of(*(drawn.of(slice(None)) for drawn in sides), days=False))
                assert interval is not None
                right.setdefault(f"same_time_{share:g}", []).append(bool(interval[1] <= 0 <= interval[2]))
            for days in (1, 3, 14):
                old, new = (
                    vote(who, part, 1.0, rng) for part in (worse[: 28 * HALVES], worse[28 * HALVES :][: days * HALVES])
                )
                votes = votes_of(old.of(slice(None)), new.of(slice(None)))
                between = variance_between((votes.blocks[:BEFORE, :2],), design_effect(votes))
                interval = difference(votes, between)
                assert interval is not None
                right.setdefault(f"before_after_{days}d", []).append(bool(interval[1] <= 0 <= interval[2]))
        for name, held in right.items():
            found[f"rates_coverage_{kind}_{name}"] = float(np.mean(held))
        say(f"coverage, {kind}: " + ", ".join(f"{name} {np.mean(held):.3f}" for name, held in right.items()))
    return {"rates_coverage_min": min(found.values()), "rates_coverage_max": max(found.values()), **found}


def _hour(who: People, worse: float, rng: np.random.Generator) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    n = rng.poisson(who.activity / 24)
    return n, rng.binomial(n, who.shifted(np.array([worse]))[:, 0])


def holdback() -> dict[str, float]:
    """The two bars of a holdback of 5% over twelve days, of identical versions: champion less holdback, in points."""
    gaps = []
    rng = np.random.default_rng(7)
    for _ in range(RUNS):
        who = people(SCENES["happier"], rng)
        sides = [vote(who, np.zeros(12 * HALVES), share, rng).of(slice(None)) for share in (0.05, 0.95)]
        votes = votes_of(*sides, days=False)
        yes0, n0, yes1, n1 = votes.sums
        k0, m0, k1, m1 = by_accounts(votes)
        gaps.append((yes1 / n1 - yes0 / n0, k1 / m1 - k0 / m0))
    means = 100 * np.mean(gaps, axis=0)
    say(f"holdback: {means[0]:+.1f} points by votes, {means[1]:+.1f} by accounts")
    return {"rates_holdback_gap": float(means[0]), "rates_holdback_gap_by_accounts": float(means[1])}


def through_the_check(runs: int = 4) -> dict[str, float]:
    """Watches of identical versions on a real warehouse: regulars are happier or angrier, early votes angrier."""
    back = 0
    for seed in range(runs):
        scene = SCENES["happier" if seed % 2 else "angrier"]
        rng = np.random.default_rng(seed)
        who = people(scene, rng)
        answers, votes = list[dict[str, Any]](), list[dict[str, Any]]()
        for day in range(-BEFORE, 10):
            for account in np.repeat(np.arange(scene.accounts), rng.poisson(who.activity)).tolist():
                when = START + timedelta(days=day + rng.random())
                late = float(rng.exponential(8))
                bad = rng.random() < who.bad[account] + (0.1 if late < 3 else -0.04)
                id = f"a{len(answers)}"
                place = {"topic": "t", "partition": 0, "offset": len(answers), "received_at": when}
                model = "support@v1" if day < 0 else "support@v2"
                answers.append({"id": id, "timestamp": when, "workload": "support", "model": model, "messages": "[]",
                                "response": "", "user_id": f"u{account}", **place})  # fmt: skip
                votes.append({"id": f"{id}-vote", "timestamp": when + timedelta(hours=late), "interaction_id": id,
                              "name": "helpful", "value": json.dumps(not bad), "source": "user", **place})  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            warehouse = new_warehouse(Path(folder))
            store(warehouse, "interactions", answers)
            store(warehouse, "feedback", votes)
            promoted(warehouse, "p", "v2", "v1", START)
            serves(warehouse, "v2", START)
            looks = [check(warehouse, Settings(), "support", START + timedelta(hours=12 * n)) for n in range(1, 20)]
            warehouse.close()
        verdicts = [look.verdict for look in looks if look]
        back += "roll_back" in verdicts
        helpful: Comparison = next(look for look in reversed(looks) if look).comparisons[0]
        say(f"through the check, run {seed}: {verdicts[-1]}; {helpful}")
    return {"watch_false_rollbacks_through_the_check": back / runs}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(part: str = "") -> dict[str, float]:
    """All parts, or the votes alone; the others are programs of their own."""
    figures = rollbacks() | coverage() | holdback() | through_the_check()  # some minutes on one core
    return figures if part == "votes" else figures | rates_money.main() | rates_dark.main() | rates_grounding.main()


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
