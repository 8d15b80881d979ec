"""Ratings by period: what is over is counted once, and says what a count of all events would."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import duckdb
import pytest

from fixtures.feedback.traffic import START, store
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


@pytest.mark.full
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


def test_each_vote_counts_and_votes_of_one_account_are_worth_less(warehouse: Warehouse) -> None:
    for number in range(4):
        rated(warehouse, START + number * HOUR, number > 0, user_id="anna")
        rated(warehouse, START + DAY + number * HOUR, True, conversation_id="one")
    rated(warehouse, START + 2 * HOUR, True, later=DAY + HOUR)
    first, second, third = periods(warehouse, START + 9 * DAY)[:3]
    assert [(one.helpful, one.total) for one in (first, second, third)] == [(3, 4), (4, 4), (0, 0)]
    assert second.effect == pytest.approx(4)  # they say the same: one conversation
    assert 1 < first.effect < 4


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


def test_what_a_canary_answers_is_no_evidence_about_the_champion(warehouse: Warehouse) -> None:
    warehouse.insert("aliases", workload="support", alias="champion", version="v1", created_at=START)
    for number in range(9):
        rated(warehouse, START + number * DAY, True, model="support@v1")
        rated(warehouse, START + number * DAY, False, model="support@v2")
        rated(warehouse, START + number * DAY, True, model="a name without a version")
    assert [(one.helpful, one.total) for one in periods(warehouse, START + 9 * DAY)] == [(2, 2)] * 8


def test_votes_of_an_account_that_was_banned_since_count_no_more(warehouse: Warehouse) -> None:
    for number in range(9):
        rated(warehouse, START + number * DAY, True, user_id="anna")
        rated(warehouse, START + number * DAY, False, user_id="bot")
    before = periods(warehouse, START + 9 * DAY)
    assert [(one.helpful, one.total) for one in before] == [(1, 2)] * 8
    banned, released = START + 9 * DAY, START + 10 * DAY
    warehouse.insert(
        "account_decisions", id="d", workload="support", user_id="bot", action="ban", author="ada", reason="a bot",
        decided_at=banned,
    )  # fmt: skip
    assert [(one.helpful, one.total) for one in periods(warehouse, START + 9 * DAY)] == [(1, 1)] * 8
    warehouse.execute("UPDATE account_decisions SET superseded_at = ?", [released])
    assert periods(warehouse, START + 9 * DAY) == before
    warehouse.insert(  # by a clock that was set back
        "account_decisions", id="e", workload="support", user_id="bot", action="ban", author="ada", reason="a bot",
        decided_at=START,
    )  # fmt: skip
    assert [(one.helpful, one.total) for one in periods(warehouse, START + 9 * DAY)] == [(1, 1)] * 8


def test_a_look_after_months_of_silence_asks_no_more_than_one_after_days(warehouse: Warehouse) -> None:
    for number in range(6):
        rated(warehouse, START + number * DAY, True)
    periods(warehouse, START + 6 * DAY)
    with count_reads(warehouse) as few:
        short = periods(warehouse, START + 9 * DAY)
    with count_reads(warehouse) as many:
        long = periods(warehouse, START + 306 * DAY)
    assert (len(short), len(long)) == (8, 305)
    assert sum(period.total for period in long) == sum(period.total for period in short) == 6
    assert 0 < len(many) <= len(few)


@contextmanager
def count_reads(warehouse: Warehouse) -> Iterator[list[str]]:
    """The statements that reach the database."""
    statements: list[str] = []
    rows, cursor = warehouse.rows, warehouse.cursor

    class Cursor:
        def __init__(self, real: duckdb.DuckDBPyConnection) -> None:
            self.real = real

        def execute(self, sql: str, *rest: Any) -> Any:
            statements.append(sql)
            return self.real.execute(sql, *rest)

    @contextmanager
    def counted() -> Iterator[Any]:
        with cursor() as real:
            yield Cursor(real)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warehouse, "cursor", counted)
        patch.setattr(warehouse, "rows", lambda sql, *rest: (statements.append(sql), rows(sql, *rest))[1])
        yield statements


@pytest.mark.full
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
