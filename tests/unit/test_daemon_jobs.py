"""Which workloads the jobs look at, what does not wait for what, and what evidence rests on."""

import random
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from teaching import START, Teacher
from traffic import feedback, interactions

from retuned.consumers.errors import ChildFailed
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import Warehouse, open_warehouse
from retuned.daemon.jobs import BUSY, MOST_WORKLOADS, Jobs
from retuned.daemon.metrics import Metrics
from retuned.daemon.settings import Settings
from retuned.monitors import drift
from retuned.monitors.drift import DriftCheck
from retuned.monitors.metrics import Metrics as MonitorMetrics

RUN = {
    "id": "run",
    "workload": "support",
    "reasons": "[]",
    "state": "succeeded",
    "started_at": START,
    "finished_at": START,
    "train_seconds": 60.0,
    "dataset_version": "d",
}
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def test_names_that_a_producer_makes_up_do_not_fill_the_day(tmp_path: Path) -> None:
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "retuned.duckdb"))
    now = START + timedelta(hours=1)
    jobs = Jobs(*[warehouse, Settings(), *[None] * 6], lambda: now)  # type: ignore[arg-type, call-arg]
    for _ in range(3):
        Teacher(warehouse, "support").ask("where is my parcel", "on its way")
    assert jobs.measured() == ["support"]
    for number in range(MOST_WORKLOADS + 10):
        Teacher(warehouse, f"made-up-{number:03d}").ask("where is my parcel", "on its way")
    assert len(jobs.workloads()) == MOST_WORKLOADS + 11
    assert len(jobs.measured()) == MOST_WORKLOADS
    assert "support" in jobs.measured()
    now += BUSY
    Teacher(warehouse, "support2").ask("where is my parcel", "on its way")
    warehouse.execute("UPDATE interactions SET timestamp = ? WHERE workload = 'support2'", [now])
    assert jobs.measured() == ["support2"]
    warehouse.close()


def test_ratings_are_those_since_traffic_began_whatever_one_wrong_clock_reports(warehouse: Warehouse) -> None:
    def rated(count: int, offset: int, start: datetime) -> None:
        asked = ["where is my parcel"] * count
        ids = interactions(warehouse, asked, random.Random(3), start=start, step=HOUR / 10, offset=offset)
        feedback(warehouse, ids, "helpful", True, when=START, offset=offset)

    rated(1, 5_000, datetime(1970, 1, 1))
    rated(240 * 10, 0, START)  # ten days
    jobs = Jobs(*[warehouse, Settings(), *[None] * 6], lambda: START + 10 * DAY)  # type: ignore[arg-type, call-arg]
    evidence = jobs.evidence("support")
    assert (evidence.ratings_before.total, evidence.ratings_now.total) == (7 * 240, 239)


def test_corrections_are_ratings(warehouse: Warehouse) -> None:
    asked = ["where is my parcel"] * 40
    ids = interactions(warehouse, asked, random.Random(3), start=START, step=HOUR / 60)
    feedback(warehouse, ids[:10], "helpful", True, when=START)
    feedback(warehouse, ids[10:], "correction", "It comes today.", when=START, offset=50)
    feedback(warehouse, ids[:1], "helpful", "perhaps", when=START, offset=100)
    warehouse.insert("runs", **RUN)
    rows = dict.fromkeys(("train", "validation", "holdout", "replay"), 0)
    warehouse.insert("datasets", version="d", workload="support", created_at=START, path="", card="{}", **rows)
    jobs = Jobs(*[warehouse, Settings(), *[None] * 6], lambda: START + HOUR)  # type: ignore[arg-type, call-arg]
    evidence = jobs.evidence("support")
    assert (evidence.ratings_now.helpful, evidence.ratings_now.total) == (10, 40)
    assert evidence.money is not None
    assert (evidence.money.ratings.helpful, evidence.money.ratings.total) == (10, 40)


def test_a_drift_check_that_fails_leaves_no_verdict_standing(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    interactions(warehouse, ["where is my parcel"] * 3, random.Random(3))
    registry = CollectorRegistry()
    settings = Settings(warehouse=WarehouseSettings(path=warehouse.path))
    made: list[Any] = [warehouse, settings, None, Metrics(registry), MonitorMetrics(registry), None]
    jobs = Jobs(*made, threading.Event(), print, lambda: START)
    drifted = DriftCheck("a", START, "support", True, 0.5, [], 500, 500, None, "…")

    def failing(*_: Any) -> DriftCheck:
        raise ChildFailed("out of memory")

    monkeypatch.setattr(Jobs, "ask_policy", lambda *_: None)
    monkeypatch.setattr(drift, "check", lambda *_: drifted)
    jobs.check_drift()
    assert registry.get_sample_value("retuned_drift_detected", {"workload": "support"}) == 1
    monkeypatch.setattr(drift, "check", failing)
    with pytest.raises(ChildFailed):
        jobs.check_drift()
    assert registry.get_sample_value("retuned_drift_detected", {"workload": "support"}) is None
    assert registry.get_sample_value("retuned_drift_severity_ratio", {"workload": "support"}) is None


def test_the_watch_does_not_wait_for_a_slow_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "retuned.duckdb"))
    judging, answered, watched = threading.Event(), threading.Event(), threading.Event()

    def judge(_: Jobs) -> None:
        judging.set()
        answered.wait(30)

    def look(_: Jobs) -> None:
        if judging.wait(30):
            watched.set()

    monkeypatch.setattr(Jobs, "watch", judge)
    monkeypatch.setattr(Jobs, "watch_champions", look)
    for other in ("check_drift", "archive", "request_labels", "report", "resume"):
        monkeypatch.setattr(Jobs, other, lambda _: None)
    metrics = Metrics(CollectorRegistry())
    made: list[Any] = [warehouse, Settings(), None, metrics, None, None, threading.Event(), print, lambda: START]
    jobs = Jobs(*made)
    jobs.start()
    try:
        assert watched.wait(10)
        assert not answered.is_set()
    finally:
        answered.set()
        jobs.shutdown()
        warehouse.close()
