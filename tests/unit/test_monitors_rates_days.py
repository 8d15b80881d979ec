"""Rows of one day are alike."""

from itertools import chain

import numpy as np
import pytest

from retuned.monitors.drift.two_samples import Sample, categories
from retuned.monitors.rates.days import INDEPENDENT, design_effects
from retuned.monitors.statistics import repeated_looks, two_sample_chi_square

ROWS, DAYS = 1_000, 7
TOPICS = np.asarray((16, 16, 10, 10, 10, 9, 9, 8, 6, 6), dtype=float) / 100


def days(rng: np.random.Generator, deviation: float, shift: float = 0.0) -> tuple[Sample, Sample]:
    """Topics of a week and of the day after it; their shares deviate between days, and one may have shifted."""

    def day(number: int, rows: int, shift: float = 0.0) -> tuple[list[str], list[int]]:
        shares = np.clip(TOPICS + rng.normal(0, deviation, len(TOPICS)), 0.001, None)
        shares *= (1 - shift) / shares.sum()
        shares[3] += shift
        return [f"topic {n}" for n in rng.choice(len(TOPICS), size=rows, p=shares)], [number] * rows

    def sample(parts: list[tuple[list[str], list[int]]]) -> Sample:
        values, numbers = zip(*parts, strict=True)
        return Sample(np.asarray(list(chain(*values)), dtype=object), np.asarray(list(chain(*numbers))))

    week = [day(-number - 1, ROWS // DAYS) for number in range(DAYS)]
    return sample(week), sample([day(0, ROWS, shift)])


def test_rows_of_one_day_are_as_good_as_independent() -> None:
    rows = np.zeros(50), np.zeros(50, dtype=np.int64), None
    assert design_effects(rows, rows) == INDEPENDENT
    assert INDEPENDENT.p_value(lambda effect: effect / 4) == 0.25


def test_the_design_effect_grows_with_the_difference_between_days() -> None:
    rng = np.random.default_rng(1)
    day = np.repeat(np.arange(DAYS), 500)

    def effect(deviation: float) -> float:
        scores = rng.normal(0, 1, len(day)) + rng.normal(0, deviation, DAYS)[day]
        return design_effects((scores, day, None), (rng.normal(0, 1, 500), np.full(500, DAYS), None)).mean

    assert 1 < effect(0.0) < 3
    # By Kish's formula 46, of which a week is too little to believe all.
    assert 10 < np.mean([effect(0.3) for _ in range(10)]) < 60


def test_without_any_variance_days_are_alike() -> None:
    day = np.repeat(np.arange(DAYS), 100)
    rare = design_effects((np.zeros(700), day, None), (np.zeros(100), np.full(100, DAYS), None))
    assert rare.mean < 1.5


def test_days_that_differ_by_two_points_alarm_no_more_often_than_promised() -> None:
    """One look at one of 12 features; rows taken for independent would alarm on every third day."""
    threshold, runs = repeated_looks(0.05 / 12, moving=1), 40
    alarms = independent = 0
    for seed in range(runs):
        reference, current = days(np.random.default_rng(seed), 0.02)
        alarms += categories(reference, current).p_value <= threshold
        independent += two_sample_chi_square(reference.values.tolist(), current.values.tolist()) <= threshold
    assert independent >= 10
    assert alarms <= 1


def test_a_shift_of_twenty_points_is_found_though_days_differ() -> None:
    threshold = repeated_looks(0.05 / 12, moving=1)
    found = [categories(*days(np.random.default_rng(seed), 0.02, shift=0.2)) for seed in range(30)]
    assert sum(one.p_value <= threshold for one in found) >= 28
    assert np.mean([one.share for one in found]) == pytest.approx(0.18, abs=0.03)  # 0.9 of it came from elsewhere
    assert sum(one.low <= 0.18 <= one.high for one in found) >= 18
