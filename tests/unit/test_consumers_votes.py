"""The one definition of a vote: the last one, on answers that had the same time to be voted on."""

import json
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

import pytest

from fixtures.feedback.history import HOUR, START, History
from fixtures.feedback.traffic import store
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, rows_of
from retuned.retrain.data import overrides

NOW, DAY = START + timedelta(days=30), timedelta(days=1)
EVERYTHING: dict[str, Any] = {"start": START - 9 * DAY, "end": NOW, "now": NOW}
ALL_VOTES = """
SELECT i.id, coalesce(i.conversation_id, i.id) AS conversation, i.timestamp AS answered_at, i.model, i.user_id AS asker,
       v.id AS vote, v.name, v.source, v.value, v.user_id AS voter, v.timestamp, v.received_at
FROM votes v JOIN interactions i ON i.id = v.interaction_id
WHERE i.workload = 'support' AND i.model <> 'demonstration'
"""


def votes(warehouse: Warehouse, **span: Any) -> list[dict[str, Any]]:
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        judgements.comparable_votes(cursor, "support", **EVERYTHING | span)
        return rows_of(cursor.execute("FROM comparable_votes ORDER BY ALL"))


def expected(warehouse: Warehouse, start: datetime, end: datetime, mature: timedelta | None, until: Any = None) -> Any:
    """The same, one vote after the other; `until` says when the last one on an answer of a time may have come."""
    by_answer = defaultdict[Any, list[dict[str, Any]]](list)
    for vote in warehouse.rows(ALL_VOTES):
        late = mature is not None and vote["timestamp"] > vote["answered_at"] + mature
        late = late or (until is not None and vote["timestamp"] > until(vote["answered_at"]))
        if start <= vote["answered_at"] < end and not late:
            by_answer[vote["id"], vote["name"], vote["source"]].append(vote)
    found = []
    for same in by_answer.values():
        last = max(same, key=lambda vote: (vote["timestamp"], vote["received_at"], vote["vote"]))
        account = (last["voter"] or last["asker"]) if last["source"] == "user" else None
        version = "v1" if last["model"] == "support@v1" else "base"
        found.append((*(last[name] for name in ("id", "name", "source", "value")), version, account))
    return sorted(found, key=str)


@pytest.mark.parametrize("seed", range(3))
def test_votes_are_those_found_one_by_one(warehouse: Warehouse, seed: int) -> None:
    history = History(warehouse, seed)
    for _ in range(80):
        history.go_on()
    # An id that was used twice is two answers: not what this is about.
    warehouse.execute(
        "DELETE FROM interactions WHERE id IN (SELECT id FROM interactions GROUP BY id HAVING count(*) > 1)"
    )
    compared = 0
    for days, mature in ((99, None), (9, None), (9, DAY), (99, 2 * HOUR)):
        start, end = history.now - days * DAY, history.now - 2 * DAY
        named = ("interaction_id", "name", "source", "value", "version", "account")
        found = [
            tuple(vote[name] for name in named)
            for vote in votes(warehouse, start=start, end=end, now=history.now, mature_after=mature)
        ]
        assert sorted(found, key=str) == expected(warehouse, start, end, mature)
        compared += len(found)
    assert compared > 40


@pytest.mark.parametrize("seed", range(3))
def test_each_period_is_seen_as_it_was_at_its_end(warehouse: Warehouse, seed: int) -> None:
    history = History(warehouse, seed)
    for _ in range(80):
        history.go_on()
    warehouse.execute(
        "DELETE FROM interactions WHERE id IN (SELECT id FROM interactions GROUP BY id HAVING count(*) > 1)"
    )
    start, now = history.now - 99 * DAY, history.now
    everything = expected(warehouse, start, now, None)
    for period in (7 * HOUR, DAY, 99 * DAY):

        def end_of_period(answered_at: datetime, period: timedelta = period) -> datetime:
            return next(now - n * period for n in range(9_999) if answered_at >= now - (n + 1) * period)

        named = ("interaction_id", "name", "source", "value", "version", "account")
        found = [
            tuple(vote[name] for name in named)
            for vote in votes(warehouse, start=start, end=now, now=now, period=period)
        ]
        assert sorted(found, key=str) == expected(warehouse, start, now, None, end_of_period)
        assert (len(found) < len(everything)) == (period < 99 * DAY)


def answer(warehouse: Warehouse, id: str, when: datetime, **columns: Any) -> None:
    row = {"id": id, "timestamp": when, "workload": "support", "model": "base", "messages": "[]", "response": "Yes."}
    place = {"topic": "interactions", "partition": 0, "offset": 0, "received_at": when}
    store(warehouse, "interactions", [row | place | columns])


def vote(warehouse: Warehouse, about: str, value: bool, when: datetime, **columns: Any) -> None:
    row = {"id": f"{about} {when} {columns}", "timestamp": when, "interaction_id": about, "name": "helpful"}
    said = {"value": str(value).lower(), "source": "user", "received_at": when}
    store(warehouse, "feedback", [row | said | {"topic": "feedback", "partition": 0, "offset": 0} | columns])


def test_old_answers_have_no_more_time_to_be_voted_on_than_new_ones(warehouse: Warehouse) -> None:
    for id, age in (("old", 10), ("just mature", 6), ("too new", 5)):
        answer(warehouse, id, NOW - age * HOUR - timedelta(seconds=1))
        vote(warehouse, id, True, NOW - age * HOUR + HOUR)
    vote(warehouse, "old", False, NOW - 3 * HOUR)  # seven hours after the answer
    found = votes(warehouse, mature_after=6 * HOUR)
    assert [(vote["interaction_id"], vote["value"]) for vote in found] == [("just mature", True), ("old", True)]
    assert {vote["interaction_id"]: vote["value"] for vote in votes(warehouse)}["old"] is False


def test_periods_end_now_and_each_answer_belongs_to_one(warehouse: Warehouse) -> None:
    moment = timedelta(microseconds=1)
    for id, answered, voted in (
        ("first of the last", NOW - DAY, NOW),
        ("last of the one before", NOW - DAY - moment, NOW - DAY),
        ("voted on too late", NOW - DAY - moment, NOW - DAY + moment),
        ("to come", NOW - HOUR, NOW + moment),
    ):
        answer(warehouse, id, answered)
        vote(warehouse, id, True, voted)
    found = votes(warehouse, start=NOW - 9 * DAY, period=DAY)
    assert {vote["interaction_id"] for vote in found} == {"first of the last", "last of the one before"}


def test_each_vote_of_an_account_counts_and_they_are_of_one_unit(warehouse: Warehouse) -> None:
    for number in range(12):
        answer(
            warehouse, f"a{number:02}", START + number * HOUR, user_id="asker",
            model="support@v1" if number % 2 else "base",
        )  # fmt: skip
        vote(warehouse, f"a{number:02}", number < 10, START + 20 * HOUR - number * HOUR, source="user")
        vote(warehouse, f"a{number:02}", True, START + 20 * HOUR, source="expert")
    users = [vote for vote in votes(warehouse) if vote["source"] == "user"]
    assert [vote["interaction_id"] for vote in users] == [f"a{number:02}" for number in range(12)]
    assert {vote["unit"] for vote in users} == {"account asker"}
    experts = [vote for vote in votes(warehouse) if vote["source"] == "expert"]
    assert len({vote["unit"] for vote in experts}) == len(experts) == 12  # of conversations of one answer each


def test_votes_of_a_banned_account_do_not_count_while_it_is_banned(warehouse: Warehouse) -> None:
    place = {"topic": "t", "partition": 0, "offset": 0, "received_at": START, "timestamp": START}
    about = {"workload": "support", "model": "support@v1", "messages": "[]", "response": "", "user_id": "asker"}
    store(warehouse, "interactions", [{"id": f"i{number}", **about, **place} for number in range(4)])
    given = [
        ("i0", "vandal", "user"),
        ("i0", "other", "user"),
        ("i1", "vandal", "user"),
        ("i2", None, "user"),
        ("i3", None, "app"),
    ]
    store(
        warehouse,
        "feedback",
        [
            {
                "id": f"f{number}",
                "interaction_id": id,
                "name": "helpful",
                "value": json.dumps(user != "vandal"),
                "source": source,
                "user_id": user,
            }
            | place
            | {"timestamp": START + (9 - number) * HOUR}
            for number, (id, user, source) in enumerate(given)
        ],
    )

    def counted() -> dict[str, bool]:
        return {row["interaction_id"]: row["value"] for row in votes(warehouse)}

    def decide(action: str, account: str, workload: str | None) -> None:
        overrides.decide_account(warehouse, action, account, workload, "bot", "anna", NOW)

    everything = {"i0": False, "i1": False, "i2": True, "i3": True}
    assert counted() == everything
    decide("ban", "vandal", None)
    assert counted() == {"i0": True, "i2": True, "i3": True}  # the vote of another account on the same answer counts
    decide("ban", "asker", "support")
    assert counted() == {"i0": True, "i3": True}
    decide("ban", "other", "sales")
    assert counted() == {"i0": True, "i3": True}
    decide("trust", "vandal", "support")  # for this workload, whatever holds for all
    assert counted() == {"i0": False, "i1": False, "i3": True}
    decide("release", "vandal", "support")
    assert "i1" not in counted()
    decide("release", "vandal", None)
    decide("release", "asker", "support")
    assert counted() == everything
