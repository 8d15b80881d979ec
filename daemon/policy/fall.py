"""Did users' ratings fall since the champion's promotion? A test that may be looked at every minute, for years."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retuned.daemon.policy.ratings import YEAR, Ratings
from retuned.monitors.watch.sequential import log_e_value

FALSE_ALARMS = 0.05
"""Chance of any false alarm in a YEAR of periods."""
NO_FALL = 0.25
"""A fall by this share of the drop that matters is none: days and weeks differ by as much, and nothing has changed."""


@dataclass(frozen=True)
class Fall:
    """Ratings before and since the beginning of a fall."""

    before: Ratings
    now: Ratings


def find_fall(periods: Sequence[Ratings], drop: float, minimum_ratings: int) -> Fall | None:
    """The fall of the helpful rate by `drop` or more for which there is enough evidence; None: there is none.

    A fall may begin with any period. For each, those before it are compared with those since, by an e-value against
    "the rate fell by at most NO_FALL of the drop". Each of them has 1 / YEAR of the evidence: their sum over a year is
    an e-value again, which reaches 1 / FALSE_ALARMS with a chance of FALSE_ALARMS at most at any time of that year,
    however often one looks (Ville's inequality). So a fall is found as fast after a year of good ratings as after a
    week. Source: Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection",
    New England Journal of Statistics in Data Science 2 (2024).

    Assumes that ratings of different accounts (else conversations) and of different periods are independent at the rate
    of their time and that, without a change, no stretch of time has a rate lower than the time before it by more than
    NO_FALL of the drop.

    Args:
        periods: the oldest first, at most YEAR.
    """
    helpful = np.cumsum([0, *(period.helpful for period in periods)])
    total = np.cumsum([0, *(period.total for period in periods)])
    begins = np.arange(1, max(len(periods), 1))
    n_before, n_now = total[begins], total[-1] - total[begins]
    begins = begins[np.minimum(n_before, n_now) >= max(minimum_ratings, 1)]
    n_before, n_now = total[begins], total[-1] - total[begins]
    bad_before, bad_now = n_before - helpful[begins], n_now - (helpful[-1] - helpful[begins])
    fell = bad_now / n_now - bad_before / n_before
    if not (fell >= drop).any():
        return None
    evidence = log_e_value(bad_before, n_before, bad_now, n_now, NO_FALL * drop)
    if np.logaddexp.reduce(evidence) < math.log(YEAR / FALSE_ALARMS):
        return None
    best = int(evidence.argmax())
    if fell[best] < drop:
        return None
    return Fall(
        Ratings(int(n_before[best] - bad_before[best]), int(n_before[best])),
        Ratings(int(n_now[best] - bad_now[best]), int(n_now[best])),
    )
