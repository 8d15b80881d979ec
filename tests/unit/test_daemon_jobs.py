"""Which workloads the jobs look at, what does not wait for what, and what evidence rests on."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
from apscheduler.schedulers import base
from prometheus_client import CollectorRegistry

from fixtures.feedback.teaching import START, Teacher
from fixtures.feedback.traffic import feedback, interactions
from fixtures.kafka.brokers import until
from retuned.consumers.errors import BrokerRefused, ChildFailed, RetunedError, StandsBy, WarehouseError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RetentionSettings, WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon import workloads
from retuned.daemon.jobs import cleanup, scheduler, tasks
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jobs.parts import PartsFailed
from retuned.daemon.jobs.runs import Runs
from retuned.daemon.metrics import Metrics
from retuned.daemon.policy.evidence import gather
from retuned.daemon.policy.ratings import Ratings
from retuned.daemon.reports import reports
from retuned.daemon.settings import Settings
from retuned.monitors.drift import check as drift
from retuned.monitors.drift.check import DriftCheck
from retuned.monitors.hallucination.opinions import Opinion
from retuned.monitors.hallucination.scorer import Answer, Judgement
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.monitors.money import ledger, roll_up
from retuned.monitors.quality import measure as quality
from retuned.monitors.watch import check as watch
from retuned.retrain.data import examples, overrides
from retuned.retrain.data import label_requests as labels
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.release import registry, retention, shadow
from retuned.retrain.release.rollout import Rollout

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
    for _ in range(3):
        Teacher(warehouse, "support").ask("where is my parcel", "on its way")
    assert workloads.measured(warehouse, now) == ["support"]
    for number in range(workloads.MOST + 10):
        Teacher(warehouse, f"made-up-{number:03d}").ask("where is my parcel", "on its way")
    assert len(workloads.known(warehouse)) == workloads.MOST + 11
    assert len(workloads.measured(warehouse, now)) == workloads.MOST
    assert "support" in workloads.measured(warehouse, now)
    now += workloads.BUSY
    Teacher(warehouse, "support2").ask("where is my parcel", "on its way")
    warehouse.execute("UPDATE interactions SET timestamp = ? WHERE workload = 'support2'", [now])
    assert workloads.measured(warehouse, now) == ["support2"]
    warehouse.close()


def test_ratings_are_those_since_traffic_began_whatever_one_wrong_clock_reports(warehouse: Warehouse) -> None:
    def rated(count: int, offset: int, start: datetime) -> None:
        asked = ["where is my parcel"] * count
        ids = interactions(warehouse, asked, random.Random(3), start=start, step=HOUR / 10, offset=offset)
        feedback(warehouse, ids, "helpful", True, when=START, offset=offset)

    rated(1, 5_000, datetime(1970, 1, 1))
    rated(240 * 10, 0, START)  # ten days
    evidence = gather(warehouse, Settings(), "support", START + 10 * DAY)
    assert [period.total for period in evidence.ratings] == [240] * 9


def test_corrections_are_ratings(warehouse: Warehouse) -> None:
    asked = ["where is my parcel"] * 40
    ids = interactions(warehouse, asked, random.Random(3), start=START, step=HOUR / 60)
    feedback(warehouse, ids[:10], "helpful", True, when=START)
    feedback(warehouse, ids[10:], "correction", "It comes today.", when=START, offset=50)
    feedback(warehouse, ids[:1], "helpful", "perhaps", when=START, offset=100)
    warehouse.insert("runs", **RUN)
    rows = dict.fromkeys(("train", "holdout", "replay"), 0)
    warehouse.insert("datasets", version="d", workload="support", created_at=START, path="", card="{}", **rows)
    evidence = gather(warehouse, Settings(), "support", START + DAY + HOUR)
    assert evidence.ratings == (Ratings(10, 40),)
    assert evidence.money is not None
    assert (evidence.money.ratings.helpful, evidence.money.ratings.total) == (10, 40)


@pytest.mark.full
def test_what_answers_earned_lately_is_the_same_once_the_ledger_is_rolled_up(warehouse: Warehouse) -> None:
    settings = Settings.model_validate({"roi": {"hourly_rate": 60.0}, "policy": {"payback_days": 2}})
    for number in range(16):
        when = START + number * 6 * HOUR
        ids = interactions(warehouse, ["where is my parcel"], random.Random(3), start=when, offset=number)
        feedback(warehouse, ids, "time_saved_seconds", 60 * number, when=when, offset=number)
        ledger.book(warehouse, settings, when + HOUR)
    warehouse.insert("runs", **RUN)
    rows = dict.fromkeys(("train", "holdout", "replay"), 0)
    warehouse.insert("datasets", version="d", workload="support", created_at=START, path="", card="{}", **rows)

    def gained() -> list[tuple[float, int]]:
        earned = [gather(warehouse, settings, "support", START + hours * HOUR).money for hours in range(60, 96, 5)]
        return [(money.gains, money.answers) for money in earned if money]

    before = gained()
    assert roll_up.roll_up(warehouse, ["support"], START + 4 * DAY, 0 * DAY) > 0
    assert gained() == before
    assert len(set(before)) > 1


def test_a_drift_check_that_fails_leaves_no_verdict_standing(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    interactions(warehouse, ["where is my parcel"] * 3, random.Random(3))
    registry = CollectorRegistry()
    settings = Settings(warehouse=WarehouseSettings(path=warehouse.path))
    made: list[Any] = [warehouse, settings, None, Metrics(registry), MonitorMetrics(registry), None]
    jobs = Jobs(Context(*made, threading.Event(), lambda: START), print)
    drifted = DriftCheck("a", START, "support", True, 0.5, [], 500, 500, None, "…")

    def failing(*_: Any) -> DriftCheck:
        raise ChildFailed("out of memory")

    monkeypatch.setattr(Runs, "ask", lambda *_: None)
    monkeypatch.setattr(drift, "check", lambda *_: drifted)
    jobs.run("drift")
    assert registry.get_sample_value("retuned_drift_detected", {"workload": "support"}) == 1
    lack = {"found": 12, "needed": 30, "what": "votes"}
    monkeypatch.setattr(drift, "check", lambda *_: replace(drifted, lacking=lack))
    jobs.run("drift")
    (blind,) = warehouse.rows("SELECT * FROM blindness WHERE monitor = 'estimate'")
    assert {name: blind[name] for name in lack} == lack, "why there is no estimate"
    monkeypatch.setattr(drift, "check", lambda *_: drifted)
    jobs.run("drift")
    assert not warehouse.rows("SELECT * FROM blindness WHERE monitor = 'estimate'")
    monkeypatch.setattr(drift, "check", failing)
    with pytest.raises(PartsFailed, match="workload support: out of memory"):
        jobs.run("drift")
    assert registry.get_sample_value("retuned_drift_detected", {"workload": "support"}) is None
    assert registry.get_sample_value("retuned_drift_severity_ratio", {"workload": "support"}) is None


def test_the_watch_does_not_wait_for_a_slow_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "retuned.duckdb"))
    judging, answered, watched = threading.Event(), threading.Event(), threading.Event()

    def judge(*_: Any) -> None:
        judging.set()
        answered.wait(30)

    def look(*_: Any) -> None:
        if judging.wait(30):
            watched.set()

    monkeypatch.setattr(tasks, "ask_opinions", judge)
    monkeypatch.setattr(tasks, "watch_service", look)
    for other in ("measure_quality", "judge_shadows", "check_drift", "request_labels", "report", "announce"):
        monkeypatch.setattr(tasks, other, lambda *_: None)
    monkeypatch.setattr(cleanup, "archive", lambda *_: None)
    metrics = Metrics(CollectorRegistry())
    made: list[Any] = [warehouse, Settings(), None, metrics, None, None, threading.Event(), utc_now]
    jobs = Jobs(Context(*made), print)
    jobs.start()
    jobs.lead()
    try:
        assert watched.wait(10)
        assert not answered.is_set()
    finally:
        answered.set()
        jobs.shutdown()
        warehouse.close()


OVERFLOW = duckdb.OutOfRangeException("Overflow in addition of INT64")


@dataclass
class House:
    """Jobs over two workloads, whose champions were changed once."""

    jobs: Jobs
    collectors: CollectorRegistry
    publisher: MemoryPublisher
    ended: list[BaseException]

    def failures(self, task: str, workload: str) -> float | None:
        labels = {"task": task, "workload": workload}
        return self.collectors.get_sample_value("retuned_workload_failures_total", labels)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row.values()) for row in self.jobs.context.warehouse.rows(sql)]

    def answer_lately(self) -> None:
        """Both workloads had their last answer three days ago; else they are retired."""
        self.jobs.context.warehouse.execute("UPDATE interactions SET timestamp = timestamp + INTERVAL 50 DAY")


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "retuned.duckdb"))
    for workload in ("bad", "good"):
        teacher = Teacher(warehouse, workload)
        teacher.ask("where is my parcel", "on its way")
        teacher.acts += 10_000
        teacher.ask("where is my parcel now", "here")
        warehouse.insert(
            "promotions", id=workload, created_at=START + 50 * DAY, workload=workload, event="promoted",
            actor="operator", reason="by hand", announced=False,
        )  # fmt: skip
        # The windows are those of a later champion: old events may leave.
        warehouse.insert("aliases", workload=workload, alias="champion", version=None, created_at=START + 50 * DAY)
    warehouse.insert(
        "dead_letters", topic="t", partition=0, offset=0, reason="malformed", detail="no JSON", received_at=START
    )
    collectors, publisher, ended = CollectorRegistry(), MemoryPublisher(), list[BaseException]()
    models = {"directory": tmp_path / "models", "base": tmp_path / "base"}
    schedule = {"quality_seconds": 0.2, "report_cron": "0 6 1 * *"}
    settings = Settings(models=models, retention={"keep_days": 5}, schedule=schedule)  # type: ignore[arg-type]
    metrics = Metrics(collectors), MonitorMetrics(collectors), RetrainMetrics(collectors)
    stop, now = threading.Event(), START + 60 * DAY
    jobs = Jobs(Context(warehouse, settings, publisher, *metrics, stop, lambda: now), ended.append)
    yield House(jobs, collectors, publisher, ended)
    stop.set()
    jobs.shutdown()
    warehouse.close()


def start_only(jobs: Jobs, monkeypatch: pytest.MonkeyPatch, *wanted: str) -> None:
    """Start the schedule, in which the other jobs do nothing."""
    work = {
        "measure_quality",
        "ask_opinions",
        "watch_service",
        "judge_shadows",
        "check_drift",
        "archive",
        "remove_old",
        "request_labels",
        "report",
    }
    for job in {*work, "announce", "resume"}:
        if job not in wanted:
            monkeypatch.setattr(cleanup if job in ("archive", "remove_old") else tasks, job, lambda *_: None)
    jobs.context.now = utc_now  # the scheduler has a clock of its own
    jobs.start()
    jobs.lead()


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("job", "place", "name"),
    [
        ("quality", quality, "measure"),
        ("quality", Runs, "evidence"),
        ("watch", watch, "check"),
        ("opinions", quality, "judge"),
        ("shadow", shadow, "judge_pairs"),
        ("drift", drift, "check"),
        ("labels", labels, "request"),
        ("report", reports, "write"),
        ("announce", Rollout, "follow_up"),
        ("archive", examples, "sources"),
    ],
)
def test_a_job_that_fails_for_one_workload_goes_on_with_the_others_and_names_each(
    house: House, monkeypatch: pytest.MonkeyPatch, job: str, place: Any, name: str
) -> None:
    house.answer_lately()
    monkeypatch.setattr(place, name, failing(OVERFLOW))
    with pytest.raises(RetunedError) as raised:
        house.jobs.run(job)
    # Some jobs look at several workloads at a time: either may be the first to fail.
    assert {part.partition(":")[0] for part in str(raised.value).split("; ")} >= {"workload bad", "workload good"}
    assert (house.failures(job, "bad"), house.failures(job, "good")) == (1, 1)


def test_quality_waits_for_no_judge(house: House) -> None:
    """It counts the verdicts that the job `opinions` has stored."""

    class Slow:
        source, threshold = "llm", 0.5
        judged = 0

        def judge(self, answers: Sequence[Answer]) -> list[tuple[Answer, Judgement]]:
            self.judged += len(answers)
            return [(answer, Judgement(0.0)) for answer in answers]

    lately = {"timestamp": house.jobs.context.now() - timedelta(hours=1), "context": '["It takes two days."]'}
    house.jobs.context.warehouse.execute("UPDATE interactions SET timestamp = $timestamp, context = $context", lately)
    house.jobs.context.opinions.all.append(Opinion(slow := Slow(), "wise"))
    house.jobs.run("quality")
    assert slow.judged == 0
    house.jobs.run("opinions")
    house.jobs.run("quality")
    of_both = dict.fromkeys(("bad", "good"), slow.judged / 2)
    assert dict(house.rows("SELECT workload, n FROM quality WHERE source = 'llm'")) == of_both
    assert slow.judged > 0


def test_an_event_whose_numbers_overflow_stops_no_other_workload(house: House) -> None:
    house.jobs.context.warehouse.execute(
        "UPDATE interactions SET input_tokens = 9223372036854775807, output_tokens = 1 WHERE workload = 'bad'"
    )
    house.jobs.context.warehouse.execute("UPDATE interactions SET timestamp = timestamp + INTERVAL 59 DAY")
    with suppress(RetunedError):
        house.jobs.run("quality")
    with suppress(RetunedError):
        house.jobs.run("archive")
    assert ("good",) in house.rows("SELECT DISTINCT workload FROM decisions")


@pytest.mark.parametrize("step", [(ledger, "book"), (labels, "settle")])
def test_steps_of_the_minute_that_do_not_depend_on_each_other_do_not_stop_each_other(
    house: House, monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str]
) -> None:
    done = []
    for place, name in ((ledger, "book"), (labels, "counts"), (quality, "measure"), (Runs, "ask")):
        if (place, name) != step:
            monkeypatch.setattr(place, name, lambda *_, name=name, **__: done.append(name) or {})
    monkeypatch.setattr(*step, failing(OVERFLOW))
    with pytest.raises(RetunedError, match="Overflow"):
        house.jobs.run("quality")
    assert {"measure", "ask"} <= set(done)
    assert ("book" in done) == (step != (ledger, "book"))


def test_a_daemon_that_stands_by_shows_its_storage_and_archives_and_does_nothing_else(house: House) -> None:
    leading = list[bool]()

    def lead() -> None:
        if not leading:
            raise StandsBy("another daemon leads")

    house.jobs.context.lead = lead
    for job in house.jobs.table():
        if job.everywhere:
            house.jobs.run(job.id)
        else:
            with pytest.raises(StandsBy, match="another daemon leads"):
                house.jobs.run(job.id)
    assert house.collectors.get_sample_value("retuned_disk_free_bytes")
    assert house.rows("SELECT DISTINCT table_name FROM archives ORDER BY ALL") == [("dead_letters",), ("interactions",)]
    assert house.rows("SELECT count(*) FROM decisions") == [(0,)]
    leading.append(True)
    house.jobs.run("quality")
    assert house.rows("SELECT count(*) > 0 FROM decisions") == [(True,)]


def test_a_booking_that_fails_keeps_what_must_be_booked_and_no_more(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "book", failing(OVERFLOW))
        with pytest.raises(RetunedError, match=r"booking: .*Overflow"):
            house.jobs.run("archive")
    assert house.rows("SELECT table_name, rows FROM archives") == [("dead_letters", 1)]
    house.jobs.run("archive")
    assert sorted(house.rows("SELECT table_name, sum(rows)::INT FROM archives GROUP BY ALL")) == [
        ("dead_letters", 1),
        ("interactions", 2),
    ]


def test_what_one_workload_needs_stays_when_that_is_not_known(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def known(warehouse: Any, workload: str, *more: Any) -> list[str]:
        if workload == "bad":
            raise OVERFLOW
        return sources(warehouse, workload, *more)

    sources = examples.sources
    monkeypatch.setattr(examples, "sources", known)
    with pytest.raises(RetunedError, match=r"workload bad: .*Overflow"):
        house.jobs.run("archive")
    assert house.rows("SELECT workload, count(*) FROM interactions GROUP BY ALL ORDER BY ALL") == [
        ("bad", 2),
        ("good", 1),
    ]


def test_an_answer_that_people_decided_to_teach_is_not_archived(house: House) -> None:
    warehouse = house.jobs.context.warehouse
    (asked,) = warehouse.rows(
        "SELECT min(id) AS id, min(timestamp) AS timestamp FROM interactions WHERE workload = 'bad'"
    )
    about = {"interaction_id": asked["id"], "timestamp": asked["timestamp"], "received_at": asked["timestamp"]}
    vote = {"name": "helpful", "value": "false", "source": "user", "topic": "t", "partition": 0, "offset": 9}
    warehouse.insert("feedback", id="vote", **about, **vote)
    overrides.decide_rows(warehouse, "edit", ["vote"], "since May", "anna", house.jobs.context.now(), "Here.")
    house.jobs.run("archive")
    assert house.rows("SELECT id FROM interactions WHERE id LIKE '%-i1'") == [("bad-i1",)]


def test_what_is_old_is_removed_each_by_itself(house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sixty days have passed; retention keeps details for ten and history for thirty."""
    context = house.jobs.context
    kept = RetentionSettings(keep_days=5, detail_days=10, history_days=30, versions=1, failed_run_days=3)
    context.settings = context.settings.model_copy(update={"retention": kept})
    warehouse, now = context.warehouse, context.now()
    (folder := tmp_path / "models" / "good" / "runs" / "run").mkdir(parents=True)
    warehouse.insert("runs", **RUN | {"workload": "good", "state": "failed"})
    report = tmp_path / "report.json"
    report.write_text("{}")
    for days, look in ((50, 0), (50, 1), (20, 0), (20, 1), (5, 0), (5, 1)):
        when = now - days * DAY + look * HOUR / 4
        drift_check = {
            "id": f"{days}/{look}", "created_at": when, "workload": "good", "drifted": days == 20 and look == 0,
            "features": '[{"feature": "language"}]', "reference_rows": 1, "current_rows": 1, "detail": "…",
            "report": str(report) if (days, look) == (50, 0) else None,
        }  # fmt: skip
        warehouse.insert("drift_checks", **drift_check)
        watched = {
            "id": f"{days}/{look}", "created_at": when, "workload": "good", "promotion_id": f"p{days}", "version": "v",
            "since": when, "until": when, "verdict": "keep" if (days, look) == (50, 0) else "go_on", "reasons": "[]",
            "comparisons": "[]",
        }  # fmt: skip
        warehouse.insert("watch_checks", **watched)
        decided = {
            "id": f"{days}/{look}", "created_at": when, "workload": "good", "kind": "retrain",
            "outcome": (days, look) == (50, 0), "reasons": "[]", "figures": "{}",
        }  # fmt: skip
        warehouse.insert("decisions", **decided)
        asked = {
            "id": f"{days}/{look}", "created_at": when, "workload": "good", "reason": "uncertain", "detail": "…",
            "interaction_id": "good-i1" if look else "gone", "score": 0.5, "announced": True, "answered_at": when,
        }  # fmt: skip
        warehouse.insert("label_requests", **asked)
    in_the_same_hour = {"id": "quiet", "created_at": now - 20 * DAY + HOUR / 8, "drifted": False, "report": None}
    warehouse.insert("drift_checks", **drift_check | in_the_same_hour)
    context.retrain_metrics.labels(labels.counts(warehouse))
    with monkeypatch.context() as patch:
        patch.setattr(roll_up, "roll_up", failing(OVERFLOW))
        patch.setattr(retention, "workloads", lambda _: ["bad", "good"])
        remove, fail = retention.remove, failing(OVERFLOW)
        patch.setattr(retention, "remove", lambda *given: (fail if given[2] == "bad" else remove)(*given))
        with pytest.raises(PartsFailed, match=r"ledger: .*Overflow.*workload bad: .*Overflow"):
            house.jobs.run("retention")
    assert house.rows("SELECT id, json_array_length(features) FROM drift_checks ORDER BY created_at") == [
        ("20/0", 1), ("20/1", 0), ("5/0", 1), ("5/1", 1),
    ]  # fmt: skip
    assert not report.exists()
    assert house.rows("SELECT id FROM watch_checks ORDER BY created_at") == [
        ("50/0",), ("50/1",), ("20/1",), ("5/0",), ("5/1",),
    ]  # fmt: skip
    assert house.rows("SELECT id FROM decisions ORDER BY created_at") == [
        ("50/0",), ("20/0",), ("20/1",), ("5/0",), ("5/1",),
    ]  # fmt: skip
    assert house.rows("SELECT id FROM label_requests ORDER BY created_at") == [
        ("50/1",), ("20/0",), ("20/1",), ("5/0",), ("5/1",),
    ]  # fmt: skip
    assert not folder.exists()
    context.retrain_metrics.labels(labels.counts(warehouse))  # fewer answers than before are no negative increase
    removed = {
        kind: house.collectors.get_sample_value("retuned_retention_removed_total", {"kind": kind})
        for kind in ("drift_check", "watch_check", "decision", "label_request", "run_folder", "version")
    }
    assert removed == {
        "drift_check": 3, "watch_check": 1, "decision": 1, "label_request": 1, "run_folder": 1, "version": 0
    }  # fmt: skip


def test_what_alerts_look_at_ends_when_a_workload_is_retired(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    context = house.jobs.context
    house.answer_lately()
    context.warehouse.insert(
        "row_states", workload="good", feedback_id="f", interaction_id="i", state="set_aside", reason="account",
        detail="…", quarantined=True, dataset_version="d", decided_at=START,
    )  # fmt: skip
    drifted = DriftCheck("a", START + 60 * DAY, "good", True, 0.5, [], 500, 500, None, "…")
    monkeypatch.setattr(drift, "check", lambda *_: drifted)
    context.warehouse.execute("DELETE FROM aliases")  # its windows do not matter here
    monkeypatch.setattr(drift, "latest", lambda *_: drifted)
    names = {"retuned_drift_detected", "retuned_drift_check_timestamp_seconds", "retuned_quarantined_feedback"}

    def shown() -> set[str]:
        samples = [sample for family in house.collectors.collect() for sample in family.samples]
        return {sample.name for sample in samples if sample.labels.get("workload") == "good"} & names

    for job in ("quality", "drift"):
        house.jobs.run(job)
    assert shown() == names
    now = context.now() + workloads.RETIRED
    monkeypatch.setattr(context, "now", lambda: now)
    for job in ("quality", "drift"):
        house.jobs.run(job)
    assert shown() == set()
    start_only(house.jobs, monkeypatch)  # nor does a restart bring the latest check back
    done = {"task": "retrain", "outcome": "succeeded"}
    until(lambda: house.collectors.get_sample_value("retuned_job_runs_total", done))
    assert shown() == set()


def test_what_is_no_longer_measured_leaves_the_metrics(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(workload: str) -> set[str]:
        return {
            family.name
            for family in house.collectors.collect()
            for sample in family.samples
            if sample.labels.get("workload") == workload
        }

    context, warehouse = house.jobs.context, house.jobs.context.warehouse
    house.answer_lately()
    figure = quality.Figure("bad", "m", "helpful_rate", "user", 0.5, 0.4, 0.6, 50)
    monkeypatch.setattr(quality, "measure", lambda *_: [figure])
    for job in ("quality", "watch"):
        house.jobs.run(job)
    context.monitor_metrics.drift_unknown("bad")
    context.metrics.workload_failures.labels("quality", "bad").inc()
    before = shown("bad")
    assert before == shown("good") | {"retuned_workload_failures"}
    assert {"retuned_helpful_ratio", "retuned_watch_active", "retuned_model_info", "retuned_promotions"} < before

    monkeypatch.setattr(quality, "measure", failing(OVERFLOW))
    with pytest.raises(PartsFailed):
        house.jobs.run("quality")
    assert "retuned_helpful_ratio" not in shown("good")  # the last figure is not that of now

    monkeypatch.setattr(quality, "measure", lambda *_: [figure])
    monkeypatch.setattr(context, "measured", lambda: ["good"])
    house.jobs.run("quality")
    of_its_champion = (
        "retuned_watch",
        "retuned_model",
        "retuned_promotions",
        "retuned_approvals",
        "retuned_training_runs",
    )
    counted = {"retuned_retrain_decisions", "retuned_workload_failures"}
    assert shown("bad") == {name for name in before if name.startswith(of_its_champion)} | counted
    for table in ("interactions", "aliases", "promotions"):
        warehouse.execute(f"DELETE FROM {table} WHERE workload = 'bad'")
    house.jobs.run("quality")
    assert shown("bad") == set()
    assert "retuned_helpful_ratio" in shown("good")

    monkeypatch.undo()
    Teacher(warehouse, "bad").ask("where is my parcel", "on its way")
    house.jobs.run("quality")
    assert "retuned_promotions" in shown("bad")


def test_a_champion_outside_of_the_busiest_workloads_is_watched(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(Context, "measured", lambda _: ["good"])
    monkeypatch.setattr(watch, "check", lambda _, __, workload, *___: seen.append(workload))
    house.jobs.run("watch")
    assert sorted(seen) == ["bad", "good"]


def test_announcements_follow_on_the_schedule_and_hold_nothing_up(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`bad` may not be announced at first, and its links cannot be made."""
    refused, over, measured = threading.Event(), threading.Event(), threading.Event()
    publish, link = house.publisher.publish, registry.link

    def guarded(topic: str, key: str, value: dict[str, Any]) -> None:
        if key == "bad" and not over.is_set():
            refused.set()
            raise BrokerRefused("topic 'retuned.model-events': refused (TopicAuthorizationFailedError)")
        publish(topic, key, value)

    def full(directory: Path, workload: str, rows: dict[str, str | None]) -> None:
        if workload == "bad" and not over.is_set():
            raise OSError(28, "No space left on device")
        link(directory, workload, rows)

    monkeypatch.setattr(house.publisher, "publish", guarded)
    monkeypatch.setattr(registry, "link", full)
    monkeypatch.setattr(quality, "measure", lambda *_: measured.set() or [])
    start_only(house.jobs, monkeypatch, "measure_quality", "announce")
    until(lambda: [key for _, key, _ in house.publisher.messages] == ["good"])
    until(lambda: "workload bad: " in house.jobs.context.failures.get("announce", ""))
    failures = partial(house.collectors.get_sample_value, "retuned_job_consecutive_failures", {"task": "announce"})
    until(lambda: (failures() or 0) > 2)
    assert refused.wait(10)
    assert measured.wait(10)
    over.set()
    until(lambda: sorted(key for _, key, _ in house.publisher.messages) == ["bad", "good"])
    until(lambda: "announce" not in house.jobs.context.failures)
    assert failures() == 0
    assert house.ended == []


@pytest.mark.parametrize("when", ["while it waits", "while it decides how long to wait"])
def test_a_clock_that_is_set_back_stops_no_job(house: House, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    readings, due, back = 0, False, timedelta(0)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) - back

    class Beginning(Clock):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            nonlocal readings
            readings = 0
            return super().now(tz)

    class Inside(Clock):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            nonlocal readings, back
            readings += 1
            if due and readings == 2:  # with which it decides how long to wait
                back = timedelta(hours=6)
            return super().now(tz)

    runs = list[bool]()
    monkeypatch.setattr(tasks, "measure_quality", lambda *_: runs.append(True))
    monkeypatch.setattr(scheduler, "datetime", Beginning)
    monkeypatch.setattr(base, "datetime", Inside)
    start_only(house.jobs, monkeypatch, "measure_quality")
    until(lambda: len(runs) > 2)
    if when == "while it waits":
        back = timedelta(hours=6)
    else:
        due = True
        until(lambda: back)
    before = len(runs)
    until(lambda: len(runs) > before + 3)  # one may have begun before


def test_a_warehouse_that_cannot_be_written_stops_the_daemon(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "measure", failing(WarehouseError("warehouse w: cannot write")))
    start_only(house.jobs, monkeypatch, "measure_quality")
    until(lambda: house.ended)
    assert isinstance(house.ended[0], WarehouseError)
