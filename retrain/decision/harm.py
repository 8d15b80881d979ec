"""Tests whether a candidate is worse by more than a limit, beyond chance, and states the power of the test.

Proof of harmlessness would take thousands of examples, so guards look for evidence of harm, and state which harm they
cannot detect.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean

import numpy as np

from retuned.retrain.decision.pairs import Cluster

GUARD_ERROR = 0.1
"""The maximum probability that a guard refuses a candidate that is worse by exactly its limit. A harmless candidate is
hardly ever refused."""

MARGIN = 0.05
"""A decision states how many examples detect a loss of the limit plus this, with probability FOUND."""
FOUND = 0.9

DRAWS = 2_000
"""Draws of the signs in `worst`. The seed is fixed, so equal rows get equal decisions."""

CHANCE = "which chance explains, beside"

_HUNDREDTHS = 100
_NEGLIGIBLE = 37.0
"""Minus the logarithm of a probability that a double's rounding hides."""
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Verdict:
    """The result of a guard's test and its power.

    Attributes:
        limit: the allowed drop.
        unseen: the drop that passes half of the time on examples like these; 1: any drop passes.
        needed: the number of examples that detect a drop of MARGIN above the limit with probability FOUND.
        examples: the number of examples, each a cluster.
    """

    passed: bool
    text: str
    limit: float
    unseen: float
    needed: int
    examples: int

    def __str__(self) -> str:
        return self.text

    def power(self, of: str) -> str:
        """Returns a sentence about the power of the test. `of` names the harm, such as `A drop`."""
        text = (
            "No loss could be seen on so few examples"
            if self.unseen >= 1
            else f"{of} of up to {_points(self.unseen)} would pass unseen half of the time"
        )
        if self.needed > self.examples:
            text += f"; {self.needed:,} examples would find one of {_points(self.limit + MARGIN)} in nine of ten cases"
        return f"{text}."

    def figures(self, name: str) -> dict[str, float]:
        """Returns the figures for the decision."""
        return {f"unseen[{name}]": self.unseen, f"needed[{name}]": float(self.needed)}


def _points(share: float) -> str:
    """Formats a share as percentage points."""
    return f"{100 * share:.2g} points" if share < 1 else "100 points"


def within(drops: Sequence[float], limit: float) -> Verdict:
    """Tests whether the mean drop is within the limit.

    This is an exact randomisation test (Fisher 1935, Pitman 1937). The null hypothesis is a candidate that is worse by
    exactly the limit: given the size of each cluster's difference, its sign is random, with a probability of "worse"
    that makes the mean equal the limit. For answers that are right or wrong it is the sign test of the pairs that
    differ (McNemar 1947). It assumes that sizes do not depend on signs. Sizes are rounded to a hundredth.

    Args:
        drops: the drop of each cluster; positive if the candidate is worse.
    """
    changes = np.rint(_HUNDREDTHS * np.array(drops)).astype(int)
    if fmean(drops) <= limit + 1e-9 or not changes.any():
        passed, text = True, "within"
    elif _chance(changes, limit) > GUARD_ERROR:
        passed, text = True, CHANCE
    else:
        passed, text = False, "surely above"
    return Verdict(passed, text, limit, _unseen(changes, limit), _needed(changes, limit), len(changes))


def _chance(changes: np.ndarray, limit: float) -> float:
    """Returns the probability of at least this drop if the true drop is the limit."""
    sizes = np.abs(changes[changes != 0])
    worse = min(1.0, (1 + _HUNDREDTHS * limit * len(changes) / sizes.sum()) / 2)
    return at_least(int(changes[changes > 0].sum()), sizes, worse)


def at_least(total: int, sizes: np.ndarray, chance: float) -> float:
    """Returns the probability that a random subset of `sizes`, each drawn with `chance`, sums to at least `total`.

    The distribution is the inverse Fourier transform of its characteristic function, over the sums that have a
    probability above rounding error by Hoeffding's inequality (1963). The error is below 1e-9. The work grows with the
    root of the number of sizes, where adding one size after another would take time with its square.
    """
    step = int(np.gcd.reduce(sizes))
    total, (values, times) = total // step, np.unique(sizes // step, return_counts=True)
    greatest, mean = int(values @ times), chance * float(values @ times)
    reach = math.ceil(math.sqrt(_NEGLIGIBLE / 2 * float(values**2 @ times)))
    length = 1 << min(greatest, 2 * reach + 2).bit_length()
    lowest = 0 if length > greatest else math.floor(mean) - length // 2
    frequencies, transform = np.arange(length // 2 + 1), np.ones(length // 2 + 1, dtype=complex)
    for size, count in zip(values, times, strict=True):
        turned = np.exp(-2j * np.pi / length * (frequencies * size % length))
        transform *= (1 - chance + chance * turned) ** count
    chances = np.roll(np.fft.irfft(transform, length), -lowest)
    return float(np.clip(chances[max(total - lowest, 0) :].sum(), 0, 1))


def _unseen(changes: np.ndarray, limit: float) -> float:
    """Returns the smallest share of complete losses that the test detects on top of balanced changes like these.

    By the normal approximation, and at least as many as the exact test requires without other changes.
    """
    sizes, number = np.abs(changes - changes.mean()) / _HUNDREDTHS, len(changes)
    lost = np.arange(1, number + 1)
    worse = np.minimum(1.0, (1 + limit * number / (sizes.sum() + lost)) / 2)
    scatter = np.sqrt(worse * (1 - worse) * ((sizes**2).sum() + lost))
    detected = sizes.sum() / 2 + lost - worse * (sizes.sum() + lost) >= _NORMAL.inv_cdf(1 - GUARD_ERROR) * scatter
    detected &= worse**lost <= GUARD_ERROR
    return float(lost[detected][0]) / number if detected.any() else 1.0


def _needed(changes: np.ndarray, limit: float) -> int:
    """Returns the number of examples of `Verdict.needed`, by the normal approximation of the mean drop."""
    loss = limit + MARGIN
    variance = float(np.var(changes / _HUNDREDTHS)) + loss
    return math.ceil((_NORMAL.inv_cdf(1 - GUARD_ERROR) + _NORMAL.inv_cdf(FOUND)) ** 2 * variance / MARGIN**2)


def worst(slices: Mapping[str, Mapping[Cluster, float]], limit: float) -> dict[str, Verdict]:
    """Returns the verdict on each of several slices, corrected for their number.

    A slice is refused if its drop is above the limit beyond chance (see `within`), and greater than the 90% quantile of
    the greatest drop over all slices of an equal candidate. Drops are divided by the root of their summed squares and
    compared with the maximum over all slices under random signs of the clusters (Westfall and Young 1993). A cluster
    has the same sign in all its slices, so overlapping slices cost little, as do slices with few changes. Bonferroni's
    correction uses neither fact and has no power beyond a dozen slices of eight examples.

    Args:
        slices: the name of each slice, and the drop of each of its clusters.
    """
    names = sorted({cluster for drops in slices.values() for cluster in drops})
    table = np.array([[drops.get(name, 0.0) for name in names] for drops in slices.values()])
    scales = np.maximum(np.sqrt((table**2).sum(axis=1)), 1e-9)
    greatest = np.sort((_signs(len(names)) @ (table / scales[:, None]).T.astype(np.float32)).max(axis=1))
    bar = float(greatest[math.ceil((1 - GUARD_ERROR) * DRAWS)])
    verdicts = {}
    for (name, drops), row, scale in zip(slices.items(), table, scales, strict=True):
        alone = within(list(drops.values()), limit)
        passed = alone.passed or row.sum() / scale <= bar + 1e-6
        scatter = float(np.var(list(drops.values())))
        least = _losses(bar, scatter * len(drops)) / len(drops)
        verdicts[name] = Verdict(
            passed,
            CHANCE if passed and not alone.passed else alone.text,
            limit,
            min(1.0, max(alone.unseen, least)),
            max(alone.needed, _needed_beyond(bar, scatter, limit)),
            len(drops),
        )
    return verdicts


@lru_cache(4)
def _signs(number: int) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, 2, (DRAWS, number), dtype=np.int8)
    return (2 * drawn - 1).astype(np.float32)


def _losses(bar: float, scatter: float) -> float:
    """Returns the number n of complete losses that exceed the bar on top of balanced changes: n / √(scatter + n)."""
    return math.floor((bar**2 + math.sqrt(bar**4 + 4 * bar**2 * scatter)) / 2) + 1


def _needed_beyond(bar: float, scatter: float, limit: float) -> int:
    """Returns how many examples let a drop of the limit plus MARGIN exceed the bar with probability FOUND."""
    loss = limit + MARGIN
    return math.ceil((bar + _NORMAL.inv_cdf(FOUND)) ** 2 * (scatter + loss) / loss**2)
