"""The watch over a promotion, on a real warehouse: what is counted, and the verdict."""

import json
import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from fixtures.daemon.promoting import model_row
from fixtures.feedback.traffic import store
from fixtures.feedback.watched import (
    HOUR,
    NEW,
    NOW,
    OLD,
    OVER,
    SETTINGS,
    SINCE,
    compared,
    counted,
    promote,
    rated,
    seen,
)
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.check import check, latest
from retuned.monitors.watch.comparison import COMPARED, Comparison, Power, decide

DAYS = timedelta(days=1)


def test_a_version_that_is_worse_is_to_be_taken_back_with_the_reasons(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 130, 70)
    found = seen(warehouse)
    assert found.verdict == "roll_back"
    assert found.reasons == [
        "unhelpful by user: 35% of 200 votes by 200 accounts, before 15% of 500 votes by 500 accounts "
        "(95% interval of the difference +12 to +28 points): worse by more than 5 points"
    ]
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
    almost = 67
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 200 - almost, almost)
    assert alone / shared < compared(seen(warehouse)).worse < 1
    assert seen(warehouse).verdict == "go_on"
    promote(warehouse, workload="sales")
    rated(warehouse, "sales@v1", 425, 75, workload="sales")
    rated(warehouse, "sales@v2", 198 - almost, almost + 2, workload="sales", start=SINCE)
    found = check(warehouse, SETTINGS, "sales", NOW)
    assert found is not None
    assert found.verdict == "roll_back"


def test_comparisons_that_agree_are_more_evidence_than_each(warehouse: Warehouse) -> None:
    promote(warehouse)
    for name, source, bad in (("helpful", "user", 65), ("hallucination", "user", 69), ("hallucination", "judge", 69)):
        rated(warehouse, OLD, 425, 75, name=name, source=source)
        rated(warehouse, NEW, 200 - bad, bad, name=name, source=source)
    found = seen(warehouse)
    assert all(0.6 < each.worse < 1 for each in found.comparisons), found.comparisons
    assert found.verdict == "roll_back"
    assert len(found.reasons) == 3


@pytest.mark.full
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
        "the watch is over, and did not show that the version is worse",
        "unhelpful by user: 15% of 150 votes by 150 accounts, before 15% of 500 votes by 500 accounts "
        "(95% interval of the difference -7 to +8 points)",
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


def test_a_watch_does_not_end_before_the_events_of_its_time_are_stored(warehouse: Warehouse) -> None:
    """After a pause the votes against a version wait on the broker."""
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 9, 6)
    for known in (SINCE - HOUR, SINCE + HOUR, OVER - HOUR):
        found = check(warehouse, SETTINGS, "support", OVER + HOUR, known)
        assert (found and found.verdict) == "go_on"
    rated(warehouse, NEW, 130, 70, start=SINCE + HOUR)
    found = check(warehouse, SETTINGS, "support", OVER + HOUR, OVER - HOUR)
    assert (found and found.verdict) == "roll_back"


def test_a_watch_ends_once_the_events_of_its_time_are_stored(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 9, 6)
    found = check(warehouse, SETTINGS, "support", OVER + HOUR, OVER)
    assert (found and found.verdict) == "keep"


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


def test_the_base_model_goes_by_whatever_name_apps_have_for_it(warehouse: Warehouse) -> None:
    promote(warehouse, "v2", None)
    rated(warehouse, "support@base", 3, 1)
    rated(warehouse, "gpt-something", 2, 1)
    rated(warehouse, OLD, 5, 5)
    rated(warehouse, NEW, 6, 4)
    assert counted(compared(seen(warehouse))) == (2, 7, 4, 10)


def test_one_person_alone_takes_nothing_back_however_often_they_vote(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 20, 0)
    ids = rated(warehouse, NEW, 20, 0)
    rated(warehouse, NEW, 10, 30, user="angry", start=SINCE + HOUR)
    rated(warehouse, NEW, 0, 8, user="expert", name="hallucination", source="expert", start=SINCE + 2 * HOUR)
    again = {"timestamp": SINCE + HOUR, "value": "false", "source": "user", "name": "helpful", "topic": "feedback"}
    rest = {"partition": 0, "offset": 10_000, "received_at": NOW}
    store(warehouse, "feedback", [{"id": "again", "interaction_id": ids[0], **again, **rest}])
    found = seen(warehouse)
    # Forty votes of one account weigh as much as six: a tenth of the votes.
    assert counted(compared(found)) == (0, 20, 1 + 0.75 * 6, 20 + 6)
    assert (compared(found).voters_after, found.verdict) == (21, "go_on")
    assert counted(compared(found, "hallucination", "expert")) == (0, 0, 8, 8)


def test_votes_of_one_conversation_are_those_of_one_voter(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 20, 0)
    rated(warehouse, NEW, 30, 10, conversation_id="a long one")
    found = compared(seen(warehouse))
    assert counted(found) == (0, 20, pytest.approx(0.25 * 5), 5)
    assert (found.voters_after, seen(warehouse).verdict) == (1, "go_on")


def test_corrections_are_votes(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 130, 0)
    rated(warehouse, NEW, 0, 70, name="correction", start=SINCE + HOUR)
    found = seen(warehouse)
    assert counted(compared(found)) == (75, 500, 70, 200)
    assert found.verdict == "roll_back"


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
        "invented by expert: 40% of 100 votes on 100 conversations, before 1% of 100 votes on 100 conversations "
        "(95% interval of the difference +28 to +49 points): worse by more than 5 points"
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


def test_a_version_with_erased_rows_never_comes_back(warehouse: Warehouse) -> None:
    """So a version that replaced it is not watched; one that replaced the base model is."""
    warehouse.insert("models", **model_row("v1", Path("v1"), SINCE))
    warehouse.insert("erasures", id="e", requested_at=SINCE, state="done")
    warehouse.insert("erasure_versions", erasure_id="e", workload="support", version="v1", dataset_version="d", rows=3)
    promote(warehouse)
    assert check(warehouse, SETTINGS, "support", NOW) is None
    promote(warehouse, previous=None, created_at=NOW)
    rated(warehouse, "support@base", 425, 75, start=NOW - HOUR)
    rated(warehouse, NEW, 130, 70, start=NOW)
    found = seen(warehouse, NOW + 2 * HOUR)
    assert (found.previous_version, found.verdict) == (None, "roll_back")


def test_a_later_promotion_is_watched_anew(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 300, 200)
    rated(warehouse, NEW, 110, 10)
    assert seen(warehouse, OVER).verdict == "keep"
    promote(warehouse, "v3", "v2", created_at=OVER)
    found = seen(warehouse, OVER + HOUR)
    assert (found.version, found.verdict, found.since) == ("v3", "go_on", OVER)


def test_a_clock_that_was_ahead_leaves_later_champions_watched(warehouse: Warehouse) -> None:
    promote(warehouse, created_at=SINCE + 2 * DAYS)
    assert seen(warehouse, SINCE + 2 * DAYS + HOUR).version == "v2"
    promote(warehouse, "v1", "v2", created_at=SINCE + HOUR, event="rolled_back", actor="operator")
    assert check(warehouse, SETTINGS, "support", SINCE + 2 * HOUR) is None
    promote(warehouse, "v3", "v1", created_at=SINCE + 6 * HOUR)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, "support@v3", 60, 140, start=SINCE + 7 * HOUR)
    found = seen(warehouse, SINCE + 20 * HOUR)
    assert (found.version, found.since, found.verdict) == ("v3", SINCE + 6 * HOUR, "roll_back")
    assert seen(warehouse, SINCE + 21 * HOUR) == found


def comparison(metric: str = "helpful", worse: float = 0.0, as_good: float = 0.0, n: int = 100) -> Comparison:
    return Comparison(metric, "app" if metric == "latency" else "user", 10, n, 10, n, worse, as_good)


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
    assert decide(comparisons, age, age, Power(1.0, None), WatchSettings())[0] == verdict
