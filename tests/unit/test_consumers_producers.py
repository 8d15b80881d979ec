"""Who is set aside, who stops ingestion, and who does neither, over batches of any size and for names of any number."""

from collections import Counter
from datetime import datetime, timedelta

import pytest

from retuned.consumers.errors import TooManyDeadLetters
from retuned.consumers.producers import MOST_PRODUCERS, QUIET, Producer, Producers
from retuned.consumers.settings import IngestSettings
from retuned.consumers.warehouse.dead_letters import DeadLetter

NOW = datetime(2026, 11, 26, 12)
A, B, C, NOBODY = ("in", "a"), ("in", "b"), ("in", "c"), ("in", None)


def producers(**settings: float) -> Producers:
    return Producers(IngestSettings(**{"dead_letter_window": 100, **settings}))  # type: ignore[arg-type]


def letters(producer: Producer, count: int) -> list[DeadLetter]:
    topic, workload = producer
    return [DeadLetter(topic, 0, number, "not_json", "malformed", None, workload) for number in range(count)]


def add(
    known: Producers, good: dict[Producer, int], bad: dict[Producer, int] | None = None, now: datetime = NOW
) -> list[Producer]:
    """Returns who is newly set aside."""
    dead = [letter for producer, count in (bad or {}).items() for letter in letters(producer, count)]
    return [(found.topic, found.workload) for found in known.add(Counter(good), dead, now)]


def who(known: Producers, now: datetime = NOW) -> list[Producer]:
    return [(found.topic, found.workload) for found in known.set_aside(now)]


@pytest.mark.parametrize("batch", [1, 7, 100, 5_000])
def test_one_is_set_aside_once_its_window_is_full_whatever_the_size_of_batches(batch: int) -> None:
    known = producers()
    add(known, {A: 1_000})
    sent = 0
    while not who(known):
        add(known, {A: batch}, {B: batch})
        sent += batch
        assert sent < 100 + 2 * batch
    assert sent >= 100
    assert who(known) == [B]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_share_is_the_configured_one(share: float) -> None:
    known = producers(dead_letter_share_limit=share)
    add(known, {A: 1_000})
    below, above = round(100 * share) - 5, round(100 * share) + 5
    for _ in range(20):
        add(known, {A: 1_000, B: 100 - below}, {B: below})
    assert who(known) == []
    for _ in range(20):
        add(known, {A: 1_000, B: 100 - above}, {B: above})
    assert who(known) == [B]


def test_a_single_dead_letter_now_and_then_sets_nobody_aside() -> None:
    known = producers()
    for _ in range(1_000):
        assert add(known, {A: 99}, {A: 1}) == []


def test_each_is_reported_once_until_it_has_come_back() -> None:
    known = producers()
    add(known, {A: 100, B: 1})
    assert add(known, {}, {B: 100}) == [B]
    assert add(known, {A: 100}, {B: 100}) == []
    assert add(known, {A: 100, B: 60}) == []
    assert who(known) == []
    assert add(known, {A: 100}, {B: 100}) == [B]


def test_one_that_sends_nothing_any_more_is_shown_for_an_hour() -> None:
    known = producers()
    add(known, {A: 100}, {NOBODY: 100})
    assert who(known, NOW + QUIET / 2) == [NOBODY]
    assert who(known, NOW + QUIET) == []


def test_two_of_three_stop_it_where_they_are_most_of_the_messages_too() -> None:
    known = producers()
    add(known, {A: 200, B: 200, C: 200})
    for _ in range(5):
        add(known, {A: 900}, {B: 100, C: 100})  # most producers, few messages
    assert {*who(known)} == {B, C}
    with pytest.raises(TooManyDeadLetters, match="not_json, malformed"):
        add(known, {A: 10}, {B: 100, C: 100})


def test_most_messages_from_one_of_three_stop_nothing() -> None:
    known = producers()
    add(known, {A: 200, B: 200, C: 200})
    for _ in range(5):
        add(known, {A: 10, B: 10}, {C: 1_000})
    assert who(known) == [C]


def test_rubbish_of_many_made_up_names_stops_nothing_and_forgets_nobody() -> None:
    known = producers()
    add(known, {A: 200})
    for number in range(2 * MOST_PRODUCERS):
        add(known, {}, {("in", f"made up {number}"): 150}, NOW + timedelta(seconds=number))
    assert len(known.states) <= MOST_PRODUCERS
    assert A in known.states
