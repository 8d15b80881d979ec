"""The design effect of days: rows of one day are correlated, so differences between windows vary more.

Traffic differs a little from day to day. The correlation of the rows of a day (the intraclass correlation) multiplies
the variance of a difference of means by the design effect (Kish, "Survey sampling", 1965). A week has too few days to
estimate it well, so a test averages over possible design effects, weighted by their plausibility given the days of the
windows (Röver et al., "On weakly informative prior distributions for the heterogeneity parameter in Bayesian
random-effects meta-analysis", Research Synthesis Methods 12, 2021). The standard deviation between days has an
exponential prior (Simpson et al., "Penalising model component complexity", Statistical Science 32, 2017).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Days = NDArray[np.int64]

POINTS = 0.01
"""The prior mean of the standard deviation of a rate between days: one percentage point."""

# The same in drift, in standard deviations of a row. A priori, a share of one in six deviates by half a point between
# days, and with a chance of 1 in 40 by more than two points.
SCALE = 0.015
MOST = 1.0
STEPS = 30


@dataclass(frozen=True)
class DesignEffects:
    """The distribution of the factor by which correlation multiplies the variance of a difference.

    Attributes:
        effects: possible design effects.
        weights: the probability of each.
    """

    effects: tuple[float, ...]
    weights: tuple[float, ...]

    def p_value(self, tail: Callable[[float], float]) -> float:
        """Returns the mean of a p-value, given as a function of the design effect."""
        return sum(weight * tail(effect) for effect, weight in zip(self.effects, self.weights, strict=True) if weight)

    @property
    def mean(self) -> float:
        return sum(effect * weight for effect, weight in zip(self.effects, self.weights, strict=True))


INDEPENDENT = DesignEffects((1.0,), (1.0,))


def design_effects(*windows: tuple["Array", "Days", "NDArray[Any] | None"]) -> DesignEffects:
    """Returns the design effects of the difference between the mean scores of two windows.

    The variance between days is 0 if all rows are from one day. The correlation of rows of one unit is estimated from
    the squared sums of their residuals.

    Args:
        windows: for each window the scores of its rows, the day number of each row, and the unit (an account) of each
            row or None.
    """
    import numpy as np

    inverse_rows = sum(1 / len(scores) for scores, _, _ in windows)
    by_units = sum(_unit_effect(scores, units) / len(scores) for scores, _, units in windows) / inverse_rows
    if len({int(day) for _, days, _ in windows for day in np.unique(days)}) < 2:
        return DesignEffects((by_units,), (1.0,))
    deviations = np.concatenate([[0.0], np.geomspace(SCALE / 3, MOST, STEPS - 1)])
    log_prior = np.log(np.gradient(deviations)) - deviations / SCALE
    evidence = np.zeros(STEPS)
    concentration = 0.0
    for scores, days, _ in windows:
        _, day, rows = np.unique(days, return_inverse=True, return_counts=True)
        concentration += float((rows**2).sum()) / len(scores) ** 2
        if len(rows) > 1:
            means = np.bincount(day, weights=scores) / rows
            within = float(((scores - means[day]) ** 2).sum()) / max(len(scores) - len(rows), 1)
            evidence += log_likelihood(means / math.sqrt(within or 1.0), by_units / rows, deviations)
    plausible = np.exp(log_prior + evidence - (log_prior + evidence).max())
    effects = by_units + deviations**2 * concentration / inverse_rows
    return DesignEffects(tuple(effects.tolist()), tuple((plausible / plausible.sum()).tolist()))


def _unit_effect(scores: "Array", units: "NDArray[Any] | None") -> float:
    """Returns the design effect, at least 1, of the mean score, given correlated rows of a unit."""
    import numpy as np

    if units is None:
        return 1.0
    residuals = scores - scores.mean()
    _, unit = np.unique(units, return_inverse=True)
    independent = float((residuals**2).sum())
    return max(float((np.bincount(unit, weights=residuals) ** 2).sum()) / independent, 1.0) if independent else 1.0


def variance_between(series: Iterable["Array"], effect: float) -> float:
    """Returns the posterior mean of the variance of a rate between days, with the prior of `POINTS`.

    Args:
        series: for each arm, shape (days, 2): the yes votes and all votes of each day.
        effect: the design effect of the votes of a day.
    """
    import numpy as np

    deviations = np.concatenate([[0.0], np.geomspace(POINTS / 5, 0.5, STEPS - 1)])
    evidence = np.log(np.gradient(deviations)) - deviations / POINTS
    for arm in series:
        yes, n = arm[arm[:, 1] > 0].T
        if len(n) > 1:
            middle = (yes.sum() + 1) / (n.sum() + 2)
            # A day with few votes may have a rate of 0 or 1, so the error is computed from the rate of all days.
            evidence += log_likelihood(yes / n, middle * (1 - middle) * effect / n, deviations)
    plausible = np.exp(evidence - evidence.max())
    return float(plausible @ deviations**2 / plausible.sum())


def log_likelihood(means: "Array", errors: "Array", deviations: "Array") -> "Array":
    """Returns the log-likelihood of the means of days under each deviation between days.

    The mean of all days is integrated out.

    Args:
        errors: the variance of each mean.
    """
    import numpy as np

    variances = errors[:, None] + deviations**2
    weights = 1 / variances
    centre = (weights * means[:, None]).sum(axis=0) / weights.sum(axis=0)
    residuals = (weights * (means[:, None] - centre) ** 2).sum(axis=0)
    likelihood: Array = -(np.log(variances).sum(axis=0) + np.log(weights.sum(axis=0)) + residuals) / 2
    return likelihood
