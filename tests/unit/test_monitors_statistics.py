"""Intervals and two-sample tests."""

import math
import random

import pytest

from retuned.monitors.drift import Feature, sentence, verdict
from retuned.monitors.statistics import (
    corrected_rate,
    stratified_rate,
    two_sample_chi_square,
    two_sample_ks,
    wilson,
)


def test_wilson_is_what_the_formula_gives() -> None:
    rate, low, high = wilson(8, 10)
    assert rate == 0.8
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 1_000, 10**9])
def test_wilson_is_never_nan_and_always_an_interval(n: int) -> None:
    for successes in {0, min(1, n), n // 2, n}:
        rate, low, high = wilson(successes, n)
        assert not any(math.isnan(value) for value in (rate, low, high))
        assert 0 <= low <= rate <= high <= 1
    assert wilson(0, 0) == (0.0, 0.0, 1.0)


def test_wilson_covers_the_true_rate_19_times_in_20() -> None:
    rng = random.Random(1)
    covered = 0
    for _ in range(2_000):
        successes = sum(rng.random() < 0.1 for _ in range(60))
        _, low, high = wilson(successes, 60)
        covered += low <= 0.1 <= high
    assert 0.93 <= covered / 2_000 <= 0.98


def test_quiet_samples_pass_the_chi_square_test_as_often_as_promised() -> None:
    """A goodness-of-fit test, with the reference as exact, fails 40 and more of 100 such pairs."""
    rng = random.Random(2)
    weights = (30, 20, 15, 10, 10, 8, 5, 2)
    alarms = sum(
        two_sample_chi_square(rng.choices("abcdefgh", weights, k=500), rng.choices("abcdefgh", weights, k=500)) < 0.05
        for _ in range(300)
    )
    assert alarms / 300 <= 0.09


def test_a_moved_mix_fails_the_chi_square_test() -> None:
    rng = random.Random(3)
    for _ in range(20):
        before = rng.choices("abcde", (3, 3, 2, 1, 1), k=500)
        after = [
            rng.choice("e") if rng.random() < 0.2 else letter for letter in rng.choices("abcde", (3, 3, 2, 1, 1), k=500)
        ]
        assert two_sample_chi_square(before, after) < 0.005


def test_rare_categories_are_pooled_not_trusted() -> None:
    """Every value of one sample is another's stranger, once each: five counts of one are no evidence."""
    common = ["usual"] * 95
    assert two_sample_chi_square([*common, *"abcde"], [*common, *"fghij"]) > 0.5


def test_a_rare_event_that_becomes_frequent_is_seen() -> None:
    assert two_sample_chi_square(["no"] * 500, ["no"] * 489 + ["yes"] * 11) < 0.005


def test_a_rare_event_is_judged_exactly() -> None:
    """Fisher's test gives 0.059 and 0.0070 for 5 and 8 of 100 against none; chi-square would say 0.024 and 0.0039."""
    assert two_sample_chi_square(["no"] * 100, ["no"] * 95 + ["yes"] * 5) == pytest.approx(0.059, abs=1e-3)
    assert two_sample_chi_square(["no"] * 100, ["no"] * 92 + ["yes"] * 8) == pytest.approx(0.0070, abs=1e-3)


def test_one_category_everywhere_is_no_difference() -> None:
    assert two_sample_chi_square(["no"] * 100, ["no"] * 100) == 1.0


def test_ks_sees_longer_answers_and_not_equal_ones() -> None:
    rng = random.Random(4)
    before = [rng.gauss(100, 30) for _ in range(500)]
    assert two_sample_ks(before, [rng.gauss(100, 30) for _ in range(500)]) > 0.01
    assert two_sample_ks(before, [1.3 * rng.gauss(100, 30) for _ in range(500)]) < 1e-6


def test_latency_that_moved_is_told_and_is_no_drift() -> None:
    def feature(name: str, drifted: bool) -> Feature:
        return Feature(name, "two_sample_ks", 0.01, 0.0001 if drifted else 0.5, drifted, "a mean of 1", "9")

    quiet = [feature("prompt_length", False), feature("topic", False), feature("latency_seconds", True)]
    assert verdict(quiet) == (False, 0.0)
    assert "latency seconds from a mean of 1 to 9" in sentence(quiet, [], {})
    assert verdict([feature("prompt_length", True), *quiet[1:]]) == (True, 0.5)


@pytest.mark.parametrize(("rate", "sensitivity", "specificity"), [(0.05, 0.85, 0.95), (0.0, 0.9, 0.9), (0.5, 0.8, 0.8)])
def test_a_corrected_rate_covers_the_true_one(rate: float, sensitivity: float, specificity: float) -> None:
    rng = random.Random(7)

    def draw(n: int, share: float) -> int:
        return sum(rng.random() < share for _ in range(n))

    alarms = rate * sensitivity + (1 - rate) * (1 - specificity)
    found = [
        corrected_rate(draw(200, alarms), 200, draw(40, sensitivity), 40, draw(60, specificity), 60) for _ in range(600)
    ]
    assert None not in found
    covered = sum(one[1] <= rate <= one[2] for one in found if one)
    assert covered / 600 >= 0.93
    assert abs(sum(one[0] for one in found if one) / 600 - rate) < 0.03


def test_a_corrected_rate_is_never_nan_and_needs_a_test_that_tells() -> None:
    assert corrected_rate(0, 0, 20, 20, 20, 20) is None
    assert corrected_rate(5, 10, 0, 0, 20, 20) is None
    assert corrected_rate(5, 10, 10, 20, 10, 20) is None  # a coin
    assert corrected_rate(5, 10, 5, 20, 5, 20) is None  # worse than one
    for alarms in (0, 1, 50, 100):
        rate, low, high = corrected_rate(alarms, 100, 20, 20, 20, 20) or (math.nan,) * 3
        assert 0 <= low <= rate <= high <= 1


def test_a_stratified_rate_covers_the_true_one() -> None:
    """300 doubtful answers of which half are wrong, 700 clear ones of which few are; as many are looked at of both."""
    rng = random.Random(8)
    population = [[rng.random() < 0.5 for _ in range(300)], [rng.random() < 0.04 for _ in range(700)]]
    truth = sum(map(sum, population)) / 1_000
    rates = []
    for _ in range(1_000):
        looked_at = [rng.sample(stratum, 25) for stratum in population]
        rates.append(stratified_rate([(len(s), 25, sum(some)) for s, some in zip(population, looked_at, strict=True)]))
    assert None not in rates
    assert abs(sum(one[0] for one in rates if one) / 1_000 - truth) < 0.01
    assert 0.93 <= sum(one[1] <= truth <= one[2] for one in rates if one) / 1_000 <= 0.995


def test_a_stratified_rate_is_that_of_a_plain_sample_with_one_stratum() -> None:
    assert stratified_rate([(500, 10, 8)]) == pytest.approx(wilson(8, 10), abs=0.02)
    assert stratified_rate([(0, 0, 0), (500, 10, 0)]) == pytest.approx(wilson(0, 10), abs=0.02)
    assert stratified_rate([(5, 0, 0), (500, 10, 0)]) is None
    assert stratified_rate([]) is None
