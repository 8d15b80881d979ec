"""A rollout in the daemon: its steps, its end, and what people are shown of it."""

import json
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.daemon.operations import command
from fixtures.daemon.pages import browser, page, text
from fixtures.feedback.traffic import registered, store
from fixtures.feedback.watched import HOUR, NEW, OLD, SINCE, rated
from fixtures.kafka.brokers import until
from fixtures.servers.judges import serving
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.daemon.cli.summary import details
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jsontext import as_json
from retuned.daemon.metrics import Metrics
from retuned.daemon.operations.local import Local
from retuned.daemon.settings import Settings
from retuned.daemon.status import status
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.monitors.watch import canary
from retuned.retrain import versions
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.release.routes import routes

DAY = timedelta(days=1)


class Daemon:
    """A daemon's jobs at a time that the test sets; v2 is to replace v1."""

    def __init__(self, warehouse: Warehouse, folder: Path, **sections: Any) -> None:
        self.warehouse, self.folder, self.now = warehouse, folder, SINCE
        for version in ("v1", "v2"):
            registered(warehouse, version)
        self.start(**sections)
        self.publisher.messages.clear()
        self.jobs.context.rollout.promote("support", "v1", "operator", "the first", SINCE - 10 * DAY)
        self.jobs.context.rollout.begin("support", "v2", "gate", "better", SINCE)

    def start(self, **sections: Any) -> None:
        self.collectors, self.publisher = CollectorRegistry(), MemoryPublisher()
        rollout = {"rollout": {"steps": [0.25, 1.0], "holdback": 0.05}}
        settings = Settings.model_validate(
            {
                "models": {"directory": self.folder / "models"},
                "warehouse": {"path": self.warehouse.path},
                **rollout,
                **sections,
            }
        )
        metrics = Metrics(self.collectors), MonitorMetrics(self.collectors), RetrainMetrics(self.collectors)
        stop = threading.Event()
        context = Context(self.warehouse, settings, self.publisher, *metrics, stop, lambda: self.now)
        self.jobs = Jobs(context, print)

    def look(self, now: datetime) -> None:
        self.now = now
        self.jobs.context.reconciler.run()  # its links
        self.jobs.run("watch")

    def said(self) -> list[tuple[str, str, float]]:
        return [(one["event"], one["model"], one["share"]) for _, _, one in self.publisher.messages]

    def arms(self) -> list[tuple[str | None, float]]:
        (route,) = routes(self.warehouse)
        return [(arm.version, arm.share) for arm in route.arms]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.collectors.get_sample_value(name, {"workload": "support", **labels})

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(as_json(status(self.jobs, None, None)))
        return told

    def shown(self) -> tuple[str, str]:
        """The line of the command line, and the page."""
        told = self.status()
        line = dict(details("support", told))["rollout"]
        return line, text(page(Local(self.jobs), "/workloads/support"))


@pytest.fixture
def daemon(warehouse: Warehouse, tmp_path: Path) -> Daemon:
    made = Daemon(warehouse, tmp_path)
    rated(warehouse, OLD, 425, 75, start=SINCE)
    return made


def test_what_is_as_good_takes_its_steps_and_ends_with_the_watch(daemon: Daemon) -> None:
    rated(daemon.warehouse, NEW, 170, 30)
    daemon.look(SINCE + 12 * HOUR)
    assert daemon.arms() == [("v2", 0.25), ("v1", 0.75)]
    assert daemon.metric("retuned_rollout_answers") == 200
    assert daemon.metric("retuned_rollout_evidence_ratio", metric="helpful", source="user") == 0
    assert daemon.metric("retuned_rollout_decisions_total", verdict="hold") == 1
    daemon.look(SINCE + DAY)
    daemon.look(SINCE + DAY + HOUR)
    assert daemon.arms() == [("v2", 0.95), ("v1", 0.05)]
    assert daemon.said()[1:] == [("canary", "support@v2", 0.25), ("promoted", "support@v2", 0.95)]
    why = daemon.publisher.messages[-1][2]["reason"]
    assert why.startswith("not shown to be worse by more than 5 points; unhelpful")
    assert daemon.metric("retuned_rollout_decisions_total", verdict="advance") == 1
    assert daemon.metric("retuned_rollout_answers") is None
    assert daemon.metric("retuned_rollout_share_ratio") == 0.95
    assert daemon.metric("retuned_watch_active") == 1
    daemon.look(SINCE + 15 * DAY)
    daemon.look(SINCE + 16 * DAY)
    assert daemon.arms() == [("v2", 1.0)]
    assert daemon.said()[-1] == ("completed", "support@v2", 1.0)
    assert daemon.publisher.messages[-1][2]["reason"].startswith("the watch is over")
    assert daemon.metric("retuned_rollout_share_ratio") is None
    assert daemon.metric("retuned_watch_active") == 0
    assert len(daemon.publisher.messages) == 4


def test_what_is_asked_in_shadow_is_shown_as_such(warehouse: Warehouse, tmp_path: Path) -> None:
    daemon = Daemon(warehouse, tmp_path, rollout={"steps": [0.25, 1.0], "shadow": 0.1})
    daemon.look(SINCE + HOUR)
    assert daemon.arms() == [("v2", 0.0), ("v1", 1.0)]
    assert daemon.metric("retuned_rollout_answers") == 0
    line, shown = daemon.shown()
    assert "support@v2 in shadow for 0.1 of the conversations since" in line
    assert "hold: the shadow has lasted 3600 s of 24 hours; it has given no answer yet" in line
    assert "In shadow since" in shown
    assert "asked beside support@v1 for 10% of the conversations, and shown to nobody" in shown
    daemon.look(SINCE + 8 * DAY)
    assert daemon.arms() == [("v2", 0.25), ("v1", 0.75)]
    assert daemon.said()[1:] == [("canary", "support@v2", 0.0), ("canary", "support@v2", 0.25)]
    assert "it has given no answer yet" in daemon.publisher.messages[-1][2]["reason"]
    assert "in shadow" not in daemon.shown()[0]


@pytest.mark.full
def test_a_judge_that_hangs_holds_up_no_other_workloads_canary(warehouse: Warehouse, tmp_path: Path) -> None:
    asked, answers = threading.Event(), threading.Event()

    def hang(_: str) -> str:
        asked.set()
        answers.wait(240)
        return "Verdict: tie"

    other = {"workload": "zoo"}  # looked at after the one that waits
    for version in ("v1", "v2"):
        registered(warehouse, version, "zoo")
    with serving() as judge:
        judge.reply = hang
        daemon = Daemon(
            warehouse,
            tmp_path,
            rollout={"steps": [0.25, 1.0], "shadow": 0.1},
            evaluate={"judge_url": judge.url, "judge_model": "wise", "judge_timeout_seconds": 240},
            metric={"name": "exact"},
            schedule={"watch_seconds": 0.2},
            workloads={"zoo": {"rollout": {"shadow": 0.0}}},
        )
        rollout = daemon.jobs.context.rollout
        rollout.promote("zoo", "v1", "operator", "the first", SINCE - 10 * DAY)
        rollout.begin("zoo", "v2", "gate", "better", SINCE)
        rated(warehouse, "zoo@v1", 425, 75, start=SINCE, **other)
        rated(warehouse, "zoo@v2", 130, 70, start=SINCE, **other)
        (asked_in_shadow, *_) = rated(warehouse, OLD, 1, 0, name="comment", start=SINCE, response="Within 30 days.")
        value = json.dumps({"model": NEW, "response": "Never.", "input_tokens": 1, "output_tokens": 1})
        answer = {"name": "shadow_answer", "source": "app", "value": value, "interaction_id": asked_in_shadow}
        place = {"timestamp": SINCE, "topic": "feedback", "partition": 0, "offset": 0, "received_at": SINCE}
        store(warehouse, "shadow_answers", [{"id": "s", **answer, **place}])
        daemon.jobs.context.now = utc_now  # the scheduler makes up for each interval that it missed
        daemon.jobs.start()
        daemon.jobs.lead()
        try:
            assert asked.wait(120)
            until(lambda: versions.aliases(warehouse, "zoo").get("canary") is None)
            assert warehouse.rows("SELECT * FROM shadow_scores") == []
        finally:
            answers.set()
            daemon.jobs.context.stop.set()
            daemon.jobs.shutdown()
    assert ("canary_rolled_back", "zoo@v1", 1.0) in daemon.said()


def test_a_canary_that_is_worse_is_taken_back_once_and_never_promoted_again(daemon: Daemon) -> None:
    rated(daemon.warehouse, NEW, 130, 70)
    run = {"workload": "support", "reasons": "[]", "state": "succeeded", "started_at": SINCE - HOUR}
    daemon.warehouse.insert("runs", id="r1", version="v2", finished_at=SINCE - HOUR, **run)
    daemon.look(SINCE + 12 * HOUR)
    daemon.look(SINCE + 13 * HOUR)
    assert daemon.arms() == [("v1", 1.0)]
    assert daemon.said()[2:] == [("canary_rolled_back", "support@v1", 1.0)]
    why = (
        "unhelpful by user: 35% of 200 votes by 200 accounts, at the same time 15% of 500 votes by 500 accounts "
        "(95% interval of the difference +13 to +27 points): worse by more than 5 points"
    )
    assert daemon.publisher.messages[-1][2]["reason"] == why
    assert daemon.metric("retuned_promotions_total", event="canary_rolled_back") == 1
    assert daemon.metric("retuned_rollout_decisions_total", verdict="roll_back") == 1
    assert daemon.jobs.runs.evidence("support").taken_back
    assert daemon.warehouse.row(versions.QUERIES["taken_back"], {"workload": "support", "version": "v2"}) is not None


def test_a_decision_that_a_kill_kept_from_being_carried_out_is_carried_out(daemon: Daemon) -> None:
    rated(daemon.warehouse, NEW, 130, 70)
    seen = canary.check(daemon.warehouse, daemon.jobs.context.settings, "support", SINCE + 12 * HOUR)
    assert seen is not None
    assert (seen.verdict, daemon.arms()) == ("roll_back", [("v2", 0.25), ("v1", 0.75)])
    daemon.start()
    daemon.look(SINCE + 13 * HOUR)
    assert (daemon.arms(), len(daemon.warehouse.rows("SELECT * FROM rollout_checks"))) == ([("v1", 1.0)], 1)


@pytest.mark.parametrize("sections", [{"watch": {"enabled": False}}, {}], ids=["no watch", "taken back by the watch"])
def test_a_holdback_ends_with_the_watch_however_that_ends(daemon: Daemon, sections: dict[str, Any]) -> None:
    rated(daemon.warehouse, NEW, 170, 30)
    daemon.start(**sections)
    daemon.look(SINCE + DAY)
    if sections:
        assert daemon.arms() == [("v2", 1.0)]
        assert daemon.said()[-1] == ("completed", "support@v2", 1.0)
        return
    rated(daemon.warehouse, OLD, 425, 75, start=SINCE + DAY)
    rated(daemon.warehouse, NEW, 100, 100, start=SINCE + DAY)
    daemon.look(SINCE + 2 * DAY)
    assert daemon.arms() == [("v1", 1.0)]
    assert daemon.said()[-1] == ("rolled_back", "support@v1", 1.0)
    assert daemon.warehouse.rows("SELECT state FROM rollouts") == [{"state": "rolled_back"}]


def test_a_person_sees_who_answers_how_much_and_what_the_next_step_waits_for(daemon: Daemon) -> None:
    line, shown = daemon.shown()
    assert line.endswith("; not looked at yet")
    rated(daemon.warehouse, NEW, 70, 30)
    daemon.look(SINCE + 12 * HOUR)
    line, shown = daemon.shown()
    assert line.startswith(
        "support@v2 0.25 of the conversations since 2026-03-03 09:00 UTC, then 1, not before "
        "2026-03-04 09:00 UTC; hold: the step has lasted 12 hours of 24 hours; the canary gave 100 of 200 answers"
    ), line
    assert "25% of new conversations since 3 Mar 09:00 UTC; then 100%, not before 4 Mar 09:00 UTC" in shown
    assert "30% of 100 15% of 500" in shown
    assert "canary v2 25% by gate" in shown
    daemon.now += 13 * HOUR  # it is due
    line, shown = daemon.shown()
    assert "since 2026-03-03 09:00 UTC, then 1, once nothing holds it; hold" in line
    assert "then 100%, once nothing holds it" in shown
    told = daemon.status()["workloads"]["support"]
    assert told["rollout"]["next_at"] == "2026-03-04T09:00:00.000Z"
    assert (told["champion"], told["rollout"]["share"], told["rollout"]["next_share"]) == ("v1", 0.25, 1.0)
    assert told["rollout"]["check"]["answers"] == 100
    rated(daemon.warehouse, NEW, 100, 0, start=SINCE + HOUR)
    daemon.look(SINCE + DAY)
    line, shown = daemon.shown()
    assert line.endswith("support@v1 the rest until the watch has ended")
    assert "95% of new conversations" in shown
    daemon.jobs.context.rollout.complete("support", "for the test", daemon.now)
    assert daemon.status()["workloads"]["support"]["rollout"] is None


def test_an_operator_rolls_back_on_the_page(daemon: Daemon) -> None:
    site = browser(Local(daemon.jobs))
    shown = text(site.get("/workloads/support").text)
    assert "v2 leaves service, and v1 answers all conversations again." in shown
    assert site.post("/workloads/support/rollback", data={"reason": " "}).status_code == 400
    assert daemon.arms() == [("v2", 0.25), ("v1", 0.75)]
    assert '<input type="hidden" name="version" value="v2">' in site.get("/workloads/support").text
    sent = {"reason": "it was rude", "version": "v2"}
    done = site.post("/workloads/support/rollback", data=sent)
    assert (done.status_code, done.headers["location"]) == (303, "/workloads/support")
    assert daemon.arms() == [("v1", 1.0)]
    assert site.post("/workloads/support/rollback", data=sent).status_code == 409, "it is sent twice"
    assert daemon.arms() == [("v1", 1.0)]
    message = daemon.publisher.messages[-1][2]
    assert (message["event"], message["reason"]) == ("canary_rolled_back", "it was rude")
    assert "canary rolled back" in text(site.get("/workloads/support?range=90d").text)


def test_a_champion_without_one_before_it_gives_way_to_the_base_model(daemon: Daemon) -> None:
    site = browser(Local(daemon.jobs))
    site.post("/workloads/support/rollback", data={"reason": "it was rude"})
    daemon.warehouse.execute("DELETE FROM aliases WHERE alias = 'previous'")
    shown = text(site.get("/workloads/support").text)
    assert "v1 leaves service, and the base model answers. No version before it is left to go back to." in shown
    assert "Roll back" not in shown
    page = {"Referer": "http://localhost:8321/workloads/support?range=1d", "Accept": "text/html"}
    refused = site.post("/workloads/support/rollback", data={"reason": "rude"}, headers=page)
    assert (refused.status_code, 'href="/workloads/support?range=1d">Back</a>' in refused.text) == (409, True)
    strange = site.post(
        "/workloads/support/rollback", data={"reason": "rude"}, headers=page | {"Referer": "http://x/y"}
    )
    assert "Back" not in strange.text
    done = site.post("/workloads/support/promote", data={"version": "base", "reason": "rude"})
    assert (done.status_code, done.headers["location"]) == (303, "/workloads/support")
    assert daemon.status()["workloads"]["support"]["champion"] is None
    assert "Return to the base model" not in text(site.get("/workloads/support").text)
    daemon.jobs.context.rollout.promote("support", "v1", "operator", "for the test", daemon.now)
    assert "v1 leaves service, and the base model answers again." in text(site.get("/workloads/support").text)


def test_an_operator_takes_a_canary_back(daemon: Daemon) -> None:
    done = command(Local(daemon.jobs), "rollback", "support", {"reason": "it was rude", "asked_by": "anna"})
    assert done["done"] == "support@v2 is taken back; support@v1 is the champion"
    message = daemon.publisher.messages[-1][2]
    assert (message["event"], message["reason"]) == ("canary_rolled_back", "it was rude (asked for by anna)")


def test_what_a_canary_is_compared_by_is_not_archived(daemon: Daemon) -> None:
    def seen() -> tuple[Any, Any]:
        daemon.look(SINCE + 6 * DAY)
        check = daemon.status()["workloads"]["support"]["rollout"]["check"]
        return check["answers"], check["comparisons"]

    rated(daemon.warehouse, NEW, 70, 30)
    rated(daemon.warehouse, NEW, 20, 0, name="comment", start=SINCE + HOUR)
    daemon.start(retention={"keep_days": 1}, rollout={"steps": [0.25, 1.0], "minimum_answers": 500})
    before = seen()
    assert (before[0], before[1][0]["n_before"]) == (120, 500)
    rated(daemon.warehouse, OLD, 10, 0, name="comment", start=SINCE - 2 * DAY)  # nobody needs these
    for start in (SINCE - 9 * DAY, SINCE + 200 * DAY - 2 * HOUR):  # the windows of drift are of these
        rated(daemon.warehouse, OLD, 200, 0, start=start)
    daemon.now = SINCE + 200 * DAY
    assert daemon.jobs.run("archive").rows == 20
    assert seen() == before


@pytest.mark.full
def test_training_is_a_cost_of_the_canary_and_of_its_promotion(daemon: Daemon) -> None:
    run = {"workload": "support", "reasons": "[]", "state": "succeeded", "started_at": SINCE - HOUR}
    daemon.warehouse.insert("runs", id="r1", version="v2", finished_at=SINCE - HOUR, train_seconds=3_600.0, **run)
    daemon.start(roi={"training_hourly_rate": 5.0})
    rated(daemon.warehouse, NEW, 170, 30)
    daemon.now = SINCE + HOUR
    daemon.jobs.run("quality")
    daemon.look(SINCE + DAY)
    daemon.jobs.run("quality")
    (row,) = daemon.warehouse.rows("SELECT version, amount FROM ledger WHERE item = 'training'")
    assert row == {"version": "v2", "amount": 5.0}
    tenures = daemon.status()["workloads"]["support"]["roi"]["promotions"]
    costs = [(one["event"], one["version"], one["costs"]) for one in tenures]
    assert costs == [("promoted", "v2", 5.0), ("promoted", "v1", 0.0)]
