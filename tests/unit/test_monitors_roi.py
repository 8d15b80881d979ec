"""What the ledger comes to: intervals that hold, and what each promotion earned."""

import math
import random
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.traffic import START, feedback, interactions, promoted, prompts, store
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.metrics import Metrics
from retuned.monitors.money.ledger import book
from retuned.monitors.money.outcomes import outcomes
from retuned.monitors.money.roi import (
    Moments,
    Tenure,
    interval,
    left_out,
    of_workload,
    summary,
    tenures,
    uplift_interval,
)
from retuned.monitors.settings import RoiSettings, Settings, WindowsSettings

HOUR = timedelta(hours=1)
DAY = 24 * HOUR
SETTINGS = Settings(
    roi=RoiSettings(hourly_rate=60.0, escalation_cost=0.0, token_cost=0.0),
    windows=WindowsSettings(reference_seconds=2 * 86_400.0),
)
Array = np.ndarray[Any, np.dtype[np.float64]]


def answers(warehouse: Warehouse, count: int, offset: int, **columns: Any) -> list[str]:
    rng = random.Random(7)
    return interactions(warehouse, prompts(count, rng), rng, offset=offset, **({"cost": 0.5} | columns))


def saved(warehouse: Warehouse, ids: list[str], minutes: list[float], offset: int) -> None:
    rows = [
        {
            "id": f"feedback-{offset + number}",
            "timestamp": START,
            "interaction_id": answer,
            "name": "time_saved_seconds",
            "value": str(60 * value),
            "source": "app",
            "topic": "feedback",
            "partition": 0,
            "offset": offset + number,
            "received_at": START,
        }
        for number, (answer, value) in enumerate(zip(ids, minutes, strict=True))
    ]
    store(warehouse, "feedback", rows)


def moments(n: Array, gain: Array, cost: Array) -> Moments:
    return Moments(
        len(n), n.sum(), gain.sum(), cost.sum(), (gain * gain).sum(), (cost * cost).sum(), (gain * cost).sum(),
    )  # fmt: skip


def population(rng: np.random.Generator, size: int, helpful: float) -> tuple[Array, Array, Array]:
    """Conversations of one to some turns, a third of them with time saved, long-tailed; costs grow with the turns."""
    turns = 1.0 + rng.poisson(1.5, size)
    gain = np.where(rng.random(size) < helpful, rng.lognormal(0.5, 0.8, size), 0.0) + 2.4 * (
        0.3 * turns - (rng.random(size) < 0.2)
    )
    return turns, gain, turns * rng.lognormal(-2.0, 0.5, size)


def test_intervals_are_those_of_the_conversations(warehouse: Warehouse) -> None:
    """Two answers to a conversation, booked at different times: they are one draw, not two."""
    minutes = [(0.0, 1.0, 5.0)[number % 3] for number in range(40)]
    for turn in range(2):
        ids = answers(warehouse, 40, 40 * turn, start=START + turn * HOUR)
        warehouse.execute(
            'UPDATE interactions SET conversation_id = \'c\' || "offset" % 40, cost = 0.1 + "offset" % 40 % 3 / 10'
        )
        saved(warehouse, ids, minutes, 40 * turn)
        book(warehouse, SETTINGS, START + 2 * HOUR)
    gain, cost = 2 * np.array(minutes), 0.2 + np.arange(40) % 3 / 5
    found = summary(warehouse)
    assert (found.gains, found.costs) == pytest.approx((gain.sum(), cost.sum()))
    half = 1.959964 * math.sqrt(40 * gain.var(ddof=1))
    assert (found.gains_low, found.gains_high) == pytest.approx((gain.sum() - half, gain.sum() + half))
    residual = gain - gain.sum() / cost.sum() * cost
    half = 1.959964 * math.sqrt(40 * residual.var(ddof=1)) / cost.sum()
    assert found.ratio is not None
    assert (found.ratio_low, found.ratio_high) == pytest.approx((found.ratio - half, found.ratio + half))
    assert of_workload(warehouse, "support") == (found, {None: found})


def test_a_conversation_that_never_ends_is_one_for_each_day(warehouse: Warehouse) -> None:
    ids = answers(warehouse, 124, 0, step=6 * HOUR, start=START - 9 * HOUR, conversation_id="always the same")
    saved(warehouse, ids, [float(number // 4) for number in range(124)], 0)
    book(warehouse, SETTINGS, START + 40 * DAY)
    found = summary(warehouse)
    half = 1.959964 * math.sqrt(31 * (4.0 * np.arange(31)).var(ddof=1))
    assert (found.gains, found.gains_high) == pytest.approx((4 * 465, 4 * 465 + half))


def test_few_conversations_have_no_interval(warehouse: Warehouse) -> None:
    for number, known in ((29, False), (30, True)):
        ids = answers(warehouse, number - (29 if known else 0), 29 if known else 0)
        saved(warehouse, ids, [1.0] * len(ids), 100 * number)
        book(warehouse, SETTINGS, START + HOUR)
        found = summary(warehouse)
        assert (found.gains, found.ratio) == (number, pytest.approx(1.0))
        ends = (found.gains_low, found.gains_high, found.ratio_low, found.ratio_high)
        assert [end is not None for end in ends] == [known] * 4


def test_absurd_amounts_that_an_earlier_version_booked_leave_no_infinity(warehouse: Warehouse) -> None:
    promoted(warehouse, "p1", "v1", None, START)
    ids = answers(warehouse, 40, 0, model="support@v1", start=START + HOUR)
    saved(warehouse, ids, [1.0] * 40, 0)
    book(warehouse, SETTINGS, START + 2 * HOUR)
    before = summary(warehouse)
    for kind in ("gain", "cost"):
        for amount in (1e308, 1e308, math.inf, math.nan):
            warehouse.insert(
                "ledger", id=f"{kind}{amount}", created_at=START, workload="support", kind=kind, item="inference",
                quantity=amount, unit="EUR", rate=1.0, amount=amount, reference="", version="v1", promotion="p1",
            )  # fmt: skip
    worth = {"conversations": 1, "interactions": 1, "gain": 1e308, "cost": 1e308}
    worth |= dict.fromkeys(("gain_squared", "cost_squared", "gain_cost"), math.inf)
    warehouse.insert("ledger_moments", workload="support", version="v1", promotion="p1", hour=START, **worth)
    assert summary(warehouse) == before
    assert of_workload(warehouse, "support")[1] == {"v1": before}
    (change,) = tenures(warehouse, SETTINGS, "support")
    assert change.costs == before.costs
    assert change.ratio == before.ratio


@pytest.mark.parametrize("conversations", [100, 1_000])
def test_intervals_hold_the_truth_as_often_as_they_say(conversations: int) -> None:
    rng = np.random.default_rng(11)
    size, draws, fixed = 50_000, 2_000, 50.0
    now = population(rng, size, 0.4)
    _, gain, cost = (column.mean() for column in now)
    truth = {
        "gains": conversations * gain,
        "ratio": conversations * gain / (fixed + conversations * cost),
    }
    held = dict.fromkeys(truth, 0)
    for _ in range(draws):
        drawn = rng.integers(0, size, conversations)
        of = moments(*(column[drawn] for column in now))
        costs = fixed + of.cost
        found = {
            "gains": interval(of.gain, of.gain_variance),
            "ratio": interval(of.gain / costs, of.ratio_variance(of.gain / costs, costs)),
        }
        for figure, (low, high) in found.items():
            assert low is not None
            assert high is not None
            held[figure] += low <= truth[figure] <= high
    assert all(0.93 <= count / draws <= 0.965 for count in held.values())


def test_a_promotion_is_held_against_what_went_before_by_hand(warehouse: Warehouse) -> None:
    change = START + 10 * DAY
    promoted(warehouse, "p1", "v1", None, change)
    promoted(warehouse, "p2", None, "v1", change + 3 * DAY, event="rolled_back")
    old = {"model": "support@base"}
    earlier = answers(warehouse, 40, 0, start=change - 3 * DAY, **old)  # before the two days
    saved(warehouse, earlier, [10.0] * 40, 0)
    for day, minutes in ((2, 1.0), (1, 3.0)):
        asked = answers(warehouse, 20, 20 + 20 * day, start=change - day * DAY, **old)
        saved(warehouse, asked, [minutes] * 20, 20 + 20 * day)
    for day, minutes in ((0, 2.0), (1, 4.0)):
        asked = answers(warehouse, 25, 80 + 25 * day, start=change + day * DAY, model="support@v1")
        saved(warehouse, asked, [minutes] * 25, 80 + 25 * day)
    late = answers(warehouse, 5, 130, start=change, **old)  # the server had not changed yet
    saved(warehouse, late, [60.0] * 5, 130)
    book(warehouse, SETTINGS, change + 2 * DAY)
    back, first = tenures(warehouse, SETTINGS, "support")
    scatter = 1.959964 * math.sqrt(50 / 49 * 50)  # of the gains: each is one off the mean
    # The means of two days and of two: 2 and 4 less 1 and 3. A pooled t-test of two degrees of freedom.
    half = 50 * 4.302653 * math.sqrt(2 * (1 / 2 + 1 / 2))
    assert first == Tenure(
        promotion="p1",
        event="promoted",
        created_at=change,
        version="v1",
        previous_version=None,
        conversations=50,
        interactions=50,
        gains=150.0,  # 3 minutes each, at 1
        costs=25.0,  # 0.5 each
        ratio=5.0,
        ratio_low=pytest.approx(5 - scatter / 25),
        ratio_high=pytest.approx(5 + scatter / 25),
        counterfactual=100.0,  # 2 minutes each
        uplift=50.0,
        uplift_low=pytest.approx(50 - half),
        uplift_high=pytest.approx(50 + half),
    )
    unknown = ("ratio", "ratio_low", "ratio_high", "counterfactual", "uplift", "uplift_low", "uplift_high")
    assert back == Tenure(
        "p2", "rolled_back", change + 3 * DAY, None, "v1",
        conversations=0, interactions=0, gains=0.0, costs=0.0, **{**dict.fromkeys(unknown), "counterfactual": 0.0,
        "uplift": 0.0},
    )  # fmt: skip

    # One that comes in late counts where it belongs.
    late = answers(warehouse, 1, 135, start=change + 2 * DAY, model="support@v1")
    after = answers(warehouse, 20, 136, start=change + 4 * DAY, **old)
    saved(warehouse, [*late, *after], [7.0] + [6.0] * 20, 135)
    book(warehouse, SETTINGS, change + 5 * DAY)
    back, first = tenures(warehouse, SETTINGS, "support")
    assert (first.conversations, first.gains, first.counterfactual) == (51, 157.0, 102.0)
    assert (back.conversations, back.gains) == (20, 120.0)
    assert back.counterfactual == pytest.approx(20 * 107 / 26)  # 25 of 4 minutes on the second day, one of 7
    assert (back.uplift_low, back.uplift_high) == (None, None)  # 20 conversations show no scatter


@pytest.mark.full
def test_as_much_gained_by_a_conversation_in_fewer_turns_is_no_uplift(warehouse: Warehouse) -> None:
    change = START + 3 * DAY
    promoted(warehouse, "p1", "v1", None, change)
    offset = 0
    for day in range(6):
        turns, model = (3, "base") if day < 3 else (2, "v1")
        for conversation in range(20):
            ids = answers(
                warehouse, turns, offset, start=START + day * DAY + conversation * HOUR / 4,
                model=f"support@{model}", conversation_id=f"{day}-{conversation}",
            )  # fmt: skip
            saved(warehouse, ids[-1:], [float(conversation)], offset)
            offset += turns
    book(warehouse, SETTINGS, START + 7 * DAY)
    (found,) = tenures(warehouse, SETTINGS, "support")
    assert (found.conversations, found.interactions, found.gains) == (60, 120, 570.0)
    assert found.uplift == pytest.approx(0.0)
    assert found.uplift_low is not None
    assert found.uplift_low < 0


def test_an_uplift_has_no_interval_before_there_are_three_days(warehouse: Warehouse) -> None:
    promoted(warehouse, "p1", "v1", None, START + DAY)
    for number, known in ((2, False), (3, True)):
        for day in range(number - 1 if known else 0, number):
            model = "support@v1" if day else "support@base"
            ids = answers(warehouse, 40, 40 * day, start=START + day * DAY, model=model)
            saved(warehouse, ids, [float(minute % 5) for minute in range(40)], 40 * day)
        book(warehouse, SETTINGS, START + 5 * DAY)
        (found,) = tenures(warehouse, SETTINGS, "support")
        assert found.uplift == pytest.approx(0.0)
        assert (found.uplift_low is not None, found.uplift_high is not None) == (known, known)


@pytest.mark.parametrize("deviation", [0.05, 0.1])
def test_an_uplift_holds_the_truth_though_days_differ(deviation: float) -> None:
    """A week before and a week after, 1,000 conversations a day: by conversations alone 22% to 73% would hold it."""
    rng = np.random.default_rng(3)

    def week(mean: float) -> Moments:
        found = Moments()
        for day in mean * (1 + deviation * rng.standard_normal(7)):
            gain = np.where(rng.random(1_000) < 0.4, rng.lognormal(0.0, 0.8, 1_000), 0.0) * day
            total = float(gain.sum())
            found += Moments(
                conversations=1_000, gain=total, gain_squared=float(gain @ gain), days=1,
                conversations_squared=1_000_000, daily_gain_squared=total * total / 1_000,
            )  # fmt: skip
        return found

    truth = 7_000 * 0.2 * 0.4 * math.exp(0.32)
    held = 0
    for _ in range(400):
        low, high = uplift_interval(week(1.2), week(1.0))
        assert low is not None
        assert high is not None
        held += low <= truth <= high
    assert 0.92 <= held / 400 <= 0.98


def test_metrics_show_the_ledger_and_take_back_what_is_not_known_any_more(warehouse: Warehouse) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def show() -> dict[tuple[str, ...], float]:
        latest = next(iter(tenures(warehouse, SETTINGS, "support")), None)
        by_version, beyond = of_workload(warehouse, "support")[1], left_out(warehouse, "support")
        metrics.roi(
            "support", summary(warehouse, "support"), by_version, latest, beyond, outcomes(warehouse, "support")
        )
        return {
            (sample.name.removeprefix("retuned_roi_"), *list(sample.labels.values())[1:]): round(sample.value, 9)
            for family in registry.collect()
            for sample in family.samples
            if sample.name.startswith("retuned_roi_")
        }

    assert show() == {}
    saved(warehouse, answers(warehouse, 40, 0, start=START), [1.0] * 40, 0)
    book(warehouse, SETTINGS, START + HOUR)
    workload = {
        ("ratio",): 1.0,
        ("amount", "gain", "time_saved"): 40.0,
        ("amount", "cost", "inference"): 20.0,
        ("interval_ratio", "low"): 1.0,
        ("interval_ratio", "high"): 1.0,
        ("gain_interval_amount", "low"): 40.0,
        ("gain_interval_amount", "high"): 40.0,
    }
    base = {
        ("version_amount", "support@base", "gain"): 40.0,
        ("version_amount", "support@base", "cost"): 20.0,
    }
    assert show() == workload | base
    promoted(warehouse, "p1", "v1", None, START + 2 * HOUR)
    assert show() == workload | base | {("uplift_amount",): 0.0}
    feedback(warehouse, ["support-0", "support-1"], "resolved", True, when=START, offset=5_000)
    feedback(warehouse, ["support-2"], "resolved", False, when=START, offset=5_002)
    book(warehouse, SETTINGS, START + 2 * HOUR)
    known = {key: value for key, value in show().items() if key[0] in ("cost_per_resolved_amount", "conversations")}
    assert known == {
        ("cost_per_resolved_amount",): 10.0,
        ("conversations", "resolved"): 2,
        ("conversations", "unresolved"): 1,
        ("conversations", "escalated"): 0,
        ("conversations", "unknown"): 37,
    }
    since = answers(warehouse, 40, 40, start=START + 2 * HOUR, step=0.6 * HOUR, model="support@v1")  # two days
    saved(warehouse, since, [3.0] * 40, 40)
    book(warehouse, SETTINGS, START + 27 * HOUR)
    found = show()
    assert found["version_amount", "support@v1", "gain"] == 120.0
    assert (found["uplift_amount",], found["uplift_interval_amount", "low"]) == (80.0, 80.0)
    promoted(warehouse, "p2", "v2", "v1", START + 30 * HOUR)
    later = {key: value for key, value in show().items() if key[0].startswith(("version", "uplift"))}
    assert later == {
        ("version_amount", "support@v1", "gain"): 120.0,
        ("version_amount", "support@v1", "cost"): 20.0,
        ("uplift_amount",): 0.0,  # v2 answered nothing yet
    }
