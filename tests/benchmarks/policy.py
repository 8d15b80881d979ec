"""The policy's "the helpful rate fell", looked at each day of a year, where it did not fall and where it did.

Simulated are counts of ratings by day: 40 and 75 a day, at one rate, and with a weekly cycle of 3 points either way and
days that differ by 2 points (standard deviation) besides. False alarms are those of a year; a fall of 20 points comes
on day 20 and on day 200.
"""

import sys
from statistics import median, quantiles

import numpy as np

from retuned.daemon.policy.fall import find_fall
from retuned.daemon.policy.ratings import YEAR, Ratings
from retuned.daemon.settings import PolicySettings

RUNS = 100
RATE, FALL = 0.8, 0.2
POLICY = PolicySettings()
KINDS = {"one rate": (0.0, 0.0), "weekly cycle, days that differ": (0.03, 0.02)}


def days(rng: np.random.Generator, per_day: int, kind: str, falls_on: int = YEAR) -> list[Ratings]:
    """A year of ratings, by day."""
    cycle, deviation = KINDS[kind]
    rates = RATE + cycle * np.cos(2 * np.pi * np.arange(YEAR) / 7) + rng.normal(0, deviation, YEAR)
    rates[falls_on:] -= FALL
    totals = rng.poisson(per_day, YEAR)
    helpful = rng.binomial(totals, rates.clip(0, 1))
    return [Ratings(int(good), int(total)) for good, total in zip(helpful, totals, strict=True)]


def found_on(year: list[Ratings], since: int = 1) -> int | None:
    """The first day, from `since` on, at whose end a fall is found."""
    for day in range(since, len(year) + 1):
        if find_fall(year[:day], POLICY.helpful_rate_drop, POLICY.minimum_ratings) is not None:
            return day
    return None


def main() -> dict[str, float]:
    """The worst of both kinds of days counts."""
    luck = np.random.default_rng(1)
    figures = {"policy_false_alarms_year": 0.0, "policy_falls_found": 1.0, "policy_ratings_to_find_fall": 0.0}
    for kind in KINDS:
        for per_day in (40, 75):
            false = sum(found_on(days(luck, per_day, kind)) is not None for _ in range(RUNS)) / RUNS
            figures["policy_false_alarms_year"] = max(false, figures["policy_false_alarms_year"])
            print(f"{kind}, {per_day} ratings a day: false alarms in {false:.0%} of years", file=sys.stderr)
            for falls_on in (20, 200):
                took = []
                for _ in range(RUNS):
                    year = days(luck, per_day, kind, falls_on)
                    if (day := found_on(year, since=falls_on + 1)) is not None:
                        took.append(sum(one.total for one in year[falls_on:day]))
                found, usual, most = len(took) / RUNS, median(took), quantiles(took, n=10)[-1]
                figures["policy_falls_found"] = min(found, figures["policy_falls_found"])
                figures["policy_ratings_to_find_fall"] = max(usual, figures["policy_ratings_to_find_fall"])
                print(
                    f"    a fall of {FALL:.0%} on day {falls_on}: found in {found:.0%}, after {usual:.0f} ratings "
                    f"(nine in ten: {most:.0f})",
                    file=sys.stderr,
                )
    return figures
