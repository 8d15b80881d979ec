"""Runs in hand: pauses, cancellations, hours, memory and attempts, with trainings that end when the test says so."""

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from brokers import until
from prometheus_client import CollectorRegistry
from teaching import Teacher

from retuned.consumers.errors import Cancelled, ChildFailed, RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.cli import check
from retuned.daemon.jobs import holds
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jobs.runs import Runs
from retuned.daemon.metrics import Metrics
from retuned.daemon.service import LocalService
from retuned.daemon.settings import Settings
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain import run
from retuned.retrain.data import dataset as datasets
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.metrics import Metrics as RetrainMetrics

NOON = datetime(2026, 4, 1, 12)


class Office:
    """A daemon's queue of runs without a daemon: runs are made in a thread, as far as the test lets them."""

    def __init__(self, warehouse: Warehouse, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.warehouse, self.folder, self.now = warehouse, folder, NOON
        self.began: list[str] = []
        self.at_train: Callable[[str], Any] = lambda _: None
        base = folder / "base"
        base.mkdir()
        (base / "config.json").write_text("{}")
        (base / "model.safetensors").write_bytes(b"weights")
        self.models = {"base": base, "directory": folder / "models"}
        self.collectors = CollectorRegistry()
        self.stop = threading.Event()
        monkeypatch.setattr(run, "train", self.train)
        made = Dataset("d", "support", NOON, folder, dict.fromkeys(("train", "validation", "holdout"), 9), 0, {})
        monkeypatch.setattr(run, "build_dataset", lambda *_: made)
        monkeypatch.setattr(datasets, "load", lambda *_: made)
        self.configure()

    def configure(self, **sections: dict[str, Any]) -> None:
        """Begin anew on the same warehouse, as after a restart."""
        self.collectors, self.stop = CollectorRegistry(), threading.Event()
        warehouse = {"path": self.warehouse.path}
        settings = Settings(models=self.models, warehouse=warehouse, **sections)  # type: ignore[arg-type]
        registry = self.collectors
        metrics = Metrics(registry), MonitorMetrics(registry), RetrainMetrics(registry)
        publisher = MemoryPublisher()
        context = Context(self.warehouse, settings, publisher, *metrics, self.stop, lambda: self.now)
        self.jobs = Jobs(context, print)
        self.runs: Runs = self.jobs.runs
        self.service = LocalService(self.jobs)

    def train(self, _: Any, __: Any, ___: Any, folder: Path, stop: threading.Event, on_progress: Any) -> dict[str, Any]:
        """As a child's parent does: it works until it is stopped, and has files."""
        workload = folder.parents[2].name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint").touch()
        self.began.append(workload)
        on_progress({"step": 1, "steps": 9, "loss": 1.0, "tokens_per_second": 1.0})
        self.at_train(workload)
        if stop.wait(20):
            raise Cancelled("train: stopped before it was done")
        raise AssertionError("nothing stopped it")

    def work(self) -> threading.Thread:
        """Make what is in line, in the thread that trains."""
        thread = threading.Thread(target=self.jobs.run, args=("resume",))
        thread.start()
        return thread

    def states(self) -> dict[str, str]:
        found = self.warehouse.rows("SELECT workload, state FROM runs ORDER BY started_at, id")
        return {row["workload"]: row["state"] for row in found}

    def waits(self) -> dict[str, str]:
        return {one["workload"]: one["waits_for"] for one in self.runs.queue()}

    def files(self, workload: str) -> list[Path]:
        return list((self.folder / "models" / workload / "runs").glob("*"))

    def waiting(self, workload: str, reason: str) -> float | None:
        self.runs.wake()
        return self.collectors.get_sample_value("retuned_runs_waiting", {"workload": workload, "reason": reason})


@pytest.fixture
def office(warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    for workload in ("sales", "support"):
        Teacher(warehouse, workload).correct("where is my parcel", "on its way", "here")
    made = Office(warehouse, tmp_path, monkeypatch)
    yield made
    made.stop.set()


def test_a_pause_stops_the_run_under_way_and_survives_a_restart(office: Office) -> None:
    office.runs.ask("support", asked_by="an operator")
    thread = office.work()
    until(lambda: office.began or not thread.is_alive())
    office.service.command("pause", "support", {"reason": "the machine is needed"})
    thread.join(20)
    assert office.states() == {"support": "interrupted"}
    assert office.files("support")
    office.configure()
    office.jobs.run("resume")
    assert office.began == ["support"]
    assert office.waits() == {"support": "paused"}
    (waits,) = office.runs.queue()
    assert "paused by an operator since 2026-04-01 12:00:00: the machine is needed" in waits["reason"]
    assert office.waiting("support", "paused") == 1
    assert office.service.status()["pauses"][0]["workload"] == "support"

    office.at_train = lambda _: office.stop.set()
    office.service.command("resume", "support", {})
    assert office.waits() == {"support": "turn"}
    office.jobs.run("resume")
    assert office.began == ["support", "support"]
    (row,) = office.warehouse.rows("SELECT * FROM runs")
    assert (row["state"], row["attempts"]) == ("interrupted", 0)
    assert office.waiting("support", "paused") is None


def test_a_pause_of_one_workload_holds_up_no_other_and_one_of_all_holds_up_all(office: Office) -> None:
    office.service.command("pause", "support", {})
    answer = office.service.command("retrain", "support", {})
    assert "in line" in answer["done"]
    assert "paused" in answer["done"]
    office.at_train = lambda _: office.stop.set()
    office.service.command("retrain", "sales", {})
    assert office.began == ["sales"]
    assert office.states() == {"support": "waiting", "sales": "interrupted"}
    office.service.command("pause", None, {"reason": "an audit"})
    assert office.waits() == {"sales": "paused", "support": "paused"}
    office.service.command("resume", None, {})
    assert office.waits() == {"sales": "turn", "support": "paused"}


def test_pauses_that_make_no_sense(office: Office) -> None:
    with pytest.raises(RetunedError, match="workload support: retraining is not paused"):
        office.service.command("resume", "support", {})
    office.service.command("pause", None, {})
    with pytest.raises(RetunedError, match="all workloads: retraining is paused already"):
        office.service.command("pause", None, {})
    with pytest.raises(
        RetunedError, match="workload support: retraining is not paused; in force: the pause of all workloads"
    ):
        office.service.command("resume", "support", {})
    with pytest.raises(RetunedError, match="workload other: unknown"):
        office.service.command("pause", "other", {})
    with pytest.raises(RetunedError, match="name the workload"):
        office.service.command("cancel", None, {})


def test_the_policy_starts_nothing_while_it_is_paused_and_gives_the_reason(office: Office) -> None:
    office.configure(policy={"new_corrections": 1, "minimum_corrections": 1})
    office.service.command("pause", None, {"reason": "an audit"})
    decision = office.runs.ask("support")
    assert not decision.retrain
    assert any("paused by an operator" in reason and "an audit" in reason for reason in decision.reasons)
    (stored,) = office.warehouse.rows("SELECT outcome, reasons FROM decisions")
    assert stored["outcome"] is False
    assert "an audit" in stored["reasons"]
    assert office.runs.queue() == []
    office.service.command("resume", None, {})
    assert office.runs.ask("support").retrain


def test_a_run_that_waits_outlives_a_restart(office: Office) -> None:
    office.runs.ask("support", asked_by="an operator")
    office.runs.ask("support", asked_by="an operator")
    office.configure()
    assert office.waits() == {"support": "turn"}
    office.at_train = lambda _: office.stop.set()
    office.jobs.run("resume")
    assert office.began == ["support"]


def test_a_run_under_way_is_cancelled_and_nothing_else(office: Office) -> None:
    office.runs.ask("support", asked_by="an operator")
    office.now += timedelta(seconds=1)
    office.runs.ask("sales", asked_by="an operator")
    office.at_train = lambda workload: office.stop.set() if workload == "sales" else None
    thread = office.work()
    until(lambda: office.began or not thread.is_alive())
    answer = office.service.command("cancel", "support", {"reason": "the wrong data"})
    assert answer["done"].startswith("cancelled: run 2026")
    thread.join(20)
    assert office.states() == {"support": "cancelled", "sales": "interrupted"}
    assert office.files("support") == []
    assert office.files("sales")
    (row,) = office.warehouse.rows("SELECT error, finished_at FROM runs WHERE workload = 'support'")
    assert row == {"error": "cancelled by an operator: the wrong data", "finished_at": office.now}
    labels = {"workload": "support", "state": "cancelled"}
    assert office.collectors.get_sample_value("retuned_training_runs_total", labels) == 1
    assert office.warehouse.rows("SELECT * FROM interactions")


@pytest.mark.parametrize("state", ["waiting", "interrupted"])
def test_a_run_that_is_not_under_way_is_cancelled(office: Office, state: str) -> None:
    office.runs.ask("support", asked_by="an operator")
    if state == "interrupted":
        office.at_train = lambda _: office.stop.set()
        office.jobs.run("resume")
        assert office.files("support")
    assert office.states() == {"support": state}
    office.configure()
    office.service.command("cancel", "support", {})
    assert office.states() == {"support": "cancelled"}
    assert office.files("support") == []
    assert office.runs.queue() == []
    with pytest.raises(RetunedError, match="no run is under way and none waits"):
        office.service.command("cancel", "support", {})


def test_a_cancellation_stands_however_the_run_ends(office: Office) -> None:
    """Also when the child fails before it is stopped, and when the daemon is killed before it is."""

    def fail(_: str) -> None:
        office.service.command("cancel", "support", {})
        raise ChildFailed("train: it failed")

    def kill(_: str) -> None:
        office.service.command("cancel", "support", {})
        raise KeyboardInterrupt

    office.at_train = fail
    office.runs.ask("support", asked_by="an operator")
    office.jobs.run("resume")
    assert office.states() == {"support": "cancelled"}
    office.at_train = kill
    office.now += timedelta(days=1)
    office.runs.ask("support", asked_by="an operator")
    with pytest.raises(KeyboardInterrupt):
        office.jobs.run("resume")
    assert office.files("support")
    office.configure()
    office.jobs.run("resume")
    assert office.states() == {"support": "cancelled"}
    assert office.files("support") == []
    assert len(office.began) == 2


def test_a_run_waits_for_the_hours_of_training_and_stops_at_their_end(office: Office) -> None:
    office.configure(schedule={"training_hours": ["22:00-06:00"]})
    answer = office.service.command("retrain", "support", {})
    assert "schedule.training_hours: 2026-04-01 22:00 UTC" in answer["done"]
    assert office.began == []
    assert office.waits() == {"support": "hours"}
    office.now = NOON.replace(hour=23)

    def morning(_: str) -> None:
        office.now = NOON + timedelta(hours=18)

    office.at_train = morning
    office.jobs.run("resume")
    assert office.states() == {"support": "interrupted"}
    assert office.waits() == {"support": "hours"}
    office.jobs.run("resume")
    assert office.began == ["support"]
    office.now += timedelta(days=1) - timedelta(hours=5)
    office.jobs.run("resume")
    assert office.began == ["support", "support"]
    (row,) = office.warehouse.rows("SELECT attempts FROM runs")
    assert row["attempts"] == 0


def test_a_run_that_is_asked_for_now_does_not_wait_for_the_hours(office: Office) -> None:
    office.configure(schedule={"training_hours": ["22:00-06:00"]})
    office.service.command("retrain", "support", {})
    office.at_train = lambda _: office.stop.set()
    office.service.command("retrain", "support", {"now": True})
    assert office.began == ["support"]
    office.configure(schedule={"training_hours": ["22:00-06:00"]})
    office.jobs.run("resume")
    assert office.began == ["support", "support"]


def test_a_run_waits_until_there_is_memory_for_it(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.configure(train={"memory_bytes": 3 * 2**30})
    monkeypatch.setattr(holds, "available_bytes", lambda: 2**30)
    answer = office.service.command("retrain", "support", {})
    assert "takes at least 3.0 GiB of memory and 1.0 GiB are free" in answer["done"]
    assert office.began == []
    assert office.waiting("support", "memory") == 1
    monkeypatch.setattr(check, "check_broker", lambda _: "up")
    problem = {name: problem for name, problem, _ in check.check(office.jobs.context.settings)}["memory"]
    assert problem is not None
    assert "1.0 GiB are free" in problem
    monkeypatch.setattr(holds, "available_bytes", lambda: 4 * 2**30)
    office.at_train = lambda _: office.stop.set()
    office.jobs.run("resume")
    assert office.began == ["support"]
    monkeypatch.setattr(holds, "available_bytes", lambda: None)
    assert office.waits() == {"support": "turn"}


def test_a_run_in_which_the_daemon_is_killed_again_and_again_is_given_up(office: Office) -> None:
    def killed(_: str) -> None:
        raise KeyboardInterrupt

    office.configure(train={"attempts": 2})
    office.runs.ask("support", asked_by="an operator")
    office.at_train = lambda _: office.stop.set()
    for _ in range(4):  # a stop is no failed attempt
        office.configure(train={"attempts": 2})
        office.jobs.run("resume")
    assert office.states() == {"support": "interrupted"}
    office.at_train = killed
    for _ in range(2):
        office.configure(train={"attempts": 2})
        with pytest.raises(KeyboardInterrupt):
            office.jobs.run("resume")
        assert office.states() == {"support": "running"}
    office.configure(train={"attempts": 2})
    office.jobs.run("resume")
    assert len(office.began) == 6
    (row,) = office.warehouse.rows("SELECT state, error, finished_at FROM runs")
    assert (row["state"], row["finished_at"]) == ("failed", NOON)
    assert "given up after 2 attempts in which the daemon was killed (train.attempts)" in row["error"]
    assert "train.batch_size" in row["error"]
    office.jobs.run("resume")
    assert len(office.began) == 6


def test_start_is_of_the_run_not_of_its_request(office: Office) -> None:
    office.runs.ask("support", asked_by="an operator")
    office.now += timedelta(hours=3)
    office.at_train = lambda _: office.stop.set()
    office.jobs.run("resume")
    office.now += timedelta(hours=3)
    office.configure()
    office.jobs.run("resume")
    (row,) = office.warehouse.rows("SELECT started_at FROM runs")
    assert row["started_at"] == NOON + timedelta(hours=3)
