"""How long unread events have waited, by what is known of each partition."""

import pytest

from retuned.consumers.kafka.backlog import Backlog

A, B, OTHER = ("in", 0), ("in", 1), ("fb", 0)


def test_it_is_zero_when_everything_is_read() -> None:
    assert Backlog().ages([(A, 5, 5), (B, 0, 0), (OTHER, 7, 7)], 100.0) == {"in": 0.0, "fb": 0.0}


def test_what_nothing_is_known_of_is_absent() -> None:
    assert Backlog().ages([], 100.0) == {}
    assert Backlog().ages([(A, 0, 5)], 100.0) == {}  # nothing was read yet
    for reached, end in ((None, 5), (0, None)):
        assert Backlog().ages([(A, reached, end), (B, 3, 3), (OTHER, 1, 1)], 100.0) == {"fb": 0.0}


def test_a_backlog_is_as_old_as_the_event_that_was_read_last() -> None:
    backlog = Backlog()
    backlog.read(A, 40.0)
    assert backlog.ages([(A, 1, 5)], 100.0) == {"in": 60.0}
    backlog.read(A, 70.0)
    assert backlog.ages([(A, 2, 5)], 100.0) == {"in": 30.0}


def test_an_event_after_a_quiet_time_is_younger_than_that() -> None:
    backlog = Backlog()
    backlog.read(A, 40.0)
    assert backlog.ages([(A, 5, 5)], 1_000.0) == {"in": 0.0}
    assert backlog.ages([(A, 5, 6)], 1_002.0) == {"in": 2.0}


def test_a_partition_that_stands_still_is_not_hidden_by_one_that_moves() -> None:
    backlog = Backlog()
    for now in (10.0, 20.0, 30.0):
        backlog.read(B, now)
        ages = backlog.ages([(A, 5, 5 if now == 10 else 9), (B, int(now), int(now))], now)
    assert ages == {"in": 20.0}


@pytest.mark.parametrize("ahead", [1.0, 1e9])
def test_a_producer_whose_clock_is_ahead_makes_no_negative_age(ahead: float) -> None:
    backlog = Backlog()
    backlog.read(A, 100.0 + ahead)
    assert backlog.ages([(A, 1, 5)], 100.0) == {"in": 0.0}


def test_an_event_without_a_time_changes_nothing() -> None:
    backlog = Backlog()
    backlog.read(A, None)
    assert backlog.ages([(A, 1, 5)], 100.0) == {}
