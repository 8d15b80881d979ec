"""Rows of one day are alike: by how much a difference between two windows varies more than one of independent rows.

What people ask differs a little from day to day, and no row of a day tells of another day. The correlation of the rows
of a day (the intraclass correlation) multiplies the variance of a difference of means by the design effect (Kish,
"Survey sampling", 1965). A week has too few days to know it well, so a test is averaged over what it may be, each
design effect weighed by how plausible the days of the windows make it (Röver et al., "On weakly informative prior
distributions for the heterogeneity parameter in Bayesian random-effects meta-analysis", Research Synthesis Methods 12,
2021), with an exponential prior of the deviation between days (Simpson et al., "Penalising model component complexity",
Statistical Science 32, 2017).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Days = NDArray[np.int64]

# Mean of the prior, in standard deviations of a row: before any day is seen, the days of a share of one in six are
# taken to deviate by half a point, and in one case of forty by more than two.
SCALE = 0.015
MOST = 1.0
STEPS = 30


@dataclass(frozen=True)
class DesignEffects:
    """By what the variance of a difference is multiplied: each value that it may have, and how plausible it is."""

    effects: tuple[float, ...]
    weights: tuple[float, ...]

    def p_value(self, tail: Callable[[float], float]) -> float:
        """The mean of a p-value, `tail`, which is a function of the design effect."""
        return sum(weight * tail(effect) for effect, weight in zip(self.effects, self.weights, strict=True) if weight)

    @property
    def mean(self) -> float:
        return sum(effect * weight for effect, weight in zip(self.effects, self.weights, strict=True))


INDEPENDENT = DesignEffects((1.0,), (1.0,))


def design_effects(*windows: tuple["Array", "Days"]) -> DesignEffects:
    """The design effects of the difference between the mean scores of two windows.

    Args:
        windows: of each the scores of its rows, and the day (any number) of each row. Where all rows are of one day
            there is nothing between days, and the effect is 1.
    """
    import numpy as np

    if len({int(day) for _, days in windows for day in np.unique(days)}) < 2:
        return INDEPENDENT
    deviations = np.concatenate([[0.0], np.geomspace(SCALE / 3, MOST, STEPS - 1)])
    log_prior = np.log(np.gradient(deviations)) - deviations / SCALE
    evidence = np.zeros(STEPS)
    concentration = inverse_rows = 0.0
    for scores, days in windows:
        _, day, rows = np.unique(days, return_inverse=True, return_counts=True)
        concentration += float((rows**2).sum()) / len(scores) ** 2
        inverse_rows += 1 / len(scores)
        if len(rows) > 1:
            evidence += _log_likelihood(scores, day, rows.astype(np.float64), deviations)
    plausible = np.exp(log_prior + evidence - (log_prior + evidence).max())
    effects = 1 + deviations**2 * concentration / inverse_rows
    return DesignEffects(tuple(effects.tolist()), tuple((plausible / plausible.sum()).tolist()))


def _log_likelihood(scores: "Array", day: "Days", rows: "Array", deviations: "Array") -> "Array":
    """Of the means of the days under each deviation between days; that of all days is integrated out."""
    import numpy as np

    means = np.bincount(day, weights=scores) / rows
    within = float(((scores - means[day]) ** 2).sum()) / max(len(scores) - len(rows), 1)
    variances = 1 / rows[:, None] + deviations**2
    weights = 1 / variances
    centre = (weights * means[:, None]).sum(axis=0) / weights.sum(axis=0)
    residuals = (weights * (means[:, None] - centre) ** 2).sum(axis=0)
    found: Array = -(np.log(variances).sum(axis=0) + np.log(weights.sum(axis=0)) + residuals / (within or 1.0)) / 2
    return found
