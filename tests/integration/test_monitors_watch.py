"""The watch over a promotion, on a real warehouse: what is compared with what, and the verdict."""

import json
import math
import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from traffic import START, feedback, interactions, store

from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.settings import Settings, WatchSettings
from retuned.monitors.watch.check import WatchCheck, check, latest
from retuned.monitors.watch.comparison import COMPARED, Comparison, Power, decide
from retuned.monitors.watch.sequential import log_e_value

HOUR = timedelta(hours=1)
SINCE = START + 24 * HOUR
NOW = SINCE + 12 * HOUR
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


def counted(comparison: Comparison) -> tuple[int, int, int, int]:
    return comparison.bad_before, comparison.n_before, comparison.bad_after, comparison.n_after


def test_a_version_that_is_worse_is_to_be_taken_back_with_the_reasons(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 130, 70)
    found = seen(warehouse)
    assert found.verdict == "roll_back"
    assert found.reasons == ["unhelpful by user: 35% of 200 answers, before 15% of 500: worse by more than 5 points"]
    assert (found.version, found.previous_version, found.since) == ("v2", "v1", SINCE)
    assert compared(found).worse > 1 > compared(found).as_good
    assert latest(warehouse, "support") == found
    assert check(warehouse, SETTINGS, "support", NOW + HOUR) == found  # until somebody carries it out
    promote(warehouse, "v1", "v2", event="rolled_back", actor="watch", created_at=NOW)
    assert check(warehouse, SETTINGS, "support", NOW + HOUR) is None
    assert len(warehouse.rows("SELECT * FROM watch_checks")) == 1


def test_the_error_is_shared_out_over_all_that_is_compared(warehouse: Warehouse) -> None:
    """What would be enough for one comparison alone takes nothing back: six may each be mistaken."""
    alone = math.log(1 / SETTINGS.watch.false_rollback_rate)
    shared = alone + math.log(len(COMPARED))
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
                for name, source in COMPARED[:-1]:
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
    found = seen(warehouse)
    assert (found.verdict, found.reasons[0]) == ("keep", "shown to be within 5 points of the champion before")
    assert check(warehouse, SETTINGS, "support", NOW + HOUR) is None
    assert len(warehouse.rows("SELECT * FROM watch_checks")) == 1


def test_one_that_is_as_good_is_watched_and_in_the_end_kept(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 128, 22)
    assert seen(warehouse).verdict == "go_on"
    found = seen(warehouse, SINCE + timedelta(days=3))
    assert found.verdict == "keep"
    assert found.reasons == [
        "the watch is over, and did not show in its time that it is worse",
        "unhelpful by user: 15% of 150 answers, before 15% of 500",
    ]
    assert check(warehouse, SETTINGS, "support", SINCE + timedelta(days=4)) is None


def test_few_votes_decide_nothing_however_bad_they_are(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 480, 20)
    rated(warehouse, NEW, 0, 29)
    found = seen(warehouse)
    assert compared(found).worse > 1
    assert found.verdict == "go_on"
    rated(warehouse, NEW, 0, 1, start=SINCE + 5 * HOUR)
    assert seen(warehouse).verdict == "roll_back"


def test_nothing_is_taken_back_after_the_time(warehouse: Warehouse) -> None:
    """For example of a champion that was promoted long before the daemon learned to watch."""
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 130, 70)
    found = seen(warehouse, SINCE + timedelta(days=3))
    assert (found.verdict, compared(found).worse > 1) == ("keep", True)


def test_a_version_that_nobody_asks_is_kept_and_it_is_said(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, "a name of the app's own", 100, 100, start=SINCE)
    found = seen(warehouse, SINCE + timedelta(days=3))
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
    rated(warehouse, OLD, 1, 2, start=SINCE + HOUR)  # by apps that still ask it
    rated(warehouse, OLD, 0, 50, start=SINCE - 8 * HOUR)  # too long ago
    rated(warehouse, "support@v0", 0, 7)
    rated(warehouse, NEW, 30, 3)
    rated(warehouse, NEW, 0, 5, start=SINCE - 2 * HOUR)  # before it was the champion
    rated(warehouse, NEW, 0, 9, start=NOW + HOUR)  # not yet
    rated(warehouse, NEW, 0, 13, source="expert", start=SINCE + HOUR)  # another source
    rated(warehouse, NEW, 0, 11, start=SINCE, workload="other")
    assert counted(compared(seen(warehouse))) == (12, 53, 3, 33)


def test_the_base_model_goes_by_whatever_name_apps_have_for_it(warehouse: Warehouse) -> None:
    promote(warehouse, "v2", None)
    rated(warehouse, "support@base", 3, 1)
    rated(warehouse, "gpt-something", 2, 1)
    rated(warehouse, OLD, 5, 5)
    rated(warehouse, NEW, 6, 4)
    assert counted(compared(seen(warehouse))) == (2, 7, 4, 10)


def test_one_person_changing_their_mind_has_one_vote_and_one_account_has_five(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 20, 0)
    ids = rated(warehouse, NEW, 20, 0)
    rated(warehouse, NEW, 0, 40, user="angry", start=SINCE + HOUR)
    rated(warehouse, NEW, 0, 8, user="expert", name="hallucination", source="expert", start=SINCE + 2 * HOUR)
    again = {"timestamp": NOW, "value": "false", "source": "user", "name": "helpful", "topic": "feedback"}
    rest = {"partition": 0, "offset": 10_000, "received_at": NOW}
    store(warehouse, "feedback", [{"id": "again", "interaction_id": ids[0], **again, **rest}])
    found = seen(warehouse)
    assert counted(compared(found)) == (0, 20, 1 + 5, 20 + 5)
    assert counted(compared(found, "hallucination", "expert")) == (0, 0, 8, 8)


def test_corrections_are_votes(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 425, 75)
    rated(warehouse, NEW, 130, 0)
    rated(warehouse, NEW, 0, 70, name="correction", start=SINCE + HOUR)
    found = seen(warehouse)
    assert counted(compared(found)) == (75, 500, 70, 200)
    assert found.verdict == "roll_back"


def test_absurd_latencies_end_no_watch_with_an_error(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 100, 0, latency_seconds=1e308)
    rated(warehouse, NEW, 100, 0, latency_seconds=1e308)
    assert counted(compared(seen(warehouse), "latency", "app")) == (100, 100, 0, 100)


def test_answers_that_got_slow_are_seen(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 200, 0)
    # Nine in ten take less than 0.68 s.
    warehouse.execute('UPDATE interactions SET latency_seconds = 0.5 + "offset" / 1000')
    rated(warehouse, NEW, 100, 0, latency_seconds=2.03)
    found = seen(warehouse)
    assert counted(compared(found, "latency", "app")) == (21, 200, 0, 100)
    assert found.verdict == "go_on"
    rated(warehouse, NEW, 60, 0, latency_seconds=2.05, start=SINCE + HOUR)
    rated(warehouse, NEW, 60, 0, latency_seconds=float("nan"), start=SINCE + 2 * HOUR)
    found = seen(warehouse)
    assert counted(compared(found, "latency", "app")) == (21, 200, 60, 160)
    assert found.verdict == "roll_back"
    assert found.reasons[0].startswith("slow by app: 38% of 160 answers, before 10% of 200")


def test_latencies_that_come_beside_their_answers_are_compared(warehouse: Warehouse) -> None:
    promote(warehouse)
    for model, when, offset in ((OLD, SINCE - HOUR, 10_000), (NEW, SINCE + HOUR, 20_000)):
        feedback(
            warehouse, rated(warehouse, model, 100, 0), "latency_seconds", 1.0, source="app", when=when, offset=offset
        )
    assert counted(compared(seen(warehouse), "latency", "app")) == (100, 100, 0, 100)


def test_latencies_that_are_none_or_impossible_are_not_compared(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 40, 0)
    rated(warehouse, NEW, 40, 0, latency_seconds=1.0)
    metrics = {comparison.metric for comparison in seen(warehouse).comparisons}
    assert metrics == {"helpful"}  # what was usual is not known
    rated(warehouse, OLD, 50, 0, latency_seconds=-1.0, start=SINCE - 3 * HOUR)
    assert {comparison.metric for comparison in seen(warehouse).comparisons} == {"helpful"}
    rated(warehouse, OLD, 30, 0, latency_seconds=1.0, start=SINCE - 4 * HOUR)
    assert counted(compared(seen(warehouse), "latency", "app")) == (30, 30, 0, 40)


def test_without_votes_nothing_ends_the_watch_early(warehouse: Warehouse) -> None:
    promote(warehouse)
    rng = random.Random(3)
    interactions(warehouse, ["q"] * 400, rng, start=SINCE - 2 * HOUR, step=HOUR / 400, model=OLD)
    interactions(warehouse, ["q"] * 400, rng, start=SINCE, step=HOUR / 400, model=NEW, offset=400)
    found = seen(warehouse)
    assert compared(found, "latency", "app").as_good > 1
    assert found.verdict == "go_on"


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
    assert found.reasons == ["invented by expert: 40% of 100 answers, before 1% of 100: worse by more than 5 points"]


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
    assert seen(warehouse).verdict == "keep"
    promote(warehouse, "v3", "v2", created_at=NOW)
    found = seen(warehouse, NOW + HOUR)
    assert (found.version, found.verdict, found.since) == ("v3", "go_on", NOW)


def comparison(metric: str = "helpful", worse: float = 0.0, as_good: float = 0.0, n: int = 100) -> Comparison:
    return Comparison(metric, "user", 10, n, 10, n, worse, as_good)


@pytest.mark.parametrize(
    ("comparisons", "over", "verdict"),
    [
        ([comparison(worse=1.0)], False, "roll_back"),
        ([comparison(as_good=1.0), comparison("latency", worse=1.0)], False, "roll_back"),
        ([comparison(worse=0.99)], False, "go_on"),
        ([comparison(worse=0.99)], True, "keep"),
        ([comparison(as_good=1.0)], False, "keep"),
        ([comparison(as_good=1.0), comparison("hallucination", as_good=0.9)], False, "go_on"),
        ([comparison(as_good=1.0), comparison("hallucination", n=29)], False, "keep"),  # nobody could tell of that one
        ([comparison("hallucination", as_good=1.0), comparison("latency", as_good=1.0)], False, "go_on"),
        ([], False, "go_on"),
        ([], True, "keep"),
    ],
)
def test_the_verdict(comparisons: list[Comparison], over: bool, verdict: str) -> None:
    assert decide(comparisons, over, WatchSettings())[0] == verdict
