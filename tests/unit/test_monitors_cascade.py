"""What is answered by rule, how confident a version must be, and that no rule favours a version in a comparison."""

import json
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.traffic import MINUTE, START, feedback, interactions, new_warehouse, promoted, registered, store
from fixtures.feedback.watched import NEW, NOW, OLD, SINCE, compared, counted, promote, rated, seen
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.blindness import blind
from retuned.monitors.metrics import Metrics
from retuned.monitors.quality.cascade import ERROR, LABELS, LEAST, least_confidence
from retuned.monitors.quality.figure import Figure
from retuned.monitors.quality.measure import measure
from retuned.monitors.settings import Settings, WindowsSettings
from retuned.monitors.watch import canary
from retuned.monitors.watch.check import WatchCheck
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.release.served import served_routes
from retuned.retrain.settings import ModelsSettings
from retuned.retrain.settings import Settings as ReleaseSettings

SETTINGS = Settings(windows=WindowsSettings(reference_seconds=3_600, current_seconds=3_600))
END = START + timedelta(hours=2)
RATE = 0.8


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    opened = new_warehouse(tmp_path)
    answered(opened, "support@base", 60, start=START)
    promoted(opened, "p", "v1", None, START)
    yield opened
    opened.close()


def answered(warehouse: Warehouse, model: str, count: int, **columns: Any) -> list[str]:
    offset = int(warehouse.rows("SELECT count(*) AS n FROM interactions")[0]["n"])
    start = columns.pop("start", START + timedelta(hours=1))
    asked = [f"question {offset + number}" for number in range(count)]
    plain: dict[str, Any] = {"context": None, "model": model}
    return interactions(
        warehouse, asked, random.Random(1), start=start, step=MINUTE / 10, offset=offset, **plain | columns
    )


def rated_with(warehouse: Warehouse, model: str, confidence: float, good: int, bad: int) -> None:
    """Answers given with this confidence, and votes on them."""
    ids = answered(warehouse, model, good + bad, attributes=json.dumps({"confidence": confidence}))
    offset = int(warehouse.rows("SELECT count(*) AS n FROM feedback")[0]["n"])
    for some, is_good in ((ids[:good], True), (ids[good:], False)):
        if some:
            feedback(warehouse, some, "helpful", is_good, when=END, offset=offset)
            offset += len(some)


def found(figures: list[Figure], metric: str) -> dict[tuple[str, str], tuple[float, int]]:
    return {(one.model, one.source): (one.value, one.n) for one in figures if one.metric == metric}


def test_share_cost_and_helpful_rate_of_what_is_answered_by_rule(warehouse: Warehouse) -> None:
    answered(warehouse, "support@v1", 70)
    by_rule = {
        "length": answered(warehouse, "support@cascade", 20, attributes=json.dumps({"cascade": "length"}), cost=0.5)
    }
    answered(warehouse, "support@v1+cascade", 10, attributes=json.dumps({"cascade": "confidence"}))
    feedback(warehouse, by_rule["length"][:12], "helpful", True, when=END)
    feedback(warehouse, by_rule["length"][12:16], "helpful", False, when=END, offset=12)
    figures = measure(warehouse, SETTINGS, "support", END)
    assert found(figures, "cascade_share") == {("*", "length"): (0.2, 100), ("*", "confidence"): (0.1, 100)}
    assert found(figures, "cascade_cost") == {("*", "length"): (0.5, 20)}
    assert found(figures, "cascade_helpful_rate") == {("*", "user"): (0.75, 16)}
    assert found(figures, "least_confidence") == {}
    registry = CollectorRegistry()
    Metrics(registry).quality("support", figures)
    of = {"workload": "support"}
    assert registry.get_sample_value("retuned_cascade_ratio", of | {"rule": "length"}) == 0.2
    assert registry.get_sample_value("retuned_cascade_cost_amount", of | {"rule": "length"}) == 0.5
    assert registry.get_sample_value("retuned_cascade_helpful_ratio", of | {"source": "user"}) == 0.75


def test_a_workload_without_rules_has_no_such_figures(warehouse: Warehouse) -> None:
    answered(warehouse, "support@v1", 70)
    assert not [one for one in measure(warehouse, SETTINGS, "support", END) if one.metric.startswith("cascade")]


def test_a_version_is_calibrated_once_by_rated_answers(warehouse: Warehouse) -> None:
    rated_with(warehouse, "support@v1", -0.1, 60, 0)
    assert found(measure(warehouse, SETTINGS, "support", END, least_helpful=RATE), "least_confidence") == {}
    (one,) = (one for one in blind(warehouse, "support") if one.monitor == "confidence")
    assert str(one).startswith(f"blind: 60 of {LEAST} rated answers of support@v1")
    rated_with(warehouse, "support@v1", -0.5, 30, 0)
    rated_with(warehouse, "support@v1", -3.0, 10, 30)
    figures = measure(warehouse, SETTINGS, "support", END, least_helpful=RATE)
    assert found(figures, "least_confidence") == {("support@v1", "0.8"): (-0.5, 130)}
    assert not [one for one in blind(warehouse, "support") if one.monitor == "confidence"]
    rated_with(warehouse, "support@v1", -0.5, 0, 50)  # what is rated from now on is a selection
    assert found(measure(warehouse, SETTINGS, "support", END, least_helpful=RATE), "least_confidence") == {
        ("support@v1", "0.8"): (-0.5, 130)
    }
    incumbent = {"url": "https://api.example/v1", "model": "mini"}
    own = ReleaseSettings.model_validate({"incumbent": incumbent, "cascade": {"helpful_rate": RATE}})
    routed = served_routes(warehouse, own, ["support"])
    assert routed["support"].confident == {"support@v1": -0.5}
    assert served_routes(warehouse, ReleaseSettings(), ["support"])["support"].confident == {}


def test_the_version_that_lacks_most_labels_is_shown_until_the_setting_is_removed(warehouse: Warehouse) -> None:
    promoted(warehouse, "p2", "v2", "v1", START, event="canary", share=0.05)
    rated_with(warehouse, "support@v1", -0.1, 100, 100)  # is asked for one more
    rated_with(warehouse, "support@v2", -0.1, 10, 10)
    measure(warehouse, SETTINGS, "support", END, least_helpful=RATE)
    (one,) = (one for one in blind(warehouse, "support") if one.monitor == "confidence")
    assert str(one).startswith(f"blind: 20 of {LEAST} rated answers of support@v2")
    rated_with(warehouse, "support@v2", -0.1, 200, 0)
    measure(warehouse, SETTINGS, "support", END, least_helpful=RATE)
    (one,) = (one for one in blind(warehouse, "support") if one.monitor == "confidence")
    assert "rated answers of support@v1" in str(one)
    measure(warehouse, SETTINGS, "support", END)
    assert not [one for one in blind(warehouse, "support") if one.monitor == "confidence"]


def test_a_version_that_is_shown_to_be_good_nowhere_keeps_its_answers(warehouse: Warehouse) -> None:
    rated_with(warehouse, "support@v1", -0.1, 50, 50)
    assert found(measure(warehouse, SETTINGS, "support", END, least_helpful=RATE), "least_confidence") == {}
    (one,) = (one for one in blind(warehouse, "support") if one.monitor == "confidence")
    assert "its more confident half is not shown to be 80% helpful" in str(one)


@pytest.mark.full
def test_the_kept_answers_are_helpful_at_the_configured_rate_however_often_it_is_tested() -> None:
    luck, kept = random.Random(1), list[float]()
    for _ in range(150):
        drawn = [luck.random() for _ in range(1_000)]  # an answer with this confidence is helpful with 0.55 + 0.4 of it
        labels = [(one, f"c-{number}", luck.random() < 0.55 + 0.4 * one) for number, one in enumerate(drawn)]
        looks = (least_confidence(labels[:known], RATE, ERROR) for known in range(LEAST, 1_001, 20))
        if (least := next((one for one in looks if one is not None), None)) is not None:
            kept.append(0.55 + 0.4 * (1 + least) / 2)
    assert len(kept) > 50
    assert sum(one < RATE for one in kept) / len(kept) <= 0.025


@pytest.mark.full
def test_a_version_whose_answers_are_just_as_helpful_as_asked_is_not_shown_to_be_better() -> None:
    luck, wrong = random.Random(2), 0
    for _ in range(100):
        labels = [(luck.random(), f"c-{number}", luck.random() < RATE) for number in range(1_000)]
        looks = (least_confidence(labels[:known], RATE, ERROR) for known in range(LEAST, 1_001, 20))
        wrong += any(one is not None for one in looks)
    assert wrong <= 3


def test_the_later_labels_of_a_version_have_less_of_the_error(warehouse: Warehouse) -> None:
    """In the first period the odds of so many good votes suffice, in the third no longer."""
    rated_with(warehouse, "support@v1", -0.1, 100, 11)
    rated_with(warehouse, "support@v2", -0.1, 100, 11)
    promoted(warehouse, "p2", "v2", "v1", START - 2 * LABELS)
    figures = found(measure(warehouse, SETTINGS, "support", END, least_helpful=0.75), "least_confidence")
    assert [model for model, _ in figures] == ["support@v1"]


def test_a_version_that_was_never_put_into_service_is_not_calibrated(warehouse: Warehouse) -> None:
    rated_with(warehouse, "support@v7", -0.1, 200, 0)
    assert found(measure(warehouse, SETTINGS, "support", END, least_helpful=RATE), "least_confidence") == {}


def test_a_watch_counts_replaced_answers_for_the_version_and_leaves_out_requests_by_rule(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 160, 40)
    rated(warehouse, NEW, 70, 10)
    rated(warehouse, f"{NEW}+cascade", 10, 10, start=NOW - timedelta(hours=3))
    rated(warehouse, "support@cascade", 0, 50, start=NOW - timedelta(hours=2))
    assert counted(compared(seen(warehouse))) == (40, 200, 20, 100)


class Beside:
    """v1, and v2 beside it as a canary or after it. One of them is calibrated: its hard answers are replaced."""

    def __init__(
        self, warehouse: Warehouse, folder: Path, *, worse: float = 0.0, sure: float = 1.0, calibrated: str = "v1"
    ) -> None:
        """Worse: by how much all answers of v2; sure: how the confidences of v2 are stretched."""
        for version in ("v1", "v2"):
            registered(warehouse, version)
        settings = ReleaseSettings(models=ModelsSettings(directory=folder), rollout=RolloutSettings(steps=(0.5, 1.0)))
        self.rollout = Rollout(warehouse, settings, MemoryPublisher(), "events")
        self.warehouse, self.worse, self.sure, self.luck = warehouse, worse, sure, random.Random(5)
        self.calibrated = calibrated
        self.rollout.promote("support", "v1", "gate", "first", SINCE - timedelta(days=9))

    def answer(self, version: str, start: datetime, count: int = 1_500) -> None:
        """Rated answers within six hours; every fifth question is a hard one, and its answer is not a confident one."""
        of: dict[tuple[str, str], list[tuple[str, bool]]] = {}
        for number in range(count):
            hard = number % 5 == 0
            helpful, confidence = (0.45, -2 - self.luck.random()) if hard else (0.92, -self.luck.random())
            model, attributes = f"support@{version}", {"confidence": confidence}
            if version == "v2":
                helpful, attributes = helpful - self.worse, {"confidence": confidence * self.sure}
            if hard and version == self.calibrated:
                helpful, model, attributes = 0.92, f"{model}+cascade", {"cascade": "confidence"}
            one = json.dumps(attributes), self.luck.random() < helpful
            of.setdefault((model, str(number % 5 == 0)), []).append(one)
        for (model, _), some in of.items():
            offset = int(self.warehouse.rows("SELECT count(*) AS n FROM interactions")[0]["n"])
            when = [start + timedelta(hours=6) * number / len(some) for number in range(len(some))]
            place = {"topic": "events", "partition": 0, "received_at": start}
            store(self.warehouse, "interactions", [
                {"id": f"i{number}", "timestamp": when[number - offset], "workload": "support", "model": model,
                 "messages": "[]", "response": "a", "attributes": attributes, "offset": number} | place
                for number, (attributes, _) in enumerate(some, offset)
            ])  # fmt: skip
            store(self.warehouse, "feedback", [
                {"id": f"f{number}", "timestamp": when[number - offset], "interaction_id": f"i{number}",
                 "name": "helpful", "value": json.dumps(good), "source": "user", "user_id": f"u{number}",
                 "offset": number} | place
                for number, (_, good) in enumerate(some, offset)
            ])  # fmt: skip

    def as_canary(self) -> canary.CanaryCheck:
        self.rollout.begin("support", "v2", "gate", "better", SINCE)
        for version in ("v1", "v2"):
            self.answer(version, SINCE + MINUTE)
        found = canary.check(self.warehouse, Settings(), "support", SINCE + timedelta(days=1, hours=1))
        assert found is not None
        return found

    def after_it(self) -> WatchCheck:
        for days in (7, 6, 5, 4, 3, 2, 1):
            self.answer("v1", SINCE - timedelta(days=days), 1_000)
        self.rollout.promote("support", "v2", "gate", "better", SINCE)
        self.answer("v2", SINCE, 4_000)
        return seen(self.warehouse, SINCE + timedelta(hours=13))


@pytest.mark.parametrize("sure", [1.0, 0.3])
def test_a_successor_with_the_same_weights_is_kept_though_the_cascade_helps_the_champion(
    warehouse: Warehouse, tmp_path: Path, sure: float
) -> None:
    """Also where its confidences are on another scale."""
    found = Beside(warehouse, tmp_path, sure=sure).as_canary()
    assert found.verdict == "advance", found.reasons
    (comparison,) = (one for one in found.comparisons if one.metric == "helpful")
    assert (comparison.n_before, comparison.n_after) == (1_200, pytest.approx(1_200, abs=1))


def test_nor_does_the_watch_take_it_back(warehouse: Warehouse, tmp_path: Path) -> None:
    found = Beside(warehouse, tmp_path).after_it()
    assert found.verdict == "go_on", found.reasons
    assert compared(found).n_after == pytest.approx(3_200, abs=1)
    assert compared(found).worse == 0


def test_a_successor_that_is_ten_points_worse_is_still_taken_back(warehouse: Warehouse, tmp_path: Path) -> None:
    assert Beside(warehouse, tmp_path, worse=0.1).as_canary().verdict == "roll_back"


def test_that_it_is_calibrated_before_the_champion_does_not_hide_it(warehouse: Warehouse, tmp_path: Path) -> None:
    assert Beside(warehouse, tmp_path, worse=0.1, calibrated="v2").as_canary().verdict == "roll_back"


def test_a_watch_takes_it_back_too(warehouse: Warehouse, tmp_path: Path) -> None:
    assert Beside(warehouse, tmp_path, worse=0.1).after_it().verdict == "roll_back"


def test_beside_a_champion_whose_certainty_is_unknown_all_answers_that_users_got_are_compared(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    beside = Beside(warehouse, tmp_path)
    beside.rollout.begin("support", "v2", "gate", "better", SINCE)
    beside.answer("v1", SINCE + MINUTE)
    warehouse.execute("UPDATE interactions SET attributes = NULL WHERE NOT ends_with(model, '+cascade')")
    rated(warehouse, "support@v2", 90, 10, start=SINCE + MINUTE)
    found = canary.check(warehouse, Settings(), "support", SINCE + timedelta(days=1))
    assert found is not None
    (comparison,) = (one for one in found.comparisons if one.metric == "helpful")
    assert (comparison.n_before, comparison.n_after) == (1_500, 100)


def test_the_votes_of_one_person_are_not_independent() -> None:
    labels = [(1.0, f"c-{number}", number % 20 > 0) for number in range(2 * LEAST)]
    assert least_confidence(labels, RATE, ERROR) == 1.0
    twenty_people = [(1.0, f"account {number % 20}", number % 20 > 0) for number in range(2 * LEAST)]
    assert least_confidence(twenty_people, RATE, ERROR) is None
