"""Which workloads the jobs look at, and what does not wait for what."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from teaching import START, Teacher

from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import open_warehouse
from retuned.daemon.jobs import BUSY, MOST_WORKLOADS, Jobs
from retuned.daemon.metrics import Metrics
from retuned.daemon.settings import Settings


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
