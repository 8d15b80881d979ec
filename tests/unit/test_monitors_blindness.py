"""A monitor that has too few rows is shown as blind, with how many are missing."""

import json
import random
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fixtures.daemon.operations import ask
from fixtures.daemon.pages import page
from fixtures.feedback.traffic import START, feedback, interactions
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.jsontext import as_json
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import Settings
from retuned.monitors.blindness import Blindness, blind, note
from retuned.monitors.metrics import Metrics
from retuned.monitors.quality.measure import measure

HOUR = timedelta(hours=1)


def test_what_is_missing_is_kept_with_since_when(warehouse: Warehouse) -> None:
    note(warehouse, "support", "policy", 60, 60, "ratings", START)
    assert blind(warehouse, "support") == []
    for hours in range(3):
        note(warehouse, "support", "policy", 10 + hours, 60, "ratings", START + hours * HOUR)
        note(warehouse, "sales", "policy", 60, 60, "ratings", START)
    assert blind(warehouse, "support") == [Blindness("support", "policy", 12, 60, "ratings", START)]
    note(warehouse, "support", "policy", 60, 60, "ratings", START + 4 * HOUR)
    assert blind(warehouse, "support") == []


@pytest.mark.processes
def test_five_conversations_a_day_are_too_few_for_a_window_of_a_day(warehouse: Warehouse) -> None:
    interactions(warehouse, ["where is it"] * 50, random.Random(1), step=timedelta(days=1) / 5)
    now = START + timedelta(days=10)
    measure(warehouse, Settings(), "support", now)
    labels, found = blind(warehouse, "support")
    assert (labels.monitor, labels.found, labels.needed) == ("hallucination", 0, 30)
    assert (found.monitor, found.found, found.needed) == ("quality", 5, 100)
    assert str(found).startswith("blind: 5 of 100 conversations in the current window")
    measure(warehouse, Settings(windows={"current_seconds": 10 * 86_400, "minimum_rows": 50}), "support", now)
    assert [(one.monitor, one.needed) for one in blind(warehouse, "support")] == [("hallucination", 30)]


def test_a_workload_without_answers_is_blind(warehouse: Warehouse) -> None:
    measure(warehouse, Settings(), "support", START)
    assert [one.found for one in blind(warehouse, "support")] == [0]


@pytest.mark.parametrize(
    ("enabled", "monitors"), [(True, ["hallucination", "policy", "quality"]), (False, ["hallucination", "quality"])]
)
def test_the_status_shows_which_monitors_are_blind(tmp_path: Path, enabled: bool, monitors: list[str]) -> None:
    settings = Settings(warehouse={"path": tmp_path / "w.duckdb"}, policy={"enabled": enabled})
    with opened(settings) as service:
        ids = interactions(service.warehouse, ["where is it"] * 50, random.Random(1), step=timedelta(days=1) / 5)
        feedback(service.warehouse, ids[:3], "helpful", True)
        service.jobs.context.now = lambda: START + timedelta(days=10)
        service.jobs.run("quality")
        status = json.loads(as_json(ask(service, "status")))
        shown = status["workloads"]["support"]["blind"]
        assert [one["monitor"] for one in shown] == monitors
        assert [(one["found"], one["needed"]) for one in shown if one["monitor"] == "policy"] == [(3, 60)] * enabled
        found = page(service, "/workloads/support")
        assert ("3 of 60 ratings" in found) is enabled
        assert "5 of 100 conversations in the current window" in found
        assert "the hallucination rate is not calibrated: 30 more labels" in found


def test_the_gauge_follows() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def shown(monitor: str) -> float | None:
        return registry.get_sample_value("retuned_monitor_blind", {"workload": "support", "monitor": monitor})

    metrics.blindness("support", [Blindness("support", "policy", 1, 2, "ratings", START)])
    assert (shown("policy"), shown("quality")) == (1, 0)
    missing = {"workload": "support", "monitor": "policy"}
    assert registry.get_sample_value("retuned_monitor_missing_rows", missing) == 1
    metrics.blindness("support", [])
    assert (shown("policy"), shown("quality")) == (0, 0)
    assert registry.get_sample_value("retuned_monitor_missing_rows", missing) is None
    metrics.keep([], [])
    assert shown("policy") is None
