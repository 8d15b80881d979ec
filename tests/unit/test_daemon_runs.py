"""Runs in hand: pauses, cancellations, hours, memory and attempts, with trainings that end when the test says so."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.daemon.operations import ask, command
from fixtures.daemon.pages import browser
from fixtures.daemon.run_queues import NOON, RunQueue, model
from fixtures.feedback.teaching import Teacher
from fixtures.feedback.traffic import registered
from fixtures.kafka.brokers import until
from retuned.consumers.errors import ChildFailed, RetunedError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.cli import check
from retuned.daemon.cli.progress import Progress
from retuned.daemon.jobs import holds
from retuned.retrain import run, versions
from retuned.retrain.data.dataset import Dataset, DatasetRefused
from retuned.retrain.release import registry
from retuned.retrain.release.routes import under_way
from retuned.retrain.stages import dataset as dataset_stage


@pytest.fixture
def queue(warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunQueue]:
    for workload in ("sales", "support"):
        Teacher(warehouse, workload).correct("where is my parcel", "on its way", "here")
    made = RunQueue(warehouse, tmp_path, monkeypatch)
    yield made
    made.stop.set()


def test_a_run_is_under_way_from_its_start_until_it_ends_however_that_is(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def active() -> float | None:
        labels = {"workload": "sales"}
        return queue.collectors.get_sample_value("retuned_training_active_timestamp_seconds", labels)

    seen = []

    def broken(*_: Any) -> Any:
        seen.append(active())
        raise RetunedError("no base model")

    monkeypatch.setattr(run, "resume", broken)
    queue.runs.ask("sales", asked_by="an operator")
    with pytest.raises(RetunedError, match="no base model"):
        queue.jobs.run("resume")
    assert seen[0] is not None  # a run that hangs before it has reported anything is stuck, too
    assert active() is None


def test_a_pause_stops_the_run_under_way_and_survives_a_restart(queue: RunQueue) -> None:
    queue.runs.ask("support", asked_by="an operator")
    thread = queue.work()
    until(lambda: queue.began or not thread.is_alive())
    command(queue.service, "pause", "support", {"reason": "the machine is needed"})
    thread.join(20)
    assert queue.states() == {"support": "interrupted"}
    assert queue.files("support")
    queue.configure()
    queue.jobs.run("resume")
    assert queue.began == ["support"]
    assert queue.waits() == {"support": "paused"}
    (waits,) = queue.runs.queue()
    assert "paused by an operator since 2026-04-01 12:00 UTC: the machine is needed" in waits["reason"]
    assert queue.waiting("support", "paused") == 1
    assert ask(queue.service, "status")["pauses"][0]["workload"] == "support"

    queue.at_train = lambda _: queue.stop.set()
    command(queue.service, "resume", "support", {})
    assert queue.waits() == {"support": "turn"}
    queue.jobs.run("resume")
    assert queue.began == ["support", "support"]
    (row,) = queue.warehouse.rows("SELECT * FROM runs")
    assert (row["state"], row["attempts"]) == ("interrupted", 0)
    assert queue.waiting("support", "paused") is None


def test_a_pause_of_one_workload_holds_up_no_other_and_one_of_all_holds_up_all(queue: RunQueue) -> None:
    command(queue.service, "pause", "support", {})
    answer = command(queue.service, "retrain", "support", {})
    assert "queued" in answer["done"]
    assert "paused" in answer["done"]
    queue.at_train = lambda _: queue.stop.set()
    command(queue.service, "retrain", "sales", {})
    assert queue.began == ["sales"]
    assert queue.states() == {"support": "waiting", "sales": "interrupted"}
    command(queue.service, "pause", None, {"reason": "an audit"})
    assert queue.waits() == {"sales": "paused", "support": "paused"}
    assert queue.pauses() == 2
    command(queue.service, "resume", None, {})
    assert queue.waits() == {"sales": "turn", "support": "paused"}
    assert queue.pauses() == 1


def test_pauses_that_make_no_sense(queue: RunQueue) -> None:
    with pytest.raises(RetunedError, match="workload support: retraining is not paused"):
        command(queue.service, "resume", "support", {})
    command(queue.service, "pause", None, {})
    with pytest.raises(RetunedError, match="all workloads: retraining is paused already"):
        command(queue.service, "pause", None, {})
    with pytest.raises(
        RetunedError, match="workload support: retraining is not paused; in force: the pause of all workloads"
    ):
        command(queue.service, "resume", "support", {})
    with pytest.raises(RetunedError, match="workload other: unknown"):
        command(queue.service, "pause", "other", {})
    with pytest.raises(RetunedError, match="workload: expected a text"):
        command(queue.service, "cancel", None, {})


def test_a_workload_that_the_configuration_names_is_paused_before_its_first_event(queue: RunQueue) -> None:
    queue.configure(workloads={"new": {"policy": {"enabled": False}}, "glob*": {"policy": {"enabled": False}}})
    command(queue.service, "pause", "new", {"reason": "its labels come first"})
    assert [pause["workload"] for pause in ask(queue.service, "status")["pauses"]] == ["new"]
    command(queue.service, "resume", "new", {})
    with pytest.raises(RetunedError, match=r"workload glob\*: unknown; known are .*new"):
        command(queue.service, "pause", "glob*", {})


def test_the_log_has_each_stage_of_a_run_and_a_line_a_minute_of_a_long_one(
    queue: RunQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="retuned.daemon")

    def train(_: str) -> None:
        (run,) = queue.runs.under_way()
        for step in range(2, 42):
            queue.now += timedelta(seconds=5)
            line = {"stage": "train", "workload": "support", "run_id": run.run_id, "step": step, "steps": 90}
            queue.runs.on_progress(line)
        queue.stop.set()

    queue.at_train = train
    queue.runs.ask("support", asked_by="an operator")
    queue.jobs.run("resume")
    lines = [record.getMessage() for record in caplog.records if "of support: train" in record.getMessage()]
    assert len(lines) == 4  # when it began, and of 200 s each full minute
    assert "train, step 13, steps 90" in lines[1]


def test_the_policy_starts_nothing_while_it_is_paused_and_gives_the_reason(queue: RunQueue) -> None:
    queue.configure(policy={"new_corrections": 1, "minimum_corrections": 1})
    command(queue.service, "pause", None, {"reason": "an audit"})
    decision = queue.runs.ask("support")
    assert not decision.retrain
    assert any("paused by an operator" in reason and "an audit" in reason for reason in decision.reasons)
    (stored,) = queue.warehouse.rows("SELECT outcome, reasons FROM decisions")
    assert stored["outcome"] is False
    assert "an audit" in stored["reasons"]
    assert queue.runs.queue() == []
    command(queue.service, "resume", None, {})
    assert queue.runs.ask("support").retrain


def test_a_reason_without_anything_new_to_learn_asks_experts_and_trains_nothing(queue: RunQueue) -> None:
    teacher = Teacher(queue.warehouse, "support")
    for question in ("can I pay by cheque", "who repairs a broken lamp"):
        teacher.ask(question, "I'm not sure, sorry.")
    asked = "SELECT count(*) AS n FROM label_requests WHERE workload = 'support'"
    hourly = {"retrain_cron": "0 * * * *"}
    queue.configure(labels={"per_day": 0}, schedule=hourly)
    assert queue.runs.ask("support").reasons == ("no reason to retrain",)
    queue.now += timedelta(hours=1)
    assert not any("experts" in reason for reason in queue.runs.ask("support").reasons)
    assert queue.warehouse.row(asked) == {"n": 0}
    queue.configure(labels={"per_day": 1}, schedule=hourly)
    assert queue.runs.ask("support").reasons == ("no reason to retrain",)
    assert queue.warehouse.row(asked) == {"n": 0}
    queue.now += timedelta(hours=1)
    decision = queue.runs.ask("support")
    assert not decision.retrain
    assert decision.reasons[-1] == "experts are asked for labels (retuned labels)"
    assert queue.warehouse.row(asked) == {"n": 1}
    queue.now += timedelta(hours=1)
    queue.runs.ask("support")
    assert queue.warehouse.row(asked) == {"n": 1}
    assert queue.states() == {}


def test_a_scheduled_time_that_has_to_wait_is_kept_even_across_a_restart(queue: RunQueue) -> None:
    sections = {
        "schedule": {"retrain_cron": "0 3 * * *"},  # the clock starts at noon
        "policy": {"minimum_corrections": 1, "cooldown_seconds": 3_600},
    }
    queue.configure(**sections)
    assert queue.runs.ask("support").reasons == ("no reason to retrain",)
    command(queue.service, "pause", None, {"reason": "an audit"})
    queue.now += timedelta(hours=15, minutes=1)
    waits = queue.runs.ask("support")
    assert not waits.retrain
    assert waits.reasons[0] == "the scheduled time has come"
    queue.now += timedelta(hours=9)
    queue.configure(**sections)
    assert queue.runs.ask("support").reasons == waits.reasons
    assert len(queue.warehouse.rows("SELECT * FROM decisions WHERE workload = 'support'")) == 2
    command(queue.service, "resume", None, {})
    queue.now += timedelta(hours=1)
    assert queue.runs.ask("support").retrain
    assert queue.states() == {"support": "waiting"}
    assert not queue.runs.evidence("support").scheduled


def test_a_scheduled_time_with_too_little_to_learn_is_settled(queue: RunQueue) -> None:
    queue.configure(schedule={"retrain_cron": "0 3 * * *"}, policy={"minimum_corrections": 2})
    assert not queue.runs.evidence("support").scheduled, "no time before the first decision counts"
    queue.runs.ask("support")
    queue.now += timedelta(hours=15, minutes=1)
    assert queue.runs.ask("support").reasons[0] == "the scheduled time has come"
    assert queue.runs.ask("support").reasons == ("no reason to retrain",)
    queue.now += timedelta(days=1)
    assert queue.runs.ask("support").reasons[0] == "the scheduled time has come"


@pytest.mark.full
def test_times_of_a_schedule_count_from_when_it_is_first_seen(queue: RunQueue) -> None:
    """A workload with months of decisions is not due at once."""
    sundays = {"schedule": {"retrain_cron": "0 3 * * 0"}}

    def due_within(days: float, **sections: Any) -> bool:
        queue.now += timedelta(days=days)
        queue.configure(policy={"minimum_corrections": 2}, **sections)
        due = queue.runs.evidence("support").scheduled
        queue.runs.ask("support")
        return due

    def ended(id: str) -> None:
        row = {"id": id, "workload": "support", "reasons": "[]", "state": "refused", "started_at": queue.now}
        queue.warehouse.insert("runs", **row, finished_at=queue.now)

    assert not due_within(0)  # a Wednesday
    ended("before")
    assert not due_within(30)  # a Friday, a month later
    assert not due_within(0, **sundays)
    assert not due_within(1, **sundays)
    assert due_within(1, **sundays)
    assert not due_within(1, **sundays)  # Monday: it is settled
    assert not due_within(5, **sundays)
    assert not due_within(2, schedule={"retrain_cron": "0 3 * * 5"})  # Sunday has passed unseen
    assert not due_within(1, **sundays)
    assert not due_within(4, **sundays)
    assert due_within(1, **sundays)


def test_a_run_that_waits_outlives_a_restart(queue: RunQueue) -> None:
    queue.runs.ask("support", asked_by="an operator")
    queue.runs.ask("support", asked_by="an operator")
    queue.configure()
    assert queue.waits() == {"support": "turn"}
    queue.at_train = lambda _: queue.stop.set()
    queue.jobs.run("resume")
    assert queue.began == ["support"]


def test_an_operator_cancels_on_the_page(queue: RunQueue) -> None:
    queue.runs.ask("support", asked_by="an operator")
    site = browser(queue.service)
    assert "A retraining waits" in site.get("/workloads/support").text
    assert (
        site.post("/workloads/support/cancel", data={"reason": "wrong data"}).headers["location"]
        == "/workloads/support"
    )
    (row,) = queue.warehouse.rows("SELECT state, error FROM runs")
    assert row["state"] == "cancelled"
    assert "wrong data" in row["error"]
    assert "A retraining waits" not in site.get("/workloads/support").text
    again = site.post("/workloads/support/cancel", data={"reason": "once more"})
    assert again.status_code == 409


def test_the_page_cancels_the_run_that_it_names(queue: RunQueue) -> None:
    queue.runs.ask("support", asked_by="an operator")
    queue.at_train = lambda _: queue.stop.set()
    queue.jobs.run("resume")
    queue.configure()
    queue.now += timedelta(seconds=5)
    queue.runs.ask("support", asked_by="an operator")
    one, other = queue.warehouse.rows("SELECT id, state FROM runs ORDER BY started_at")
    assert (one["state"], other["state"]) == ("interrupted", "waiting")
    site = browser(queue.service)
    shown = site.get("/workloads/support").text
    assert all(f'name="run" value="{run["id"]}"' in shown for run in (one, other))
    for code in (303, 409):
        sent = {"reason": "not needed", "run": other["id"]}
        assert site.post("/workloads/support/cancel", data=sent).status_code == code
        rows = queue.warehouse.rows("SELECT state FROM runs ORDER BY started_at")
        assert [row["state"] for row in rows] == ["interrupted", "cancelled"]


def test_a_run_under_way_is_cancelled_and_nothing_else(queue: RunQueue) -> None:
    queue.runs.ask("support", asked_by="an operator")
    queue.now += timedelta(seconds=1)
    queue.runs.ask("sales", asked_by="an operator")
    queue.at_train = lambda workload: queue.stop.set() if workload == "sales" else None
    thread = queue.work()
    until(lambda: queue.began or not thread.is_alive())
    answer = command(queue.service, "cancel", "support", {"reason": "the wrong data"})
    assert answer["done"].startswith("cancelled: run 2026")
    thread.join(20)
    assert queue.states() == {"support": "cancelled", "sales": "interrupted"}
    assert queue.files("support") == []
    assert queue.files("sales")
    (row,) = queue.warehouse.rows("SELECT error, finished_at FROM runs WHERE workload = 'support'")
    assert row == {"error": "cancelled by an operator: the wrong data", "finished_at": queue.now}
    labels = {"workload": "support", "state": "cancelled"}
    assert queue.collectors.get_sample_value("retuned_training_runs_total", labels) == 1
    assert queue.warehouse.rows("SELECT * FROM interactions")


@pytest.mark.parametrize("state", ["waiting", "interrupted"])
def test_a_run_that_is_not_under_way_is_cancelled(queue: RunQueue, state: str) -> None:
    queue.runs.ask("support", asked_by="an operator")
    if state == "interrupted":
        queue.at_train = lambda _: queue.stop.set()
        queue.jobs.run("resume")
        assert queue.files("support")
    assert queue.states() == {"support": state}
    queue.configure()
    command(queue.service, "cancel", "support", {})
    assert queue.states() == {"support": "cancelled"}
    assert queue.files("support") == []
    assert queue.runs.queue() == []
    with pytest.raises(RetunedError, match="no run is under way and none waits"):
        command(queue.service, "cancel", "support", {})


def test_a_cancellation_stands_however_the_run_ends(queue: RunQueue) -> None:
    """Also when the child fails before it is stopped, and when the daemon is killed before it is."""

    def fail(_: str) -> None:
        command(queue.service, "cancel", "support", {})
        raise ChildFailed("train: it failed")

    def kill(_: str) -> None:
        command(queue.service, "cancel", "support", {})
        raise KeyboardInterrupt

    queue.at_train = fail
    queue.runs.ask("support", asked_by="an operator")
    queue.jobs.run("resume")
    assert queue.states() == {"support": "cancelled"}
    queue.at_train = kill
    queue.now += timedelta(days=1)
    queue.runs.ask("support", asked_by="an operator")
    with pytest.raises(KeyboardInterrupt):
        queue.jobs.run("resume")
    assert queue.files("support")
    queue.configure()
    queue.jobs.run("resume")
    assert queue.states() == {"support": "cancelled"}
    assert queue.files("support") == []
    assert len(queue.began) == 2


def test_a_run_waits_for_the_hours_of_training_and_stops_at_their_end(queue: RunQueue) -> None:
    queue.configure(schedule={"training_hours": ["22:00-06:00"]})
    answer = command(queue.service, "retrain", "support", {})
    assert "schedule.training_hours: 2026-04-01 22:00 UTC" in answer["done"]
    assert queue.warehouse.rows("SELECT id FROM runs") == [{"id": answer["run"]}]
    assert queue.began == []
    assert queue.waits() == {"support": "hours"}
    queue.now = NOON.replace(hour=23)

    def morning(_: str) -> None:
        queue.now = NOON + timedelta(hours=18)

    queue.at_train = morning
    queue.jobs.run("resume")
    assert queue.states() == {"support": "interrupted"}
    assert queue.waits() == {"support": "hours"}
    queue.jobs.run("resume")
    assert queue.began == ["support"]
    queue.now += timedelta(days=1) - timedelta(hours=5)
    queue.jobs.run("resume")
    assert queue.began == ["support", "support"]
    (row,) = queue.warehouse.rows("SELECT attempts FROM runs")
    assert row["attempts"] == 0


def test_a_run_waits_for_the_end_of_a_rollout(queue: RunQueue) -> None:
    queue.configure(rollout={"steps": [0.05, 1.0], "holdback": 0.05})
    registered(queue.warehouse, "v1")
    rollout = queue.jobs.context.rollout
    rollout.begin("support", "v1", "gate", "better", queue.now)
    answer = command(queue.service, "retrain", "support", {})
    assert "it waits for the end of a rollout: support@v1 is being rolled out" in answer["done"]
    assert "`retuned rollback support` takes it back" in answer["done"]
    queue.runs.ask("sales", asked_by="an operator")
    assert queue.waits() == {"support": "rollout", "sales": "turn"}
    assert queue.waiting("support", "rollout") == 1
    running = under_way(queue.warehouse, "support")
    assert running is not None
    rollout.advance("support", running.id, 0.05, "as good", queue.now)
    assert queue.waits()["support"] == "turn"  # its holdback is left


def test_what_passed_the_gate_in_a_holdback_waits_for_its_end_and_for_nothing_else(queue: RunQueue) -> None:
    queue.configure(rollout={"steps": [1.0], "holdback": 0.05}, schedule={"training_hours": ["22:00-06:00"]})
    for version in ("v1", "v2"):
        registered(queue.warehouse, version)
    rollout = queue.jobs.context.rollout
    rollout.begin("support", "v1", "gate", "better", queue.now)
    made = {"workload": "support", "reasons": "[]", "state": "interrupted", "started_at": queue.now, "attempts": 0}
    queue.warehouse.insert("runs", id="r2", version="v2", at_any_hour=False, kind="retrain", **made)
    gate = {"workload": "support", "kind": "gate", "reasons": "[]", "figures": "{}", "run_id": "r2"}
    queue.warehouse.insert("decisions", id="d", created_at=queue.now, outcome=True, **gate)
    (waits,) = queue.runs.queue()
    assert (waits["waits_for"], waits["passed"]) == ("rollout", True)
    assert waits["reason"].startswith(
        "support@v2 passed the gate, and comes into service once this has ended: support@v1 is being rolled out"
    )
    rollout.complete("support", "the watch is over", queue.now)
    assert queue.waits() == {"support": "turn"}


def test_a_run_that_is_asked_for_now_does_not_wait_for_the_hours(queue: RunQueue) -> None:
    queue.configure(schedule={"training_hours": ["22:00-06:00"]})
    command(queue.service, "retrain", "support", {})
    queue.at_train = lambda _: queue.stop.set()
    command(queue.service, "retrain", "support", {"now": True})
    assert queue.began == ["support"]
    queue.configure(schedule={"training_hours": ["22:00-06:00"]})
    queue.jobs.run("resume")
    assert queue.began == ["support", "support"]


def test_a_run_waits_until_there_is_memory_for_it(queue: RunQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.configure(train={"memory_bytes": 3 * 2**30})
    monkeypatch.setattr(holds, "available_bytes", lambda: 2**30)
    answer = command(queue.service, "retrain", "support", {})
    assert "takes at least 3.0 GiB of memory and 1.0 GiB are free" in answer["done"]
    assert queue.began == []
    assert queue.waiting("support", "memory") == 1
    monkeypatch.setattr(check, "check_broker", lambda _: "up")
    problem = {name: text for _, name, text in check.check(queue.jobs.context.settings)}["memory"]
    assert problem is not None
    assert "1.0 GiB are free" in problem
    monkeypatch.setattr(holds, "available_bytes", lambda: 4 * 2**30)
    queue.at_train = lambda _: queue.stop.set()
    queue.jobs.run("resume")
    assert queue.began == ["support"]
    monkeypatch.setattr(holds, "available_bytes", lambda: None)
    assert queue.waits() == {"support": "turn"}


def test_a_command_that_trains_itself_shows_progress_and_ends_with_what_came_of_it(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.runs.show = Progress().show
    queue.at_train = lambda _: queue.stop.set()
    done = command(queue.service, "retrain", "support", {})["done"]
    assert done == "the retraining is interrupted: train: stopped before it was done"
    assert capsys.readouterr().err.splitlines() == ["support: dataset", "support: train"]
    queue.stop.clear()

    def fail(_: str) -> None:
        raise ChildFailed("train: killed by signal 9")

    queue.at_train = fail
    with pytest.raises(RetunedError, match="workload support: the retraining failed: train: killed by signal 9"):
        command(queue.service, "retrain", "support", {})

    def refuse(*_: Any) -> Dataset:
        raise DatasetRefused("3 rows of 50 that are needed")

    monkeypatch.setattr(dataset_stage, "build_dataset", refuse)
    done = command(queue.service, "retrain", "support", {})["done"]
    assert done == "the retraining is refused: 3 rows of 50 that are needed"


def test_progress_is_shown_for_each_stage_and_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    shown = Progress()
    told: dict[str, Any] = {"workload": "support", "stage": "train"}
    for step in range(1, 41):
        clock[0] += 1
        shown.show(told | {"step": step, "steps": 40, "loss": 0.123456})
    shown.show(told | {"stage": "evaluate", "step": 40, "evaluated": 16, "rows": 90})
    assert capsys.readouterr().err.splitlines() == [
        *(f"support: train, step {step}, steps 40, loss 0.1235" for step in (1, 11, 21, 31)),
        "support: evaluate, evaluated 16, rows 90",
    ]


def test_each_workload_is_trained_by_its_own_settings(queue: RunQueue, tmp_path: Path) -> None:
    large = model(tmp_path / "large", b"more weights")
    queue.configure(workloads={"sa*": {"base": large, "train": {"rank": 4}, "policy": {"enabled": False}}})
    queue.at_train = lambda workload: queue.runs.cancel(workload, "an operator", "seen")
    for workload in ("sales", "support"):
        queue.runs.ask(workload, asked_by="an operator")
    queue.jobs.run("resume")
    ranks = {workload: (of.models.base, of.train.rank) for workload, of in queue.settings.items()}
    assert ranks == {"sales": (large, 4), "support": (queue.models["base"], 16)}
    assert queue.runs.ask("sales").reasons == ("the policy is switched off (policy.enabled)",)
    assert queue.runs.ask("support").reasons == ("no reason to retrain",)
    assert ask(queue.service, "status")["workloads"]["sales"]["base_model"] == str(large)


def test_a_workload_that_lacks_memory_does_not_hold_up_one_that_needs_less(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.configure(train={"memory_bytes": 0}, workloads={"sales": {"train": {"memory_bytes": 3 * 2**30}}})
    monkeypatch.setattr(holds, "available_bytes", lambda: 2**30)
    monkeypatch.setattr(check, "check_broker", lambda _: "up")
    found = {name: (mark, text) for mark, name, text in check.check(queue.jobs.context.settings)}
    assert found["memory"][0] == "ok"
    assert found["memory of sales"][0] == "FAIL"
    assert "takes at least 3.0 GiB of memory" in found["memory of sales"][1]
    command(queue.service, "retrain", "sales", {})
    queue.at_train = lambda _: queue.stop.set()
    command(queue.service, "retrain", "support", {})
    assert queue.began == ["support"]
    assert queue.waits() == {"sales": "memory", "support": "turn"}


def test_every_base_model_is_checked(queue: RunQueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    queue.configure(workloads={"sales": {"base": tmp_path / "nowhere"}})
    monkeypatch.setattr(check, "check_broker", lambda _: "up")
    found = {name: (mark, text) for mark, name, text in check.check(queue.jobs.context.settings)}
    mark, text = found["base model of workloads.sales.base"]
    assert (mark, text.partition(": ")[0]) == ("FAIL", "workloads.sales.base")


def test_a_champion_on_another_base_model_is_not_trained_on(queue: RunQueue, tmp_path: Path) -> None:
    """Nothing is put in line that could not end well, whoever asks, and other workloads go on."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")
    rollout = queue.jobs.context.rollout
    made = registry.register(
        queue.warehouse, queue.models["directory"], "sales", adapter, base_model=queue.models["base"],
        parent_version=None, dataset_version="d", run_id="r", details={}, now=NOON,
    )  # fmt: skip
    rollout.promote("sales", made.version, "operator", "by hand", NOON)
    large = model(tmp_path / "large", b"more weights")
    queue.configure(workloads={"*": {"base": large}})
    with pytest.raises(RetunedError, match=r"trained on another base model .*`retuned promote sales base`"):
        command(queue.service, "retrain", "sales", {})
    assert queue.runs.queue() == []
    queue.at_train = lambda _: queue.stop.set()
    command(queue.service, "retrain", "support", {})
    assert queue.began == ["support"]


def test_a_run_in_which_the_daemon_is_killed_again_and_again_is_given_up(queue: RunQueue) -> None:
    def killed(_: str) -> None:
        raise KeyboardInterrupt

    queue.configure(train={"attempts": 2})
    queue.runs.ask("support", asked_by="an operator")
    queue.at_train = lambda _: queue.stop.set()
    for _ in range(4):  # a stop is no failed attempt
        queue.configure(train={"attempts": 2})
        queue.jobs.run("resume")
    assert queue.states() == {"support": "interrupted"}
    queue.at_train = killed
    for _ in range(2):
        queue.configure(train={"attempts": 2})
        with pytest.raises(KeyboardInterrupt):
            queue.jobs.run("resume")
        assert queue.states() == {"support": "running"}
    queue.configure(train={"attempts": 2})
    queue.at_train = lambda _: queue.stop.set()
    queue.jobs.run("resume")
    assert len(queue.began) == 6
    (row,) = queue.warehouse.rows("SELECT state, error, finished_at FROM runs")
    assert (row["state"], row["finished_at"]) == ("failed", NOON)
    assert "given up after 2 attempts in which the daemon was killed (train.attempts)" in row["error"]
    assert "train.batch_size" in row["error"]
    queue.jobs.run("resume")
    assert len(queue.began) == 6


def test_start_is_of_the_run_not_of_its_request(queue: RunQueue) -> None:
    queue.runs.ask("support", asked_by="an operator")
    queue.now += timedelta(hours=3)
    queue.at_train = lambda _: queue.stop.set()
    queue.jobs.run("resume")
    queue.now += timedelta(hours=3)
    queue.configure()
    queue.jobs.run("resume")
    (row,) = queue.warehouse.rows("SELECT started_at FROM runs")
    assert row["started_at"] == NOON + timedelta(hours=3)


def other_base(folder: Path) -> Path:
    """Enough of a base model to be named."""
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_text(f"weights of {folder.name}")
    return folder


def champion_on(queue: RunQueue, base: Path, **details: Any) -> None:
    adapter = queue.folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    (adapter / "adapter_model.safetensors").write_text("weights")
    version = registry.register(
        queue.warehouse, queue.folder / "models", "support", adapter, base_model=base, parent_version=None,
        dataset_version="d", run_id="r", details={"metrics": {}, "cost": {}} | details, now=NOON,
    )  # fmt: skip
    command(queue.service, "promote", "support", {"version": version.version})


def test_a_rebase_waits_as_a_run_of_its_own_kind(queue: RunQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue.runs, "run_waiting", lambda _: [])
    champion_on(queue, queue.models["base"])
    base = other_base(queue.folder / "other")
    command(queue.service, "retrain", "support", {"now": True})
    answer = command(
        queue.service, "rebase", "support", {"base": str(base), "reason": "it is newer", "asked_by": "ann"}
    )
    assert answer["done"].startswith(f"a training on {base} is queued")
    command(queue.service, "rebase", "support", {"base": str(base)})  # waits already
    kinds = {one["kind"]: one for one in queue.runs.queue()}
    assert len(queue.runs.queue()) == 2
    assert kinds.keys() == {"retrain", "rebase"}
    row = queue.warehouse.row("SELECT * FROM runs WHERE kind = 'rebase'")
    assert row is not None
    assert row["base_model"] == str(base)
    assert f"asked for by ann: {queue.models['base']} is to become {base}: it is newer" in row["reasons"]


def test_a_rebase_without_a_daemon_executes_no_run_of_another_workload(queue: RunQueue) -> None:
    champion_on(queue, queue.models["base"])
    queue.runs.ask("sales", asked_by="an operator")

    def fail(_: str) -> None:
        raise ChildFailed("train: killed by signal 9")

    queue.at_train = fail
    command(queue.service, "rebase", "support", {"base": str(other_base(queue.folder / "other"))})
    assert queue.began == ["support"]
    assert queue.states()["sales"] == "waiting"


def test_a_rebase_that_cannot_be_is_refused(queue: RunQueue) -> None:
    base = other_base(queue.folder / "other")

    def refused(**arguments: Any) -> str:
        with pytest.raises(RetunedError) as error:
            command(queue.service, "rebase", "support", arguments)
        return str(error.value)

    assert refused() == "base: expected a text"
    assert "expected an absolute path" in refused(base="other")
    assert refused(base="/nowhere").startswith("base: /nowhere does not exist")
    assert f"set models.base to {base}" in refused(base=str(base))
    champion_on(queue, base)
    assert "was trained on" in refused(base=str(base))
    queue.configure(evaluate={"engine": "server", "url": "http://host/v1"})
    assert "evaluate.engine is server" in refused(base=str(other_base(queue.folder / "third")))
    queue.models["workloads"] = ("sales",)
    queue.configure()
    assert "add it to models.workloads" in refused(base=str(queue.folder / "third"))
    assert queue.warehouse.rows("SELECT * FROM runs") == []


def test_after_a_rebase_memory_is_held_for_the_base_model_that_is_trained_on(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = other_base(queue.folder / "moved")
    sizes = {queue.models["base"]: 2**30, moved: 3 * 2**30}
    monkeypatch.setattr(holds, "needed_bytes", lambda base, _: sizes[base])
    monkeypatch.setattr(holds, "available_bytes", lambda: 2 * 2**30)
    monkeypatch.setattr(queue.runs, "run_waiting", lambda _: [])
    champion_on(queue, moved, rebased_from=versions.base_hash(queue.models["base"]))
    command(queue.service, "retrain", "support", {})
    command(queue.service, "retrain", "sales", {})
    assert queue.waits() == {"support": "memory", "sales": "turn"}


def test_a_workload_is_routed_once_it_is_named_in_the_configuration(queue: RunQueue) -> None:
    with pytest.raises(RetunedError, match="known are none"):
        ask(queue.service, "route", workload="support", conversation="c-1")
    queue.configure(workloads={"support": {"objective": "Help."}, "sales.*": {"objective": "Sell."}})
    base = {"model": "support@base", "name": None}
    champion = base | {"arm": "champion", "share": 1.0}
    support: dict[str, Any] = {
        "experiment": None,
        "arms": [champion],
        "base": base,
        "previous": None,
        "shadow": 0.0,
        "unit": "conversation",
        "confident": {},
        "labels": {},
    }
    assert ask(queue.service, "routes") == {"workloads": {"support": support}, "withheld": {}, "memory": False}
    asked = {"workload": "support", "experiment": None, "arm": "champion", "instead": [], "unit": "conversation"}
    assert ask(queue.service, "route", workload="support", conversation="c-1") == asked | base


def test_a_route_is_that_of_the_account_where_accounts_are_assigned(queue: RunQueue) -> None:
    queue.configure(rollout={"steps": [0.5, 1.0], "unit": "account"})
    registered(queue.warehouse, "v1")
    rollout = queue.jobs.context.rollout
    rollout.begin("support", "v1", "gate", "better", queue.now)

    def arms(**asked: str) -> set[str]:
        found = [ask(queue.service, "route", workload="support", conversation=f"c-{n}", **asked) for n in range(8)]
        assert {one["unit"] for one in found} == {"account"}
        return {one["arm"] for one in found}

    assert arms() == {"canary", "champion"}
    by_user = [arms(user=f"user {n}") for n in range(6)]
    assert [len(found) for found in by_user] == [1] * 6
    assert set.union(*by_user) == {"canary", "champion"}
    queue.configure(rollout={"steps": [0.5, 1.0]})
    one = {
        ask(queue.service, "route", workload="support", conversation="c-1", user=f"user {n}")["arm"] for n in range(6)
    }
    assert len(one) == 1


def test_a_version_that_is_not_there_is_not_judged_again(queue: RunQueue) -> None:
    with pytest.raises(RetunedError, match="support@00000000: there is no such version"):
        command(queue.service, "evaluate", "support", {"version": "00000000", "metric": "text"})
    with pytest.raises(RetunedError, match="version: expected a text"):
        command(queue.service, "evaluate", "support", {})
