"""The watch over a promotion, on a real warehouse: what is compared with what, and the verdict."""

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from traffic import MINUTE, START, feedback, interactions, store
from watching import Service, draw, stored
from watching import counted as counted_in_simulation

from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.settings import Settings, WatchSettings
from retuned.monitors.watch.check import WatchCheck, check, latest
from retuned.monitors.watch.comparison import COMPARED, Comparison, Power, decide
from retuned.monitors.watch.counts import Watched, count
from retuned.monitors.watch.sequential import log_e_value

HOUR = timedelta(hours=1)
SINCE = START + 24 * HOUR
NOW = SINCE + 12 * HOUR
OVER = SINCE + 14 * 24 * HOUR
SETTINGS = Settings()
OLD, NEW = "support@v1", "support@v2"


def promote(warehouse: Warehouse, version: str | None = "v2", previous: str | None = "v1", **columns: Any) -> None:
    row = {
        "id": f"promotion-{columns.get('created_at', SINCE)}-{columns.get('workload')}",
        "created_at": SINCE,
        "workload": "support",
        "event": "promoted",
        "version": version,
        "previous_version": previous,
        "actor": "gate",
        "reason": "better",
        "announced": True,
    }
    warehouse.insert("promotions", **row | columns)


def rated(
    warehouse: Warehouse,
    model: str,
    good: int,
    bad: int,
    start: datetime | None = None,
    name: str = "helpful",
    source: str = "user",
    user: str | None = None,
    **columns: Any,
) -> list[str]:
    """Answers of a model within an hour (by default since the promotion, or before it), rated in random order."""
    start = start or (SINCE if model == NEW else SINCE - 2 * HOUR)
    rng = random.Random(f"{model}{start}{name}")
    offset = int(warehouse.rows("SELECT count(*) AS n FROM interactions")[0]["n"])
    step = HOUR / (good + bad)
    asked = [f"question {number}" for number in range(good + bad)]
    plain = {"context": None, "latency_seconds": None}
    ids = interactions(warehouse, asked, rng, start=start, step=step, model=model, offset=offset, **plain | columns)
    values = [name != "hallucination"] * good + [name == "hallucination"] * bad
    rng.shuffle(values)
    rows = [
        {
            "id": f"{id}-{name}-{source}",
            "timestamp": start + (number + 0.5) * step,
            "interaction_id": id,
            "name": name,
            "value": json.dumps(value),
            "source": source,
            "user_id": user,
            "topic": "feedback",
            "partition": 0,
            "offset": offset + number,
            "received_at": start,
        }
        for number, (id, value) in enumerate(zip(ids, values, strict=True))
    ]
    store(warehouse, "feedback", rows)
    return ids


def seen(warehouse: Warehouse, now: datetime = NOW, settings: Settings = SETTINGS) -> WatchCheck:
    found = check(warehouse, settings, "support", now)
    assert found is not None
    return found


def compared(found: WatchCheck, metric: str = "helpful", source: str = "user") -> Comparison:
    (comparison,) = [c for c in found.comparisons if (c.metric, c.source) == (metric, source)]
    return comparison


def counted(comparison: Comparison) -> tuple[float, int, float, int]:
    return comparison.bad_before, comparison.n_before, comparison.bad_after, comparison.n_after


def test_a_version_that_is_worse_is_to_be_taken_back_with_the_reasons(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 130, 70)
    found = seen(warehouse)
    assert found.verdict == "roll_back"
    assert found.reasons == ["unhelpful by user: 35% of 200 voters, before 15% of 500: worse by more than 5 points"]
    assert (found.version, found.previous_version, found.since) == ("v2", "v1", SINCE)
    assert compared(found).worse > 1 > compared(found).as_good
    assert latest(warehouse, "support") == found
    assert check(warehouse, SETTINGS, "support", NOW + HOUR) == found  # until somebody carries it out
    promote(warehouse, "v1", "v2", event="rolled_back", actor="watch", created_at=NOW)
    assert check(warehouse, SETTINGS, "support", NOW + HOUR) is None
    assert len(warehouse.rows("SELECT * FROM watch_checks")) == 1


def test_each_comparison_has_its_share_of_the_error(warehouse: Warehouse) -> None:
    """What would be enough for one comparison alone takes nothing back: six may each be mistaken."""
    alone = math.log(1 / SETTINGS.watch.false_rollback_rate)
    shared = alone + math.log(1 / COMPARED["helpful", "user"])
    evidence = {bad: float(log_e_value(75, 500, bad, 200, SETTINGS.watch.margin)) for bad in range(40, 100)}
    almost = max(bad for bad, found in evidence.items() if found < shared)
    assert alone < evidence[almost]
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 200 - almost, almost)
    assert seen(warehouse).verdict == "go_on"
    promote(warehouse, workload="sales")
    rated(warehouse, "sales@v1", 425, 75, workload="sales")
    rated(warehouse, "sales@v2", 199 - almost, almost + 1, workload="sales", start=SINCE)
    found = check(warehouse, SETTINGS, "sales", NOW)
    assert found is not None
    assert found.verdict == "roll_back"


def test_comparisons_that_agree_are_more_evidence_than_each(warehouse: Warehouse) -> None:
    promote(warehouse)
    for name, source, bad in (("helpful", "user", 63), ("hallucination", "user", 67), ("hallucination", "judge", 67)):
        rated(warehouse, OLD, 425, 75, name=name, source=source)
        rated(warehouse, NEW, 200 - bad, bad, name=name, source=source)
    found = seen(warehouse)
    assert all(0.6 < each.worse < 1 for each in found.comparisons), found.comparisons
    assert found.verdict == "roll_back"
    assert len(found.reasons) == 3


def test_at_the_edge_of_what_is_tolerated_hardly_a_version_is_taken_back(warehouse: Warehouse) -> None:
    """Twenty promotions, of which all that is compared is worse by just the margin, looked at four times each."""
    rng = np.random.default_rng(11)
    margin, answers, looks, runs = SETTINGS.watch.margin, 200, 4, 20
    taken_back = 0
    for run in range(runs):
        workload = f"w{run}"
        promote(warehouse, workload=workload)
        interactions_of, feedback_of = [], []
        for side, start, rate in (("v1", SINCE - 5 * HOUR, 0.15), ("v2", SINCE, 0.15 + margin)):
            slow = rng.random(answers) < (0.1 if side == "v1" else 0.1 + margin)
            for number in range(answers):
                id, when = f"{workload}-{side}-{number}", start + number * looks * HOUR / answers
                place = {"topic": "t", "partition": 0, "offset": number, "received_at": when, "timestamp": when}
                told = {"workload": workload, "model": f"{workload}@{side}", "messages": "[]", "response": ""}
                interactions_of.append({"id": id, "latency_seconds": 1.0 + 9 * bool(slow[number]), **told, **place})
                for name, source in list(COMPARED)[:-1]:
                    value = json.dumps(bool(rng.random() < rate) == (name == "hallucination"))
                    said = {"id": f"{id}-{name}-{source}", "interaction_id": id, "name": name, "value": value}
                    feedback_of.append({**said, "source": source, **place})
        store(warehouse, "interactions", interactions_of)
        store(warehouse, "feedback", feedback_of)
        verdicts = [
            found.verdict
            for look in range(1, looks + 1)
            if (found := check(warehouse, SETTINGS, workload, SINCE + look * HOUR)) is not None
        ]
        assert len(verdicts) > 0
        taken_back += "roll_back" in verdicts
    assert taken_back <= 1


def test_a_version_that_mends_much_is_kept_before_the_time_is_over(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 300, 200)
    rated(warehouse, NEW, 110, 10)
    assert (compared(seen(warehouse)).as_good > 1, seen(warehouse).verdict) == (True, "go_on")
    found = seen(warehouse, SINCE + timedelta(days=3))  # but not before it has seen all hours of some days
    assert (found.verdict, found.reasons[0]) == ("keep", "shown to be within 5 points of the champion before")
    assert check(warehouse, SETTINGS, "support", SINCE + timedelta(days=4)) is None


def test_one_that_is_as_good_is_watched_and_in_the_end_kept(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 128, 22)
    assert seen(warehouse).verdict == "go_on"
    found = seen(warehouse, OVER)
    assert found.verdict == "keep"
    assert found.reasons[:2] == [
        "the watch is over, and did not show in its time that it is worse",
        "unhelpful by user: 15% of 150 voters, before 15% of 500",
    ]
    assert check(warehouse, SETTINGS, "support", OVER + HOUR) is None


def test_few_votes_decide_nothing_however_bad_they_are(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 480, 20)
    rated(warehouse, NEW, 0, 29)
    found = seen(warehouse)
    assert compared(found).worse > 1
    assert found.verdict == "go_on"
    rated(warehouse, NEW, 0, 1, start=SINCE + 5 * HOUR)
    assert seen(warehouse).verdict == "roll_back"


def test_evidence_counts_in_a_look_that_comes_late(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 130, 70)
    rated(warehouse, NEW, 500, 0, start=OVER)  # after its time
    found = seen(warehouse, OVER + 24 * HOUR)
    assert (found.verdict, compared(found).n_after) == ("roll_back", 200)


def test_nothing_is_taken_back_long_after_the_time(warehouse: Warehouse) -> None:
    """For example of a champion that was promoted long before the daemon learned to watch."""
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 130, 70)
    found = seen(warehouse, OVER + 15 * 24 * HOUR)
    assert (found.verdict, compared(found).worse > 1) == ("keep", True)


def test_a_version_that_nobody_asks_is_kept_and_it_is_said(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, "a name of the app's own", 100, 100, start=SINCE)
    found = seen(warehouse, OVER)
    assert (found.verdict, found.reasons[1]) == ("keep", "no answer of this version was seen")


def test_the_state_is_that_of_the_events_not_of_earlier_checks(warehouse: Warehouse) -> None:
    """A daemon that looked often, was stopped and came back sees what one sees that never looked before."""
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    for hour in range(4):
        rated(warehouse, NEW, 20, 9, start=SINCE + hour * HOUR)
        seen(warehouse, SINCE + (hour + 1) * HOUR)
    often = seen(warehouse)
    warehouse.execute("DELETE FROM watch_checks")
    once = seen(warehouse)
    assert replace(often, id=once.id) == once
    assert compared(once).n_after == 4 * 29


def test_what_is_compared_with_what(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 40, 10)
    rated(warehouse, OLD, 1, 2, start=SINCE + HOUR)  # by apps that were slow to change over
    rated(warehouse, OLD, 0, 50, start=SINCE - 40 * 24 * HOUR)  # too long ago
    rated(warehouse, "support@v0", 0, 7)
    rated(warehouse, NEW, 30, 3)
    rated(warehouse, NEW, 0, 5, start=SINCE - 2 * HOUR)  # before it was the champion
    rated(warehouse, NEW, 0, 9, start=NOW + HOUR)  # not yet
    rated(warehouse, NEW, 0, 13, source="expert", start=SINCE + HOUR)  # another source
    rated(warehouse, NEW, 0, 11, start=SINCE, workload="other")
    found = seen(warehouse)
    assert counted(compared(found)) == (10, 50, 3, 33)
    assert ("helpful", "expert") not in {(each.metric, each.source) for each in found.comparisons}


Said = tuple[str, bool, datetime, timedelta, int]
"""So many answers of a model, whether each is bad, when, and how much later a vote on it came."""


def voted(warehouse: Warehouse, *said: Said, workload: str = "support") -> None:
    """Answers with a vote on each."""
    place = {"topic": "t", "partition": 0, "offset": 0, "received_at": SINCE}
    answers, votes = [], []
    offset = int(warehouse.rows("SELECT count(*) AS n FROM interactions")[0]["n"])
    for model, bad, when, delay, n in said:
        for _ in range(n):
            id = f"{workload}-voted-{offset + len(answers)}"
            about = {"workload": workload, "model": model, "messages": "[]", "response": ""}
            answers.append({"id": id, "timestamp": when, **about, **place})
            vote = {"interaction_id": id, "name": "helpful", "value": json.dumps(not bad), "source": "user"}
            votes.append({"id": f"{id}-vote", "timestamp": when + delay, **vote, **place})
    store(warehouse, "interactions", answers)
    store(warehouse, "feedback", votes)


@pytest.mark.parametrize(("days_before", "looks"), [(9, (6, 12, 20)), (2, (6, 20, 60))])
def test_both_sides_have_had_the_same_time_to_be_voted_on(
    warehouse: Warehouse, days_before: int, looks: tuple[int, ...]
) -> None:
    """The angry vote at once, the content much later: so all fresh answers look bad, with either version."""
    promote(warehouse)
    times = [(OLD if hour < 0 else NEW, SINCE + hour * HOUR) for hour in range(-24 * days_before, 72)]
    voted(warehouse, *((model, True, when, MINUTE, 1) for model, when in times))
    voted(warehouse, *((model, False, when, 18 * HOUR, 3) for model, when in times))
    for hour in looks:
        found = compared(seen(warehouse, SINCE + (hour + 0.5) * HOUR))
        assert found.bad_before / found.n_before == pytest.approx(found.bad_after / found.n_after)
        assert found.n_after >= hour
        if hour < 18:
            assert found.bad_after == found.n_after


def test_a_vote_counts_when_it_comes_in_time(warehouse: Warehouse) -> None:
    promote(warehouse)
    for model, when in ((OLD, SINCE - 47 * HOUR), (NEW, SINCE)):
        voted(warehouse, (model, False, when, MINUTE, 40), (model, True, when, 25 * HOUR, 40))
    assert counted(compared(seen(warehouse, SINCE + 60 * HOUR))) == (0, 40, 0, 40)
    patient = Settings(watch=WatchSettings(vote_seconds=30 * 3600))
    # No longer than the period of the reference: nobody waits for the next one.
    assert counted(compared(seen(warehouse, SINCE + 60 * HOUR, patient))) == (0, 40, 0, 40)


def every_hour(warehouse: Warehouse, days: range, bad: Callable[[int, int], float], n: int = 2) -> None:
    """Votes of each hour: of the champion before, then of the version that is watched. `bad(day, hour)` is a share."""
    said = list[Said]()
    for day in days:
        for hour in range(24):
            many, when, model = round(n * bad(day, hour)), SINCE + (24 * day + hour) * HOUR, OLD if day < 0 else NEW
            said += [(model, True, when, MINUTE, many), (model, False, when, 30 * MINUTE, n - many)]
    voted(warehouse, *said)


@pytest.mark.parametrize(
    ("answers_a_day", "holdback", "looks"),
    [(3_000, 0.0, (1, 7, 30, 170, 192, 200, 336)), (10_000, 0.3, (30, 170, 336))],
)
def test_counts_are_those_of_the_simulation(
    warehouse: Warehouse, answers_a_day: float, holdback: float, looks: tuple[int, ...]
) -> None:
    """What tests/benchmarks/watch.py says of error and power holds for what the watch counts."""
    watches = draw(Service(answers_a_day, fall=0.1, holdback=holdback), 1, np.random.default_rng(4))
    answers, votes = stored(watches, 0, SINCE, "support")
    store(warehouse, "interactions", answers)
    store(warehouse, "feedback", votes)
    expected = list(counted_in_simulation(watches))
    for hour in looks:
        watched = Watched("p", "support", "v2", "v1", SINCE, SINCE + hour * HOUR)
        found = count(warehouse, SETTINGS.watch, watched)["helpful", "user"]
        assert {(c.bad_before, c.n_before, c.bad_after, c.n_after) for c in found} == {
            tuple(int(numbers[0, hour - 1]) for numbers in (before.bad, before.n, after.bad, after.n))
            for before, after in expected
        }


def test_nights_and_weekends_are_compared_with_nights_and_weekends(warehouse: Warehouse) -> None:
    """At night half of the answers are bad, at the weekend all, with either version; it comes on a Saturday."""

    def bad(day: int, hour: int) -> float:
        return 1.0 if day % 7 in (0, 1) else 0.5 if hour < 8 else 0.0

    promote(warehouse)
    every_hour(warehouse, range(-8, 3), bad)
    for hour in (6, 12, 40, 71):
        found = seen(warehouse, SINCE + hour * HOUR)
        assert (found.verdict, compared(found).worse) == ("go_on", 0), hour
        assert compared(found).against == "week"


def test_what_had_changed_before_the_promotion_is_no_harm(warehouse: Warehouse) -> None:
    """The world changed three days ago, and that was why a new version came, which is better than the old one was."""
    promote(warehouse)
    every_hour(warehouse, range(-10, 2), lambda day, _: 0.0 if day < -3 else 1.0 if day < 0 else 0.5, n=12)
    found = seen(warehouse, SINCE + 47 * HOUR)
    assert (compared(found).against, compared(found).worse, found.verdict) == ("day", 0, "go_on")


def test_what_is_worse_than_yesterday_and_than_a_week_ago_is_taken_back(warehouse: Warehouse) -> None:
    promote(warehouse)
    every_hour(warehouse, range(-8, 1), lambda day, _: 0.0 if day < 0 else 0.5, n=8)
    assert seen(warehouse, SINCE + 23 * HOUR).verdict == "roll_back"


def test_a_champion_of_a_few_hours_is_compared_as_a_whole(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 40, 10, start=SINCE - 3 * HOUR)
    rated(warehouse, NEW, 30, 3)
    found = compared(seen(warehouse))
    assert (found.against, counted(found)) == ("all", (10, 50, 3, 33))


def test_a_small_service_is_compared_with_weeks_and_a_large_one_with_what_is_nearest(warehouse: Warehouse) -> None:
    promote(warehouse)
    promote(warehouse, workload="large")
    days = [SINCE + day * 24 * HOUR for day in range(-20, 0)]
    voted(warehouse, *((OLD, False, day, MINUTE, 3) for day in days), (NEW, False, SINCE, MINUTE, 3))
    large = [("large@v1", False, day, MINUTE, 600) for day in days]
    voted(warehouse, *large, ("large@v2", False, SINCE, MINUTE, 600), workload="large")
    found = check(warehouse, SETTINGS, "large", NOW)
    assert found is not None
    assert compared(found).n_before == 600  # of one day
    assert compared(seen(warehouse)).n_before in (2 * 3, 20 * 3)  # of two weeks, of twenty days


def test_traffic_that_is_split_is_compared_at_the_same_time(warehouse: Warehouse) -> None:
    """The world changed with the promotion: both are worse than what was before, and equal."""
    promote(warehouse)
    rated(warehouse, OLD, 450, 50, start=SINCE - 3 * HOUR)
    rated(warehouse, NEW, 100, 100)
    look = SINCE + 2 * HOUR
    assert seen(warehouse, look).verdict == "roll_back"  # as before and after
    warehouse.execute("DELETE FROM watch_checks")
    rated(warehouse, OLD, 50, 50, start=SINCE)
    found = seen(warehouse, look)
    assert (compared(found).against, counted(compared(found))) == ("same_time", (50, 100, 100, 200))
    assert found.verdict == "go_on"
    rated(warehouse, NEW, 0, 250, start=SINCE + HOUR)
    assert seen(warehouse, look).verdict == "roll_back"


def test_a_few_who_still_ask_the_champion_before_are_too_few_to_compare_with(warehouse: Warehouse) -> None:
    """One vote a day of theirs would find nothing in the time of the watch."""
    promote(warehouse)
    days = [(day, SINCE + day * 24 * HOUR) for day in range(-28, 3)]
    voted(warehouse, *((OLD if day < 0 else NEW, day % 5 == 0, when, MINUTE, 20) for day, when in days))
    voted(warehouse, *((OLD, True, when, MINUTE, 1) for day, when in days if day >= 0))
    found = compared(seen(warehouse, SINCE + 50 * HOUR))
    assert found.against != "same_time"
    assert (found.n_before, found.n_after) in ((4 * 60, 60), (25 * 20, 60))


@pytest.mark.parametrize(
    ("a_day", "text", "has_power"),
    [
        (0, "nobody votes on the answers: the watch can find nothing but slow ones", False),
        (2, "and the watch ends after 14 days (watch.duration_seconds): it would not be found", False),
        (60, "at 60 votes a day a fall of 20 points shows after", True),
    ],
)
def test_it_is_said_from_the_first_hour_what_can_be_found(
    warehouse: Warehouse, a_day: int, text: str, has_power: bool
) -> None:
    promote(warehouse)
    interactions(warehouse, ["?"], random.Random(0), start=SINCE - HOUR, model=OLD, offset=10_000)
    if a_day:
        voted(warehouse, *((OLD, day % 5 == 0, SINCE + day * 24 * HOUR, MINUTE, a_day) for day in range(-28, 0)))
    found = seen(warehouse, SINCE + HOUR)
    assert (found.verdict, found.has_power) == ("go_on", has_power)
    assert text in found.reasons[1]
    assert found.votes_per_day == pytest.approx(a_day)
    assert latest(warehouse, "support") == found


def test_what_can_be_found_follows_the_votes_that_come(warehouse: Warehouse) -> None:
    """Sixty votes a day before the promotion, and one a day since."""
    promote(warehouse)
    days = [(day, SINCE + day * 24 * HOUR) for day in range(-28, 5)]
    voted(warehouse, *((OLD, day % 5 == 0, when, MINUTE, 60) for day, when in days if day < 0))
    voted(warehouse, *((NEW, False, when, MINUTE, 1) for day, when in days if day >= 0))
    assert seen(warehouse, SINCE + 20 * HOUR).has_power
    found = seen(warehouse, SINCE + 5 * 24 * HOUR)
    assert not found.has_power
    assert found.votes_per_day == pytest.approx(1)


def test_the_base_model_goes_by_whatever_name_apps_have_for_it(warehouse: Warehouse) -> None:
    promote(warehouse, "v2", None)
    rated(warehouse, "support@base", 3, 1)
    rated(warehouse, "gpt-something", 2, 1)
    rated(warehouse, OLD, 5, 5)
    rated(warehouse, NEW, 6, 4)
    assert counted(compared(seen(warehouse))) == (2, 7, 4, 10)


def test_one_person_has_one_voice_however_often_they_vote(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 20, 0)
    ids = rated(warehouse, NEW, 20, 0)
    rated(warehouse, NEW, 10, 30, user="angry", start=SINCE + HOUR)
    rated(warehouse, NEW, 0, 8, user="expert", name="hallucination", source="expert", start=SINCE + 2 * HOUR)
    again = {"timestamp": SINCE + HOUR, "value": "false", "source": "user", "name": "helpful", "topic": "feedback"}
    rest = {"partition": 0, "offset": 10_000, "received_at": NOW}
    store(warehouse, "feedback", [{"id": "again", "interaction_id": ids[0], **again, **rest}])
    found = seen(warehouse)
    assert counted(compared(found)) == (0, 20, 1 + 0.75, 20 + 1)
    assert counted(compared(found, "hallucination", "expert")) == (0, 0, 8, 8)


def test_answers_of_one_conversation_are_one_observation(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 20, 0)
    rated(warehouse, NEW, 30, 10, conversation_id="a long one")
    assert counted(compared(seen(warehouse))) == (0, 20, 0.25, 1)


def test_corrections_are_votes(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 130, 0)
    rated(warehouse, NEW, 0, 70, name="correction", start=SINCE + HOUR)
    found = seen(warehouse)
    assert counted(compared(found)) == (75, 500, 70, 200)
    assert found.verdict == "roll_back"


def timed(warehouse: Warehouse, model: str, hours: range, seconds: float, n: int = 10) -> None:
    """So many answers in each of these hours from the promotion on, six minutes apart, that took so long."""
    place = {"topic": "t", "partition": 0, "offset": 0, "received_at": SINCE}
    first = int(warehouse.rows("SELECT count(*) AS n FROM interactions")[0]["n"])
    times = [SINCE + hour * HOUR + number * 6 * MINUTE for hour in hours for number in range(n)]
    about = {"workload": "support", "model": model, "messages": "[]", "response": "", "latency_seconds": seconds}
    rows = [{"id": f"timed-{first + i}", "timestamp": when, **about, **place} for i, when in enumerate(times)]
    store(warehouse, "interactions", rows)


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
    assert found.reasons[0].startswith("slow by app: 93% of 15 hours, before 20% of 24")


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


def test_alarms_of_the_grounding_scorer_take_nothing_back(warehouse: Warehouse) -> None:
    """Longer answers have more of them, whether they are invented or not."""
    promote(warehouse)
    context = {"context": json.dumps(["Parcels take two days."])}
    rated(warehouse, OLD, 400, 0, response="Parcels take 2 days.", **context)
    rated(warehouse, NEW, 0, 120, name="comment", response="Parcels take 2 days; a courier brings 9 boxes.", **context)
    found = seen(warehouse)
    assert found.verdict == "go_on"
    assert "grounding" not in {comparison.source for comparison in found.comparisons}


def test_labels_of_invented_answers_count_by_source(warehouse: Warehouse) -> None:
    promote(warehouse)
    for source, bad in (("expert", 40), ("judge", 2), ("app", 3), ("user", 4)):
        start = SINCE + {"expert": 0, "judge": 1, "app": 2, "user": 3}[source] * HOUR
        rated(warehouse, OLD, 99, 1, name="hallucination", source=source, start=start - 5 * HOUR)
        rated(warehouse, NEW, 60, bad, name="hallucination", source=source, start=start)
    found = seen(warehouse)
    assert counted(compared(found, "hallucination", "judge")) == (1, 100, 2, 62)
    assert found.reasons == [
        "invented by expert: 40% of 100 conversations, before 1% of 100: worse by more than 5 points"
    ]


def test_workloads_are_watched_each_by_itself(warehouse: Warehouse) -> None:
    promote(warehouse)
    promote(warehouse, workload="sales")
    for workload, bad in (("support", 70), ("sales", 20)):
        rated(warehouse, f"{workload}@v1", 425, 75, workload=workload)
        rated(warehouse, f"{workload}@v2", 130, bad, workload=workload, start=SINCE)
    assert seen(warehouse).verdict == "roll_back"
    found = check(warehouse, SETTINGS, "sales", NOW)
    assert found is not None
    assert found.verdict == "go_on"
    assert check(warehouse, SETTINGS, "unheard of", NOW) is None


def test_what_is_not_watched(warehouse: Warehouse) -> None:
    assert check(warehouse, SETTINGS, "support", NOW) is None
    promote(warehouse)
    off = SETTINGS.model_copy(update={"watch": WatchSettings(enabled=False)})
    assert check(warehouse, off, "support", NOW) is None
    assert check(warehouse, SETTINGS, "support", NOW) is not None
    promote(warehouse, "v1", "v2", actor="operator", created_at=NOW)
    assert check(warehouse, SETTINGS, "support", NOW + HOUR) is None  # a person's choice is a person's to undo
    promote(warehouse, "v0", "v1", event="rolled_back", created_at=NOW + HOUR)
    assert check(warehouse, SETTINGS, "support", NOW + 2 * HOUR) is None  # nor is a version that came back


def test_a_later_promotion_is_watched_anew(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 300, 200)
    rated(warehouse, NEW, 110, 10)
    assert seen(warehouse, OVER).verdict == "keep"
    promote(warehouse, "v3", "v2", created_at=OVER)
    found = seen(warehouse, OVER + HOUR)
    assert (found.version, found.verdict, found.since) == ("v3", "go_on", OVER)


def comparison(metric: str = "helpful", worse: float = 0.0, as_good: float = 0.0, n: int = 100) -> Comparison:
    return Comparison(metric, "app" if metric == "latency" else "user", 10, n, 10, n, worse, as_good)


DAYS = timedelta(days=1)


@pytest.mark.parametrize(
    ("comparisons", "age", "verdict"),
    [
        ([comparison(worse=1.0)], HOUR, "roll_back"),
        ([comparison(worse=1.0)], 28 * DAYS, "roll_back"),
        ([comparison(worse=1.0)], 29 * DAYS, "keep"),
        ([comparison(worse=1.0, n=29)], HOUR, "go_on"),
        ([comparison("latency", worse=1.0, n=6)], HOUR, "roll_back"),
        ([comparison("latency", worse=1.0, n=5)], HOUR, "go_on"),
        ([comparison(as_good=1.0), comparison("latency", worse=1.0)], HOUR, "roll_back"),
        ([comparison(worse=0.99)], HOUR, "go_on"),
        ([comparison(worse=0.99), comparison("latency", worse=0.99)], HOUR, "roll_back"),  # they agree
        ([comparison(worse=0.99)], 14 * DAYS, "keep"),
        ([comparison(as_good=1.0)], HOUR, "go_on"),
        ([comparison(as_good=1.0)], 3 * DAYS, "keep"),
        ([comparison(as_good=1.0), comparison("latency")], 3 * DAYS, "keep"),
        ([comparison(as_good=1.0), comparison("hallucination", as_good=0.9)], 3 * DAYS, "go_on"),
        ([comparison(as_good=1.0), comparison("hallucination", n=29)], 3 * DAYS, "keep"),  # nobody could tell
        ([comparison("hallucination", as_good=1.0), comparison("latency", as_good=1.0)], 3 * DAYS, "go_on"),
        ([], 3 * DAYS, "go_on"),
        ([], 14 * DAYS, "keep"),
    ],
)
def test_the_verdict(comparisons: list[Comparison], age: timedelta, verdict: str) -> None:
    assert decide(comparisons, age, Power(1.0, None), WatchSettings())[0] == verdict
