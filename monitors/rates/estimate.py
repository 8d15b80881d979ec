"""Estimates a rate of votes or the difference of two rates, with intervals for clustered votes.

Estimand. The share of yes votes (unhelpful, for example) among all votes of an arm. Each vote counts once, so the
length of a window and the share of the traffic change the number of votes, not the estimand.

Variance. Votes of one unit (an account, else a conversation) are correlated, so the variance is clustered by unit: the
residuals of a unit are summed before they are squared (Liang and Zeger, 1986), each divided by one minus its share of
the votes. A unit that votes in both arms contributes the difference of its residuals, so its general opinion cancels.
If the arms are from different times, the variance between days is added (days.py); at the same time it cancels.

Design effect. This variance divided by that of independent votes (Kish, "Survey sampling", 1965, section 5.4).
Intervals are Wilson's at n / design effect. Few units estimate the variance poorly, so the effect is multiplied by the
squared ratio of Student's t for the units to that for as many independent votes (Korn and Graubard, "Confidence
intervals for proportions with small expected number of positive counts estimated from survey data", 1998). The degrees
of freedom are those of the units' unequal variances (Satterthwaite, "An approximate distribution of estimates of
variance components", 1946). Evidence raises the correlation within units by some standard errors instead. The interval
of a difference combines those of both rates (Newcombe, "Interval estimation for the difference between independent
proportions", 1998).
"""

import math

import numpy as np

from retuned.monitors.rates.votes import Array, Votes
from retuned.monitors.statistics import Z95, wilson

CAUTION, MORE_CAUTION = 0.5, 1.0
"""Standard errors by which the correlation is raised in design effects, and in evidence that is examined repeatedly;
chosen by simulation (tests/benchmarks/rates.py)."""
LEAST = 0.3
"""The smallest design effect."""


def evidence_effect(votes: Votes, between_days: float = 0.0) -> float:
    """Returns a cautious design effect, at least 1, for votes that are examined repeatedly.

    The capital of sequential.py is an e-process on votes divided by the design effect if units are independent
    and the effect is never below the true one. An estimate cannot guarantee that. In simulation at most 1% of identical
    versions are rolled back in 14 days, where 5% are allowed (tests/benchmarks/rates.py).
    """
    return max(design_effect(votes, MORE_CAUTION, between_days), 1.0)


def rate(votes: Votes) -> tuple[float, float, float]:
    """Returns the rate of the arm `before`, and its 95% interval."""
    yes, n, _, _ = votes.sums
    effect = max(design_effect(votes, 0.0), 1.0) * _uncertainty(votes)
    return wilson(yes / effect, n / effect)


def difference(votes: Votes, between_days: float = 0.0) -> tuple[float, float, float] | None:
    """Returns the rate after minus the rate before, and its 95% interval; None: an arm has no votes.

    Args:
        between_days: the variance of the rate between days; 0: both arms are from the same time.
    """
    yes_before, n_before, yes_after, n_after = votes.sums
    if not n_before or not n_after:
        return None
    effect = design_effect(votes, 0.0, between_days) * _uncertainty(votes)
    before = wilson(yes_before / effect, n_before / effect)
    after = wilson(yes_after / effect, n_after / effect)
    increase = after[0] - before[0]
    low = increase - math.hypot(after[0] - after[1], before[2] - before[0])
    high = increase + math.hypot(after[2] - after[0], before[0] - before[1])
    return increase, low, high


def design_effect(votes: Votes, caution: float = CAUTION, between_days: float = 0.0) -> float:
    """Returns the variance of a rate, or of the difference of two, divided by that of independent votes.

    For a difference it may be below 1: opinions of accounts that vote in both arms cancel.
    """
    yes, n, count = _arms(votes)
    total = count @ n
    if not total.size:
        return 1.0
    smooth = _smooth(yes, n, count)
    independent = float((smooth / total).sum())
    effect = (
        1 + _correlation(yes, n, count, caution) * float((smooth * _pairs(n, count) / total**2).sum()) / independent
    )
    effect = max(effect, LEAST)
    if between_days:
        blocks = votes.blocks[:, (1, 3)]
        blocks = blocks[:, blocks.any(axis=0)]
        effect += between_days * float(((blocks / blocks.sum(axis=0)) ** 2).sum()) / independent
    return effect


def _uncertainty(votes: Votes) -> float:
    """Returns the factor, at least 1, by which an interval's design effect grows because units estimate it."""
    from scipy.special import stdtrit

    yes, n, count = _arms(votes)
    total = count @ n
    if not total.size:
        return 1.0
    of_vote = _smooth(yes, n, count) / total**2
    correlation = max(_correlation(yes, n, count, 0.0), 0.0)
    of_unit = (of_vote * (n + correlation * n * np.maximum(n - 1, 0))).sum(axis=1)
    units = float(count @ of_unit) ** 2 / float(count @ of_unit**2)
    votes_alone = float(total @ of_vote) ** 2 / float(total @ of_vote**2)
    wide, narrow = stdtrit([max(units, 1.0), max(votes_alone, 1.0)], 0.975).tolist()
    return float(max(wide / narrow, 1.0) ** 2)


def _arms(votes: Votes) -> tuple[Array, Array, Array]:
    """Returns the yes votes and all votes of the units in each arm that has votes, and the number of such units."""
    yes, n, count = votes.units[:, (0, 2)], votes.units[:, (1, 3)], votes.units[:, 4]
    arms = count @ n > 0
    return yes[:, arms], n[:, arms], count


def _smooth(yes: Array, n: Array, count: Array) -> Array:
    """Returns the variance of a vote of each arm, as in the middle of Wilson's interval."""
    middle = (count @ yes + Z95 * Z95 / 2) / (count @ n + Z95 * Z95)
    smooth: Array = middle * (1 - middle)
    return smooth


def _pairs(n: Array, count: Array) -> Array:
    """Returns the number of ordered pairs of votes of the same unit, for each arm."""
    pairs: Array = count @ (n * np.maximum(n - 1, 0))
    return pairs


def _correlation(yes: Array, n: Array, count: Array, caution: float) -> float:
    """Returns the correlation of two votes of a unit, raised by its error, at most 1; 1 if it is unknown."""
    total, events, pairs = count @ n, count @ yes, _pairs(n, count)
    if not pairs.any():
        return 0.0
    shares = events / total
    variance = shares * (1 - shares)
    sides = (yes - shares * n) / total
    residuals = (sides[:, -1] - sides[:, :-1].sum(axis=1)) ** 2 / np.maximum(1 - (n / total).max(axis=1), 0.2)
    weights = variance * pairs / total**2
    if not weights.any():
        return 1.0
    estimate = (float(count @ residuals) - float((variance / total).sum())) / float(weights.sum())
    # The standard error mixes that of independent pairs and that of perfectly correlated units, and grows with the
    # rarity of yes or no.
    middle = (events + Z95 * Z95 / 2) / (total + Z95 * Z95)
    squares = count @ (n * np.maximum(n - 1, 0)) ** 2
    known, bounded = pairs > 0, min(max(estimate, 0.0), 1.0)
    spread = (2 * pairs[known] * (1 - bounded) + 2 * squares[known] * bounded) / pairs[known] ** 2
    spread *= (1 - bounded) / (4 * middle * (1 - middle))[known]
    error = math.sqrt(float((weights[known] ** 2 * spread).sum())) / float(weights.sum())
    return min(estimate + caution * error, 1.0)
