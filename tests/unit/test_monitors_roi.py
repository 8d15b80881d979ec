"""What the ledger comes to: intervals that hold, and what each promotion earned."""

import math
import random
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from traffic import START, feedback, interactions, promoted, prompts, store

from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.metrics import Metrics
from retuned.monitors.money.ledger import book
from retuned.monitors.money.outcomes import outcomes
from retuned.monitors.money.roi import Moments, Tenure, interval, left_out, of_workload, summary, tenures
from retuned.monitors.settings import RoiSettings, Settings, WindowsSettings

HOUR = timedelta(hours=1)
DAY = 24 * HOUR
SETTINGS = Settings(
    roi=RoiSettings(hourly_rate=60.0, escalation_cost=0.0, token_cost=0.0),
    windows=WindowsSettings(current_seconds=6 * 3_600.0),
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
        len(n), n.sum(), gain.sum(), cost.sum(), (n * n).sum(), (gain * gain).sum(), (cost * cost).sum(),
        (gain * n).sum(), (gain * cost).sum(),
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
    worth = {"conversations": 1, "interactions": 1, "gain": 1e308, "cost": 1e308, "interactions_squared": 1}
    worth |= dict.fromkeys(("gain_squared", "cost_squared", "gain_interactions", "gain_cost"), math.inf)
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
    now, before = population(rng, size, 0.4), population(rng, size, 0.3)
    turns, gain, cost = (column.mean() for column in now)
    truth = {
        "gains": conversations * gain,
        "ratio": conversations * gain / (fixed + conversations * cost),
        "uplift": gain / turns - before[1].mean() / before[0].mean(),
    }
    held = dict.fromkeys(truth, 0)
    for _ in range(draws):
        drawn, earlier = rng.integers(0, size, conversations), rng.integers(0, size, conversations)
        of = moments(*(column[drawn] for column in now))
        was = moments(*(column[earlier] for column in before))
        costs = fixed + of.cost
        found = {
            "gains": interval(of.gain, of.gain_variance),
            "ratio": interval(of.gain / costs, of.ratio_variance(of.gain / costs, costs)),
            "uplift": interval(of.mean - was.mean, of.mean_variance, was.mean_variance),
        }
        for figure, (low, high) in found.items():
            assert low is not None
            assert high is not None
            held[figure] += low <= truth[figure] <= high
    assert all(0.93 <= count / draws <= 0.965 for count in held.values())


def test_a_promotion_is_held_against_what_went_before_by_hand(warehouse: Warehouse) -> None:
    change = START + 10 * HOUR
    promoted(warehouse, "p1", "v1", None, change)
    promoted(warehouse, "p2", None, "v1", change + 12 * HOUR, event="rolled_back")
    old = {"model": "support@base"}
    earlier = answers(warehouse, 40, 0, start=START, **old)  # before the window of six hours
    saved(warehouse, earlier, [10.0] * 40, 0)
    window = answers(warehouse, 40, 40, start=change - 2 * HOUR, **old)
    saved(warehouse, window, [1.0, 3.0] * 20, 40)
    since = answers(warehouse, 50, 80, start=change, model="support@v1")
    saved(warehouse, since, [2.0, 4.0] * 25, 80)
    late = answers(warehouse, 5, 130, start=change, **old)  # the server had not changed yet
    saved(warehouse, late, [60.0] * 5, 130)
    book(warehouse, SETTINGS, change + DAY)
    back, first = tenures(warehouse, SETTINGS, "support")
    scatter = 1.959964 * math.sqrt(50 / 49 * 50)  # of the gains: each is one off the mean
    half = 1.959964 * 50 * math.sqrt(1 / 49 + 1 / 39)
    assert first == Tenure(
        promotion="p1",
        event="promoted",
        created_at=change,
        version="v1",
        previous_version=None,
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
        "p2", "rolled_back", change + 12 * HOUR, None, "v1",
        interactions=0, gains=0.0, costs=0.0, **dict.fromkeys(unknown),
    )  # fmt: skip

    # v1 answers nobody within the six hours before p2; one that comes in late counts where it belongs.
    late = answers(warehouse, 1, 135, start=change + 8 * HOUR, model="support@v1")
    after = answers(warehouse, 40, 136, start=change + 13 * HOUR, **old)
    saved(warehouse, [*late, *after], [7.0] + [6.0] * 40, 135)
    book(warehouse, SETTINGS, change + 2 * DAY)
    back, first = tenures(warehouse, SETTINGS, "support")
    assert (first.interactions, first.gains, first.counterfactual) == (51, 157.0, 102.0)
    assert (back.interactions, back.gains, back.counterfactual, back.uplift) == (40, 240.0, 280.0, -40.0)
    assert (back.uplift_low, back.uplift_high) == (None, None)  # one conversation tells no scatter


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
    saved(warehouse, answers(warehouse, 40, 40, start=START + 2 * HOUR, model="support@v1"), [3.0] * 40, 40)
    book(warehouse, SETTINGS, START + 3 * HOUR)
    found = show()
    assert found["version_amount", "support@v1", "gain"] == 120.0
    assert (found["uplift_amount",], found["uplift_interval_amount", "low"]) == (80.0, 80.0)
    promoted(warehouse, "p2", "v2", "v1", START + 30 * HOUR)
    later = {key: value for key, value in show().items() if key[0].startswith(("version", "uplift"))}
    assert later == {
        ("version_amount", "support@v1", "gain"): 120.0,
        ("version_amount", "support@v1", "cost"): 20.0,
    }
