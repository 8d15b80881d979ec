"""Looks at a canary, on a real warehouse: what is counted of each step, and the verdict."""

import json
import math
import random
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from fixtures.feedback.traffic import interactions, promoted, store
from fixtures.feedback.watched import (
    HOUR,
    NEW,
    NOW,
    OLD,
    SETTINGS,
    SINCE,
    compared,
    counted,
    promote,
    rated,
    regulars_and_others,
    seen,
    voted,
)
from retuned.consumers.settings import RolloutSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.rates.sequential import log_e_value
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.canary import CanaryCheck, check, decide, latest, thin
from retuned.monitors.watch.comparison import COMPARED, Comparison

DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)


def canary(warehouse: Warehouse, *steps: tuple[float, datetime], workload: str = "support", **columns: Any) -> None:
    """A rollout of v2 over v1 that reached these shares then."""
    share, since = steps[-1]
    named = {"workload": workload, "version": "v2", "previous_version": "v1"}
    row = {"created_at": steps[0][1], "share": share, "step_since": since, "state": "canary"}
    warehouse.insert("rollouts", id=f"of {workload}", **(named | row | columns))
    for share, since in steps:
        of = {"workload": workload, "event": "canary", "share": share, "experiment": f"of {workload}"}
        promoted(warehouse, f"{workload} {share}", "v2", "v1", since, **of)


def looked(warehouse: Warehouse, now: datetime = NOW) -> CanaryCheck:
    found = check(warehouse, SETTINGS, "support", now)
    assert found is not None
    return found


def of(found: CanaryCheck, metric: str = "helpful", source: str = "user") -> Comparison:
    (comparison,) = [one for one in found.comparisons if (one.metric, one.source) == (metric, source)]
    return comparison


def test_a_canary_that_is_worse_is_to_be_taken_back_with_the_reasons(warehouse: Warehouse) -> None:
    canary(warehouse, (0.25, SINCE))
    rated(warehouse, OLD, 425, 75, start=SINCE)
    rated(warehouse, NEW, 130, 70)
    found = looked(warehouse)
    assert found.verdict == "roll_back"
    why = (
        "unhelpful by user: 35% of 200 votes by 200 accounts, at the same time 15% of 500 votes by 500 accounts "
        "(95% interval of the difference +13 to +27 points): worse by more than 5 points"
    )
    assert found.reasons == [why]
    assert (found.version, found.previous_version, found.share, found.answers) == ("v2", "v1", 0.25, 200)
    assert latest(warehouse, "of support") == found
    assert looked(warehouse, NOW + HOUR) == found  # until somebody carries it out
    warehouse.execute("UPDATE rollouts SET state = 'rolled_back', ended_at = $now", {"now": NOW})
    assert check(warehouse, SETTINGS, "support", NOW + HOUR) is None


def test_one_that_is_as_good_goes_on_when_the_step_was_long_enough(warehouse: Warehouse) -> None:
    canary(warehouse, (0.25, SINCE))
    rated(warehouse, OLD, 425, 75, start=SINCE)
    rated(warehouse, NEW, 159, 28)
    assert (looked(warehouse).verdict, looked(warehouse).reasons[:2]) == (
        "hold", ["the step has lasted 12 hours of 24 hours", "the canary gave 187 of 200 answers"]
    )  # fmt: skip
    assert looked(warehouse, SINCE + DAY).reasons[0] == "the canary gave 187 of 200 answers"
    rated(warehouse, NEW, 11, 2, start=SINCE + 2 * HOUR)
    assert looked(warehouse).verdict == "hold"
    found = looked(warehouse, SINCE + DAY)
    figures = (
        "unhelpful by user: 15% of 200 votes by 200 accounts, at the same time 15% of 500 votes by 500 accounts "
        "(95% interval of the difference -5 to +6 points)"
    )
    assert (found.verdict, found.reasons) == ("advance", ["not shown to be worse by more than 5 points", figures])
    assert [row["verdict"] for row in warehouse.rows("SELECT verdict FROM rollout_checks")] == [
        *["hold"] * 4,
        "advance",
    ]


def assigned(
    warehouse: Warehouse,
    arm: str,
    count: int,
    answers: int = 1,
    model: str | None = None,
    since: timedelta | None = None,
    **columns: Any,
) -> None:
    """Answers of conversations that the gateway assigned to an arm; by default by the version of the arm."""
    share = {"assignment": {"experiment": "of support", "arm": arm}}
    own = {"model": model or (NEW if arm == "canary" else OLD), "conversation_id": None, "user_id": None}
    known = int(warehouse.rows("SELECT count(*) AS n FROM interactions")[0]["n"])
    for turn in range(answers):
        given = own | {"attributes": json.dumps(share)} | columns
        asked = [f"{arm} {known + number}" for number in range(count)]
        offset = known + turn * count
        start, step = SINCE + MINUTE + (since or timedelta()), (DAY - 3 * MINUTE - (since or timedelta())) / count
        interactions(warehouse, asked, random.Random(0), start=start, step=step, offset=offset, **given)


@pytest.mark.parametrize("among", ["none at all", "those that are easy", "all but those of a fallback"])
def test_a_canary_that_does_not_answer_its_conversations_is_taken_back(warehouse: Warehouse, among: str) -> None:
    canary(warehouse, (0.05, SINCE))
    assigned(warehouse, "champion", 5_700)
    if among != "none at all":
        assigned(warehouse, "canary", 180, answers=3)
    if among == "all but those of a fallback":
        assigned(warehouse, "canary", 120, model=OLD)
    assert looked(warehouse, SINCE + DAY - HOUR).verdict == "hold"
    found = looked(warehouse, SINCE + DAY)
    answered = "0" if among == "none at all" else "180"
    assert found.verdict == "roll_back"
    assert found.reasons[0].startswith(f"it answered {answered} conversations, and its share beside the 5,700")
    assert " is 300:" in found.reasons[0]


@pytest.mark.parametrize("among", ["all", "all but a few", "a cascade asks the incumbent", "no gateway"])
def test_a_canary_that_answers_its_conversations_goes_on(warehouse: Warehouse, among: str) -> None:
    canary(warehouse, (0.05, SINCE))
    assigned(warehouse, "champion", 5_700, **({"attributes": None} if among == "no gateway" else {}))
    assigned(
        warehouse,
        "canary",
        {"all but a few": 280, "a cascade asks the incumbent": 180, "no gateway": 9}.get(among, 300),
    )
    if among == "a cascade asks the incumbent":
        cascade = {"assignment": {"experiment": "of support", "arm": "canary"}, "cascade": "confidence"}
        assigned(warehouse, "canary", 120, model="vendor", attributes=json.dumps(cascade))
    assert looked(warehouse, SINCE + DAY).verdict == "hold"
    assert looked(warehouse, SINCE + 7 * DAY).verdict == "advance"


def test_a_canary_answers_its_conversations_once_its_servers_have_it(warehouse: Warehouse) -> None:
    canary(warehouse, (0.05, SINCE))
    assigned(warehouse, "champion", 5_700)
    assigned(warehouse, "canary", 150, since=12 * HOUR)
    since = {"workload": "support", "version": NEW.partition("@")[2], "share": 0.05, "since": SINCE}
    warehouse.insert("deployments", **since, served_at=SINCE + 12 * HOUR - MINUTE)
    assert looked(warehouse, SINCE + DAY).verdict == "hold"
    warehouse.execute("UPDATE deployments SET served_at = ?", [SINCE])
    assert looked(warehouse, SINCE + DAY).verdict == "roll_back"


def test_a_canary_that_has_just_begun_is_not_missed_yet(warehouse: Warehouse) -> None:
    canary(warehouse, (0.5, SINCE))
    share = {"assignment": {"experiment": "of support", "arm": "champion"}}
    asked = {"attributes": json.dumps(share), "conversation_id": None, "user_id": None, "model": OLD}
    names = [f"champion {number}" for number in range(60)]
    interactions(warehouse, names, random.Random(0), start=SINCE, step=timedelta(seconds=1), **asked)
    quick = SETTINGS.model_copy(update={"rollout": RolloutSettings(minimum_seconds=5)})
    found = check(warehouse, quick, "support", SINCE + MINUTE)
    assert found is not None
    assert found.verdict == "hold"


def test_only_what_was_answered_at_the_same_time_is_compared(warehouse: Warehouse) -> None:
    canary(warehouse, (0.25, SINCE))
    rated(warehouse, OLD, 500, 0, start=SINCE - 2 * HOUR)
    rated(warehouse, OLD, 30, 20, start=SINCE)
    rated(warehouse, NEW, 30, 20)
    rated(warehouse, NEW, 0, 50, start=SINCE - 3 * HOUR)  # somebody tried it before
    assert counted(of(looked(warehouse))) == (20, 50, 20, 50)


def test_days_that_differ_are_no_harm_though_the_canary_had_more_of_the_bad_one(warehouse: Warehouse) -> None:
    """All together, the canary has 37% bad answers and the champion 17%."""
    canary(warehouse, (0.05, SINCE), (0.5, SINCE + DAY))
    rated(warehouse, OLD, 902, 48, start=SINCE)
    rated(warehouse, NEW, 48, 2, start=SINCE)
    rated(warehouse, OLD, 300, 200, start=SINCE + DAY)
    rated(warehouse, NEW, 300, 200, start=SINCE + DAY)
    found = looked(warehouse, SINCE + 2 * DAY)
    assert counted(of(found)) == (248, 1450, 202, 550)
    assert float(log_e_value(248, 1450, 202, 550, SETTINGS.watch.margin)) > 10
    assert (of(found).worse, found.verdict) == (0, "advance")


def test_the_evidence_of_the_steps_is_multiplied(warehouse: Warehouse) -> None:
    alone = float(log_e_value(75, 500, 52, 160, SETTINGS.watch.margin))
    canary(warehouse, (0.05, SINCE), (0.5, SINCE + DAY))
    for start in (SINCE, SINCE + DAY):
        rated(warehouse, OLD, 425, 75, start=start)
        rated(warehouse, NEW, 108, 52, start=start)
    found = looked(warehouse, SINCE + 2 * DAY)
    needed = math.log(2 / (SETTINGS.watch.false_rollback_rate * COMPARED["helpful", "user"]))
    assert alone < needed < 2 * alone
    assert of(found).worse == pytest.approx(2 * alone / needed)
    assert found.verdict == "roll_back"


def test_half_of_the_error_is_the_canarys_and_half_the_watchs(warehouse: Warehouse) -> None:
    """Evidence that takes back a champion that never was a canary."""
    bad = next(bad for bad in range(40, 99) if log_e_value(75, 500, bad, 200, 0.05) >= math.log(1 / (0.05 * 0.5)))
    canary(warehouse, (0.25, SINCE))
    rated(warehouse, OLD, 425, 75, start=SINCE)
    rated(warehouse, NEW, 200 - bad, bad)
    assert looked(warehouse).verdict == "hold"
    rated(warehouse, OLD, 425, 75, start=SINCE + DAY)
    rated(warehouse, NEW, 200 - bad, bad, start=SINCE + 2 * DAY)
    promote(warehouse, created_at=SINCE + 2 * DAY, actor="rollout", experiment="of support", share=0.95)
    kept = seen(warehouse, SINCE + 3 * DAY)
    assert (kept.verdict, counted(compared(kept))[2:]) == ("go_on", (bad, 200))
    warehouse.execute("DELETE FROM promotions WHERE event = 'canary'")  # the same, of one that was promoted at once
    assert seen(warehouse, SINCE + 3 * DAY).verdict == "roll_back"


def test_a_vote_counts_for_the_step_of_its_answer_however_late_it_comes(warehouse: Warehouse) -> None:
    canary(warehouse, (0.05, SINCE), (0.5, SINCE + DAY))
    asked, late = SINCE + 12 * HOUR, 20 * HOUR
    voted(warehouse, (OLD, False, asked, late, 40), (NEW, True, asked, late, 30))
    voted(warehouse, (OLD, False, SINCE + DAY, HOUR, 40), (NEW, False, SINCE + DAY, HOUR, 30))
    voted(warehouse, (NEW, True, SINCE, DAY + HOUR, 5))  # later than watch.vote_seconds
    before, after = (of(looked(warehouse, SINCE + hours * HOUR)) for hours in (30, 33))
    assert counted(before) == (0, 40, 0, 30)
    assert counted(after) == (0, 80, 30, 60)
    first, second = (float(log_e_value(0, 40, bad, 30, 0.05)) for bad in (30, 0))
    needed = math.log(2 / (SETTINGS.watch.false_rollback_rate * COMPARED["helpful", "user"]))
    assert after.worse == pytest.approx((first + second) / needed)


def test_each_vote_counts_in_the_step_of_its_answer_and_one_account_decides_nothing(warehouse: Warehouse) -> None:
    canary(warehouse, (0.05, SINCE), (0.5, SINCE + DAY))
    rated(warehouse, NEW, 0, 10, user="angry", start=SINCE + HOUR)
    rated(warehouse, NEW, 10, 30, user="angry", start=SINCE + DAY + HOUR)
    rated(warehouse, NEW, 4, 1, start=SINCE + DAY + 3 * HOUR)
    rated(warehouse, OLD, 2, 2, user="angry", start=SINCE + DAY + 5 * HOUR)
    found = of(looked(warehouse, SINCE + 2 * DAY))
    # Fifty votes of one account weigh as much as five and a half: a tenth of the arm.
    assert counted(found) == (2, 4, pytest.approx((1 + 40 / 50 * 5.5) / (5 + 5.5) * 10), 10)
    assert (found.voters_before, found.voters_after) == (1, 6)
    assert found.worse == 0


@pytest.mark.full
@pytest.mark.parametrize("shares", [(0.1, 0.5), (0.5, 0.1)])
def test_identical_versions_are_alike_though_regulars_find_them_better(
    warehouse: Warehouse, shares: tuple[float, float]
) -> None:
    """Nearly all regulars are in either arm, and only those of the others who happened to get it."""
    canary(warehouse, (0.1, SINCE))
    expected = regulars_and_others(warehouse, range(12), lambda _, luck: NEW if luck < 0.1 else OLD, *shares)
    found = of(looked(warehouse, SINCE + 12 * DAY))
    for bad, n in (counted(found)[:2], counted(found)[2:]):
        assert bad / n == pytest.approx(expected, abs=0.06)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0 < found.high
    assert found.worse < 0.2


def test_a_canary_that_is_slow_is_taken_back(warehouse: Warehouse) -> None:
    canary(warehouse, (0.25, SINCE))
    rated(warehouse, OLD, 60, 0, start=SINCE - 20 * HOUR, latency_seconds=1.0)
    for hour in range(1, 13):
        rated(warehouse, OLD, 6, 0, start=SINCE + hour * HOUR, latency_seconds=1.0)
        rated(warehouse, NEW, 2, 0, start=SINCE + hour * HOUR, latency_seconds=9.0)
    found = looked(warehouse, SINCE + 13 * HOUR)
    assert found.verdict == "roll_back"
    assert found.reasons == [
        "slow by app: 100% of 12 hours, at the same time 0% of 12 hours: worse by more than 5 points"
    ]


def test_a_canary_beside_the_base_model(warehouse: Warehouse) -> None:
    canary(warehouse, (0.25, SINCE), previous_version=None)
    rated(warehouse, "gpt-something", 40, 10, start=SINCE)
    rated(warehouse, NEW, 15, 5)
    assert counted(of(looked(warehouse))) == (10, 50, 5, 20)


def test_workloads_and_states_are_told_apart(warehouse: Warehouse) -> None:
    assert check(warehouse, SETTINGS, "support", NOW) is None
    canary(warehouse, (0.25, SINCE))
    canary(warehouse, (0.25, SINCE), workload="sales", state="holdback")
    rated(warehouse, OLD, 425, 75, start=SINCE)
    rated(warehouse, NEW, 130, 70)
    assert looked(warehouse).verdict == "roll_back"
    assert check(warehouse, SETTINGS, "sales", NOW) is None


def test_the_state_is_that_of_the_events_not_of_earlier_looks(warehouse: Warehouse) -> None:
    canary(warehouse, (0.25, SINCE))
    for hour in range(4):
        rated(warehouse, OLD, 40, 8, start=SINCE + hour * HOUR)
        rated(warehouse, NEW, 20, 4, start=SINCE + hour * HOUR)
        looked(warehouse, SINCE + (hour + 1) * HOUR)
    often = looked(warehouse)
    warehouse.execute("DELETE FROM rollout_checks")
    once = looked(warehouse)
    assert replace(often, id=once.id) == once


def test_a_canary_that_nobody_asks_is_held_and_goes_on_in_the_end(warehouse: Warehouse) -> None:
    canary(warehouse, (0.25, SINCE))
    rated(warehouse, OLD, 425, 75, start=SINCE)
    found = looked(warehouse, SINCE + 6 * DAY)
    few = "too few votes to show that it is not 20 points worse"
    assert (found.verdict, found.reasons) == ("hold", ["the canary gave 0 of 200 answers", few])
    found = looked(warehouse, SINCE + 7 * DAY)
    assert found.verdict == "advance"
    assert found.reasons == [
        "the time of the step is over (7 days, rollout.maximum_seconds) without enough evidence that it is worse, and "
        "without power:",
        "the canary gave 0 of 200 answers",
        few,
    ]


def test_time_whose_events_are_not_stored_yet_moves_no_canary(warehouse: Warehouse) -> None:
    canary(warehouse, (0.25, SINCE))
    rated(warehouse, OLD, 425, 75, start=SINCE)
    for known, verdict in ((SINCE - DAY, "hold"), (SINCE + 6 * DAY, "hold"), (SINCE + 7 * DAY, "advance")):
        found = check(warehouse, SETTINGS, "support", SINCE + 8 * DAY, known_until=known)
        assert (found and found.verdict) == verdict


def test_looks_that_held_are_thinned(warehouse: Warehouse) -> None:
    canary(warehouse, (0.05, SINCE), (0.25, SINCE + DAY))
    rated(warehouse, NEW, 130, 70)
    for minutes in (0, 5, 10, 65, 24 * 60):
        looked(warehouse, SINCE + DAY + timedelta(minutes=minutes + 1))
    assert thin(warehouse, ["support"], SINCE + DAY + timedelta(minutes=70), datetime.min) == 2  # noqa: DTZ901
    (look,) = warehouse.rows("SELECT * FROM rollout_checks LIMIT 1")
    first = {"share": 0.05, "step_since": SINCE}
    decided = {"created_at": SINCE + DAY - HOUR, "verdict": "advance"}
    store(warehouse, "rollout_checks", [look | first | decided, look | first | {"created_at": SINCE + DAY}])
    assert thin(warehouse, ["support"], SINCE + 9 * DAY, SINCE + 9 * DAY) == 2
    verdicts = warehouse.rows("SELECT verdict FROM rollout_checks ORDER BY created_at")
    assert [row["verdict"] for row in verdicts] == ["advance", "hold", "hold"]


def comparison(metric: str = "helpful", worse: float = 0.0, n: int = 100, as_good: float = 1.0) -> Comparison:
    return Comparison(metric, "app" if metric == "latency" else "user", 10, n, 10, n, worse, as_good, "same_time")


@pytest.mark.parametrize(
    ("comparisons", "answers", "step", "age", "verdict"),
    [
        ([comparison(worse=1.0)], 0, HOUR, HOUR, "roll_back"),
        ([comparison(worse=1.0)], 900, 8 * DAY, 15 * DAY, "roll_back"),
        ([comparison(worse=0.99), comparison("latency", worse=0.99)], 200, DAY, DAY, "roll_back"),  # they agree
        ([comparison(worse=1.0, n=29)], 200, DAY, DAY, "advance"),  # too few to tell
        ([comparison(), comparison("latency", worse=1.0, n=5)], 200, DAY, DAY, "advance"),
        ([comparison(worse=0.01)], 200, DAY, DAY, "hold"),
        ([comparison(), comparison("latency", worse=0.01)], 200, 6 * DAY, 6 * DAY, "hold"),
        ([comparison(as_good=0.99)], 200, 6 * DAY, 6 * DAY, "hold"),
        ([comparison(as_good=0.99), comparison("hallucination")], 200, DAY, DAY, "advance"),
        ([comparison(as_good=0.99), comparison("latency")], 200, DAY, DAY, "hold"),
        ([], 200, DAY, DAY, "hold"),  # nobody votes
        ([comparison(worse=0.5)], 200, 7 * DAY, 7 * DAY, "roll_back"),
        ([comparison(worse=0.5)], 200, 2 * DAY, 14 * DAY, "roll_back"),
        ([comparison(worse=0.5)], 200, HOUR, 14 * DAY, "hold"),
        ([comparison(), comparison("hallucination", worse=0.1)], 200, 7 * DAY, 7 * DAY, "roll_back"),
        ([comparison()], 200, DAY - HOUR, DAY, "hold"),
        ([comparison()], 199, DAY, DAY, "hold"),
        ([comparison()], 200, DAY, DAY, "advance"),
        ([], 0, 7 * DAY, 7 * DAY, "advance"),
        ([], 0, DAY, 14 * DAY, "advance"),
        ([], 0, DAY - HOUR, 14 * DAY, "hold"),
    ],
)
def test_the_verdict(
    comparisons: list[Comparison], answers: int, step: timedelta, age: timedelta, verdict: str
) -> None:
    assert decide(comparisons, answers, step, age, RolloutSettings(), WatchSettings())[0] == verdict
