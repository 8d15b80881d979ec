"""What counts of votes show, how soon a watch finds a fall, and how that reads."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest

from retuned.monitors.rates.sequential import log_e_value
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.comparison import (
    COMPARED,
    FALL,
    MISSED,
    Baseline,
    Counts,
    Power,
    compare,
    compare_steps,
    decide,
    power,
    seconds_to_find,
    span,
    votes_per_day,
)

SETTINGS = WatchSettings()
USER, JUDGE = ("helpful", "user"), ("hallucination", "judge")
DAY = timedelta(days=1)


def reference(per_day: float, votes: float = 700, share: float = 0.0) -> Counts:
    baseline = Baseline(bad=votes / 5, votes=votes, period=7 * DAY, per_day=per_day, share=share)
    return Counts("week", votes / 5, votes, 0, 0, baseline=baseline)


def test_evidence_of_one_is_an_e_value_of_the_allowed_error() -> None:
    found = compare(*USER, [Counts("week", 60, 300, 55, 300)], SETTINGS)
    as_good = float(log_e_value(240, 300, 245, 300, -SETTINGS.margin))
    assert found.as_good == pytest.approx(as_good / math.log(1 / SETTINGS.false_rollback_rate))
    assert found.as_good > 0.1
    found = compare(*USER, [Counts("week", 60, 300, 155, 300)], SETTINGS)
    worse = float(log_e_value(60, 300, 155, 300, SETTINGS.margin))
    assert found.worse == pytest.approx(worse / math.log(1 / (SETTINGS.false_rollback_rate * COMPARED[USER])))
    assert found.worse > 1


def test_steps_add_their_evidence_that_a_canary_is_no_fall() -> None:
    steps = [Counts("same_time", 60, 300, 25, 100), Counts("same_time", 30, 100, 30, 100)]
    as_good = float(log_e_value(240, 300, 75, 100, -FALL) + log_e_value(70, 100, 70, 100, -FALL))
    found = compare_steps(*USER, steps, SETTINGS)
    assert found.as_good == pytest.approx(as_good / math.log(1 / (MISSED * COMPARED[USER])))
    assert found.as_good > 0.1
    assert (found.bad_before, found.n_before, found.bad_after, found.n_after) == (90, 400, 55, 200)


def test_a_watch_is_as_fast_as_its_fastest_comparison() -> None:
    kinds = {USER: [reference(60)], JUDGE: [reference(2_000)], ("latency", "app"): [Counts("all", 1, 24, 1, 9)]}
    judged = seconds_to_find(JUDGE, [reference(2_000).baseline], 2_000, SETTINGS)
    rated = seconds_to_find(USER, [reference(60).baseline], 60, SETTINGS)
    assert judged is not None
    assert rated is not None
    assert judged < rated
    assert power(kinds, timedelta(hours=1), SETTINGS) == Power(2_000, judged)
    assert power({USER: kinds[USER], JUDGE: [reference(61)]}, timedelta(hours=1), SETTINGS) == Power(60, rated)
    apps = ("hallucination", "app")
    assert power({apps: [reference(60)]}, timedelta(hours=1), SETTINGS).seconds is not None
    never = {USER: [reference(0.01)], JUDGE: [reference(0.02)]}
    assert power(never, timedelta(hours=1), SETTINGS) == Power(0.02, None)
    assert power(never | {USER: [reference(60)]}, timedelta(hours=1), SETTINGS) == Power(60, rated)


@pytest.mark.parametrize(
    ("change", "least"),
    [
        ({"share": 0.02}, 20),
        ({"effect": 3.0}, 2.5),
        ({"between_days": 0.002}, 2),
        ({"bad": 50, "votes": 250}, 2),
        ({"bad": 20, "votes": 100}, 10),
    ],
    ids=str,
)
def test_what_delays_a_watch(change: dict[str, float], least: float) -> None:
    """Little traffic beside, accounts that vote alike, days that differ, and few votes before."""
    known = Baseline(bad=140, votes=700, period=7 * DAY)
    usual, delayed = (
        seconds_to_find(USER, [one], 200, SETTINGS) or math.inf for one in (known, replace(known, **change))
    )
    assert usual < 2 * 86_400
    assert delayed > least * usual
    assert seconds_to_find(USER, [known, replace(known, **change)], 200, SETTINGS) in (delayed, None)


@pytest.mark.parametrize(("hours", "expected"), [(23, 60), (24, 10), (48, 5)])
def test_after_a_day_votes_are_those_that_came(hours: int, expected: float) -> None:
    counts = Counts("week", 140, 700, 2, 10, baseline=reference(60).baseline)
    assert votes_per_day([counts], timedelta(hours=hours)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Power(1234.4, 7_200), "at 1,234 votes a day a fall of 20 points shows after 2 hours"),
        (Power(99.96, 14 * 86_400), "at 100 votes a day a fall of 20 points shows after 14 days"),
        (Power(1.234, 20 * 86_400), "at 1.23 votes a day a fall of 20 points would take 20 days to show"),
        (Power(0.1, None), "at 0.1 votes a day a fall of 20 points would take more than a year to show"),
        (Power(0.0, None), "nobody votes on the answers"),
    ],
)
def test_what_a_watch_can_find_reads_well(found: Power, text: str) -> None:
    verdict, reasons = decide([], timedelta(hours=1), timedelta(hours=1), found, SETTINGS)
    assert verdict == "go_on"
    assert reasons[1].startswith(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7_199, "7199 s"), (7_200, "2 hours"), (47 * 3_600, "47 hours"), (2 * 86_400, "2 days")],
)
def test_a_span_has_the_unit_that_fits(seconds: float, text: str) -> None:
    assert span(seconds) == text
