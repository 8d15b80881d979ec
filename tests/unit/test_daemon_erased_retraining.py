"""The retraining that an erasure requires: when it is owed, what answers it, and what becomes of a run for it."""

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.daemon.promoting import model_row
from fixtures.daemon.run_queues import model
from fixtures.feedback.traffic import new_warehouse
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.metrics import Metrics
from retuned.daemon.policy.evidence import has_ended
from retuned.daemon.settings import Settings
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain import queue, versions
from retuned.retrain import run as retraining
from retuned.retrain.decision.pairs import Decision
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.release import approvals, approve, erased
from retuned.retrain.run import RunResult
from retuned.retrain.stages.promote import promote

LEARNED, CLEAN = "11111111", "22222222"
AT_ONCE = {"forget": {"weights": "base_until_retrained"}}
APPROVED, IN_STEPS = {"rollout": {"approve": "required"}}, {"rollout": {"steps": [0.25, 1.0]}}


class House:
    """The jobs of a workload whose champion learned rows that were erased an hour ago."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.settings = Settings.model_validate(
            {
                "warehouse": {"path": folder / "retuned.duckdb"},
                "models": {"directory": folder / "models", "base": model(folder / "base")},
                **sections,
            }
        )
        self.warehouse, self.later, self.stop = new_warehouse(folder), timedelta(0), threading.Event()
        collectors = CollectorRegistry()
        metrics = Metrics(collectors), MonitorMetrics(collectors), RetrainMetrics(collectors)
        made = Context(self.warehouse, self.settings, MemoryPublisher(), *metrics, self.stop, self.now)
        self.jobs, self.rollout = Jobs(made, lambda _: None), made.rollout
        now = self.now()
        self.register(LEARNED, now - timedelta(days=2))
        self.rollout.promote("support", LEARNED, "operator", "by hand", now - timedelta(days=1))
        self.warehouse.insert("erasures", id="e1", requested_at=now - timedelta(hours=1), state="done")
        self.warehouse.insert(
            "erasure_versions", erasure_id="e1", workload="support", version=LEARNED, dataset_version="d", rows=3
        )

    def now(self) -> datetime:
        return utc_now() + self.later

    def register(self, version: str, now: datetime) -> None:
        path, base = self.settings.models.directory / "support" / version, versions.need_base(self.settings.base)
        path.mkdir(parents=True)
        row = model_row(version, path, now) | {"base_model": str(base), "base_hash": versions.base_hash(base)}
        self.warehouse.insert("models", **row | {"dataset_version": f"d-{version}"})

    def run(self, **columns: Any) -> str:
        """Sets columns of the unfinished run, and returns its id."""
        (row,) = self.runs()
        for name, value in columns.items():
            self.warehouse.execute(f"UPDATE runs SET {name} = ? WHERE id = ?", [value, row["id"]])
        return str(row["id"])

    def runs(self) -> list[dict[str, Any]]:
        return self.warehouse.rows("SELECT id, reasons FROM runs WHERE finished_at IS NULL")

    def champion(self) -> str | None:
        return versions.aliases(self.warehouse, "support").get("champion")

    def owes(self) -> bool:
        return erased.due(self.warehouse, "support", self.now()) is not None


@pytest.fixture
def house(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[House]:
    made = House(tmp_path, **getattr(request, "param", {}))
    yield made
    made.stop.set()
    made.jobs.shutdown()
    made.warehouse.close()


@pytest.mark.parametrize("house", [AT_ONCE | {"policy": {"enabled": False}}], indirect=True)
def test_where_the_champion_leaves_at_once_a_retraining_is_owed_until_one_is_decided(house: House) -> None:
    for _ in range(2):
        house.jobs.run("erased")
    assert house.champion() is None
    (run,) = house.runs()
    assert "the champion before, which left service, learned rows that were erased on" in run["reasons"]
    house.warehouse.execute("UPDATE models SET removed_at = ?", [house.now()])  # nothing of the version is left
    assert erased.standing(house.warehouse, house.settings, house.now()) == {}

    house.run(state="failed", finished_at=house.now())
    house.later = timedelta(hours=3)
    house.jobs.run("erased")
    house.register(CLEAN, house.now())
    id = house.run(state="succeeded", version=CLEAN, finished_at=house.now())
    assert not house.owes()
    approve.request(house.rollout, "support", CLEAN, None, id, house.now())
    assert house.owes()
    assert "support@22222222, which did not learn them, waits" in house.jobs.runs.ask("support").reasons[1]
    for state, owes in (("superseded", True), ("refused", False), ("expired", False)):
        house.warehouse.execute("UPDATE approvals SET state = ?", [state])
        assert house.owes() is owes
    house.warehouse.execute("UPDATE runs SET state = 'refused'")  # too few rows are left for a dataset
    assert not house.owes()
    house.warehouse.execute("UPDATE runs SET state = 'cancelled'")
    assert house.owes()
    house.rollout.promote("support", CLEAN, "operator", "by hand", house.now())
    assert not house.owes()


@pytest.mark.parametrize("house", [AT_ONCE | IN_STEPS], indirect=True)
def test_a_retraining_is_owed_again_if_its_version_learned_rows_that_are_erased_later(house: House) -> None:
    house.jobs.run("erased")
    house.register(CLEAN, house.now())
    house.run(state="succeeded", version=CLEAN, finished_at=house.now(), detail='{"promoted": true}')
    house.rollout.begin("support", CLEAN, "gate", "better", house.now())
    assert not house.owes()
    house.warehouse.insert("erasures", id="e2", requested_at=house.now(), state="done")
    house.warehouse.insert(
        "erasure_versions", erasure_id="e2", workload="support", version=CLEAN, dataset_version="d", rows=1
    )
    house.later = timedelta(hours=3)
    house.jobs.run("erased")
    assert len(house.runs()) == 1


def compared_with_the_champion(house: House) -> Any:
    """A run before its last stage, whose candidate was compared with the champion."""
    house.jobs.runs.ask("support")
    id = house.run(state="running", parent_version=LEARNED, attempts=1)
    house.register(CLEAN, house.now())
    return SimpleNamespace(
        record=SimpleNamespace(row=lambda: {"state": "running"}, report=lambda *_, **__: None),
        warehouse=house.warehouse,
        workload="support",
        settings=house.settings,
        rollout=house.rollout,
        now=house.now,
        id=id,
    )


def promoted(run: Any, passed: bool = True) -> float | None:
    champion, candidate = (versions.find(run.warehouse, "support", version) for version in (LEARNED, CLEAN))
    assert candidate is not None
    return promote(run, Decision(passed, ["It is no worse."], {}), champion, candidate)


@pytest.mark.parametrize("house", [AT_ONCE], indirect=True)
def test_a_run_under_way_replaces_the_champion_that_left_meanwhile(house: House) -> None:
    run = compared_with_the_champion(house)
    house.jobs.run("erased")
    assert house.champion() is None
    assert promoted(run) == 1.0
    assert house.champion() == CLEAN
    house.run(state="succeeded", version=CLEAN, finished_at=house.now())
    assert not house.owes()


@pytest.mark.parametrize("house", [AT_ONCE], indirect=True)
@pytest.mark.parametrize("why", ["the gate refuses it", "it learned erased rows", "a person chose what serves"])
def test_a_run_under_way_that_does_not_replace_it_is_followed_by_another(house: House, why: str) -> None:
    run, by_person = compared_with_the_champion(house), why == "a person chose what serves"
    if by_person:
        house.rollout.promote("support", "base", "operator", "by hand", house.now())
    house.jobs.run("erased")
    if why == "it learned erased rows":
        house.warehouse.execute("UPDATE models SET parent_version = ? WHERE version = ?", [LEARNED, CLEAN])
    assert promoted(run, passed=why != "the gate refuses it") is None
    assert house.champion() is None
    house.run(state="succeeded", version=CLEAN, parent_version=LEARNED, finished_at=house.now())
    assert house.owes() is not by_person


@pytest.mark.parametrize("house", [AT_ONCE | APPROVED], indirect=True)
def test_a_person_reads_what_the_version_was_compared_with_before_the_champion_left(house: House) -> None:
    run = compared_with_the_champion(house)
    house.jobs.run("erased")
    assert promoted(run) is None
    (request,) = approvals.waiting(house.warehouse, "support")
    assert (request.version, request.champion) == (CLEAN, LEARNED)


@pytest.mark.parametrize("house", [APPROVED], indirect=True)
def test_a_version_that_waits_for_approval_is_not_superseded_by_another_run(house: House) -> None:
    house.jobs.runs.ask("support")
    house.register(CLEAN, house.now())
    id = house.run(state="succeeded", version=CLEAN, finished_at=house.now(), detail='{"promoted": false}')
    approve.request(house.rollout, "support", CLEAN, LEARNED, id, house.now())
    house.later = timedelta(hours=3)
    house.jobs.run("erased")
    assert house.runs() == []
    decision = house.jobs.runs.ask("support")
    assert "but support@22222222, which did not learn them, waits for approval until" in decision.reasons[1]
    house.later = timedelta(days=8)
    approve.expire(house.rollout, house.now())
    house.jobs.run("erased")
    assert len(house.runs()) == 1


@pytest.mark.parametrize("house", [IN_STEPS], indirect=True)
def test_during_the_rollout_of_a_clean_version_no_run_is_queued(house: House) -> None:
    house.register(CLEAN, house.now())
    house.rollout.begin("support", CLEAN, "gate", "no worse", house.now())
    house.jobs.run("erased")
    assert house.runs() == []
    decision = house.jobs.runs.ask("support")
    assert decision.reasons[1:] == ("but support@22222222, which did not learn them, is being rolled out",)
    house.rollout.rollback("support", "watch", "worse", house.now())
    house.jobs.run("erased")
    assert len(house.runs()) == 1


def test_a_run_whose_reason_has_ended_does_not_start(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    began = []

    def resume(_: Any, run_id: str, *__: Any) -> RunResult:
        began.append(run_id)
        house.run(state="failed", finished_at=house.now())
        return RunResult(run_id, "support", "failed")

    monkeypatch.setattr(retraining, "resume", resume)
    house.jobs.runs.ask("support")
    house.rollout.promote("support", "base", "operator", "by hand", house.now())
    house.jobs.run("resume")
    assert began == []
    (row,) = house.warehouse.rows("SELECT state, error FROM runs")
    assert row["state"] == "cancelled"
    assert "an erasure was its only reason" in row["error"]
    assert house.jobs.runs.under_way() == []
    house.jobs.runs.ask("support", "an operator")
    house.jobs.run("resume")
    assert len(began) == 1


@pytest.mark.parametrize("more", [None, "a person asks", "another reason"])
def test_a_run_that_has_another_reason_still_starts(house: House, more: str | None) -> None:
    house.jobs.runs.ask("support")
    id = house.run()
    assert not has_ended(house.warehouse, "support", id, house.now())
    if more == "a person asks":
        assert house.jobs.runs.ask("support", "an operator").retrain
        assert house.run() == id, "one run serves both"
    elif more == "another reason":
        queue.enqueue(house.warehouse, "support", ["200 new corrections"], house.now())
        assert house.run() == id, "one run serves both"
    house.rollout.promote("support", "base", "operator", "by hand", house.now())
    assert has_ended(house.warehouse, "support", id, house.now()) is (more is None)
