"""The ledger, by hand; and what a crash does to it."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fixtures.feedback.traffic import (
    MINUTE,
    START,
    feedback,
    interactions,
    new_warehouse,
    promoted,
    prompts,
    registered,
    store,
)
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.settings import Settings as DaemonSettings
from retuned.monitors.money import ledger, roi, roll_up
from retuned.monitors.money.ledger import book
from retuned.monitors.money.roi import Roi, of_workload, summary
from retuned.monitors.settings import RoiSettings, Settings

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SETTINGS = Settings(
    roi=RoiSettings(
        hourly_rate=40.0,
        escalation_cost=8.0,
        baseline_escalation_rate=0.3,
        training_hourly_rate=2.0,
        token_cost=0.001,
        expert_hourly_rate=60.0,
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


def roi_left_out(warehouse: Warehouse) -> dict[str, dict[str, int]]:
    return {workload: roi.left_out(warehouse, workload) for workload in ("support", "dearer")}


def trained(warehouse: Warehouse, name: str, state: str = "succeeded", hours: float = 3.0, **columns: Any) -> None:
    finished = None if state in {"running", "interrupted"} else START + 5 * HOUR
    row = {
        "id": name,
        "workload": "support",
        "reasons": "[]",
        "state": state,
        "started_at": START,
        "finished_at": finished,
        "train_seconds": 3_600 * hours * 0.75,
        "evaluate_seconds": 3_600 * hours * 0.25,
    }
    warehouse.insert("runs", **(row | columns))


def test_a_small_day_by_hand(warehouse: Warehouse) -> None:
    """The example of docs/money.md."""
    settings = Settings(
        roi=SETTINGS.roi.model_copy(
            update={
                "ticket_cost": 5.0,
                "third_party_cost": 0.02,
                "licence_monthly_cost": 310.0,
                "fixed_daily_cost": 24.0,
            }
        )
    )
    one_conversation = {"conversation_id": "c1", "model": "support@base"}
    answers(warehouse, 1, 0, cost=None, input_tokens=30, output_tokens=20, **one_conversation)
    answers(warehouse, 1, 1, start=START + 10 * MINUTE, cost=0.25, **one_conversation)
    trained(warehouse, "run-1", hours=2, started_at=START, finished_at=START + 2.5 * HOUR, version="v1")
    promoted(warehouse, "p1", "v1", None, START + 3 * HOUR)
    trained(warehouse, "run-2", "refused", hours=0.5, finished_at=START + 4.5 * HOUR, version="v2")
    answers(warehouse, 1, 2, start=START + 5 * HOUR, model="support@v1", cost=None, input_tokens=100)
    replaced = {"attributes": json.dumps({"third_party_cost": 0.5})}
    answers(warehouse, 1, 3, start=START + 6 * HOUR, model="support@v1", **replaced)
    answers(warehouse, 1, 4, start=START + 7 * HOUR, model="support@v1")
    for number, (answer, name, value, source) in enumerate(
        [
            (0, "time_saved_seconds", 900, "app"),
            (0, "escalated", False, "app"),
            (1, "escalated", True, "app"),
            (2, "resolved", True, "user"),
            (2, "time_saved_seconds", 1_800, "app"),
            (3, "correction", "Within 14 days.", "expert"),
            (3, "hallucination", True, "expert"),
            (4, "resolved", True, "user"),
            (4, "escalated", True, "app"),
        ]
    ):
        feedback(warehouse, [f"support-{answer}"], name, value, source=source, when=START + 8 * HOUR, offset=number)
    book(warehouse, settings, START + 15 * HOUR)
    booked: dict[tuple[Any, Any], dict[str, float]] = {}
    for row in warehouse.rows("FROM ledger ORDER BY period_start"):
        of = booked.setdefault((row["version"], row["promotion"]), defaultdict(float))
        of[f"{row['item']}, {row['unit']}"] += row["amount"]
    assert booked == {
        (None, None): pytest.approx(
            {
                "time_saved, hours": 10.00,  # 0.25 at 40
                "escalations_avoided, escalations": -5.60,  # 0.3 of 1 conversation less 1, at 8
                "third_party_replaced, calls": 0.04,  # 2 at 0.02
                "inference, tokens": 0.05,  # 50 at 0.001
                "inference, EUR": 0.25,
                "licences, months": 1.25,  # 3 hours of a month of 744, at 310
                "fixed, days": 3.00,  # 3 hours at 1
            }
        ),
        ("v1", "p1"): pytest.approx(
            {
                "time_saved, hours": 20.00,  # 0.5 at 40
                "escalations_avoided, escalations": -0.80,  # 0.3 of 3 less 1, at 8
                "tickets_avoided, tickets": 5.00,  # the other one was escalated
                "third_party_replaced, calls": 0.04,
                "third_party_replaced, EUR": 0.50,
                "inference, tokens": 0.10,
                "data_work, hours": 3.00,  # one answer, 3 minutes at 60
                "licences, months": 5.00,
                "fixed, days": 12.00,
            }
        ),
        ("v1", None): {"training, hours": 4.00},  # 2 hours at 2
        ("v2", None): {"training, hours": 1.00},  # of a refused run
    }
    found = summary(warehouse)
    assert (round(found.gains, 2), round(found.costs, 2)) == (29.18, 29.65)
    assert found.ratio == pytest.approx((29.18 - 29.65) / 29.65)
    by_version = {
        version: (round(of.gains, 2), round(of.costs, 2))
        for version, of in of_workload(warehouse, "support")[1].items()
    }
    assert by_version == {None: (4.44, 4.55), "v1": (24.74, 24.10), "v2": (0.0, 1.0)}
    (tenure,) = roi.tenures(warehouse, settings, "support")
    assert (tenure.version, round(tenure.costs, 2)) == ("v1", 24.10)
    rows = warehouse.rows("FROM ledger")
    assert all(row["amount"] == pytest.approx(row["quantity"] * row["rate"]) for row in rows)
    (saved,) = (row for row in rows if row["item"] == "time_saved" and row["version"] == "v1")
    assert (saved["period_start"], saved["period_end"]) == (START + 5 * HOUR, START + 5 * HOUR)
    assert book(warehouse, settings, START + 15 * HOUR) == []


def test_what_the_incumbent_answers_in_the_place_of_a_version_is_booked_for_the_version(warehouse: Warehouse) -> None:
    registered(warehouse, "v1")
    promoted(warehouse, "p1", "v1", None, START - DAY)
    answers(warehouse, 4, model="support@v1", cost=0.001)
    answers(warehouse, 2, 4, model="support@v1+cascade", cost=0.05)
    answers(warehouse, 1, 6, model="support@cascade", cost=0.05)
    book(warehouse, SETTINGS, START + 2 * HOUR)
    booked = warehouse.rows(
        "SELECT version, sum(amount) AS costs FROM ledger WHERE kind = 'cost' GROUP BY ALL ORDER BY ALL"
    )
    assert [(row["version"], round(row["costs"], 6)) for row in booked] == [("v1", 0.104), (None, 0.05)]


def test_only_answers_of_versions_and_of_the_base_model_replace_calls(warehouse: Warehouse) -> None:
    settings = Settings(roi=RoiSettings(third_party_cost=0.02))
    models = (
        "support@base", "qwen", "support@v1",
        # Answers of others: the incumbent's by two names, by rule and in place of a version; a person's.
        "gpt-4.1", "gpt-4.1-2025-04-14", "support@cascade", "support@v1+cascade", "demonstration",
    )  # fmt: skip
    for number, model in enumerate(models):
        answers(warehouse, 1, number, model=model)
    attributes = ({"incumbent": "gpt", "incumbent_model": "g"}, {"incumbent_model": "g"}, {"incumbent": "gpt"})
    for number, of_incumbent in enumerate(attributes):
        answers(warehouse, 1, 10 + number, model="support@base", attributes=json.dumps(of_incumbent))
    answers(warehouse, 1, 20, model="gpt-4.1", attributes=json.dumps({"third_party_cost": 0.5}))
    answers(warehouse, 1, 21, model="gpt-4.1", workload="sales")
    book(warehouse, settings, START + DAY, {"support": "gpt-4.1"}.get)
    rows = warehouse.rows("SELECT workload, version, unit, quantity FROM ledger ORDER BY ALL")
    assert [tuple(row.values()) for row in rows] == [
        ("sales", None, "calls", 1.0), ("support", "v1", "calls", 1.0),
        ("support", None, "EUR", 0.5), ("support", None, "calls", 2.0),
    ]  # fmt: skip


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
    assert summary(warehouse) == Roi(0, None, None, 0, None, None, None, [])
    feedback(warehouse, answers(warehouse, 40), "time_saved_seconds", 3_600, when=START)
    book(warehouse, SETTINGS, START + DAY)
    found = summary(warehouse)
    assert (found.gains, found.gains_low, found.gains_high) == pytest.approx((1_600.0, 1_600.0, 1_600.0))
    assert (found.ratio, found.ratio_low, found.ratio_high) == (None, None, None)


def test_booking_again_books_nothing_again(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 10, cost=1.0)
    feedback(warehouse, ids, "time_saved_seconds", 3_600, when=START)
    feedback(warehouse, ids[:1], "escalated", True, when=START, offset=20)
    trained(warehouse, "run-1")
    assert book(warehouse, SETTINGS, START + DAY)
    once = amounts(warehouse)
    assert book(warehouse, SETTINGS, START + 2 * DAY) == []
    assert amounts(warehouse) == once


def test_a_crash_between_any_two_steps_loses_nothing_and_doubles_nothing(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(roi=SETTINGS.roi.model_copy(update={"fixed_daily_cost": 5.0}))
    ids = answers(warehouse, 10, cost=1.0)
    feedback(warehouse, ids, "time_saved_seconds", 3_600, when=START)
    feedback(warehouse, ids[:1], "escalated", True, when=START, offset=20)
    trained(warehouse, "run-1")
    left = 0
    queries, real, begin = ledger.QUERIES, ledger.insert, warehouse.transaction

    def count_down() -> None:
        nonlocal left
        if left == 0:
            raise Crash
        left -= 1

    class Crashing(dict[str, str]):
        def __getitem__(self, name: str) -> str:
            if name in {"moments", "advance"}:
                count_down()
            return queries[name]

    def crashing(*arguments: Any, **values: Any) -> None:
        count_down()
        real(*arguments, **values)

    @contextmanager
    def transaction(**options: Any) -> Iterator[duckdb.DuckDBPyConnection]:
        with begin(**options) as cursor:
            yield cursor
            count_down()

    with monkeypatch.context() as patched:
        patched.setattr(warehouse, "transaction", transaction)
        patched.setattr(ledger, "insert", crashing)
        patched.setattr(ledger, "QUERIES", Crashing(queries))
        for step in range(9):  # six entries, the moments, the progress, the commit
            left = step
            with pytest.raises(Crash):
                book(warehouse, settings, START + DAY)
            assert warehouse.rows("FROM ledger") == warehouse.rows("FROM ledger_moments") == []
        left = 9
        book(warehouse, settings, START + DAY)
    assert book(warehouse, settings, START + DAY) == []
    assert amounts(warehouse) == {
        "time_saved": 400.0,
        "escalations_avoided": 16.0,
        "training": 6.0,
        "inference": 10.0,
        "fixed": 5.0,
    }
    moments = warehouse.row("SELECT sum(conversations)::INT AS n, sum(gain) AS gain FROM ledger_moments")
    assert moments == {"n": 10, "gain": pytest.approx(416.0)}


def test_events_stored_later_with_older_times_are_in_the_next_booking(warehouse: Warehouse) -> None:
    answers(warehouse, 3, offset=10, cost=1.0)
    book(warehouse, SETTINGS, START + DAY)
    answers(warehouse, 4, offset=13, cost=1.0, timestamp=START - DAY, received_at=START)
    answers(warehouse, 5, offset=0, cost=1.0, partition=1, received_at=START)
    book(warehouse, SETTINGS, START + DAY)
    assert amounts(warehouse) == {"inference": 12.0}


def test_what_is_learned_later_makes_another_entry_and_changes_none(warehouse: Warehouse) -> None:
    settings = Settings(roi=SETTINGS.roi.model_copy(update={"ticket_cost": 5.0}))
    ids = answers(warehouse, 10)
    feedback(warehouse, ids[1:2], "escalated", False, when=START, offset=0)
    feedback(warehouse, ids[:1], "time_saved_seconds", 900, when=START, offset=1)
    feedback(warehouse, ids[:1], "resolved", True, when=START, offset=2)
    book(warehouse, settings, START + MINUTE)
    before = warehouse.rows("FROM ledger ORDER BY id")
    assert amounts(warehouse) == {"escalations_avoided": 24.0, "time_saved": 10.0, "tickets_avoided": 5.0}

    feedback(warehouse, ids[:1], "escalated", True, when=START + HOUR, offset=3)
    feedback(warehouse, ids[:1], "time_saved_seconds", 360, when=START + HOUR, offset=4)
    book(warehouse, settings, START + 2 * HOUR)
    assert amounts(warehouse) == {"escalations_avoided": 16.0, "time_saved": 4.0, "tickets_avoided": 0.0}
    after = warehouse.rows("FROM ledger ORDER BY id")
    assert [row for row in after if row in before] == before
    corrections = {row["item"]: (row["quantity"], row["amount"]) for row in after if row not in before}
    assert corrections == {
        "escalations_avoided": pytest.approx((-1.0, -8.0)),
        "time_saved": pytest.approx((-0.15, -6.0)),
        "tickets_avoided": (-1.0, -5.0),
    }

    feedback(warehouse, ids[:1], "time_saved_seconds", 0, when=START + 2 * HOUR, offset=5)
    feedback(warehouse, ids[:1], "time_saved_seconds", 9_000, when=START, offset=6)  # said earlier, stored later
    feedback(warehouse, ids[:1], "comment", "no", when=START + 2 * HOUR, offset=7)
    book(warehouse, settings, START + 3 * HOUR)
    assert amounts(warehouse)["time_saved"] == 0.0
    assert book(warehouse, settings, START + 4 * HOUR) == []


def test_a_rate_changes_at_midnight(warehouse: Warehouse) -> None:
    dated = [{"from": "2026-03-02", "value": 40}, {"from": "2026-03-03", "value": 60}]
    settings = Settings(roi=RoiSettings(hourly_rate=dated, fixed_daily_cost=dated, training_hourly_rate=dated))
    midnight = START + 15 * HOUR
    last = answers(warehouse, 1, 0, start=midnight - timedelta(microseconds=1))
    first = answers(warehouse, 1, 1, start=midnight)
    early = answers(warehouse, 1, 2, start=START - DAY, received_at=START)
    feedback(warehouse, [*last, *first, *early], "time_saved_seconds", 3_600, when=midnight + DAY)
    trained(warehouse, "run-1", hours=1, started_at=midnight - HOUR, finished_at=midnight)
    book(warehouse, settings, midnight + DAY / 2)
    told = {(row["item"], row["period_start"]): row for row in warehouse.rows("FROM ledger")}
    rates = {key: row["rate"] for key, row in told.items()}
    assert rates == {
        ("time_saved", midnight - timedelta(microseconds=1)): 40.0,
        ("time_saved", midnight): 60.0,  # of the day before the first rate nothing is booked
        ("training", midnight - HOUR): 60.0,  # it ended at midnight
        ("fixed", START): 40.0,
        ("fixed", midnight): 60.0,
    }
    assert told["fixed", START]["amount"] == pytest.approx(40 * 15 / 24)
    assert told["fixed", midnight]["amount"] == pytest.approx(30.0)

    # What is said later of an answer of the first day has the rate of the first day.
    feedback(warehouse, last, "time_saved_seconds", 1_800, when=midnight + 2 * DAY, offset=10)
    (entry,) = (e for e in book(warehouse, settings, midnight + DAY / 2 + MINUTE) if e.item == "time_saved")
    assert (entry.quantity, entry.rate) == (-0.5, 40.0)


def test_a_calendar_month_costs_what_it_costs(warehouse: Warehouse) -> None:
    settings = Settings(roi=RoiSettings(licence_monthly_cost=100.0))
    answers(warehouse, 1, received_at=datetime(2026, 2, 1))
    for day in (3, 11, 25):
        book(warehouse, settings, datetime(2026, 2, day, 13))
    book(warehouse, settings, datetime(2026, 3, 1))
    assert amounts(warehouse)["licences"] == 100.0
    book(warehouse, settings, datetime(2026, 4, 1))
    assert amounts(warehouse)["licences"] == 200.0


def test_what_is_fixed_is_charged_to_the_champion_of_the_time(warehouse: Warehouse) -> None:
    settings = Settings(roi=RoiSettings(fixed_daily_cost=24.0))
    answers(warehouse, 1, start=START + HOUR)
    promoted(warehouse, "p0", "v0", None, START - DAY)
    promoted(warehouse, "p1", "v1", "v0", START + 3 * HOUR)
    promoted(warehouse, "p2", "v0", "v1", START + 4 * HOUR, event="rolled_back")
    book(warehouse, settings, START + 10 * HOUR)
    rows = warehouse.rows("FROM ledger WHERE item = 'fixed' ORDER BY period_start")
    hours = [(row["version"], row["promotion"], round(row["amount"], 9)) for row in rows]
    assert hours == [("v0", "p0", 2.0), ("v1", "p1", 1.0), ("v0", "p2", 6.0)]


def test_a_run_is_charged_to_the_version_that_it_produced_and_else_to_the_one_in_service(warehouse: Warehouse) -> None:
    answers(warehouse, 1)
    promoted(warehouse, "p1", "v1", None, START)
    promoted(warehouse, "p2", "v2", "v1", START + 3 * HOUR)
    trained(warehouse, "led", started_at=START + HOUR, finished_at=START + 2 * HOUR, version="v2")
    trained(warehouse, "broke", "failed", started_at=START + HOUR, finished_at=START + 2 * HOUR)
    trained(warehouse, "refused", "refused", started_at=START + 4 * HOUR, finished_at=START + 5 * HOUR, version="v3")
    book(warehouse, SETTINGS, START + DAY)
    charged = {row["reference"]: (row["version"], row["promotion"]) for row in warehouse.rows("FROM ledger")}
    assert charged == {"led": ("v2", None), "broke": ("v1", "p1"), "refused": ("v3", None)}


@pytest.mark.parametrize("actor", ["approver", "operator"])
def test_a_version_that_comes_into_service_later_has_the_cost_of_its_training(warehouse: Warehouse, actor: str) -> None:
    """It waited for approval, or a person promotes it by hand; it is promoted once more later."""
    answers(warehouse, 1)
    promoted(warehouse, "p1", "v1", None, START - DAY)
    trained(warehouse, "run", version="v2")
    trained(warehouse, "of another workload", workload="sales", version="v2")
    trained(warehouse, "broke", "failed", finished_at=START - 2 * DAY)  # while the base model served
    book(warehouse, SETTINGS, START + DAY)
    assert [(one.version, one.costs) for one in roi.tenures(warehouse, SETTINGS, "support")] == [("v1", 0.0)]
    promoted(warehouse, "p2", "v2", "v1", START + 2 * DAY, actor=actor)
    promoted(warehouse, "p3", "v1", "v2", START + 3 * DAY, event="rolled_back")
    promoted(warehouse, "p4", "v2", "v1", START + 4 * DAY, actor="operator")
    promoted(warehouse, "p5", None, "v2", START + 4.5 * DAY, actor="operator")
    assert book(warehouse, SETTINGS, START + 5 * DAY) == []
    costs = [(one.promotion, one.costs) for one in roi.tenures(warehouse, SETTINGS, "support")]
    assert costs == [("p5", 0.0), ("p4", 0.0), ("p3", 0.0), ("p2", 6.0), ("p1", 0.0)]
    assert {version: of.costs for version, of in of_workload(warehouse, "support")[1].items()} == {None: 6.0, "v2": 6.0}


def test_an_id_that_is_used_again_is_another_answer(warehouse: Warehouse) -> None:
    (once,) = answers(warehouse, 1, cost=1.0)
    book(warehouse, SETTINGS, START + MINUTE)
    answers(warehouse, 1, 1, start=START + DAY, id=once, cost=2.0)
    book(warehouse, SETTINGS, START + 2 * DAY)
    assert amounts(warehouse) == {"inference": 3.0}


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2))
def test_however_it_is_booked_it_comes_to_the_same(tmp_path: Path, seed: int) -> None:
    """All at once, or piece by piece in any order, the file closed and opened again: ledger, moments and figures."""
    rng = random.Random(seed)
    settings = Settings(roi=SETTINGS.roi.model_copy(update={"ticket_cost": 5.0, "third_party_cost": 0.02}))
    events: list[tuple[str, dict[str, Any]]] = []
    for number in range(40):
        when = START + rng.randrange(40) * HOUR
        row = {
            "id": f"i{number}",
            "timestamp": when,
            "workload": "support",
            "model": "support@v1" if when >= START + 20 * HOUR else "support@base",
            "messages": "[]",
            "response": "",
            "conversation_id": f"c{rng.randrange(15)}",
            "cost": rng.choice([None, 0.25]),
            "input_tokens": 100,
            "topic": "interactions",
            "partition": 0,
            "received_at": START + 40 * HOUR,
        }
        events.append(("interactions", row))
        for name, value in (("time_saved_seconds", rng.randrange(900)), ("escalated", rng.random() < 0.2),
                            ("resolved", rng.random() < 0.5), ("time_saved_seconds", rng.randrange(900)),
                            ("correction", "No.")):  # fmt: skip
            if rng.random() < 0.4:
                said = {
                    "id": f"f{len(events)}",
                    "timestamp": when + rng.randrange(90) * MINUTE,
                    "interaction_id": row["id"],
                    "name": name,
                    "value": json.dumps(value),
                    "source": "expert" if name == "correction" else "app",
                    "topic": "feedback",
                    "partition": 0,
                    "received_at": START + 40 * HOUR,
                }
                events.append(("feedback", said))
    rng.shuffle(events)
    if seed == 1:  # the workload reports its first escalation when all else is booked
        events.sort(key=lambda event: event[1].get("name") == "escalated")

    def booked(folder: str, every: int) -> Any:
        (tmp_path / folder).mkdir()
        warehouse = new_warehouse(tmp_path / folder)
        promoted(warehouse, "p1", "v1", None, START + 20 * HOUR)
        for first in range(0, len(events), every):
            part = events[first : first + every]
            for table in ("interactions", "feedback"):
                rows = [row | {"offset": first + n} for n, (of, row) in enumerate(part) if of == table]
                if rows:
                    store(warehouse, table, rows)
            if first > 0:
                warehouse.close()
                warehouse = new_warehouse(tmp_path / folder)
            book(warehouse, settings, START + 40 * HOUR)
        sums = warehouse.rows(
            "SELECT version, promotion, item, unit, round(sum(amount), 6) AS amount FROM ledger GROUP BY ALL "
            "HAVING amount <> 0 ORDER BY ALL"
        )
        moments = warehouse.rows("FROM ledger_moments WHERE conversations > 0 ORDER BY version, promotion, hour")
        rounded = [{k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in moments]
        gains = sum(row["gain"] for row in moments)
        assert gains == pytest.approx(summary(warehouse).gains)
        became = warehouse.rows("FROM ledger_outcomes WHERE conversations <> 0 ORDER BY ALL")
        warehouse.close()
        return sums, rounded, became

    once = booked("once", 1_000)
    assert len(once[0]) > 10
    assert sum(row["conversations"] for row in once[1]) > 15
    assert {row["outcome"] for row in once[2]} == {"resolved", "unresolved", "escalated", "unknown"}
    assert booked("pieces", 20) == once


def test_the_first_escalation_books_what_was_expected_of_conversations_before_it(warehouse: Warehouse) -> None:
    """On all days, of all versions, and of conversations that it is not about; the moments too."""
    promoted(warehouse, "p1", "v1", None, START + HOUR)
    ids = answers(warehouse, 10, conversation_id=None)
    answers(warehouse, 4, 10, start=START + 2 * DAY, model="support@v1", cost=0.25)
    answers(warehouse, 2, 14, workload="other")
    book(warehouse, SETTINGS, START + 3 * DAY)
    assert amounts(warehouse) == {"inference": 1.0}
    feedback(warehouse, ids[:1], "escalated", True, when=START)
    answers(warehouse, 6, 20, start=START + 2 * DAY, model="support@v1")
    book(warehouse, SETTINGS, START + 3 * DAY)
    assert amounts(warehouse) == {"inference": 1.0, "escalations_avoided": 40.0}  # 0.3 of 20 less 1, at 8
    by_version = {version: of.gains for version, of in of_workload(warehouse, "support")[1].items()}
    assert by_version == pytest.approx({None: 16.0, "v1": 24.0})
    moments = warehouse.row(
        "SELECT sum(conversations)::INT AS n, sum(gain) AS gain, sum(gain_squared) AS gain_squared, "
        "sum(gain_cost) AS gain_cost FROM ledger_moments WHERE workload = 'support'"
    )
    expected = {"n": 20, "gain": 40.0, "gain_squared": 19 * 2.4**2 + 5.6**2, "gain_cost": 4 * 2.4 * 0.25}
    assert moments == pytest.approx(expected)
    feedback(warehouse, ids[1:2], "escalated", True, when=START, offset=1)
    book(warehouse, SETTINGS, START + 3 * DAY)
    assert amounts(warehouse)["escalations_avoided"] == 32.0
    assert book(warehouse, SETTINGS, START + 3 * DAY) == []


def test_escalations_as_many_as_expected_are_known_to_be_reported(warehouse: Warehouse) -> None:
    settings = Settings(roi=RoiSettings(escalation_cost=8.0, baseline_escalation_rate=0.5))
    feedback(warehouse, answers(warehouse, 2)[:1], "escalated", True, when=START)
    book(warehouse, settings, START + MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 0.0}
    answers(warehouse, 10, 2)
    book(warehouse, settings, START + 2 * MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 40.0}


def test_the_first_escalation_counts_from_the_first_day_with_rates(warehouse: Warehouse) -> None:
    second = (START + DAY).date()
    dated = {name: [{"from": second, "value": value}] for name, value in
             (("escalation_cost", 8.0), ("baseline_escalation_rate", 0.3))}  # fmt: skip
    settings = Settings(roi=RoiSettings(**dated))
    ids = answers(warehouse, 10)
    answers(warehouse, 10, 10, start=START + DAY)
    book(warehouse, settings, START + 2 * DAY)
    feedback(warehouse, ids[:1], "escalated", True, when=START)  # before there were rates
    book(warehouse, settings, START + 2 * DAY)
    assert amounts(warehouse) == {}
    feedback(warehouse, ["support-10"], "escalated", True, when=START, offset=1)
    book(warehouse, settings, START + 2 * DAY)
    assert amounts(warehouse) == {"escalations_avoided": 16.0}


def test_a_rate_that_comes_late_books_nothing_of_conversations_before_it(warehouse: Warehouse) -> None:
    """The workload reported escalations before."""
    ids = answers(warehouse, 10)
    feedback(warehouse, ids[:1], "escalated", True, when=START)
    book(warehouse, Settings(), START + MINUTE)
    feedback(warehouse, ids[1:2], "escalated", True, when=START, offset=1)
    answers(warehouse, 10, 10)
    book(warehouse, SETTINGS, START + 2 * MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 16.0}  # 0.3 of 10 less 1, at 8


def test_feedback_that_came_before_its_interaction_is_booked_when_that_comes(warehouse: Warehouse) -> None:
    answers(warehouse, 1)
    feedback(warehouse, ["support-1"], "time_saved_seconds", 3_600, when=START, offset=0)
    feedback(warehouse, ["support-1"], "escalated", False, when=START, offset=1)
    book(warehouse, SETTINGS, START + MINUTE)
    assert amounts(warehouse) == {}
    answers(warehouse, 9, offset=1)
    book(warehouse, SETTINGS, START + 2 * MINUTE)
    book(warehouse, SETTINGS, START + 3 * MINUTE)
    assert amounts(warehouse) == {"time_saved": 40.0, "escalations_avoided": 24.0}  # 0.3 of 10, at 8


def test_an_escalation_is_one_however_often_it_is_told(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 10)
    feedback(warehouse, ids[:1], "escalated", True, when=START, offset=0)
    feedback(warehouse, ids[:1], "escalated", True, source="app", when=START, offset=1)
    book(warehouse, SETTINGS, START + MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 16.0}
    feedback(warehouse, ids[:1], "escalated", True, source="expert", when=START, offset=2)
    answers(warehouse, 10, offset=10)
    book(warehouse, SETTINGS, START + 2 * MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 40.0, "data_work": 3.0}


def test_more_escalations_than_the_baseline_are_a_loss(warehouse: Warehouse) -> None:
    first = answers(warehouse, 10)
    feedback(warehouse, first, "escalated", True, when=START, offset=0)  # 3 expected, 10 came
    book(warehouse, SETTINGS, START + MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": -56.0}
    answers(warehouse, 20, offset=10)  # 6 more expected: 1 is still owed
    book(warehouse, SETTINGS, START + 2 * MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": -8.0}
    answers(warehouse, 20, offset=30)
    book(warehouse, SETTINGS, START + 3 * MINUTE)
    assert amounts(warehouse) == {"escalations_avoided": 40.0}  # 5 at 8


def test_ten_turns_of_a_conversation_avoid_one_escalation(warehouse: Warehouse) -> None:
    for number in range(10):
        for turn in range(10):
            answers(warehouse, 1, 10 * number + turn, start=START + turn * MINUTE, conversation_id=f"c{number}")
    feedback(warehouse, [f"support-{turn}" for turn in (3, 7)], "escalated", True, when=START)
    book(warehouse, SETTINGS, START + HOUR)
    assert amounts(warehouse) == {"escalations_avoided": 16.0}  # 0.3 of 10 less 1, at 8
    answers(warehouse, 1, 200, start=START + HOUR, conversation_id="c1")  # it goes on
    answers(warehouse, 1, 201, start=START - HOUR, conversation_id="c2", model="support@v1")  # its beginning comes late
    book(warehouse, SETTINGS, START + 2 * HOUR)
    assert amounts(warehouse) == {"escalations_avoided": 16.0}
    feedback(warehouse, ["support-11"], "escalated", True, when=START, offset=10)
    book(warehouse, SETTINGS, START + 3 * HOUR)
    assert amounts(warehouse) == {"escalations_avoided": 8.0}
    assert summary(warehouse).gains == pytest.approx(sum(row["gain"] for row in warehouse.rows("FROM ledger_moments")))


def test_a_conversation_is_one_ticket_if_it_ended_well(warehouse: Warehouse) -> None:
    settings = Settings(roi=RoiSettings(ticket_cost=5.0))
    for number in range(3):
        for turn in range(4):
            answers(warehouse, 1, 4 * number + turn, start=START + turn * MINUTE, conversation_id=f"c{number}")
    feedback(warehouse, [f"support-{turn}" for turn in range(8)], "resolved", True, when=START)
    feedback(warehouse, ["support-7"], "resolved", False, when=START + MINUTE, offset=10)
    feedback(warehouse, ["support-8"], "resolved", True, when=START + MINUTE, offset=11)
    feedback(warehouse, ["support-11"], "escalated", True, when=START + MINUTE, offset=12)
    book(warehouse, settings, START + HOUR)
    assert amounts(warehouse) == {"tickets_avoided": 5.0}


def test_what_nobody_configured_earns_and_costs_nothing(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 40, input_tokens=1_000, cost=None)
    for offset, (name, value) in enumerate(
        (("time_saved_seconds", 600), ("escalated", False), ("resolved", True), ("correction", "No."))
    ):
        feedback(warehouse, ids, name, value, source="expert", when=START, offset=100 * offset)
    trained(warehouse, "run-1")
    assert book(warehouse, Settings(), START + DAY) == []
    only_the_cost = Settings(roi=RoiSettings(escalation_cost=8.0))  # no baseline: nothing is known to be avoided
    assert book(warehouse, only_the_cost, START + DAY) == []


def test_without_a_known_gain_there_is_no_ratio(warehouse: Warehouse) -> None:
    answers(warehouse, 40, cost=0.25)
    book(warehouse, Settings(), START + DAY)
    found = summary(warehouse)
    assert (found.costs, found.ratio, found.ratio_low) == (10.0, None, None)


def test_what_one_event_cannot_be_worth_is_not_booked_and_counted(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 10)
    feedback(warehouse, ids[:3], "time_saved_seconds", 1e9, when=START)
    feedback(warehouse, ids[:1], "time_saved_seconds", 900, when=START - MINUTE, offset=10)
    answers(warehouse, 1, 20, cost=1e308, input_tokens=50)
    answers(warehouse, 1, 21, cost=None, input_tokens=2**63 - 1, output_tokens=2**63 - 1)
    answers(warehouse, 1, 22, attributes=json.dumps({"third_party_cost": 1e12}))
    for _ in range(2):
        book(warehouse, SETTINGS, START + MINUTE)
    assert amounts(warehouse) == {"time_saved": 10.0, "inference": 0.05}
    left_out = {"inference": 2, "third_party_replaced": 1, "time_saved": 3}
    assert roi.left_out(warehouse, "support") == left_out
    feedback(warehouse, ids[3:4], "time_saved_seconds", 14_400, when=START, offset=20)  # as much as one may report
    feedback(warehouse, ids[4:5], "time_saved_seconds", 14_401, when=START, offset=21)
    book(warehouse, SETTINGS, START + 2 * MINUTE)
    assert amounts(warehouse)["time_saved"] == 170.0
    assert roi.left_out(warehouse, "support") == left_out | {"time_saved": 4}


def in_shadow(warehouse: Warehouse, counts: dict[str, dict[str, Any]]) -> None:
    """Store an answer of support@v1 in shadow for each id, with its token counts."""
    rows = [
        {
            "id": name,
            "timestamp": START,
            "interaction_id": "support-0",
            "name": "shadow_answer",
            "value": json.dumps({"model": "support@v1", "response": "Yes."} | tokens),
            "source": "app",
            "topic": "feedback",
            "partition": 0,
            "offset": number,
            "received_at": START,
        }
        for number, (name, tokens) in enumerate(counts.items())
    ]
    store(warehouse, "shadow_answers", rows)


@pytest.mark.parametrize(
    "tokens",
    [
        {"input_tokens": "NaN"},
        {"output_tokens": "Infinity"},
        {"input_tokens": 5e11},
        {"input_tokens": -990},
        {"input_tokens": -990, "output_tokens": 1_000},
    ],
)
def test_tokens_in_shadow_that_no_answer_can_have_are_not_booked_and_counted(
    warehouse: Warehouse, tokens: dict[str, Any]
) -> None:
    """Of rows that an earlier version stored: such events are dead letters."""
    registered(warehouse, "v1")
    answers(warehouse, 1)
    in_shadow(warehouse, {"good": {"input_tokens": 900, "output_tokens": 100}, "bad": tokens, "unknown": {}})
    for _ in range(2):
        book(warehouse, SETTINGS, START + MINUTE)
    (row,) = warehouse.rows("SELECT quantity, amount, reference FROM ledger WHERE item = 'shadow'")
    assert (row["quantity"], row["amount"]) == (1_000, 1.0)
    assert json.loads(row["reference"])["answers"] == 1
    assert roi.left_out(warehouse, "support") == {"shadow": 1}


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


def test_what_a_judge_was_paid_for_is_charged_once_for_each_run(warehouse: Warehouse) -> None:
    settings = Settings(roi=RoiSettings(judge_token_cost=0.001))
    trained(warehouse, "run-1", judge_tokens=2_000)
    trained(warehouse, "run-2")
    for minutes in (1, 2):
        book(warehouse, settings, START + minutes * MINUTE)
    (row,) = warehouse.rows("SELECT item, quantity, unit, amount, reference FROM ledger WHERE kind = 'cost'")
    assert row == {"item": "judging", "quantity": 2_000, "unit": "tokens", "amount": 2.0, "reference": "run-1"}


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


def test_a_clock_that_steps_back_charges_no_time_twice(warehouse: Warehouse) -> None:
    settings = Settings(roi=RoiSettings(fixed_daily_cost=24.0, licence_monthly_cost=744.0))
    answers(warehouse, 1)
    for hours in (10, 20, 10, 15, 20, 22):
        book(warehouse, settings, START + hours * HOUR)
    assert amounts(warehouse) == {"fixed": 22.0, "licences": 22.0}


def test_each_workload_is_booked_at_its_own_rates_within_its_own_limits(warehouse: Warehouse) -> None:
    roi = {"token_cost": 0.001, "hourly_rate": 40.0, "training_hourly_rate": 2.0, "maximum_time_saved_seconds": 1_800}
    own = {"token_cost": 0.002, "hourly_rate": 80.0, "training_hourly_rate": 4.0, "maximum_time_saved_seconds": 7_200}
    settings = DaemonSettings.model_validate({"roi": roi, "workloads": {"dear*": {"roi": own}}})
    for number, workload in enumerate(("support", "dearer")):
        ids = answers(warehouse, 2, 2 * number, workload, cost=None, input_tokens=1_000)
        feedback(warehouse, ids[:1], "time_saved_seconds", 900, when=START, offset=2 * number)
        feedback(warehouse, ids[1:], "time_saved_seconds", 3_600, when=START, offset=2 * number + 1)
        trained(warehouse, f"run-{workload}", hours=1, workload=workload)
    book(warehouse, settings, START + DAY)
    assert amounts(warehouse, "support") == {"time_saved": 10.0, "inference": 2.0, "training": 2.0}
    assert amounts(warehouse, "dearer") == {"time_saved": 100.0, "inference": 4.0, "training": 4.0}
    assert roi_left_out(warehouse) == {"support": {"time_saved": 1}, "dearer": {}}


def test_a_fixed_cost_of_one_entry_is_shared_by_its_workloads_and_that_of_all_by_the_others(
    warehouse: Warehouse,
) -> None:
    entries = {"shop.*": {"roi": {"fixed_daily_cost": 30.0}}, "faq": {"roi": {"fixed_daily_cost": 30.0}}}
    settings = DaemonSettings.model_validate({"roi": {"fixed_daily_cost": 12.0}, "workloads": entries})
    for number, workload in enumerate(("shop.a", "shop.b", "faq", "x", "y", "z")):
        answers(warehouse, 1, number, workload)
    book(warehouse, settings, START + DAY)
    costs = {workload: amounts(warehouse, workload)["fixed"] for workload in ("shop.a", "shop.b", "faq", "x", "y", "z")}
    assert costs == {"shop.a": 15.0, "shop.b": 15.0, "faq": 30.0, "x": 4.0, "y": 4.0, "z": 4.0}


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
    assert json.loads(told["escalations_avoided"])["answers"] == 4


@pytest.mark.full
def test_a_ledger_that_is_rolled_up_comes_to_the_same(tmp_path: Path) -> None:
    """Three days with two changes of champion, booked six times a day; one of two ledgers is rolled up each time."""
    rates = {"ticket_cost": 5.0, "licence_monthly_cost": 310.0, "fixed_daily_cost": 24.0, "maximum_event_amount": 3.0}
    settings = Settings(roi=SETTINGS.roi.model_copy(update=rates))
    found, rows = [], []
    for name in ("minutes", "days"):
        folder = tmp_path / name
        folder.mkdir()
        warehouse, rng, offset = new_warehouse(folder), random.Random(5), 0
        changes = {6: ("p1", "v1", None), 11: ("p2", "v2", "v1")}  # by the booking before which they are
        serving = "base"
        for booking in range(18):
            now = START + 4 * booking * HOUR
            if booking in changes:
                promoted(warehouse, *changes[booking], now)
                trained(warehouse, f"run-{booking}", hours=1, finished_at=now, version=changes[booking][1])
                serving = changes[booking][1]
            said = {"start": now, "received_at": now, "model": f"support@{serving}"}
            ids = answers(warehouse, 7, offset, **said, cost=0.1)
            ids += answers(warehouse, 1, offset + 7, **said, cost=7.0, conversation_id=f"c{rng.randint(0, booking)}")
            answers(warehouse, 1, offset, "sales", **said, cost=rng.choice([0.2, 9.0]))
            offset += 8
            for answer in ids[: rng.randint(1, 8)]:
                feedback(warehouse, [answer], "time_saved_seconds", rng.randint(0, 900), when=now, offset=offset)
                offset += 1
            feedback(warehouse, ids[-2:], "escalated", booking % 2 == 0, source="app", when=now, offset=offset)
            offset += 2
            book(warehouse, settings, now + HOUR)
            if name == "days":
                roll_up.roll_up(warehouse, ["support", "sales"], now, 0 * DAY)
        if name == "days":
            assert roll_up.roll_up(warehouse, ["support", "sales"], now, 0 * DAY) == 0
        at = {"workload": "support", "start": START, "end": START + 30 * DAY}
        found.append(
            {
                "all": summary(warehouse),
                "one": of_workload(warehouse, "support")[0],
                "versions": of_workload(warehouse, "support")[1],
                "tenures": roi.tenures(warehouse, settings, "support"),
                "left out": roi.left_out(warehouse, "support"),
                "days": warehouse.rows(named_queries("retuned.daemon.reports", "reports.sql")["money"], at),
                "periods": warehouse.rows("SELECT min(period_start) AS first, max(period_end) AS last FROM ledger"),
            }
        )
        rows.append([warehouse.rows(f"FROM {table}") for table in ("ledger", "ledger_moments", "ledger_left_out")])
        warehouse.close()
    minutes, days = ([dataclass_plain(value) for value in of.values()] for of in found)
    assert_alike(minutes, days)
    assert found[0]["tenures"][0].uplift_low is not None
    for before, after in zip(*rows, strict=True):
        assert 0 < len(after) < len(before)
    entries = [json.loads(row["reference"]).get("entries", 1) for row in rows[1][0] if row["item"] != "training"]
    assert sum(entries) + 2 == len(rows[0][0])


def dataclass_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): dataclass_plain(of) for key, of in value.items()}
    if isinstance(value, list):
        return [dataclass_plain(of) for of in value]
    return dataclass_plain(asdict(value)) if isinstance(value, Roi | roi.Tenure) else value


def assert_alike(one: Any, other: Any) -> None:
    """Equal, numbers to the last places: floats are added in another order."""
    if isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-9, abs=1e-9)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_alike(a, b)
    else:
        assert one == other
