"""The money of ten conversations, worked out by hand: each figure of ledger, ROI, uplift and outcomes."""

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.traffic import MINUTE, START, feedback, interactions, new_warehouse, promoted
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.money import roi
from retuned.monitors.money.ledger import book
from retuned.monitors.money.outcomes import Outcomes, outcomes
from retuned.monitors.settings import RoiSettings, Settings

HOUR = timedelta(hours=1)
MIDNIGHT = START + 15 * HOUR
SETTINGS = Settings(
    roi=RoiSettings(
        hourly_rate=30.0,
        escalation_cost=8.0,
        baseline_escalation_rate=0.25,
        ticket_cost=4.0,
        token_cost=0.001,
        expert_hourly_rate=60.0,
        expert_minutes=3.0,
        training_hourly_rate=2.0,
        judge_token_cost=0.0001,
        licence_monthly_cost=310.0,
        fixed_daily_cost=24.0,
    )
)
# Conversation, hours after 9:00 of its first answer, tokens of each of its answers (a minute apart), further columns.
CONVERSATIONS: tuple[tuple[str, float, list[int], dict[str, Any]], ...] = (
    ("c1", 0.0, [100, 100, 100], {}),
    ("c2", 1.0, [0], {"cost": 0.25}),
    ("c3", 2.0, [100, 100], {}),
    ("c4", 3.0, [100], {}),
    ("c5", 4.0, [0], {"cost": 500.0}),  # more than roi.maximum_event_amount
    # v1 is in service from the sixth hour on.
    ("c6", 7.0, [100, 100], {}),
    ("c7", 8.0, [50, 50, 50, 50], {}),
    ("c8", 9.0, [100], {"attributes": '{"third_party_cost": 0.5}'}),
    ("c9", 10.0, [100], {}),
    ("c10", 14.5, [100], {}),
    ("c10", 15.5, [100], {}),  # it goes on after midnight: another conversation
)
# About the first answer of a conversation, or the one that is named: hours after 9:00, name, value, source, whose.
AT_ONCE: tuple[tuple[str, float, str, Any, str], ...] = (
    ("c1", 0.6, "time_saved_seconds", 600, "app"),
    ("c1", 0.7, "time_saved_seconds", 300, "app"),  # the last word counts
    ("c1/1", 0.7, "escalated", True, "app"),
    ("c1/1", 0.8, "escalated", True, "user"),  # told twice, by two
    ("c2", 1.1, "resolved", True, "user"),
    ("c2", 1.1, "time_saved_seconds", 1_000_000, "app"),  # more than roi.maximum_time_saved_seconds
    ("c3", 2.1, "resolved", True, "user"),
    ("c3/1", 2.2, "resolved", False, "user"),  # of the later answer
    ("c5", 4.1, "resolved", True, "user"),
    ("c5", 4.2, "escalated", True, "app"),  # it was escalated after all
    ("c6", 7.1, "resolved", True, "user"),
    ("c6/1", 7.2, "resolved", True, "app"),  # repeated
    ("c6/1", 7.3, "resolved", True, "user"),
    ("c7", 8.1, "correction", "Within 14 days.", "expert"),
    ("c7", 8.1, "hallucination", True, "expert"),  # the same expert on the same answer
    ("c7/3", 8.1, "helpful", False, "expert"),  # on another answer
    ("c7/3", 8.2, "resolved", True, "user"),
    ("c8", 9.1, "time_saved_seconds", 720, "app"),
    ("c8", 9.1, "resolved", False, "user"),
    ("c9", 10.1, "escalated", False, "app"),
)
LATE: tuple[tuple[str, float, str, Any, str], ...] = (
    ("c9", 15.2, "resolved", True, "user"),
    ("c10/1", 15.6, "resolved", True, "user"),
)
BY_VERSION = {
    None: {
        "time_saved": 300 / 3_600 * 30,  # 2.50
        "escalations_avoided": (0.25 * 5 - 2) * 8,  # -6.00: c1 and c5 of five
        "tickets_avoided": 1 * 4,  # c2; c3 was not in the end, c5 was escalated
        "inference": (300 + 200 + 100) * 0.001 + 0.25,  # 0.85: c1, c3 and c4, and c2 by its event
        "fixed": 6 * 24 / 24,  # 9:00 to 15:00
        "licences": 6 / 24 * 310 / 31,  # 2.50
    },
    "v1": {
        "time_saved": 720 / 3_600 * 30,  # 6.00
        "escalations_avoided": (0.25 * 6 - 0) * 8,  # 12.00: c6 to c10, which counts twice
        "tickets_avoided": 4 * 4,  # c6, c7, c9 and c10 of the second day
        "third_party_replaced": 0.5,
        "inference": (200 + 200 + 100 + 100 + 200) * 0.001,  # 0.80
        "data_work": 2 * 3 / 60 * 60,  # 6.00: two answers
        "training": 2 * 2,
        "judging": 10_000 * 0.0001,
        "fixed": 10 * 24 / 24,  # 15:00 to 1:00
        "licences": 10 / 24 * 310 / 31,  # 4.17
    },
}
GAINS = {None: 0.5, "v1": 34.5}
COSTS = {None: 0.85 + 6 + 2.5, "v1": 0.8 + 6 + 4 + 1 + 10 + 100 / 24}


@contextmanager
def opened(folder: Path) -> Iterator[Warehouse]:
    with closing(new_warehouse(folder)) as warehouse:
        yield warehouse


def ask(warehouse: Warehouse, *, after_midnight: bool) -> None:
    number = 0
    for name, hours, tokens, columns in CONVERSATIONS:
        if (hours > 15) == after_midnight:
            interactions(
                warehouse, ["Where is my parcel?"] * len(tokens), random.Random(1), start=START + hours * HOUR,
                offset=100 * after_midnight + number, conversation_id=name, cost=columns.get("cost"),
                model="support@v1" if hours > 6 else "support@base", attributes=columns.get("attributes"),
                input_tokens=tokens[0] - 10 if tokens[0] else None, output_tokens=10 if tokens[0] else None,
            )  # fmt: skip
        number += len(tokens)


def say(warehouse: Warehouse, told: tuple[tuple[str, float, str, Any, str], ...], offset: int) -> None:
    for number, (about, hours, name, value, source) in enumerate(told):
        conversation, _, turn = about.partition("/")
        ids = warehouse.rows("SELECT id FROM interactions WHERE conversation_id = ? ORDER BY timestamp", [conversation])
        about_id = ids[int(turn or 0)]["id"]
        feedback(warehouse, [about_id], name, value, source=source, when=START + hours * HOUR, offset=offset + number)


def trained(warehouse: Warehouse) -> None:
    warehouse.insert(
        "runs", id="run-1", workload="support", reasons="[]", state="succeeded", started_at=START + 2 * HOUR,
        finished_at=START + 4 * HOUR, train_seconds=1.5 * 3_600, evaluate_seconds=0.5 * 3_600, judge_tokens=10_000,
        version="v1",
    )  # fmt: skip


def test_ten_conversations_by_hand(tmp_path: Path) -> None:
    """Booked at midnight and at one o'clock, by two processes; in between one says what it only knows then."""
    with opened(tmp_path) as warehouse:
        trained(warehouse)
        promoted(warehouse, "p1", "v1", None, START + 6 * HOUR)
        ask(warehouse, after_midnight=False)
        say(warehouse, AT_ONCE, 0)
        book(warehouse, SETTINGS, MIDNIGHT)
    with opened(tmp_path) as warehouse:
        ask(warehouse, after_midnight=True)
        say(warehouse, LATE, 100)
        book(warehouse, SETTINGS, MIDNIGHT + HOUR)
        assert book(warehouse, SETTINGS, MIDNIGHT + HOUR) == []
        total, versions = roi.of_workload(warehouse, "support")
        for version, expected in BY_VERSION.items():
            amounts: dict[str, float] = {}
            for item in versions[version].items:
                amounts[item.item] = amounts.get(item.item, 0.0) + item.amount
            assert amounts == pytest.approx(expected)
            assert (versions[version].gains, versions[version].costs) == pytest.approx((GAINS[version], COSTS[version]))
        gains, costs = sum(GAINS.values()), sum(COSTS.values())
        assert (round(gains, 2), round(costs, 2)) == (35.00, 35.32)
        assert (total.gains, total.costs, total.ratio) == pytest.approx((gains, costs, (gains - costs) / costs))
        assert total.ratio_low is None  # fewer than 30 conversations
        assert roi.left_out(warehouse, "support") == {"inference": 1, "time_saved": 1}

        # v1 had 6 conversations, one of them on two days. The base model gained 0.50 in 5, so would have gained 0.60.
        (tenure,) = roi.tenures(warehouse, SETTINGS, "support")
        assert (tenure.version, tenure.conversations, tenure.interactions) == ("v1", 6, 10)
        assert (tenure.gains, tenure.costs) == pytest.approx((GAINS["v1"], COSTS["v1"]))
        assert (tenure.counterfactual, tenure.uplift) == pytest.approx((0.6, 33.9))

        became = outcomes(warehouse, "support")
        assert became == Outcomes(
            since=date(2026, 3, 2),
            resolved=5,  # c2, c6, c7, c9, and c10 of the second day
            unresolved=2,  # c3 and c8
            escalated=2,  # c1 and c5
            unknown=2,  # c4, and c10 of the first day
            costs=pytest.approx(costs),
        )
        assert became.cost_per_resolved == pytest.approx(costs / 5)
        # Of the second day alone: an answer, and the hour that passed.
        second = outcomes(warehouse, "support", date(2026, 3, 3), date(2026, 4, 1))
        assert second is not None
        assert second.counts() == {"resolved": 1, "unresolved": 0, "escalated": 0, "unknown": 0}
        assert second.costs == pytest.approx(0.1 + 1 + 10 / 24)
        assert outcomes(warehouse, "support", date(2026, 2, 1), date(2026, 3, 1)) is None


def test_unknown_is_absent(tmp_path: Path) -> None:
    """Without feedback `resolved` there are no outcomes; without a cost, or with none resolved, no cost of each."""
    with opened(tmp_path) as warehouse:
        for number in range(3):
            interactions(
                warehouse, ["Where is my parcel?"], random.Random(1), offset=number, cost=None,
                start=START + number * MINUTE,
            )  # fmt: skip
        feedback(warehouse, ["support-0"], "escalated", True, when=START)
        book(warehouse, Settings(), MIDNIGHT)
        assert outcomes(warehouse, "support") is None
        feedback(warehouse, ["support-1"], "resolved", False, when=START, offset=1)
        book(warehouse, SETTINGS, MIDNIGHT + HOUR)
        became = outcomes(warehouse, "support")
        assert became is not None
        assert (became.unresolved, became.escalated, became.unknown) == (1, 1, 1)
        assert became.costs is not None
        assert became.cost_per_resolved is None
        assert outcomes(warehouse, "other") is None
    (tmp_path / "free").mkdir()
    with opened(tmp_path / "free") as warehouse:
        interactions(warehouse, ["Where is my parcel?"], random.Random(1), cost=None)
        feedback(warehouse, ["support-0"], "resolved", True, when=START)
        book(warehouse, Settings(), MIDNIGHT)
        became = outcomes(warehouse, "support")
        assert became is not None
        assert (became.resolved, became.costs, became.cost_per_resolved) == (1, None, None)


def test_costs_of_the_time_before_it_was_known_do_not_count(tmp_path: Path) -> None:
    with opened(tmp_path) as warehouse:
        for day in range(3):
            interactions(
                warehouse, ["Where is my parcel?"], random.Random(1), offset=day, cost=10.0**day,
                start=START + day * 24 * HOUR,
            )  # fmt: skip
        feedback(warehouse, ["support-1"], "resolved", True, when=START)
        book(warehouse, Settings(), START + 72 * HOUR)
        became = outcomes(warehouse, "support")
        assert became is not None
        assert (became.since, became.resolved, became.unknown) == (date(2026, 3, 3), 1, 1)
        assert (became.costs, became.cost_per_resolved) == pytest.approx((110.0, 110.0))
