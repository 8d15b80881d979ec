"""Where a gain lies: the interval of paired differences, the error that each try may spend, the examples it takes."""

import math
from statistics import NormalDist

import numpy as np

from retuned.retrain.settings import GateSettings

POWER = 0.97
"""The normal approximation's chance that as many examples as the decision names show a gain of `expected_gain`. The
interval is a little more careful, and guards refuse some: simulated, nine in ten and more are promoted."""

GRID = 200
"""Differences of scores are told apart in steps of half a hundredth."""


def error_of_try(settings: GateSettings, tries: int) -> float:
    """How often a try may promote what is no better, after so many against the same champion.

    The k-th has (1 − confidence) / (k (k + 1)). All of them together have 1 − confidence, however many there are:
    Bonferroni with unequal weights (Rosenthal and Rubin 1983). It holds whatever rows the tries share, and leaves the
    twentieth try enough to show something, which halving does not.
    """
    return (1 - settings.confidence) / ((tries + 1) * (tries + 2))


def interval(differences: np.ndarray, error: float) -> tuple[float, float]:
    """Where the mean of paired differences of scores (each from -1 to 1) lies; each end fails with `error` at most.

    The percentile bootstrap (Efron and Tibshirani 1993, chapter 13) of the differences and two more, 1 and -1. Without
    these it knows no doubt about what a small sample does not show: four gains and no loss among twenty examples would
    be sure, though of four changes chance makes four gains once in sixteen times. Bonett and Price (2012) add the same
    two to paired proportions, for the same reason.

    Nothing is drawn: the distribution of the mean of resamples is computed, by the fast Fourier transform, from the
    differences rounded to 1 / GRID. So small errors are as exact as large ones.
    """
    widened = np.rint(GRID * np.concatenate([differences, [1.0, -1.0]])).astype(int)
    number, least = len(widened), -GRID
    size = 2 ** math.ceil(math.log2(2 * GRID * number + 1))
    one = np.bincount(widened - least, minlength=size) / number
    sums = np.cumsum(np.fft.irfft(np.fft.rfft(one) ** number, size))
    low, high = np.searchsorted(sums, [error, 1 - error]) / number + least
    return float(low) / GRID, float(high) / GRID


def examples_needed(differences: np.ndarray, error: float, settings: GateSettings) -> int:
    """Examples that find a gain of `expected_gain` above the minimum with POWER, if they scatter as these do.

    By the normal approximation of the paired mean, the two of `interval` included.
    """
    gain = settings.expected_gain - settings.minimum_gain
    if gain <= 0:
        return settings.minimum_examples
    scatter = NormalDist().inv_cdf(1 - error) + NormalDist().inv_cdf(POWER)
    variance = float(np.var(np.concatenate([differences, [1.0, -1.0]])))
    return max(settings.minimum_examples, math.ceil(scatter**2 * variance / gain**2))
