"""Intervals, two-sample tests, and their corrections."""

import math
import random

import numpy as np
import pytest

from retuned.monitors.drift.check import sentence, verdict
from retuned.monitors.drift.comparison import Feature
from retuned.monitors.statistics import (
    chi_square_sum_tail,
    cochran_mantel_haenszel,
    holm,
    repeated_looks,
    stratified_rate,
    two_sample_chi_square,
    two_sample_kernel,
    wilson,
)

# Admitted and applicants, women and men, by department: Bickel, Hammel and O'Connell, "Sex bias in graduate admissions:
# data from Berkeley", Science 187 (1975).
BERKELEY = (
    (89, 108, 512, 825),
    (17, 25, 353, 560),
    (202, 593, 120, 325),
    (131, 375, 138, 417),
    (94, 393, 53, 191),
    (24, 341, 22, 373),
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


def test_dependent_rows_count_as_fewer() -> None:
    before, after = ["no"] * 400 + ["yes"] * 100, ["no"] * 350 + ["yes"] * 150
    fewer = two_sample_chi_square(before[::5], after[::5])
    assert two_sample_chi_square(before, after) < 0.001
    assert two_sample_chi_square(before, after, design_effect=5.0) == pytest.approx(fewer)


def test_a_fall_within_strata_is_told_apart_from_a_change_of_their_mix() -> None:
    """Men were admitted far more often in all, and hardly more seldom by departments (p of R and statsmodels)."""
    p_value, women, men = cochran_mantel_haenszel(BERKELEY)
    assert p_value == pytest.approx(0.21692369705551817 / 2)
    assert 0.01 < women - men < 0.04
    rate = [sum(numbers) for numbers in zip(*BERKELEY, strict=True)]
    assert rate[2] / rate[3] - rate[0] / rate[1] > 0.1
    assert cochran_mantel_haenszel((c, d, a, b) for a, b, c, d in BERKELEY)[0] == pytest.approx(1 - p_value)


def test_strata_that_say_nothing_are_passed_over() -> None:
    assert cochran_mantel_haenszel([]) == (1.0, 0.0, 0.0)
    assert cochran_mantel_haenszel([(0, 0, 3, 9), (3, 9, 0, 0)]) == (1.0, 0.0, 0.0)
    assert cochran_mantel_haenszel([(9, 9, 7, 7)]) == (1.0, 1.0, 1.0)
    with_idle = cochran_mantel_haenszel([(30, 40, 20, 40), (0, 0, 5, 9)])
    assert with_idle == cochran_mantel_haenszel([(30, 40, 20, 40)])
    assert with_idle[1:] == (0.75, 0.5)


def test_holm_rejects_what_its_procedure_does() -> None:
    values = [0.04, 0.005, 0.03, 0.01]
    assert holm(values, 0.05, lambda rate: rate) == 0.025  # two are left: 0.03 > 0.05 / 2
    assert holm([0.3, 0.2], 0.05, lambda rate: rate) == 0.025
    assert holm([0.001, 0.01], 0.05, lambda rate: rate) == 0.05
    assert holm([], 0.05, lambda rate: rate) == 0.05
    assert holm([0.001, 0.3], 0.05, lambda rate: rate / 10) == 0.005


@pytest.mark.parametrize("moving", [1, 2])
def test_looks_at_moving_windows_alarm_as_often_as_promised(moving: int) -> None:
    """200 looks while the windows move on by their length; a fixed threshold would alarm on 3 to 6 times the days."""
    rng = np.random.default_rng(5)
    days, rows, looks = 3_000, 400, 200

    def means(moves: bool) -> np.ndarray:
        sums = np.cumsum(rng.standard_normal((days, 2 * rows)), axis=1)
        at = np.linspace(0, rows - 1, looks).astype(int)
        return (sums[:, rows + at] - sums[:, at] if moves else sums[:, [rows] * looks]) / math.sqrt(rows)

    scores = np.abs(means(True) - means(moving == 2)) / math.sqrt(2)
    smallest = np.array([math.erfc(score / math.sqrt(2)) for score in scores.max(axis=1)])
    assert 0.03 <= (smallest <= repeated_looks(0.05, moving)).mean() <= 0.06
    assert 0.002 <= (smallest <= repeated_looks(0.005, moving)).mean() <= 0.0085
    assert (smallest <= 0.05).mean() > 0.15


def test_a_rate_of_nothing_never_alarms() -> None:
    assert repeated_looks(0.0, 1) == 0.0
    assert repeated_looks(1.0, 2) < 0.5


@pytest.mark.parametrize("degrees", [2, 30])
@pytest.mark.parametrize("chance", [0.9, 0.05, 1e-4, 1e-12])
def test_the_tail_of_chi_squares_is_what_tables_give(degrees: int, chance: float) -> None:
    from scipy.stats import chi2

    value = float(chi2.isf(chance, degrees))
    assert chi_square_sum_tail(3 * value, np.full(degrees, 3.0)) == pytest.approx(chance, rel=0.05)


def test_the_tail_of_unequal_chi_squares_is_what_drawing_gives() -> None:
    weights = np.array([5.0, 2.0, 1.0, 0.3, 0.0, -1e-18])
    drawn = np.random.default_rng(0).chisquare(1, (400_000, 4)) @ weights[:4]
    for chance in (0.5, 0.05, 1e-3):
        assert chi_square_sum_tail(float(np.quantile(drawn, 1 - chance)), weights) == pytest.approx(chance, rel=0.12)
    assert chi_square_sum_tail(1.0, np.zeros(3)) == 1.0
    assert chi_square_sum_tail(weights.sum(), weights) == 0.5


@pytest.mark.full
def test_the_kernel_test_is_quiet_on_one_distribution_and_sees_a_third_that_moved() -> None:
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((6, 12))

    def rows(shares: tuple[float, ...], count: int) -> np.ndarray:
        made = centres[rng.choice(6, count, p=shares)] + 0.7 * rng.standard_normal((count, 12))
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    usual, other = (0.3, 0.2, 0.2, 0.1, 0.1, 0.1), (0.2, 0.13, 0.13, 0.07, 0.07, 0.4)
    quiet = []
    for _ in range(80):
        vectors = np.vstack([rows(usual, 90), rows(usual, 60)])
        statistic, weights, _ = two_sample_kernel(vectors @ vectors.T, 90)
        quiet.append(chi_square_sum_tail(statistic, weights))
    assert np.mean(np.array(quiet) < 0.05) <= 0.12
    assert 0.35 <= np.median(quiet) <= 0.65
    for _ in range(10):
        vectors = np.vstack([rows(usual, 200), rows(other, 200)])
        statistic, weights, witness = two_sample_kernel(vectors @ vectors.T, 200)
        assert chi_square_sum_tail(statistic, weights) < 0.01
        assert vectors[200 + witness[200:].argmax()] @ centres[5] > 0


def test_latency_that_moved_is_told_and_is_no_drift() -> None:
    def feature(name: str, drifted: bool) -> Feature:
        return Feature(name, "two_sample_ks", 0.01, 0.0001 if drifted else 0.5, drifted, "a mean of 1", "9", 0.3)

    quiet = [feature("prompt_length", False), feature("topic", False), feature("latency_seconds", True)]
    assert verdict(quiet) is None
    assert "latency seconds from a mean of 1 to 9" in sentence(quiet, [], {})
    assert verdict([feature("prompt_length", True), *quiet[1:]]) == feature("prompt_length", True)


@pytest.mark.parametrize(
    ("truth", "sensitivity", "false_alarms"), [(0.084, 0.75, 0.18), (0.084, 0.5, 0.05), (0.3, 0.8, 0.4)]
)
def test_a_rate_by_alarms_covers_the_true_one_though_half_of_the_labels_are_of_alarms(
    truth: float, sensitivity: float, false_alarms: float
) -> None:
    """Windows of 1,000 answers; people labelled 75 alarms and 75 other answers of such windows."""
    rng = np.random.default_rng(7)
    alarm = truth * sensitivity + (1 - truth) * false_alarms
    invented = truth * sensitivity / alarm, truth * (1 - sensitivity) / (1 - alarm)
    found = []
    for _ in range(1_000):
        alarms = int(rng.binomial(1_000, alarm))
        labelled = [int(rng.binomial(75, share)) for share in invented]
        found.append(stratified_rate([(alarms, 75, labelled[0]), (1_000 - alarms, 75, labelled[1])]))
    assert None not in found
    rates, lows, highs = zip(*(one for one in found if one), strict=True)
    assert abs(sum(rates) / 1_000 - truth) < 0.01
    assert 0.93 <= sum(low <= truth <= high for low, high in zip(lows, highs, strict=True)) / 1_000 <= 0.995
    assert max(high - low for low, high in zip(lows, highs, strict=True)) < 0.25


def test_sizes_of_strata_that_are_drawn_widen_the_interval() -> None:
    """All alarms are invented, no other answer is: what is not known is how many alarms there are."""
    rng = np.random.default_rng(8)
    rates = [stratified_rate([(n, n, n), (200 - n, 200 - n, 0)]) for n in map(int, rng.binomial(200, 0.3, 1_000))]
    assert sum(one[1] <= 0.3 <= one[2] for one in rates if one) / 1_000 >= 0.93


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
