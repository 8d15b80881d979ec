"""The ledger, by hand; and what a crash does to it."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import duckdb
import pytest
from prometheus_client import CollectorRegistry
from traffic import MINUTE, START, feedback, interactions, prompts

from retuned.consumers.warehouse import Warehouse
from retuned.monitors import roi
from retuned.monitors.metrics import Metrics
from retuned.monitors.roi import book, summary
from retuned.monitors.settings import RoiSettings, Settings

DAY = timedelta(days=1)
SETTINGS = Settings(
    roi=RoiSettings(
        hourly_rate=40.0,
        escalation_cost=8.0,
        baseline_escalation_rate=0.3,
        training_hourly_rate=2.0,
        token_cost=0.001,
        fixed_daily_cost=0.0,
    )
)


class Crash(BaseException):
    """The process ends here."""


def answers(warehouse: Warehouse, count: int, offset: int = 0, workload: str = "support", **columns: Any) -> list[str]:
    rng = random.Random(7)
    free = {"cost": 0.0, "input_tokens": None, "output_tokens": None, "context": None}
    return interactions(warehouse, prompts(count, rng), rng, offset=offset, workload=workload, **(free | columns))


def amounts(warehouse: Warehouse, workload: str | None = None) -> dict[str, float]:
    sums = defaultdict[str, float](float)
    for item in summary(warehouse, workload).items:
        sums[item.item] += item.amount
    return {item: round(amount, 9) for item, amount in sums.items()}


def trained(warehouse: Warehouse, name: str, state: str = "succeeded", hours: float = 3.0) -> None:
    finished = None if state in {"running", "interrupted"} else START + timedelta(hours=5)
    warehouse.insert(
        "runs",
        id=name,
        workload="support",
        reasons="[]",
        state=state,
        started_at=START,
        finished_at=finished,
        train_seconds=3_600 * (hours - 1),
        evaluate_seconds=3_600.0,
    )


def test_the_formula_by_hand(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 100, input_tokens=30, output_tokens=20, cost=None)
    answers(warehouse, 10, offset=100, input_tokens=9_000, cost=0.25)
    feedback(warehouse, ids[:9], "time_saved_seconds", 600, when=START, offset=0)
    feedback(warehouse, ids[:20], "escalated", True, when=START, offset=50)
    feedback(warehouse, ids[20:30], "escalated", False, when=START, offset=90)
    trained(warehouse, "run-1")
    book(warehouse, SETTINGS, START + DAY)
    assert amounts(warehouse) == {
        "time_saved": 60.0,  # 1.5 hours at 40
        "escalations_avoided": 104.0,  # 0.3 of 110 less 20 is 13, at 8
        "training": 6.0,  # 3 hours at 2
        "inference": 7.5,  # 5,000 tokens at 0.001, and 10 answers at 0.25
    }
    result = summary(warehouse)
    assert (result.gains, result.costs) == (164.0, 13.5)
    assert result.ratio == pytest.approx((164.0 - 13.5) / 13.5)
    assert all(row["amount"] == pytest.approx(row["quantity"] * row["rate"]) for row in warehouse.rows("FROM ledger"))


def test_without_costs_there_is_no_ratio(warehouse: Warehouse) -> None:
    assert summary(warehouse) == roi.Roi(0, 0, None, [])
    feedback(warehouse, answers(warehouse, 1), "time_saved_seconds", 3_600, when=START)
    book(warehouse, SETTINGS, START + DAY)
    assert (summary(warehouse).gains, summary(warehouse).ratio) == (40.0, None)


def test_booking_again_books_nothing_again(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 10, cost=1.0)
    feedback(warehouse, ids, "time_saved_seconds", 3_600, when=START)
    feedback(warehouse, ids[:1], "escalated", True, when=START, offset=20)
    trained(warehouse, "run-1")
    assert book(warehouse, SETTINGS, START + DAY)
    once = amounts(warehouse)
    assert book(warehouse, SETTINGS, START + 2 * DAY) == []
    assert amounts(warehouse) == once


@pytest.mark.parametrize("crash_at", range(8))
def test_a_crash_between_any_two_steps_loses_nothing_and_doubles_nothing(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, crash_at: int
) -> None:
    settings = Settings(roi=SETTINGS.roi.model_copy(update={"fixed_daily_cost": 5.0}))
    ids = answers(warehouse, 10, cost=1.0)
    feedback(warehouse, ids, "time_saved_seconds", 3_600, when=START)
    feedback(warehouse, ids[:1], "escalated", True, when=START, offset=20)
    trained(warehouse, "run-1")
    steps = 0
    queries, real, begin = roi.QUERIES, roi.insert, warehouse.transaction

    def count_down() -> None:
        nonlocal steps
        if steps == crash_at:
            raise Crash
        steps += 1

    class Crashing(dict[str, str]):
        def __getitem__(self, name: str) -> str:
            if name == "advance":
                count_down()
            return queries[name]

    def crashing(*arguments: Any, **values: Any) -> None:
        count_down()
        real(*arguments, **values)

    @contextmanager
    def transaction() -> Iterator[duckdb.DuckDBPyConnection]:
        with begin() as cursor:
            yield cursor
            count_down()

    with monkeypatch.context() as patched:
        patched.setattr(warehouse, "transaction", transaction)
        patched.setattr(roi, "insert", crashing)
        patched.setattr(roi, "QUERIES", Crashing(queries))
        if crash_at < 7:  # five entries, the progress, the commit
            with pytest.raises(Crash):
                book(warehouse, settings, START + DAY)
            assert warehouse.rows("FROM ledger") == []
        else:
            book(warehouse, settings, START + DAY)
    book(warehouse, settings, START + DAY)
    assert amounts(warehouse) == {
        "time_saved": 400.0,
        "escalations_avoided": 16.0,
        "training": 6.0,
        "inference": 10.0,
        "fixed": 5.0,
    }


def test_events_stored_later_with_older_times_are_in_the_next_booking(warehouse: Warehouse) -> None:
    answers(warehouse, 3, offset=10, cost=1.0)
    book(warehouse, SETTINGS, START + DAY)
    answers(warehouse, 4, offset=13, cost=1.0, timestamp=START - DAY, received_at=START)
    answers(warehouse, 5, offset=0, cost=1.0, partition=1, received_at=START)
    book(warehouse, SETTINGS, START + DAY)
    assert amounts(warehouse) == {"inference": 12.0}


def test_feedback_that_came_before_its_interaction_is_booked_when_that_comes(warehouse: Warehouse) -> None:
    answers(warehouse, 1)
    feedback(warehouse, ["support-1"], "time_saved_seconds", 3_600, when=START, offset=0)
    feedback(warehouse, ["support-1"], "escalated", False, when=START, offset=1)
    book(warehouse, SETTINGS, START + MINUTE)
    assert amounts(warehouse) == {}
    answers(warehouse, 9, offset=1)
    book(warehouse, SETTINGS, START + 2 * MINUTE)
    book(warehouse, SETTINGS, START + 3 * MINUTE)
    assert amounts(warehouse) == {"time_saved": 40.0, "escalations_avoided": 21.6}


def test_an_escalation_is_one_however_often_it_is_told(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 10)
    feedback(warehouse, ids[:1], "escalated", True, when=START, offset=0)
    feedback(warehouse, ids[:1], "escalated", True, source="app", when=START, offset=1)
    book(warehouse, SETTINGS, START + MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 16.0}
    feedback(warehouse, ids[:1], "escalated", True, source="expert", when=START, offset=2)
    answers(warehouse, 10, offset=10)
    book(warehouse, SETTINGS, START + 2 * MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 40.0}


def test_more_escalations_than_the_baseline_are_carried_over(warehouse: Warehouse) -> None:
    first = answers(warehouse, 10)
    feedback(warehouse, first, "escalated", True, when=START, offset=0)  # 3 expected, 10 came
    book(warehouse, SETTINGS, START + MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 0.0}
    answers(warehouse, 20, offset=10)  # 6 more expected: 1 is still owed
    book(warehouse, SETTINGS, START + 2 * MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 0.0}
    answers(warehouse, 20, offset=30)
    book(warehouse, SETTINGS, START + 3 * MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 40.0}  # 5 at 8


def test_a_workload_that_never_tells_of_escalations_avoids_none(warehouse: Warehouse) -> None:
    answers(warehouse, 100)
    feedback(warehouse, answers(warehouse, 10, offset=100, workload="other"), "escalated", False, when=START)
    book(warehouse, SETTINGS, START + MINUTE)
    assert amounts(warehouse, "support") == {}
    assert amounts(warehouse, "other") == {"escalations_avoided": 24.0}


@pytest.mark.parametrize("value", [-60, "an hour", True, None])
def test_time_that_was_not_saved_is_no_gain(warehouse: Warehouse, value: object) -> None:
    feedback(warehouse, answers(warehouse, 1), "time_saved_seconds", value, when=START)
    book(warehouse, SETTINGS, START + MINUTE)
    assert amounts(warehouse) == {}


def test_only_runs_that_ended_are_charged_and_once(warehouse: Warehouse) -> None:
    answers(warehouse, 1)
    trained(warehouse, "run-1", "failed", hours=2)
    trained(warehouse, "run-2", "running")
    trained(warehouse, "run-3", "interrupted")
    book(warehouse, SETTINGS, START + MINUTE)
    assert amounts(warehouse) == {"training": 4.0}
    warehouse.execute("UPDATE runs SET state = 'refused', finished_at = ? WHERE id = 'run-2'", [START])
    book(warehouse, SETTINGS, START + 2 * MINUTE)
    assert amounts(warehouse) == {"training": 10.0}


def test_the_fixed_cost_follows_the_time_and_is_shared_by_the_workloads(warehouse: Warehouse) -> None:
    settings = Settings(roi=SETTINGS.roi.model_copy(update={"fixed_daily_cost": 12.0}))
    assert book(warehouse, settings, START - DAY) == []
    answers(warehouse, 1)
    book(warehouse, settings, START + DAY / 2)
    assert amounts(warehouse) == {"fixed": 6.0}
    answers(warehouse, 1, offset=1, workload="other")
    book(warehouse, settings, START + DAY)
    assert amounts(warehouse, "support") == {"fixed": 9.0}
    assert amounts(warehouse, "other") == {"fixed": 3.0}
    assert amounts(warehouse) == {"fixed": 12.0}


def test_a_fixed_cost_set_later_is_not_charged_for_the_past(warehouse: Warehouse) -> None:
    answers(warehouse, 1)
    book(warehouse, SETTINGS, START + DAY)
    book(warehouse, Settings(roi=RoiSettings(fixed_daily_cost=12.0)), START + 2 * DAY)
    assert amounts(warehouse)["fixed"] == 12.0


def test_every_entry_tells_what_it_was_counted_from(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 4, cost=1.0)
    feedback(warehouse, ids[:1], "escalated", True, when=START)
    trained(warehouse, "run-1")
    book(warehouse, SETTINGS, START + MINUTE)
    told = {row["item"]: row["reference"] for row in warehouse.rows("FROM ledger")}
    assert told["training"] == "run-1"
    assert json.loads(told["inference"]) == {"until": "2026-03-02T09:01:00", "answers": 4}
    assert json.loads(told["escalations_avoided"])["escalated"] == 1


def test_metrics_show_the_ledger(warehouse: Warehouse) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    feedback(warehouse, answers(warehouse, 4, cost=1.0), "time_saved_seconds", 900, when=START)
    metrics.roi("support", summary(warehouse, "support"))
    assert registry.get_sample_value("retuned_roi_ratio", {"workload": "support"}) is None
    book(warehouse, SETTINGS, START + MINUTE)
    metrics.roi("support", summary(warehouse, "support"))
    assert registry.get_sample_value("retuned_roi_ratio", {"workload": "support"}) == 9.0
    gain = {"workload": "support", "kind": "gain", "item": "time_saved"}
    assert registry.get_sample_value("retuned_roi_amount", gain) == 40.0
