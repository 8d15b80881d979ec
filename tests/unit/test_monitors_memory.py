"""Whether entries of the memory help or harm, by votes on answers with and without their help."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.teaching import START, Teacher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.metrics import Metrics
from retuned.monitors.rates.votes import Votes
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.canary import CanaryCheck
from retuned.monitors.watch.comparison import Counts, compare_steps
from retuned.monitors.watch.memory import ALL, compared, effects, forget, totals, uses
from retuned.retrain.memory import entries
from retuned.retrain.memory.consensus import Approved

SETTINGS = WatchSettings()
STATED = Approved("00" * 16, "[]", "Are you open?", None, None, "No.", "person", "olga", (), START)


@pytest.fixture(autouse=True)
def entry(warehouse: Warehouse, teacher: Teacher) -> None:
    """Any entry: a workload without one has no look-ups."""
    entries.add(warehouse, "support", STATED, teacher.now, "olga", "policy")


def asked(teacher: Teacher, entry: str, held_out: bool, user: str, helpful: bool) -> None:
    memory: dict[str, Any] = {"entries": [], "held_out": [], "match": "same", "similarity": 1.0}
    memory["held_out" if held_out else "entries"] = [entry]
    answer = teacher.ask("How long may I return a lamp?", "14 days.", attributes={"memory": memory})
    teacher.say(answer, "helpful", helpful, "user", user)


def test_an_entry_that_makes_answers_worse_is_shown_to_harm_and_another_one_is_not(
    teacher: Teacher, warehouse: Warehouse
) -> None:
    for number in range(400):
        held_out = number % 2 == 0
        asked(teacher, "bad", held_out, f"user-{number}", helpful=held_out or number % 10 == 1)
        asked(teacher, "good", held_out, f"other-{number}", helpful=number % 10 < 8)
    now = teacher.now + timedelta(seconds=1)
    found = effects(warehouse, SETTINGS, "support", dict.fromkeys(("bad", "good"), START), now)
    assert {name for name, one in found.items() if one.harm} == {"bad", ALL}
    assert "unhelpful by user" in str(found["bad"].harm[0])
    assert found["good"].helpful is not None
    counted = uses(warehouse, "support", ["bad"])["bad"]
    assert (counted["helped"], counted["held_out"]) == (200, 200)
    later = effects(warehouse, SETTINGS, "support", {"bad": now}, now)
    assert set(later) == {ALL}  # a person has put it back since
    assert totals(warehouse) == {"support": {"helped": 400, "held_out": 400}}


@pytest.mark.parametrize(
    "memory", ["text", {"entries": "e1"}, {"entries": [{"id": 1}], "held_out": None}, [1], {"entries": [None, 7]}]
)
def test_junk_in_the_attribute_stops_nothing(teacher: Teacher, warehouse: Warehouse, memory: Any) -> None:
    teacher.ask("How long may I return a lamp?", "14 days.", attributes={"memory": memory})
    asked(teacher, "e1", False, "ann", True)
    effects(warehouse, SETTINGS, "support", {"e1": START}, teacher.now + timedelta(seconds=1))
    assert uses(warehouse, "support", ["e1"])["e1"]["helped"] == 1


def test_answers_are_read_once(teacher: Teacher, warehouse: Warehouse) -> None:
    asked(teacher, "e1", False, "ann", True)
    for _ in range(2):
        assert uses(warehouse, "support", ["e1"])["e1"]["helped"] == 1
    asked(teacher, "e1", True, "bob", True)
    assert uses(warehouse, "support", ["e1"])["e1"]["held_out"] == 1


def test_the_number_of_answers_never_falls(teacher: Teacher, warehouse: Warehouse) -> None:
    """An answer with two entries is one answer."""
    for held_out in (False, False, True):
        asked(teacher, "e1", held_out, "ann", True)
    memory = {"entries": ["e1", "e2"], "held_out": []}
    teacher.ask("How long may I return a lamp?", "14 days.", attributes={"memory": memory})
    assert totals(warehouse) == {"support": {"helped": 3, "held_out": 1}}
    assert forget(warehouse, ["support"], teacher.now + timedelta(days=1)) == 5
    assert totals(warehouse) == {"support": {"helped": 3, "held_out": 1}}
    asked(teacher, "e1", True, "bob", True)
    assert totals(warehouse) == {"support": {"helped": 3, "held_out": 2}}


def test_a_workload_that_is_watched_and_not_measured_keeps_its_metrics() -> None:
    registry = CollectorRegistry()
    metrics, now = Metrics(registry), START
    canary = CanaryCheck("c", now, "support", "e", "v2", "v1", 0.05, now, 120, "hold", [], [])
    of = {"workload": "support"}
    for count in (1, 2):
        metrics.canary("support", canary)
        metrics.memory("support", None, {"helped": 10 * count})
        metrics.keep(["billing"], ["support", "billing"])
        assert registry.get_sample_value("retuned_rollout_answers", of) == 120
        assert registry.get_sample_value("retuned_rollout_decisions_total", of | {"verdict": "hold"}) == count
        assert registry.get_sample_value("retuned_memory_answers_total", of | {"outcome": "helped"}) == 10 * count
    metrics.canary("support", None)
    assert registry.get_sample_value("retuned_rollout_answers", of) is None
    metrics.keep(["billing"], ["billing"])
    assert registry.get_sample_value("retuned_rollout_decisions_total", of | {"verdict": "hold"}) is None
    assert registry.get_sample_value("retuned_memory_answers_total", of | {"outcome": "helped"}) is None


def test_no_share_of_fractional_votes_is_larger_than_one() -> None:
    """The votes of an account that gave most of them are weighted down."""
    units = np.array([[6.5, 6.5, 13.25, 26.5, 1.0]])
    votes = Votes(units, units[:, :4])
    (one,) = compared({("helpful", "user", ALL): votes}, SETTINGS)[ALL].comparisons
    assert "unhelpful by user: 50% of 26 votes" in str(one)
    assert "100% of 6 votes" in str(one)
    counts = Counts("same_time", *votes.sums)
    for comparison in (one, compare_steps("helpful", "user", [counts, counts], SETTINGS)):
        assert comparison.bad_before / comparison.n_before == pytest.approx(1)
        assert comparison.bad_after / comparison.n_after == pytest.approx(0.5)


LOOKS = 8


def withdrawn(rng: np.random.Generator, *, harm: float, by_account: bool, share: float = 0.2) -> bool:
    """Whether an entry is withdrawn at any of many looks. Those who vote most are the happiest, and alike."""
    accounts = 800
    regular = rng.random(accounts) < 0.1
    activity = np.where(regular, 16.0, 1.0) * rng.gamma(2.0, 0.5, accounts)
    bad = np.where(regular, rng.beta(0.9, 5.1, accounts), rng.beta(2.1, 3.9, accounts))
    mine = rng.random(accounts) < share
    counts = np.zeros((accounts, 4))  # unhelpful and all, held out; unhelpful and all, helped
    for _ in range(LOOKS):
        n = rng.poisson(activity * 1_500 / LOOKS / activity.sum())
        held = np.where(mine, n, 0) if by_account else rng.binomial(n, share)
        counts += np.column_stack(
            [rng.binomial(held, bad), held, rng.binomial(n - held, np.minimum(bad + harm, 1)), n - held]
        )
        voted = counts[counts[:, 1] + counts[:, 3] > 0]
        for first in (0, 2):  # as rates.sql weighs accounts with more than a tenth of an arm's votes
            most = np.maximum(5.0, voted[:, first + 1].sum() / 10)
            voted[:, first : first + 2] *= np.minimum(1, most / np.maximum(voted[:, first + 1], 1))[:, None]
        votes = Votes(np.column_stack([voted, np.ones(len(voted))]), voted.sum(axis=0, keepdims=True))
        if compared({("helpful", "user", "e1"): votes}, SETTINGS)["e1"].harm:
            return True
    return False


@pytest.mark.full
@pytest.mark.parametrize("by_account", [False, True])
def test_harmless_entries_stay_and_harmful_ones_leave_where_activity_and_opinion_go_together(by_account: bool) -> None:
    runs = 200
    harmless = [withdrawn(np.random.default_rng(seed), harm=0.0, by_account=by_account) for seed in range(runs)]
    allowed = SETTINGS.false_rollback_rate
    assert sum(harmless) <= runs * allowed + 3 * (runs * allowed * (1 - allowed)) ** 0.5
    harmful = [withdrawn(np.random.default_rng(seed), harm=0.4, by_account=by_account) for seed in range(50)]
    assert sum(harmful) >= 40
