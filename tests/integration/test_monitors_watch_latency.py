"""Slow answers of a watched champion, by the hour."""

import random

import pytest

from fixtures.feedback.traffic import MINUTE, feedback, interactions
from fixtures.feedback.watched import HOUR, NEW, OLD, SINCE, compared, counted, promote, rated, seen, timed
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.watch.check import WatchCheck


def test_absurd_latencies_end_no_watch_with_an_error(warehouse: Warehouse) -> None:
    promote(warehouse)
    timed(warehouse, OLD, range(-10, 0), 1e308)
    timed(warehouse, NEW, range(10), 1e308)
    assert counted(compared(seen(warehouse), "latency", "app")) == (10, 10, 0, 10)


def test_answers_that_got_slow_for_hours_are_seen(warehouse: Warehouse) -> None:
    promote(warehouse)
    timed(warehouse, OLD, range(-24, 0), 0.5, n=8)
    timed(warehouse, OLD, range(-24, 0), 0.6, n=2)
    timed(warehouse, NEW, range(9), 1.75, n=9)
    timed(warehouse, NEW, range(9), 1.85, n=1)
    timed(warehouse, NEW, range(9), float("nan"), n=5)
    expected = (24 * 0.2, 24, 0.1 * 8, 9)  # the first answers are not compared
    assert counted(compared(seen(warehouse), "latency", "app")) == pytest.approx(expected)


def slow_for(warehouse: Warehouse, hours: range) -> WatchCheck:
    """Before, one answer in five is slow; then all are for some hours, and none in the others of two days."""
    promote(warehouse)
    timed(warehouse, OLD, range(-24, 0), 0.5, n=8)
    timed(warehouse, OLD, range(-24, 0), 1.0, n=2)
    timed(warehouse, NEW, range(48), 0.5)
    for hour in hours:
        parameters = {"start": SINCE + hour * HOUR, "end": SINCE + (hour + 1) * HOUR}
        warehouse.execute(
            "UPDATE interactions SET latency_seconds = 4 WHERE timestamp >= $start AND timestamp < $end", parameters
        )
    return seen(warehouse, SINCE + max(12, len(hours) + 1) * HOUR)


def test_a_version_that_is_slow_hour_after_hour_is_taken_back(warehouse: Warehouse) -> None:
    found = slow_for(warehouse, range(14))
    assert found.verdict == "roll_back"
    assert found.reasons[0].startswith("slow by app: 93% of 15 hours, before 20% of 24 hours")


def test_one_hour_of_a_slow_machine_takes_nothing_back(warehouse: Warehouse) -> None:
    found = slow_for(warehouse, range(2, 4))
    assert counted(compared(found, "latency", "app"))[2:] == (2, 12)
    assert found.verdict == "go_on"


def test_the_first_answers_of_an_adapter_wait_for_it_to_be_loaded(warehouse: Warehouse) -> None:
    promote(warehouse)
    timed(warehouse, OLD, range(-24, 0), 0.5)
    rest = {"model": NEW, "context": None, "latency_seconds": 60.0, "step": MINUTE, "offset": 5000}
    interactions(warehouse, ["?"] * 14, random.Random(1), start=SINCE, **rest)
    timed(warehouse, NEW, range(1, 12), 0.2)
    assert counted(compared(seen(warehouse), "latency", "app"))[2:] == (0, 11)


def test_slowness_is_judged_in_the_first_days(warehouse: Warehouse) -> None:
    promote(warehouse)
    timed(warehouse, OLD, range(-24, 0), 0.5)
    timed(warehouse, NEW, range(80), 5.0)
    assert seen(warehouse, SINCE + 80 * HOUR).comparisons == []


def test_slowness_of_both_at_the_same_time_is_the_machines(warehouse: Warehouse) -> None:
    promote(warehouse)
    timed(warehouse, OLD, range(-24, 0), 0.5)
    timed(warehouse, NEW, range(20), 5.0)
    timed(warehouse, OLD, range(20), 5.0, n=4)
    found = seen(warehouse, SINCE + 20 * HOUR)
    assert counted(compared(found, "latency", "app")) == (20, 20, 20, 20)
    assert found.verdict == "go_on"


def test_latencies_that_come_beside_their_answers_are_compared(warehouse: Warehouse) -> None:
    promote(warehouse)
    for model, when, offset in ((OLD, SINCE - HOUR, 10_000), (NEW, SINCE + HOUR, 20_000)):
        ids = rated(warehouse, model, 100, 0, start=when)
        feedback(warehouse, ids, "latency_seconds", 1.0, source="app", when=when, offset=offset)
    assert counted(compared(seen(warehouse), "latency", "app")) == (1, 1, 0, 1)


def test_latencies_that_are_none_or_impossible_are_not_compared(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 40, 0)
    rated(warehouse, NEW, 40, 0, latency_seconds=1.0)
    metrics = {comparison.metric for comparison in seen(warehouse).comparisons}
    assert metrics == {"helpful"}  # what was usual is not known
    rated(warehouse, OLD, 50, 0, latency_seconds=-1.0, start=SINCE - 3 * HOUR)
    assert {comparison.metric for comparison in seen(warehouse).comparisons} == {"helpful"}
    rated(warehouse, OLD, 30, 0, latency_seconds=1.0, start=SINCE - 4 * HOUR)
    assert counted(compared(seen(warehouse), "latency", "app")) == (1, 1, 0, 1)


def test_without_votes_nothing_ends_the_watch_early(warehouse: Warehouse) -> None:
    promote(warehouse)
    timed(warehouse, OLD, range(-24, 0), 0.5)
    timed(warehouse, NEW, range(71), 0.5)
    assert seen(warehouse, SINCE + 73 * HOUR).verdict == "go_on"
