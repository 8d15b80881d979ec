"""The gate beside an incumbent: how often is a candidate promoted that is worse than its margin allows, or as good?

    python tests/benchmarks/run.py incumbent

Of all answers of the incumbent 80% are right, and that is set as `incumbent.wrong_share`. A candidate is as good, or 5
points worse; the margin is 3 points. Half of its errors are on questions that the incumbent answers right. People rate
some answers and correct those that are wrong. Each run draws the rated questions of a holdout anew, `RUNS` times, with
the gate's usual settings. The base model answers nothing right.

- `incumbent_false_promotions`: share of runs in which the candidate that is 5 points worse is promoted, with 400 rated
  conversations, where wrong answers are rated as often as right ones.
- `incumbent_false_promotions_selected`: the same where wrong answers are rated three times as often.
- `incumbent_promotions_…`: share of runs in which the one that is as good is promoted, by number of conversations.
- `incumbent_conversations_needed`: the first of these numbers with which it is promoted in four of five runs.
- `incumbent_days_to_promotion`, `incumbent_days_of_steps`, `incumbent_days_to_own`: of a service with 2,000 answers a
  day, of which people rate 5%, and a training each week: days until the gate promotes the one that is as good, with a
  margin of 5 points and every rated question of the holdout compared; days of the steps 5, 25, 50 and 100%; and both.
  Medians of `JOURNEYS`.
- `incumbent_cascade_bias`, `incumbent_cascade_shown_better`: a version that is as good, at half of the conversations
  beside the incumbent, with rules that send the longest 15% of the requests to the incumbent, and replace the 20% of
  its answers of which it is least sure; both kinds are harder than others. The difference of the helpful rates that a
  rollout computes, and the share of runs in which it shows the version to be better (2.5% are expected).
  `…_by_model`: the same if each vote counted for the model that gave the answer.
- `incumbent_calibrated_wrong`: share of versions that are calibrated for `cascade.helpful_rate` within a year of daily
  looks though none of their answers reach it, just so: the worst of votes of conversations and of 100 accounts, 10 or
  30 a day. `incumbent_calibrated_right`, `incumbent_calibrated_days`: of versions whose more confident half is 12
  points above it, the share that is calibrated within 90 days, and after how many (median), with 10 votes a day.
  `…_by_interval`: the same if each look tested the votes of the last 30 days by their 95% interval.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import rollouts

from fixtures.feedback.votes import DAY, Service
from fixtures.worlds.candidates import Row
from retuned.consumers.settings import RolloutSettings
from retuned.monitors.quality.cascade import ERROR, KEPT, LABELS, LEAST, Label, least_confidence
from retuned.monitors.rates.estimate import difference, rate
from retuned.monitors.rates.votes import Votes, of_units
from retuned.monitors.settings import WatchSettings
from retuned.retrain.decision.gate import decide
from retuned.retrain.settings import DatasetSettings, GateSettings, IncumbentSettings

RUNS, RIGHT, WORSE, MARGIN = 200, 0.8, 0.05, 0.03
CONVERSATIONS = (200, 400, 800, 1_600, 3_200)
SETTINGS = GateSettings()
INCUMBENT = IncumbentSettings(url="https://api.example/v1", model="mini", margin=MARGIN, wrong_share=1 - RIGHT)
JOURNEYS, WEEKS, WIDE = 40, 52, 0.05
CASCADES, RATED = 2_000, 1_000
FORMER_LABELS = 30
SERVICE = Service(answers=2_000, rated=0.05, bad=1 - RIGHT)
STEPS = RolloutSettings(steps=(0.05, 0.25, 0.5, 1.0))


def promoted(
    worse: float,
    conversations: int,
    selection: float,
    luck: np.random.Generator,
    incumbent: IncumbentSettings = INCUMBENT,
    tries: int = 0,
) -> bool:
    """Whether the gate promotes a candidate that is so much worse, on so many rated conversations."""
    share_wrong = (1 - RIGHT) * selection / ((1 - RIGHT) * selection + RIGHT)
    right = luck.random(conversations) >= share_wrong
    errors = 1 - RIGHT + worse
    wrong_where_right, wrong_where_wrong = errors / 2 / RIGHT, errors / 2 / (1 - RIGHT)
    candidate = luck.random(conversations) >= np.where(right, wrong_where_right, wrong_where_wrong)
    kinds = ["accepted" if one else "correction" for one in right]
    logged = [Row(f"r{n}", float(one), kind=kinds[n]) for n, one in enumerate(right)]
    answers = [Row(f"r{n}", float(one), kind=kinds[n]) for n, one in enumerate(candidate)]
    base = [replace(one, score=0.0) for one in answers]
    return decide(
        base, answers, [], [], SETTINGS, logged=logged, serving=False, incumbent=incumbent, tries=tries
    ).outcome


def days_to_promotion(luck: np.random.Generator) -> int:
    """Days until the gate promotes a candidate that is as good."""
    held_out = SERVICE.answers * SERVICE.rated * DatasetSettings().holdout_share
    incumbent = INCUMBENT.model_copy(update={"margin": WIDE})
    for week in range(1, WEEKS):
        if promoted(0.0, round(7 * week * held_out), 1.0, luck, incumbent, tries=week - 1):
            return 7 * week
    return 7 * WEEKS


def days_of_steps(luck: np.random.Generator) -> np.ndarray:
    """Days from the first step to all conversations, of rollouts that were not taken back."""
    watch = WatchSettings()
    found = rollouts.simulate(SERVICE, rollouts.draw(SERVICE, STEPS, JOURNEYS, luck), STEPS, watch).steps[:, -1]
    return found[found < rollouts.NEVER] / DAY


def cascaded(luck: np.random.Generator, *, by_model: bool) -> tuple[float, bool]:
    """The difference of the helpful rates of version and incumbent, and whether it is shown to be above 0."""
    hard = luck.random(RATED)
    good = luck.random(RATED) < 0.95 - 0.3 * hard  # whoever answers
    is_long = hard + 0.3 * luck.standard_normal(RATED) > np.quantile(hard, 0.85)
    unsure = hard + 0.3 * luck.standard_normal(RATED) > np.quantile(hard, 0.8)
    of_version = luck.random(RATED) < 0.5
    if by_model:
        after = of_version & ~is_long & ~unsure
        before = ~after
    else:
        after, before = of_version & ~is_long, ~of_version & ~is_long
    sides = ((good & before).sum(), before.sum(), (good & after).sum(), after.sum())
    units = [
        (1, 1, 0, 0, sides[0]), (0, 1, 0, 0, sides[1] - sides[0]),
        (0, 0, 1, 1, sides[2]), (0, 0, 0, 1, sides[3] - sides[2]),
    ]  # fmt: skip
    votes = Votes(np.array(units, dtype=np.float64), np.array([sides], dtype=np.float64))
    found = difference(votes)
    assert found is not None
    return found[0], found[1] > 0


def calibrated(luck: np.random.Generator, above: float, each_day: int, accounts: int, days: int) -> list[int | None]:
    """The day on which a version is calibrated, and the one on which it would be by intervals.

    Args:
        above: by how much the helpful rate of the more confident half is above the required one.
    """
    tastes = luck.beta(4 * RIGHT, 4 * (1 - RIGHT), accounts or 1) - RIGHT
    confident = luck.random(days * each_day)
    who = luck.integers(accounts, size=len(confident)) if accounts else np.zeros(len(confident), dtype=int)
    shares = RIGHT + above * np.where(confident > 0.5, 1, -1) + (tastes[who] if accounts else 0)
    good = luck.random(len(confident)) < shares
    units = who if accounts else np.arange(len(confident))
    labels: list[Label] = [
        (one, str(unit), bool(is_good)) for one, unit, is_good in zip(confident.tolist(), units, good, strict=True)
    ]
    found: list[int | None] = [None, None]
    for day in range(1, days + 1):
        period = (day - 1) // LABELS.days
        own = labels[period * LABELS.days * each_day : day * each_day]
        if found[0] is None and least_confidence(own, RIGHT, ERROR / 2 / ((period + 1) * (period + 2))) is not None:
            found[0] = day
        if found[1] is None and by_interval(labels[max(day - FORMER_LABELS, 0) * each_day : day * each_day]):
            found[1] = day
    return found


def by_interval(labels: list[Label]) -> bool:
    """Whether the more confident half of some labels is shown to be helpful by its interval."""
    if len(labels) < LEAST:
        return False
    best = sorted(labels, reverse=True)[: round(KEPT[0] * len(labels))]
    units = {unit: [0, 0] for _, unit, _ in best}
    for _, unit, is_good in best:
        units[unit][0] += is_good
        units[unit][1] += 1
    return rate(of_units((yes, n) for yes, n in units.values()))[1] >= RIGHT


def calibrations(luck: np.random.Generator) -> dict[str, float]:
    """How often versions are calibrated wrongly and rightly, by either rule."""
    wrong = np.zeros(2)
    for accounts in (0, 100):
        for each_day in (10, 30):
            found = [calibrated(luck, 0.0, each_day, accounts, 365) for _ in range(RUNS)]
            shares = np.array([[day is not None for day in one] for one in found]).mean(axis=0)
            print(f"calibrated wrongly, {accounts} accounts, {each_day} votes a day: {shares}", file=sys.stderr)
            wrong = np.maximum(wrong, shares)
    right = [calibrated(luck, 0.12, 10, 0, LABELS.days) for _ in range(RUNS)]
    figures = {}
    for rule, name in enumerate(("", "_by_interval")):
        days = [day for one in right if (day := one[rule]) is not None]
        figures |= {
            f"incumbent_calibrated_wrong{name}": float(wrong[rule]),
            f"incumbent_calibrated_right{name}": len(days) / RUNS,
            f"incumbent_calibrated_days{name}": float(np.median(days)),
        }
    return figures


def main() -> dict[str, float]:
    luck = np.random.default_rng(1)

    def share(worse: float, conversations: int, selection: float) -> float:
        return sum(promoted(worse, conversations, selection, luck) for _ in range(RUNS)) / RUNS

    as_good = {count: share(0.0, count, 1.0) for count in CONVERSATIONS}
    figures = {
        "incumbent_false_promotions": share(WORSE, 400, 1.0),
        "incumbent_false_promotions_selected": share(WORSE, 400, 3.0),
        **{f"incumbent_promotions_{count}": found for count, found in as_good.items()},
    }
    if needed := [count for count, found in as_good.items() if found >= 0.8]:
        figures["incumbent_conversations_needed"] = needed[0]
    to_promotion = float(np.median([days_to_promotion(luck) for _ in range(JOURNEYS)]))
    of_steps = float(np.median(days_of_steps(luck)))
    for name, by_model in (("", False), ("_by_model", True)):
        found = [cascaded(luck, by_model=by_model) for _ in range(CASCADES)]
        figures[f"incumbent_cascade_bias{name}"] = round(float(np.mean([gain for gain, _ in found])), 4)
        figures[f"incumbent_cascade_shown_better{name}"] = sum(shown for _, shown in found) / CASCADES
    return (
        figures
        | calibrations(luck)
        | {
            "incumbent_days_to_promotion": to_promotion,
            "incumbent_days_of_steps": round(of_steps, 1),
            "incumbent_days_to_own": round(to_promotion + of_steps, 1),
        }
    )


if __name__ == "__main__":
    for name, value in main().items():
        print(name, value)
    sys.exit(0)
