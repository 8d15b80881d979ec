"""The watch in the daemon: what is worse is taken back once, announced, and not promoted again by itself."""

import json
import random
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.daemon.operations import command
from fixtures.daemon.pages import page, text
from fixtures.feedback.teaching import Teacher
from fixtures.feedback.traffic import feedback, interactions
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.cli.summary import details
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jsontext import as_json
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings
from retuned.daemon.status import status
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.monitors.watch import check as watch
from retuned.retrain import versions
from retuned.retrain.release import registry
from retuned.retrain.release.rollout import Rollout

HOUR = timedelta(hours=1)
TOPIC = "retuned.model-events"


class Service:
    """A daemon's jobs, two versions, and apps that serve whatever is the champion."""

    def __init__(self, jobs: Jobs, folder: Path) -> None:
        self.jobs, self.warehouse, self.folder = jobs, jobs.context.warehouse, folder
        self.jobs.context.publisher = self.publisher = MemoryPublisher()
        self.metrics = CollectorRegistry()
        self.jobs.context.monitor_metrics = MonitorMetrics(self.metrics)
        self.since = utc_now() - 3 * HOUR
        self.answers = 0

    def register(self, weights: str, workload: str = "support") -> str:
        adapter, base = self.folder / "adapter", self.folder / "base"
        for folder in (adapter, base):
            folder.mkdir(exist_ok=True)
        (base / "config.json").write_text("{}")
        (base / "model.safetensors").write_text("weights")
        (adapter / "adapter_config.json").write_text("{}")
        (adapter / "adapter_model.safetensors").write_text(weights)
        return registry.register(
            self.warehouse,
            self.jobs.context.settings.models.directory,
            workload,
            adapter,
            base_model=base,
            parent_version=None,
            dataset_version="d1",
            run_id=f"run-{weights}",
            details={},
            now=self.since,
        ).version

    def promote(self, version: str, workload: str = "support", actor: Any = "gate", at: datetime | None = None) -> None:
        Rollout(self.warehouse, self.jobs.context.settings, self.publisher, TOPIC).promote(
            workload, version, actor, "better on the holdout", at or self.since
        )

    def rated(self, version: str | None, good: int, bad: int, workload: str = "support") -> None:
        """Answers of a version since it was promoted, or for an hour before the latest promotion, with votes."""
        newest = versions.aliases(self.warehouse, workload).get("champion") == version
        start = self.since if newest else self.since - 2 * HOUR
        rng = random.Random(self.answers)
        ids = interactions(
            self.warehouse,
            ["How long?"] * (good + bad),
            rng,
            start=start,
            step=HOUR / (good + bad),
            workload=workload,
            model=versions.model_name(workload, version),
            offset=self.answers,
        )
        rng.shuffle(ids)
        for about, value, offset in ((ids[:good], True, 0), (ids[good:], False, good)):
            feedback(self.warehouse, about, "helpful", value, when=start, offset=self.answers + offset)
        self.answers += good + bad

    def changes(self) -> list[tuple[str, str | None, str]]:
        rows = self.warehouse.rows("SELECT event, version, actor FROM promotions ORDER BY created_at, rowid")
        return [(row["event"], row["version"], row["actor"]) for row in rows]

    def champion(self, workload: str = "support") -> str | None:
        return versions.aliases(self.warehouse, workload).get("champion")

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.get_sample_value(name, {"workload": "support", **labels})


def settings_for(folder: Path, **sections: Any) -> Settings:
    return Settings(
        warehouse={"path": folder / "data" / "retuned.duckdb"},
        models={"directory": folder / "models"},
        **sections,
    )


@pytest.fixture
def service(tmp_path: Path) -> Any:
    with opened(settings_for(tmp_path, schedule={"watch_seconds": 0.2}, retention={"keep_days": 1})) as local:
        jobs = local.jobs
        yield Service(jobs, tmp_path)


def put_a_worse_one_into_service(service: Service) -> tuple[str, str]:
    one, two = service.register("one"), service.register("two")
    service.promote(one, at=service.since - 4 * HOUR)
    service.promote(two)
    service.rated(one, 425, 75)
    service.rated(two, 130, 70)
    return one, two


def until(happened: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_worse_is_taken_back_once_and_the_world_is_told(service: Service) -> None:
    one, two = put_a_worse_one_into_service(service)
    service.jobs.start()
    service.jobs.lead()
    until(lambda: len(service.changes()) > 2)
    until(lambda: service.metric("retuned_watch_active") == 0)
    service.jobs.context.stop.set()
    service.jobs.shutdown()
    service.jobs.run("watch")
    assert service.changes() == [("promoted", one, "gate"), ("promoted", two, "gate"), ("rolled_back", one, "watch")]
    assert service.champion() == one
    assert "previous" not in versions.aliases(service.warehouse, "support")
    why = (
        "unhelpful by user: 35% of 200 votes by 200 accounts, before 15% of 500 votes by 500 accounts "
        "(95% interval of the difference +12 to +28 points): worse by more than 5 points"
    )
    _, _, message = service.publisher.messages[-1]
    assert (message["event"], message["version"], message["reason"]) == ("rolled_back", one, why)
    assert service.warehouse.rows("SELECT announced FROM promotions WHERE NOT announced") == []
    (stored,) = service.warehouse.rows("SELECT verdict, reasons FROM watch_checks")
    assert (stored["verdict"], json.loads(stored["reasons"])) == ("roll_back", [why])
    assert service.metric("retuned_watch_checks_total", verdict="roll_back") == 1
    for name, labels in (
        ("retuned_watch_evidence_ratio", {"metric": "helpful", "source": "user"}),
        ("retuned_watch_power", {}),
        ("retuned_watch_detection_seconds", {}),
    ):
        assert service.metric(name, **labels) is None  # nothing is watched


def test_what_is_as_good_stays_and_its_state_is_shown(service: Service) -> None:
    one, two = service.register("one"), service.register("two")
    service.promote(one, at=service.since - 4 * HOUR)
    service.promote(two)
    service.rated(one, 425, 75)
    service.rated(two, 170, 30)
    service.jobs.run("watch")
    assert service.champion() == two
    assert service.metric("retuned_watch_active") == 1
    assert service.metric("retuned_watch_evidence_ratio", metric="helpful", source="user") == 0
    assert service.metric("retuned_watch_power") == 1
    assert 3_600 <= (service.metric("retuned_watch_detection_seconds") or 0) < 24 * 3_600
    told = json.loads(as_json(status(service.jobs, None, None)))
    seen = told["workloads"]["support"]["watch"]
    assert (seen["version"], seen["previous_version"], seen["verdict"]) == (two, one, "go_on")
    assert seen["comparisons"][0]["n_after"] == 200
    assert dict(details("support", told))["watch"].startswith(f"support@{two}: go on: neither shown")
    shown = text(page(Local(service.jobs), "/workloads/support"))
    assert f"Watch of support@{two} against support@{one}" in shown
    assert "15% of 200 15% of 500" in shown
    assert "votes a day a fall of 20 points shows after" in shown


@pytest.mark.parametrize("ends", ["by hand", "switched off"])
def test_a_watch_that_nobody_goes_on_with_is_not_shown(service: Service, ends: str) -> None:
    one, two = service.register("one"), service.register("two")
    service.promote(one, at=service.since - 4 * HOUR)
    service.promote(two)
    service.rated(two, 100, 20)
    service.jobs.run("watch")
    if ends == "by hand":
        local = Local(service.jobs)
        command(local, "rollback", "support", {"asked_by": "anna"})
        command(local, "promote", "support", {"version": two, "asked_by": "anna"})
    else:
        settings = service.jobs.context.settings
        off = settings.watch.model_copy(update={"enabled": False})
        service.jobs.context.settings = settings.model_copy(update={"watch": off})
    service.jobs.run("watch")
    told = json.loads(as_json(status(service.jobs, None, None)))
    assert told["workloads"]["support"]["champion"] == two
    assert told["workloads"]["support"]["watch"] is None
    assert "watch" not in dict(details("support", told))
    assert "Watch of" not in text(page(Local(service.jobs), "/workloads/support"))


def test_a_watch_that_can_find_nothing_is_shown_as_such(service: Service) -> None:
    one, two = service.register("one"), service.register("two")
    service.promote(one, at=service.since - 4 * HOUR)
    service.promote(two)
    service.jobs.run("watch")
    assert service.metric("retuned_watch_power") == 0
    assert service.metric("retuned_watch_detection_seconds") is None
    told = json.loads(as_json(status(service.jobs, None, None)))
    line = dict(details("support", told))["watch"]
    assert "nobody votes on the answers: the watch can find nothing but slow ones" in line


def test_the_first_champion_gives_way_to_the_base_model(service: Service) -> None:
    one = service.register("one")
    service.promote(one)
    service.rated(None, 425, 75)
    service.rated(one, 130, 70)
    service.jobs.run("watch")
    assert service.champion() is None
    assert service.changes()[-1] == ("rolled_back", None, "watch")
    assert service.publisher.messages[-1][2]["model"] == "support@base"


def test_a_verdict_that_a_kill_kept_from_being_carried_out_is_carried_out(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    with opened(settings) as local:
        jobs = local.jobs
        service = Service(jobs, tmp_path)
        one, two = put_a_worse_one_into_service(service)
        seen = watch.check(jobs.context.warehouse, jobs.context.settings, "support", utc_now())
        assert seen is not None
        assert (seen.verdict, service.champion()) == ("roll_back", two)
    with opened(settings) as local:
        jobs = local.jobs
        again = Service(jobs, tmp_path)
        jobs.run("watch")
        jobs.run("watch")
        assert again.changes()[2:] == [("rolled_back", one, "watch")]


def test_what_a_person_put_into_service_meanwhile_stays(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    _, two = put_a_worse_one_into_service(service)
    three = service.register("three")
    check = watch.check

    def meanwhile(*arguments: Any) -> watch.WatchCheck | None:
        seen = check(*arguments)
        service.promote(three, actor="operator", at=utc_now())
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(watch, "check", meanwhile)
        with pytest.raises(Exception, match=f"support@{two} is not taken back: it no longer serves"):
            service.jobs.run("watch")
    service.jobs.run("watch")
    assert service.champion() == three
    assert [event for event, _, _ in service.changes()] == ["promoted"] * 3


def test_one_workload_does_not_touch_another(service: Service) -> None:
    one, _ = put_a_worse_one_into_service(service)
    sold = service.register("sales", workload="sales")
    service.promote(sold, workload="sales")
    service.rated(None, 400, 100, workload="sales")
    service.rated(sold, 160, 40, workload="sales")
    service.jobs.run("watch")
    assert (service.champion(), service.champion("sales")) == (one, sold)
    assert service.metrics.get_sample_value("retuned_watch_active", {"workload": "sales"}) == 1


def test_the_policy_asks_for_something_new_after_a_version_was_taken_back(service: Service) -> None:
    _, two = put_a_worse_one_into_service(service)
    run = {"workload": "support", "reasons": "[]", "state": "succeeded", "started_at": service.since - HOUR}
    service.warehouse.insert("runs", id="r1", version=two, finished_at=service.since - HOUR, **run)
    assert not service.jobs.runs.evidence("support").taken_back
    service.jobs.run("watch")
    assert service.jobs.runs.evidence("support").taken_back


def test_what_the_watch_reads_is_not_archived(service: Service) -> None:
    one, two = service.register("one"), service.register("two")
    service.since = utc_now() - 60 * HOUR
    service.promote(one, at=service.since - 4 * HOUR)
    service.promote(two)
    service.rated(one, 425, 75)
    unrated = {"start": service.since - 2 * HOUR, "model": f"support@{one}", "offset": 10_000}
    interactions(service.warehouse, ["How long?"] * 100, random.Random(1), **unrated)
    Teacher(service.warehouse).ask("Long ago?", "Yes.")
    service.rated(two, 170, 30)
    service.jobs.run("watch")
    before = watch.latest(service.warehouse, "support")
    assert service.jobs.run("archive").rows == 1
    service.jobs.run("watch")
    after = watch.latest(service.warehouse, "support")
    assert before is not None
    assert after is not None
    assert after.comparisons == before.comparisons


def test_a_change_by_hand_keeps_its_reason_and_who_asked(service: Service) -> None:
    one = service.register("one")
    service.rated(None, 10, 10)
    asked = Local(service.jobs)
    command(asked, "promote", "support", {"version": one, "asked_by": "anna"})
    command(asked, "rollback", "support", {"reason": "it was rude", "asked_by": "bert"})
    command(asked, "promote", "support", {"version": one, "reason": "once more"})
    command(asked, "rollback", "support", {})
    rows = service.warehouse.rows("SELECT actor, reason FROM promotions ORDER BY created_at, rowid")
    assert [row["reason"] for row in rows] == [
        "asked for by anna",
        "it was rude (asked for by bert)",
        "once more",
        "asked for by an operator",
    ]
    assert {row["actor"] for row in rows} == {"operator"}
