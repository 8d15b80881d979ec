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
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import rollouts
from simulation import Row
from watching import DAY, Service

from retuned.consumers.settings import RolloutSettings
from retuned.monitors.rates.estimate import difference
from retuned.monitors.rates.votes import Votes
from retuned.monitors.settings import WatchSettings
from retuned.retrain.decision.gate import decide
from retuned.retrain.settings import DatasetSettings, GateSettings, IncumbentSettings

RUNS, RIGHT, WORSE, MARGIN = 200, 0.8, 0.05, 0.03
CONVERSATIONS = (200, 400, 800, 1_600, 3_200)
SETTINGS = GateSettings()
INCUMBENT = IncumbentSettings(url="https://api.example/v1", model="mini", margin=MARGIN, wrong_share=1 - RIGHT)
JOURNEYS, WEEKS, WIDE = 40, 52, 0.05
CASCADES, RATED = 2_000, 1_000
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
    return figures | {
        "incumbent_days_to_promotion": to_promotion,
        "incumbent_days_of_steps": round(of_steps, 1),
        "incumbent_days_to_own": round(to_promotion + of_steps, 1),
    }


if __name__ == "__main__":
    for name, value in main().items():
        print(name, value)
    sys.exit(0)
