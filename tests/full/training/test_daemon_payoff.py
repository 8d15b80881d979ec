"""What the daemon makes of a real warehouse with a real run in it: money, what comes in while a run trains, reports."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from fixtures.daemon.operations import command
from fixtures.feedback.teaching import CHANGED, GOODS, Teacher, teach_policies
from fixtures.models.datasets import build_dataset
from fixtures.models.tiny import ANY_LATENCY, tiny_llama
from retuned.consumers.errors import RetunedError
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.policy.decision import Decision, Evidence, decide
from retuned.daemon.reports import reports
from retuned.daemon.settings import ScheduleSettings, Settings
from retuned.monitors.money import ledger
from retuned.monitors.settings import RoiSettings
from retuned.retrain import versions
from retuned.retrain.data import dataset
from retuned.retrain.release import registry

TAUGHT = len(GOODS) * 50
DURING = len(CHANGED) * 50


@dataclass(frozen=True)
class Story:
    """A run during which people went on correcting the model that it was to replace."""

    jobs: Jobs
    before: Evidence
    meanwhile: list[Decision]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("story")
    settings = Settings(
        warehouse={"path": folder / "data" / "retuned.duckdb"},
        models={"base": tiny_llama(folder / "base"), "directory": folder / "models"},
        dataset={"near_duplicate_similarity": 1.0},  # each wording is a question of its own
        train={"threads": 1, "learning_rate": 5e-3, "epochs": 8, "dtype": "float32", "checkpoint_steps": 10},
        evaluate={"general_examples": 9},
        gate={"minimum_examples": 15, "maximum_latency_ratio": ANY_LATENCY, "fold_rows": 0},
        policy={"new_corrections": 50, "cooldown_seconds": 1, "minimum_ratings": 30},
        roi={"hourly_rate": 60.0, "training_hourly_rate": 1.0},
    )
    with opened(settings) as local:
        jobs = local.jobs
        teacher = Teacher(jobs.context.warehouse)
        jobs.context.now = lambda: teacher.now + timedelta(seconds=len(ticks))
        ticks: list[None] = []
        meanwhile: list[Decision] = []
        teach_policies(teacher, GOODS)
        before = jobs.runs.evidence("support")
        follow = jobs.runs.on_progress

        def on_progress(line: dict[str, Any]) -> None:
            ticks.append(None)
            follow(line)
            if line["stage"] == "train" and not meanwhile:
                for thing, policy in CHANGED.items():
                    teach_policies(teacher, {thing: policy}, wrong=f"You have {GOODS[thing]} for it.")
                meanwhile.append(jobs.runs.ask("support"))

        jobs.runs.on_progress = on_progress  # type: ignore[method-assign]
        assert jobs.runs.ask("support").retrain
        jobs.runs.run_waiting()
        yield Story(jobs, before, meanwhile)


@pytest.mark.full
def test_never_two_runs_at_once(story: Story) -> None:
    assert story.before.corrections_to_learn == story.before.untried_corrections == TAUGHT
    (asked,) = story.meanwhile
    assert not asked.retrain
    assert "but a run is under way" in asked.reasons
    (run,) = story.jobs.context.warehouse.rows("SELECT * FROM runs")
    assert (run["state"], json.loads(run["detail"])["promoted"]) == ("succeeded", True), run["error"]


def test_what_came_in_while_a_run_trained_counts_for_the_next_one(story: Story) -> None:
    jobs = story.jobs
    after = jobs.runs.evidence("support")
    assert (after.corrections_to_learn, after.untried_corrections) == (DURING, DURING)
    assert after.new_corrections == 0  # they are about the model before: no reason by themselves
    assert after.running is False
    later = jobs.context.now() + timedelta(hours=1)
    jobs.context.now = lambda: later
    evidence = replace(jobs.runs.evidence("support"), scheduled=True)
    scheduled = decide(evidence, jobs.context.settings.policy, later)
    assert scheduled.retrain, scheduled.reasons
    made = build_dataset(jobs.context.warehouse, jobs.context.settings, "support", jobs.context.now())
    taught = {row["completion"] for row in made.split("train") if not row["replay"]}
    assert taught == {f"You have {policy} for it." for policy in CHANGED.values()}


def test_the_model_card_is_complete_and_no_part_of_the_version(story: Story) -> None:
    warehouse = story.jobs.context.warehouse
    champion = versions.champion(warehouse, "support")
    assert champion is not None
    card = (champion.path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "**The gate passed it.**" in card
    (decision,) = warehouse.rows("SELECT * FROM decisions WHERE kind = 'gate'")
    assert all(f"- {reason}\n" in card for reason in json.loads(decision["reasons"]))
    learned = dataset.load(warehouse, "support", champion.dataset_version)
    assert learned is not None
    assert f"| from corrections (expert) | {learned.rows['train']} examples |" in card
    assert f"| retrained because of | {TAUGHT} new corrections |" in card
    assert {file.name for file in champion.path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "bom.cdx.json",
        "manifest.json",
    }
    again = registry.register(
        warehouse,
        story.jobs.context.settings.models.directory,
        "support",
        champion.path,
        base_model=Path(champion.base_model),
        parent_version=None,
        dataset_version=champion.dataset_version,
        run_id="another",
        details={},
        now=story.jobs.context.now(),
    )
    assert again == champion  # its hash is what it was


def test_a_run_that_was_interrupted_is_under_way(story: Story) -> None:
    warehouse = story.jobs.context.warehouse
    finished = warehouse.rows("SELECT finished_at FROM runs")[0]["finished_at"]
    warehouse.execute("UPDATE runs SET finished_at = NULL, state = 'interrupted'")
    try:
        assert story.jobs.runs.evidence("support").running
    finally:
        warehouse.execute("UPDATE runs SET finished_at = ?, state = 'succeeded'", [finished])


def test_what_pays_is_reckoned_from_the_ledger_and_from_the_run(story: Story) -> None:
    jobs = story.jobs
    assert jobs.runs.evidence("support").money is not None
    assert story.before.money is None
    teacher = Teacher(jobs.context.warehouse)
    teacher.acts = 10_000
    for number in range(40):
        answer = teacher.ask("how long do i have to return a lamp?", "You have 14 days for it.")
        teacher.say(answer, "helpful", number % 4 > 0, "user")
        teacher.say(answer, "time_saved_seconds", 60.0, "user")
    answers = 40 + TAUGHT + DURING
    now = teacher.now + timedelta(days=1, minutes=1)  # the answers have had their day to be rated
    jobs.context.now = lambda: now
    ledger.book(jobs.context.warehouse, jobs.context.settings, now)
    money = jobs.runs.evidence("support").money
    assert money is not None
    assert money.gains == pytest.approx(40 * 1.0)
    assert (money.answers, money.ratings.helpful, money.ratings.total) == (answers, 30, 40)
    assert money.days == pytest.approx((10_000 + 120) / 1_440 + 1, abs=0.1)
    (run,) = money.runs
    row = jobs.context.warehouse.rows("SELECT * FROM runs")[0]
    assert (run.corrections, run.promoted) == (TAUGHT, True)
    assert run.seconds == pytest.approx(row["train_seconds"] + row["evaluate_seconds"])
    assert run.before == 0.0
    assert run.after is not None
    assert run.after > 0.7

    schedule = ScheduleSettings(retrain_cron="* * * * *")
    jobs.context.settings = jobs.context.settings.model_copy(update={"schedule": schedule})
    jobs.runs.ask("support")  # its times count from now on
    jobs.context.now = lambda: now + timedelta(minutes=1)
    decision = jobs.runs.ask("support")
    assert decision.reasons[-1].startswith("it pays: a gain of ")
    cheap_until_today = [{"from": "2026-01-01", "value": 1.0}, {"from": now.date(), "value": 1e7}]
    dear = RoiSettings(hourly_rate=60.0, training_hourly_rate=cheap_until_today)
    jobs.context.settings = jobs.context.settings.model_copy(update={"roi": dear})
    jobs.context.now = lambda: now + timedelta(minutes=2)
    refused = jobs.runs.ask("support")
    assert not refused.retrain
    stored = jobs.context.warehouse.rows("SELECT * FROM decisions WHERE kind = 'retrain' ORDER BY rowid")[-1]
    assert json.loads(stored["reasons"])[-1].startswith("but it does not pay: a gain of ")
    figures = json.loads(stored["figures"])["payoff"]
    assert figures["gain"] < figures["cost"]
    assert jobs.runs.ask("support", asked_by="an operator").retrain


@pytest.mark.full
def test_the_month_and_the_quarter_that_ended_are_reported_once(story: Story) -> None:
    jobs = story.jobs
    jobs.runs.ask("support", asked_by="an operator")  # what waits is no run yet
    jobs.context.now = lambda: datetime(2026, 3, 10)
    jobs.run("quality")
    spring = datetime(2026, 4, 1, 6)
    jobs.context.now = lambda: spring
    jobs.run("report")
    names = reports.reports(jobs.context.reports, "support")
    assert [name[:7] for name in names] == ["2026-Q1", "2026-03"]
    month, quarter = (jobs.context.reports / f"{name}.html" for name in (names[1], names[0]))
    told = json.loads(month.with_suffix(".json").read_text())
    champion = versions.champion(jobs.context.warehouse, "support")
    assert champion is not None
    assert told["benchmark"]["champion"] == champion.name
    assert told["benchmark"]["metric"].startswith("1 for the values of the approved answer")
    scores = {(row["model"], row["split"]): row for row in told["benchmark"]["scores"]}
    # The holdout is of what changed since; what still holds is in the regression set.
    assert {model: scores[model, "holdout"]["score"] for model in ("base", "champion")} == {"base": 0, "champion": 0}
    assert scores["champion", "holdout"]["hallucination"] == 1
    assert scores["champion", "regression"]["score"] > 0.9 > scores["champion", "regression"]["low"]
    assert scores["base", "regression"]["score"] == 0
    page = month.read_text()
    answered = 40 + TAUGHT + DURING
    for text in (
        f"The model answered {answered} times",
        "retrained once. 1 new model went into service",
        "Plotly.newPlot",
    ):
        assert text in page, text
    assert "2026-Q1" in quarter.read_text()

    before = {path: path.stat().st_mtime_ns for path in jobs.context.reports.glob("2026-*")}
    jobs.run("report")
    assert {path: path.stat().st_mtime_ns for path in jobs.context.reports.glob("2026-*")} == before
    # Nothing was asked in April.
    jobs.context.now = lambda: datetime(2026, 5, 1, 6)
    jobs.run("report")
    assert reports.reports(jobs.context.reports, "support") == names


def test_an_operator_gets_the_running_month(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "benchmark", lambda *_: {"problem": "not asked in this test"})
    story.jobs.context.now = lambda: datetime(2026, 3, 20)
    name = reports.report_id("support", reports.Period.of("month", story.jobs.context.now()))
    done = command(Local(story.jobs), "report", "support", {})
    assert done["done"] == f"the report of this month so far will be at /reports/{name}"
    story.jobs.context.now = lambda: datetime(2027, 3, 20)
    with pytest.raises(RetunedError, match="workload support: there was no traffic in 2027-03, so there is no report"):
        command(Local(story.jobs), "report", "support", {})
    assert (
        "No benchmark of the models: not asked in this test"
        in (story.jobs.context.reports / f"{name}.html").read_text()
    )


def test_a_running_daemon_writes_it_in_turn(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "benchmark", lambda *_: {"problem": "not asked in this test"})
    jobs = story.jobs
    jobs.context.now = lambda: datetime(2026, 3, 21)
    page = jobs.context.reports / f"{reports.report_id('support', reports.Period.of('month', jobs.context.now()))}.html"
    page.unlink(missing_ok=True)
    scheduler = BackgroundScheduler(executors={"retrain": ThreadPoolExecutor(1)})
    scheduler.start()
    monkeypatch.setattr(jobs, "_scheduler", scheduler)
    try:
        command(Local(jobs), "report", "support", {})
        deadline = time.monotonic() + 30
        while not page.is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        scheduler.shutdown(wait=True)
    assert page.is_file()
