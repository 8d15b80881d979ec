"""Ratings by period: what is over is counted once, and says what a count of all events would."""

import random
from datetime import datetime, timedelta
from typing import Any

import pytest
from traffic import START, store

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.policy import ratings
from retuned.daemon.policy.ratings import Ratings, by_period, latest
from retuned.monitors.settings import WindowsSettings

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WINDOWS = WindowsSettings(minimum_rows=1)


def rated(warehouse: Warehouse, when: datetime, value: bool, later: timedelta = HOUR, **columns: Any) -> None:
    number = next(numbers)
    place = {"topic": "t", "partition": 0, "offset": number, "received_at": when}
    store(warehouse, "interactions", [
        {"id": f"a{number}", "timestamp": when, "workload": "support", "model": "base", "messages": "[]",
         "response": "Yes."} | place | columns
    ])  # fmt: skip
    store(warehouse, "feedback", [
        {"id": f"f{number}", "timestamp": when + later, "interaction_id": f"a{number}", "name": "helpful",
         "value": str(value).lower(), "source": "user"} | place
    ])  # fmt: skip


numbers = iter(range(10**9))


def periods(warehouse: Warehouse, now: datetime) -> tuple[Ratings, ...]:
    judgements.follow(warehouse)
    return by_period(warehouse, WINDOWS, "support", now)


def test_kept_periods_are_those_of_a_count_of_everything(warehouse: Warehouse) -> None:
    luck, now = random.Random(2), START
    for _ in range(40):
        for _ in range(luck.randrange(6)):
            rated(
                warehouse, now - luck.random() * HOUR, luck.random() < 0.8, user_id=luck.choice(("anna", "ben", None))
            )
        now += 7 * HOUR
        found = periods(warehouse, now)
    kept = warehouse.row("SELECT count(*) AS kept FROM rating_periods") or {}
    assert 7 <= kept["kept"] < len(found)
    warehouse.execute("DELETE FROM rating_periods")
    assert periods(warehouse, now) == found
    assert sum(period.total for period in found) > 40


def test_what_is_over_is_not_counted_again(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        rated(warehouse, START + number * DAY, True)
    found = periods(warehouse, START + 20 * DAY)
    counted = []
    count = judgements.comparable_votes
    monkeypatch.setattr(judgements, "comparable_votes", lambda *a, **k: (counted.append(a), count(*a, **k)))
    assert periods(warehouse, START + 20 * DAY) == found
    assert len(found) == 19
    assert len(counted) <= 2


def test_an_account_has_one_rating_a_period_and_late_votes_none(warehouse: Warehouse) -> None:
    for number in range(4):
        rated(warehouse, START + number * HOUR, number > 0, user_id="anna")
        rated(warehouse, START + DAY + number * HOUR, True, conversation_id="one")
    rated(warehouse, START + 2 * HOUR, True, later=DAY + HOUR)
    assert periods(warehouse, START + 9 * DAY)[:3] == (Ratings(0, 1), Ratings(1, 1), Ratings(0, 0))


def test_what_waits_on_the_broker_is_counted_when_it_comes(warehouse: Warehouse) -> None:
    rated(warehouse, START, True)
    rated(warehouse, START + DAY, True)
    assert periods(warehouse, START + 9 * DAY)[1:4] == (Ratings(1, 1), Ratings(0, 0), Ratings(0, 0))
    rated(warehouse, START + 2 * DAY, False)  # read after days without the broker
    assert periods(warehouse, START + 9 * DAY)[1:4] == (Ratings(1, 1), Ratings(0, 1), Ratings(0, 0))


def test_another_champion_begins_anew(warehouse: Warehouse) -> None:
    for number in range(9):
        rated(warehouse, START + number * DAY, True)
    periods(warehouse, START + 9 * DAY)
    warehouse.insert("aliases", workload="support", alias="champion", version="v1", created_at=START + 4 * DAY)
    assert periods(warehouse, START + 9 * DAY) == (Ratings(1, 1),) * 4
    assert warehouse.rows("SELECT DISTINCT since FROM rating_periods") == [{"since": START + 4 * DAY}]


def test_a_year_is_looked_back_on(warehouse: Warehouse) -> None:
    rated(warehouse, START, True)
    rated(warehouse, START + 400 * DAY, False)
    found = periods(warehouse, START + 402 * DAY)
    assert len(found) == ratings.YEAR
    assert sum(period.total for period in found) == 1


def test_the_latest_ratings_are_as_many_periods_as_it_takes() -> None:
    found = (Ratings(9, 10), Ratings(0, 0), Ratings(4, 5), Ratings(1, 3))
    assert latest(found, 3) == Ratings(1, 3)
    assert latest(found, 8) == Ratings(5, 8)
    assert latest(found, 99) == Ratings(14, 18)
    assert latest((), 1) == Ratings(0, 0)
