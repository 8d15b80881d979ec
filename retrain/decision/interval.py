"""The confidence interval of a gain, the error that each try may spend, and the number of examples needed."""

import math
from statistics import NormalDist

import numpy as np

from retuned.retrain.settings import GateSettings

POWER = 0.97
"""Power of the test for a gain of `expected_gain` at the number of examples that the decision states, by the normal
approximation. Guards refuse some of these candidates: in simulations nine in ten are promoted."""

WRONG = 0.1
"""The share of approved answers that may be wrong (see `learned` in docs/benchmarks.md)."""

GRID = 200
"""Differences of scores are rounded to 1/200."""

_NODES = np.linspace(-15.0, 7.0, 221)
"""Logarithms of the nodes of the integral in `_below`."""
_STEP = float(_NODES[1] - _NODES[0])
_HALVINGS = 8


def error_of_try(settings: GateSettings, tries: int) -> float:
    """Returns the probability with which the next try may promote a candidate that is no better.

    The k-th try has (1 − confidence) / (k (k + 1)), so all tries together have 1 − confidence, however many there are:
    Bonferroni with unequal weights (Rosenthal and Rubin 1983). It is valid whatever rows the tries share. Unlike
    halving, it leaves the twentieth try some power.

    Args:
        tries: earlier tries against the same champion.
    """
    return (1 - settings.confidence) / ((tries + 1) * (tries + 2))


def interval(differences: np.ndarray, error: float) -> tuple[float, float]:
    """Returns the confidence interval of the mean of independent differences, each in [-1, 1].

    Each end is wrong with probability `error` at most. This is Gaffke's bound (2005; Learned-Miller and Thomas 2020, "A
    new confidence interval for the mean of a bounded random variable"): the differences, and one more at the worst
    possible value, get weights from the flat Dirichlet distribution, and the end is the quantile of the weighted mean.
    It assumes only the bounds and independence. For binary values it equals Clopper and Pearson's interval; for others
    its level is conjectured, and no counterexample is known. The quantile is computed, not sampled: see `_below`.

    Dependent rows must be reduced to one difference per cluster, their mean (see `pairs.by_cluster`).
    """
    return _low(differences, error), -_low(-differences, error)


def interval_as_asked(
    differences: np.ndarray, asked: np.ndarray, conversations: int, others: tuple[float, float], error: float
) -> tuple[float, float]:
    """Returns the confidence interval of the mean difference over what customers ask.

    Recent conversations are a sample of it. One that asks a question of an example has the example's difference; any
    other is taken to be at the end of the interval of `others`. Both intervals hold together (Bonferroni). Approved
    answers may be wrong, so that WRONG of the result is taken to be at that end, too.

    Args:
        asked: how many of the conversations ask the question of each difference.
        conversations: the size of the sample.
        others: the interval of all questions, each of which counts once, with the same error.
        error: of each end.
    """
    known, rest = np.repeat(differences, asked), conversations - int(asked.sum())
    low, high = (interval(np.append(known, np.full(rest, end)), error) for end in others)
    return (1 - WRONG) * low[0] + WRONG * others[0], (1 - WRONG) * high[1] + WRONG * others[1]


def _low(differences: np.ndarray, error: float) -> float:
    values, counts = np.unique(np.rint(GRID * np.append(differences, -1.0)), return_counts=True)
    step = float(np.sqrt(counts @ (values / GRID - differences.mean()) ** 2)) / counts.sum()
    high = float(differences.mean())
    # Search downwards from the mean: far below it the integral is inexact.
    while (low := max(high - step, -1.0)) > -1 and _below(values / GRID - low, counts) > error:
        high = low
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _below(values / GRID - middle, counts) <= error else (low, middle)
    return float(low)


def _below(values: np.ndarray, counts: np.ndarray) -> float:
    """Returns the probability that a mean of values with flat Dirichlet weights is at most zero.

    Such weights are independent exponential variables divided by their sum, so the sign is that of the sum of values
    times variables. It follows from the characteristic function (Gil-Pelaez 1951), integrated over the logarithm.
    """
    scale = math.sqrt(float(counts @ values**2))
    if not scale:
        return 1.0
    products = np.outer(values / scale, np.exp(_NODES))
    size = np.exp(-0.5 * (counts @ np.log1p(products**2)))
    integral = float(size @ np.sin(counts @ np.arctan(products)))
    return 0.5 - integral * _STEP / math.pi


def examples_needed(differences: np.ndarray, error: float, settings: GateSettings) -> int:
    """Returns the number of examples that detect a gain of `expected_gain` with probability POWER.

    By the normal approximation of the paired mean with the variance of `differences`, including the worst possible
    difference of `interval`.
    """
    gain = settings.expected_gain - settings.minimum_gain
    if gain <= 0:
        return settings.minimum_examples
    normal = NormalDist()
    scatter = (normal.inv_cdf(1 - error) + normal.inv_cdf(POWER)) * float(np.std(np.append(differences, [1.0, -1.0])))
    root = (scatter + math.sqrt(scatter**2 + 4 * gain * (1 + settings.expected_gain))) / (2 * gain)
    return max(settings.minimum_examples, math.ceil(root**2))
