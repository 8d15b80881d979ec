"""Several runs under way at a time: their order and limits, what ends one of them, and what they take turns at."""

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.daemon import operations as asking
from fixtures.daemon.operations import command
from fixtures.daemon.run_queues import RunQueue, model
from fixtures.feedback.teaching import Teacher
from fixtures.kafka.brokers import until
from retuned.consumers.errors import Cancelled, ChildFailed, RetunedError, StandsBy, WarehouseError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.cli.progress import Progress
from retuned.daemon.jobs.under_way import UnderWay
from retuned.retrain import queue as lines
from retuned.retrain import record
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.runner_settings import RunnerSettings
from retuned.retrain.stages import candidate as candidate_stage
from retuned.retrain.stages import dataset as dataset_stage

WORKLOADS = ("billing", "returns", "sales", "support")
RAY = {"kind": "ray", "url": "http://ray-head:8265"}


@pytest.fixture
def queue(warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunQueue]:
    for workload in WORKLOADS:
        Teacher(warehouse, workload).correct("where is my parcel", "on its way", "here")
    made = RunQueue(warehouse, tmp_path, monkeypatch)
    yield made
    made.stop.set()


@pytest.fixture
def work(queue: RunQueue) -> Iterator[Callable[[], threading.Thread]]:
    """Begins to make what is in line; it is stopped when the test is over."""
    threads = []

    def begin() -> threading.Thread:
        threads.append(queue.work())
        return threads[-1]

    yield begin
    queue.stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def ask(queue: RunQueue, *workloads: str) -> None:
    """Put workloads in line, in this order."""
    for workload in workloads:
        queue.now += timedelta(seconds=1)
        queue.runs.ask(workload, asked_by="an operator")


def under_way(queue: RunQueue) -> list[str]:
    return [one.workload for one in queue.runs.under_way()]


def ends(queue: RunQueue, *workloads: str) -> None:
    """Trainings of these workloads fail once they have begun."""

    def fail(workload: str) -> None:
        if workload in workloads:
            raise ChildFailed("train: killed by signal 9")

    queue.at_train = fail


def test_as_many_train_at_a_time_as_the_limit_says_in_the_order_in_which_they_came(
    queue: RunQueue, work: Callable[[], threading.Thread]
) -> None:
    queue.configure(runner=RAY | {"at_a_time": 2})
    ask(queue, "support", "returns", "sales", "billing")
    work()
    until(lambda: sum("step" in one.progress for one in queue.runs.under_way()) == 2)
    status = asking.ask(queue.service, "status")
    shown = [(one["workload"], one["runner"], one["stage"], one["step"]) for one in status["under_way"]]
    assert shown == [("support", "ray", "train", 1), ("returns", "ray", "train", 1)]
    assert status["training"] == status["under_way"][0]
    assert [(one["workload"], one["waits_for"], one["reason"]) for one in status["queue"]] == [
        (
            workload,
            "turn",
            "it begins when its turn comes: on Ray at http://ray-head:8265 at most 2 at a time (runner.at_a_time), and "
            "2 under way",
        )
        for workload in ("sales", "billing")
    ]
    command(queue.service, "cancel", "support", {"reason": "the wrong data"})
    until(lambda: len(queue.began) == 3)
    assert under_way(queue) == ["returns", "sales"]
    assert queue.waits() == {"billing": "turn"}
    assert queue.states() == {"support": "cancelled", "returns": "running", "sales": "running", "billing": "waiting"}
    assert queue.files("support") == []
    assert queue.files("returns")


def test_what_may_not_start_holds_up_none_behind_it(queue: RunQueue, work: Callable[[], threading.Thread]) -> None:
    queue.configure(runner=RAY | {"at_a_time": 2})
    command(queue.service, "pause", "support", {})
    ask(queue, "returns", "support", "sales")
    work()
    until(lambda: len(queue.began) == 2)
    assert under_way(queue) == ["returns", "sales"]
    assert queue.waits() == {"support": "paused"}


def test_on_one_machine_one_trains_and_each_cluster_has_its_own_limit(
    queue: RunQueue, work: Callable[[], threading.Thread]
) -> None:
    other = {"runner": {"kind": "ray", "url": "http://other:8265"}}
    queue.configure(
        runner=RAY | {"at_a_time": 1},
        workloads={"sales": other, "support": {"runner": {"kind": "local"}}, "returns": {"runner": {"kind": "local"}}},
    )
    ask(queue, "support", "returns", "billing", "sales")
    work()
    until(lambda: len(queue.began) == 3)
    assert under_way(queue) == ["support", "billing", "sales"]
    (waits,) = queue.runs.queue()
    assert waits["reason"] == "it begins when its turn comes: on this machine at most 1 at a time, and 1 under way"


def test_a_workload_never_has_two_runs_under_way(queue: RunQueue, work: Callable[[], threading.Thread]) -> None:
    queue.configure(runner=RAY)
    ask(queue, "support")
    queue.now += timedelta(seconds=1)
    lines.enqueue(queue.warehouse, "support", ["a larger one"], queue.now, base=model(queue.folder / "other"))
    ask(queue, "sales")
    work()
    until(lambda: len(queue.began) == 2)
    first, _ = queue.runs.under_way()
    assert under_way(queue) == ["support", "sales"]
    (waits,) = queue.runs.queue()
    assert (waits["kind"], waits["waits_for"]) == ("rebase", "turn")
    assert waits["reason"] == f"it begins when run {first.run_id} of this workload has ended"


def test_a_pause_stops_the_run_of_its_workload_alone(queue: RunQueue, work: Callable[[], threading.Thread]) -> None:
    queue.configure(runner=RAY)
    ask(queue, "support", "sales")
    thread = work()
    until(lambda: len(queue.began) == 2)
    support, sales = queue.runs.under_way()
    command(queue.service, "pause", "support", {})
    assert (support.is_set(), sales.is_set()) == (True, False)
    until(lambda: under_way(queue) == ["sales"])
    assert queue.states() == {"support": "interrupted", "sales": "running"}
    command(queue.service, "pause", None, {})
    thread.join(20)
    assert queue.states() == {"support": "interrupted", "sales": "interrupted"}


def test_a_run_that_fails_ends_no_other_and_the_next_one_begins(
    queue: RunQueue, work: Callable[[], threading.Thread]
) -> None:
    queue.configure(runner=RAY | {"at_a_time": 2})
    ends(queue, "support")
    ask(queue, "support", "sales", "returns")
    work()
    until(lambda: len(queue.began) == 3)
    assert under_way(queue) == ["sales", "returns"]
    assert queue.states() == {"support": "failed", "sales": "running", "returns": "running"}


def test_all_that_were_under_way_when_the_daemon_was_killed_are_taken_up(
    queue: RunQueue, work: Callable[[], threading.Thread]
) -> None:
    queue.configure(runner=RAY)
    ask(queue, "support", "sales", "returns")
    queue.warehouse.execute("UPDATE runs SET state = 'running', attempts = 1 WHERE workload <> 'support'")
    work()
    until(lambda: len(queue.began) == 3)
    assert under_way(queue) == ["sales", "returns", "support"]  # what was begun comes first


def test_an_error_that_ends_the_process_stops_the_others_at_their_checkpoints(queue: RunQueue) -> None:
    queue.configure(runner=RAY)
    begun = threading.Event()

    def at_train(workload: str) -> None:
        if workload == "sales":
            begun.set()
        else:
            begun.wait(20)
            raise WarehouseError("the disk is full")

    queue.at_train = at_train
    ask(queue, "support", "sales")
    with pytest.raises(WarehouseError):
        queue.jobs.run("resume")
    assert queue.states() == {"support": "running", "sales": "interrupted"}
    assert under_way(queue) == []


def test_with_a_schedule_a_run_begins_at_once_and_the_next_one_when_it_ends(queue: RunQueue) -> None:
    queue.configure(runner=RAY | {"at_a_time": 1})
    started: list[UnderWay] = []
    queue.runs.start = started.append
    answer = command(queue.service, "retrain", "support", {})
    assert answer["done"] == "a retraining is under way"
    queue.now += timedelta(seconds=1)
    answer = command(queue.service, "retrain", "sales", {})
    assert answer["done"] == "a retraining is queued"
    assert [one.workload for one in started] == ["support"]
    ends(queue, "support")
    assert queue.runs.make(started[0]).state == "failed"
    assert [one.workload for one in started] == ["support", "sales"]


def test_a_run_that_is_stopped_and_let_go_on_is_started_again(queue: RunQueue) -> None:
    queue.configure(runner=RAY)
    started: list[UnderWay] = []
    queue.runs.start = started.append
    ask(queue, "support")

    def pause(_: str) -> None:
        command(queue.service, "pause", "support", {})
        command(queue.service, "resume", "support", {})

    queue.at_train = pause
    assert queue.runs.make(started[0]).state == "interrupted"
    assert [one.run_id for one in started] == [started[0].run_id] * 2


def test_what_is_left_of_cancelled_runs_is_removed_but_for_those_under_way(queue: RunQueue) -> None:
    seen: list[list[Path]] = []

    def cancel(workload: str) -> None:
        command(queue.service, "cancel", workload, {})
        lines.sweep(queue.jobs.context.rollout, queue.runs.is_under_way)
        seen.append(queue.files(workload))

    queue.at_train = cancel
    ask(queue, "support")
    queue.jobs.run("resume")
    (files,) = seen
    assert len(files) == 1
    assert queue.files("support") == []


def test_datasets_are_made_for_one_run_at_a_time(
    queue: RunQueue, work: Callable[[], threading.Thread], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.configure(runner=RAY)
    building: list[str] = []
    made = threading.Event()

    def build(_: Any, __: Any, workload: str, ___: Any, folder: Path, stop: threading.Event, *____: Any) -> Dataset:
        building.append(workload)
        while not made.wait(0.05):
            if stop.is_set():
                raise Cancelled("dataset: stopped before it was done")
        return Dataset("d", workload, queue.now, folder, dict.fromkeys(("train", "holdout"), 9), 0, {})

    monkeypatch.setattr(dataset_stage, "build_dataset", build)
    ask(queue, "support", "sales", "returns")
    work()

    def waiting() -> list[str]:
        return [one.workload for one in queue.runs.under_way() if one.progress["stage"].startswith("waits for")]

    until(lambda: len(waiting()) == 2)
    assert len(building) == 1
    cancelled = waiting()[0]
    command(queue.service, "cancel", cancelled, {})
    until(lambda: cancelled not in under_way(queue))
    assert len(building) == 1
    made.set()
    until(lambda: len(queue.began) == 2)
    assert sorted(queue.began) == sorted(set(WORKLOADS) - {"billing", cancelled})
    assert queue.states()[cancelled] == "cancelled"


def test_waiting_for_a_cluster_and_corrections_of_the_clock_cost_nothing(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = [0.0]

    def train(*given: Any) -> Any:
        for status, seconds in (("PENDING", 600), ("RUNNING", 10), ("AWAY", 5), ("PENDING", 60), ("RUNNING", 20)):
            given[5]({"ray_status": status})
            passed.append(passed[-1] + seconds)
            queue.now -= timedelta(hours=1)
        given[5]({"ray_status": "PENDING"})
        passed.append(passed[-1] + 30)
        raise ChildFailed("train: killed by signal 9")

    monkeypatch.setattr(record, "monotonic", lambda: passed[-1])
    monkeypatch.setattr(candidate_stage, "train", train)
    ask(queue, "support")
    queue.jobs.run("resume")
    assert queue.warehouse.row("SELECT state, train_seconds FROM runs") == {"state": "failed", "train_seconds": 35.0}


def test_progress_of_runs_under_way_at_a_time_is_shown_of_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    shown = Progress()
    for step in (1, 2):
        for workload in ("sales", "support"):
            shown.show({"workload": workload, "stage": "train", "step": step})
    assert capsys.readouterr().err.splitlines() == ["sales: train, step 1", "support: train, step 1"]


def test_a_run_that_another_daemon_has_begun_is_not_said_to_wait(queue: RunQueue) -> None:
    def stand_by() -> None:
        raise StandsBy("another daemon leads")

    ask(queue, "support", "sales")
    queue.warehouse.execute("UPDATE runs SET state = 'running' WHERE workload = 'support'")
    waits = {one["workload"]: one["reason"] for one in queue.runs.queue()}
    assert waits["support"] == "it resumes from its checkpoint when its turn comes"
    queue.jobs.context.lead = stand_by
    waits = {one["workload"]: one["reason"] for one in queue.runs.queue()}
    assert waits == {"support": "the leader executes it", "sales": "it begins when its turn comes"}


def test_a_stage_shows_nothing_of_the_one_before() -> None:
    now = datetime(2026, 11, 1)
    run = UnderWay({"id": "r", "workload": "support", "kind": "train"}, RunnerSettings(), now, lambda: False)
    run.report({"stage": "evaluate", "split": "general", "evaluated": 8, "rows": 8}, now)
    run.report({"stage": "train", "fold": 1, "rows": {"train": 48, "holdout": 16}}, now)
    run.report({"stage": "train", "fold": 1, "step": 3, "steps": 40, "loss": 0.5}, now)
    assert run.progress["rows"] == {"train": 48, "holdout": 16}
    run.report({"stage": "evaluate", "fold": 1}, now)
    assert run.progress == {"stage": "evaluate", "fold": 1}


def test_a_command_without_a_daemon_executes_the_runs_of_its_workload_alone(queue: RunQueue) -> None:
    ask(queue, "returns", "sales")
    ends(queue, *WORKLOADS)
    with pytest.raises(RetunedError, match="workload support: the retraining failed"):
        command(queue.service, "retrain", "support", {})
    assert queue.began == ["support"]
    assert queue.states() == {"returns": "waiting", "sales": "waiting", "support": "failed"}


def test_a_daemon_executes_all_that_waits(queue: RunQueue) -> None:
    ask(queue, "returns", "sales")
    ends(queue, *WORKLOADS)
    queue.work().join(20)
    assert queue.began == ["returns", "sales"]
