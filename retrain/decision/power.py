"""The number of rated conversations with which the gate can promote a first candidate beside an incumbent.

By the normal approximation of `gate._beside_incumbent`: two strata, answers of the incumbent that people called good
and those that they corrected, each with an interval of its own. `run.py incumbent` simulates the gate itself.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

from retuned.retrain.decision.interval import error_of_try
from retuned.retrain.settings import GateSettings, IncumbentSettings

POWER = 0.9
"""The probability with which a candidate that is as good as the incumbent is promoted."""
EXAMPLES, MOST_EXAMPLES = 200, 5_000
"""The rows of a split that are generated if `evaluate.maximum_examples` is not set, and the most of a holdout."""

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Held:
    """Conversations in the holdout by what people stated about the incumbent's answers."""

    good: float
    corrected: float

    def __add__(self, other: "Held") -> "Held":
        return Held(self.good + other.good, self.corrected + other.corrected)

    def __mul__(self, factor: float) -> "Held":
        return Held(factor * self.good, factor * self.corrected)


def lacking(held: Held, gate: GateSettings, wrong_share: float | None) -> str | None:
    """Returns why the gate cannot compare a candidate with the incumbent at all; None: it can.

    Args:
        held: as many as there can be.
        wrong_share: None or 0: the gate compares answers that people called good alone.
    """
    kinds = {"called good": held.good} | ({"corrected": held.corrected} if wrong_share else {})
    few = [f"{count:.0f} that people {kind}" for kind, count in kinds.items() if count < gate.minimum_examples]
    if not few:
        return None
    return (
        f"of the incumbent's answers {' and '.join(few)} would be held out, and the gate compares no fewer than "
        f"{gate.minimum_examples} (gate.minimum_examples)"
    )


def shows_as_good(held: Held, gate: GateSettings, margin: float, wrong_share: float, tries: int = 0) -> bool:
    """Returns whether the next try promotes a candidate that is as good as the incumbent, with probability POWER.

    Both are wrong in `wrong_share` of all answers, and half of the candidate's errors are on questions that the
    incumbent answers rightly, as in `run.py incumbent`; fewer, if there are not so many such questions.

    Args:
        wrong_share: above 0 and below 1.
        tries: earlier tries.
    """
    if min(held.good, held.corrected) < gate.minimum_examples:
        return False
    swapped = min(wrong_share / 2, 1 - wrong_share)
    lost, won = swapped / (1 - wrong_share), swapped / wrong_share
    # The share of all answers, the rated conversations, the mean gain and its variance in each stratum.
    strata = (
        (1 - wrong_share, held.good, -lost, lost * (1 - lost)),
        (wrong_share, held.corrected, won, won * (1 - won)),
    )
    bound = _NORMAL.inv_cdf(1 - error_of_try(gate, tries) / len(strata))
    low = sum(
        # Each interval also counts one more gain of -1: see `interval.interval`.
        weight * (mean - (1 + mean) / (count + 1) - bound * math.sqrt(variance / count))
        for weight, count, mean, variance in strata
    )
    scatter = math.sqrt(sum(weight**2 * variance / count for weight, count, _, variance in strata))
    return low - _NORMAL.inv_cdf(POWER) * scatter > -margin


def until_as_good(
    held: Held, a_day: Held, gate: GateSettings, incumbent: IncumbentSettings, most_days: float
) -> float | None:
    """Returns the days until `shows_as_good`, at so many further conversations a day; None: more than `most_days`."""
    wrong = incumbent.wrong_share or 0.0

    def enough(days: float) -> bool:
        return shows_as_good(held + a_day * days, gate, incumbent.margin, wrong)

    if enough(0.0):
        return 0.0
    if not enough(most_days):
        return None
    low, high = 0.0, most_days
    while high - low > 0.5:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def conversations_needed(
    gate: GateSettings, margin: float, wrong_share: float, good_share: float, tries: int = 0
) -> int:
    """Returns the conversations in the holdout that `shows_as_good` takes, if so many of them are called good."""
    mix = Held(good_share, 1 - good_share)
    low, high = 1.0, 1e9
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if shows_as_good(mix * middle, gate, margin, wrong_share, tries) else (middle, high)
    return math.ceil(high)


def examples_to_ask(held: Held, gate: GateSettings, incumbent: IncumbentSettings, tries: int) -> int:
    """Returns the rows of a holdout that the next try beside an incumbent needs, from EXAMPLES to MOST_EXAMPLES.

    EXAMPLES where no number of rows like those that are held out is known to suffice.
    """
    wrong = incumbent.wrong_share
    if not incumbent.margin or not wrong or wrong == 1 or min(held.good, held.corrected) < gate.minimum_examples:
        return EXAMPLES
    good_share = held.good / (held.good + held.corrected)
    needed = conversations_needed(gate, incumbent.margin, wrong, good_share, tries)
    return min(max(needed, EXAMPLES), MOST_EXAMPLES)
