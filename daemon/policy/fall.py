"""A sequential test for a fall of users' ratings since the champion's promotion; it may run every minute, for years."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retuned.daemon.policy.ratings import UNRATED, YEAR, Ratings
from retuned.monitors.rates.days import variance_between
from retuned.monitors.rates.sequential import log_e_value

FALSE_ALARMS = 0.05
"""Largest chance of any false alarm in a YEAR of periods."""
NO_FALL = 0.25
"""A fall by less than this share of `drop` does not count: days and weeks differ by as much without any change."""


@dataclass(frozen=True)
class Fall:
    """Ratings before and since the beginning of a fall."""

    before: Ratings
    now: Ratings


def find_fall(periods: Sequence[Ratings], drop: float, minimum_ratings: int) -> Fall | None:
    """Returns the fall of the helpful rate by `drop` or more with the most evidence; None: there is not enough.

    A fall may begin with any period. For each, those before it are compared with those since, by an e-value against
    "the rate fell by at most NO_FALL of the drop". Each of them has 1 / YEAR of the evidence: their sum over a year is
    an e-value again, which reaches 1 / FALSE_ALARMS with a chance of FALSE_ALARMS at most at any time of that year,
    however often one looks (Ville's inequality). So a fall is found as fast after a year of good ratings as after a
    week. Source: Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection",
    New England Journal of Statistics in Data Science 2 (2024).

    Votes are divided by their design effect: votes of one account in a period are alike (rates/estimate.py), and so
    are those of one period, by as much as the periods on either side differ among themselves (rates/days.py).

    Assumes that accounts which vote in many periods are on both sides, so that their opinion cancels, and that, without
    a change, no stretch of time has a rate lower than the time before it by more than NO_FALL of the drop.

    Args:
        periods: oldest first, at most YEAR.
    """
    rated = np.array([(period.helpful, period.total) for period in periods], dtype=np.float64).reshape(-1, 2)
    effect = sum(periods, UNRATED).effect
    helpful, total, squares = (np.cumsum([0, *each]) for each in (rated[:, 0], rated[:, 1], rated[:, 1] ** 2))
    begins = np.arange(1, max(len(periods), 1))
    n_before, n_now = total[begins], total[-1] - total[begins]
    begins = begins[np.minimum(n_before, n_now) >= max(minimum_ratings * effect, 1)]
    n_before, n_now = total[begins], total[-1] - total[begins]
    bad_before, bad_now = n_before - helpful[begins], n_now - (helpful[-1] - helpful[begins])
    fell = bad_now / n_now - bad_before / n_before
    chosen = fell >= drop
    if not chosen.any():
        return None
    arrays = (begins, n_before, n_now, bad_before, bad_now)
    begins, n_before, n_now, bad_before, bad_now = (array[chosen] for array in arrays)
    between = np.array([variance_between((rated[:begin], rated[begin:]), effect) for begin in begins.tolist()])
    share = (bad_before + bad_now + 1) / (n_before + n_now + 2)
    concentration = squares[begins] / n_before**2 + (squares[-1] - squares[begins]) / n_now**2
    effects = effect + between * concentration / (share * (1 - share) * (1 / n_before + 1 / n_now))
    evidence = log_e_value(bad_before / effects, n_before / effects, bad_now / effects, n_now / effects, NO_FALL * drop)
    if np.logaddexp.reduce(evidence) < math.log(YEAR / FALSE_ALARMS):
        return None
    best = int(evidence.argmax())
    return Fall(
        Ratings(int(n_before[best] - bad_before[best]), int(n_before[best])),
        Ratings(int(n_now[best] - bad_now[best]), int(n_now[best])),
    )
