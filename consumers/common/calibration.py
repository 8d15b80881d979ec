"""Calibration: the number of labels that a hallucination rate needs, and the strata of the next labels.

The rate is estimated from two strata: answers on which a scorer alarms, and all others. Labelled answers are drawn at
random within a stratum.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

MINIMUM: Mapping[bool, int] = {True: 10, False: 30}
"""The labels of alarms and of other answers that a rate needs; if there are fewer alarms, all of them."""


@dataclass(frozen=True)
class Stratum:
    """A stratum: alarms or other answers.

    Attributes:
        size: the number of answers.
        labelled, invented: the number of labelled answers, including earlier ones, and of those labelled as invented.
    """

    alarm: bool
    size: int
    labelled: int = 0
    invented: int = 0

    @property
    def needed(self) -> int:
        return min(MINIMUM[True], self.size) if self.alarm else MINIMUM[False]

    @property
    def missing(self) -> int:
        return max(self.needed - self.labelled, 0)


def draws(strata: list[Stratum], most: int) -> Counter[bool]:
    """Returns how many of the next labels come from each stratum.

    Strata that lack labels for a rate come first. Each label goes to the stratum where it reduces the variance of the
    rate most, which gives Neyman's allocation (Wright 2012, "The equivalence of Neyman optimum allocation for sampling
    and equal proportions for apportioning the U.S. House of Representatives").

    Args:
        strata: with `labelled` including pending requests, and `size` the answers without request.
        most: the number of labels.
    """
    drawn = Counter[bool]()
    total = sum(stratum.size + stratum.labelled for stratum in strata) or 1
    for _ in range(most):
        left = [stratum for stratum in strata if stratum.size > drawn[stratum.alarm]]
        short = [stratum for stratum in left if MINIMUM[stratum.alarm] > stratum.labelled + drawn[stratum.alarm]]
        if not left:
            break
        drawn[max(short or left, key=lambda stratum: _gain(stratum, drawn[stratum.alarm], total)).alarm] += 1
    return drawn


def _gain(stratum: Stratum, drawn: int, total: int) -> float:
    weight = (stratum.size + stratum.labelled) / total
    rate = (stratum.invented + 1) / (stratum.labelled + 2)
    n = stratum.labelled + drawn + 1
    return weight**2 * rate * (1 - rate) / (n * (n + 1))
