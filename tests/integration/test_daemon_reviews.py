"""Where a person has to look first, a dataset waits before it is trained on: approved, refused, expired, made anew."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.testclient import TestClient

from fixtures.daemon.doors import FakeDaemon
from fixtures.daemon.operations import ask, command
from fixtures.daemon.run_queues import NOON, RunQueue
from fixtures.feedback.teaching import Teacher
from fixtures.models import datasets as building
from fixtures.models.datasets import teach
from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.cli.summary import details
from retuned.daemon.jsontext import through_json
from retuned.daemon.operations import rows
from retuned.daemon.web.routes import application
from retuned.retrain.data import build
from retuned.retrain.data import dataset as datasets
from retuned.retrain.release import approve
from retuned.retrain.stages import dataset as dataset_stage

REVIEWED = {
    "dataset": {"minimum_rows": 1, "review": "required"},
    "gate": {"minimum_examples": 1},
    "rollout": {"approve_within_seconds": 86_400},
}


@pytest.fixture
def queue(warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunQueue]:
    """Runs whose datasets are real; trainings end when the test says so."""
    load = datasets.load
    made = RunQueue(warehouse, tmp_path, monkeypatch)
    monkeypatch.setattr(dataset_stage, "build_dataset", lambda *given: building.build_dataset(*given[:4]))
    monkeypatch.setattr(datasets, "load", load)
    made.configure(**REVIEWED)
    made.at_train = lambda _: made.stop.set()
    teach(Teacher(warehouse), range(12), source="user", user_id="bert")
    yield made
    made.stop.set()


def asked(queue: RunQueue) -> dict[str, Any]:
    """Have the workload retrained, until its dataset waits; the request."""
    queue.runs.ask("support", asked_by="an operator")
    queue.jobs.run("resume")
    assert queue.states() == {"support": "interrupted"}
    assert queue.waits() == {"support": "review"}
    assert queue.began == []
    (request, *_) = ask(queue.service, "approvals", workload="support")
    return request


def test_a_dataset_waits_is_shown_and_is_trained_on_once_it_is_approved(queue: RunQueue) -> None:
    publisher = queue.jobs.context.publisher = MemoryPublisher()
    request = asked(queue)
    assert [request[key] for key in ("kind", "state", "champion")] == ["dataset", "waiting", None]
    assert request["counts"]["taught"][""]["rows"] + request["counts"]["held_out"][""]["rows"] == 12
    status = through_json(ask(queue.service, "status"))
    to_do = dict(details("support", status))["to do"]
    assert f"dataset {request['version']} waits until" in to_do
    assert "`retuned approve support`" in to_do
    assert queue.collectors.get_sample_value("retuned_approvals_waiting", {"workload": "support"}) == 1
    (message,) = [message for _, _, message in publisher.messages]
    assert message["event"] == "approval_requested"
    assert {key: message["approval"][key] for key in ("kind", "version", "model")} == {
        "kind": "dataset", "version": request["version"], "model": None,
    }  # fmt: skip
    settings = queue.jobs.context.settings
    browser = TestClient(application(queue.service, cast(Any, FakeDaemon()), settings), "http://localhost:8321")
    page, own = browser.get("/").text, browser.get(f"/approvals/{request['id']}?decision=approve").text
    assert "A dataset waits for approval" in page
    assert f'href="/approvals/{request["id"]}"' in page
    assert f"train on dataset {request['version']}?" in own
    assert f'<td>held out</td><td></td><td class="n">{request["counts"]["held_out"][""]["rows"]}</td>' in own
    queue.jobs.run("resume")
    assert queue.began == [], "it still waits"
    done = ask(
        queue.service, "decide_approval", id=request["id"], decision="approve", reason="looks right", user="otto"
    )
    assert done["done"] == f"dataset {request['version']} of support is approved, and its training continues"
    queue.jobs.run("resume")
    assert queue.began == ["support"]
    assert ask(queue.service, "approvals", workload="support")[0]["actor"] == "otto"
    assert len(ask(queue.service, "approvals", workload="support")) == 1


def test_what_a_person_refuses_is_not_trained_on_and_not_asked_about_again(queue: RunQueue) -> None:
    request = asked(queue)
    ask(queue.service, "decide_approval", id=request["id"], decision="refuse", reason="half of it is spam", user="otto")
    queue.jobs.run("resume")
    (row,) = queue.warehouse.rows("SELECT state, error FROM runs")
    assert row["state"] == "refused"
    assert "refused by otto at 2026-04-01 12:00 UTC: half of it is spam" in row["error"]
    queue.runs.ask("support", asked_by="an operator")
    queue.jobs.run("resume")
    assert [row["state"] for row in queue.warehouse.rows("SELECT state FROM runs")] == ["refused", "refused"]
    assert queue.began == []
    assert len(ask(queue.service, "approvals", workload="support")) == 1


def test_what_nobody_decides_on_in_time_is_not_trained_on(queue: RunQueue) -> None:
    asked(queue)
    queue.now = NOON + timedelta(days=1, minutes=1)
    queue.jobs.run("quality")
    queue.jobs.run("resume")
    (row,) = queue.warehouse.rows("SELECT state, error FROM runs")
    assert (row["state"], "expired" in row["error"]) == ("refused", True)
    assert queue.began == []


def test_a_decision_about_a_row_or_an_account_has_the_dataset_made_anew(queue: RunQueue) -> None:
    first = asked(queue)
    id = next(row["feedback_id"] for row in ask(queue.service, "rows", workload="support", state="taught"))
    ask(queue.service, "decide_rows", action="drop", ids=[id], reason="wrong", user="anna")
    assert queue.waits() == {"support": "turn"}
    queue.jobs.run("resume")
    assert queue.waits() == {"support": "review"}
    second, before = ask(queue.service, "approvals", workload="support")
    assert (before["id"], before["state"]) == (first["id"], "superseded")
    assert before["reason"] == "anna decided about its rows; it is made anew"
    assert (second["state"], second["counts"]["overruled"]) == ("waiting", {"dropped": {"rows": 1}})
    assert second["version"] != first["version"]
    ask(queue.service, "decide_account", action="trust", account="bert", reason="our editor", user="anna")
    queue.jobs.run("resume")
    third = ask(queue.service, "approvals", workload="support")[0]
    assert (third["state"], third["id"] != second["id"]) == ("waiting", True)
    ask(queue.service, "decide_approval", id=third["id"], decision="approve", reason="fine", user="anna")
    queue.jobs.run("resume")
    assert queue.began == ["support"]
    assert [row["attempts"] for row in queue.warehouse.rows("SELECT attempts FROM runs")] == [0]


def test_a_row_that_is_dropped_while_the_dataset_is_built_is_not_in_the_one_that_waits(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child has its extract already; its work takes minutes."""
    work, dropped = build.work, list[str]()

    def during(*given: Any) -> dict[str, Any]:
        result = work(*given)
        if not dropped:
            (row,) = queue.warehouse.rows("SELECT id FROM feedback LIMIT 1")
            dropped.append(row["id"])
            ask(queue.service, "decide_rows", action="drop", ids=dropped, reason="libel", user="anna")
        return result

    monkeypatch.setattr(build, "work", during)
    request = asked(queue)
    held = queue.warehouse.rows("SELECT feedback_id FROM dataset_rows WHERE dataset_version = $1", [request["version"]])
    assert dropped[0] not in {row["feedback_id"] for row in held}
    assert request["counts"]["overruled"] == {"dropped": {"rows": 1}}
    waiting, before = ask(queue.service, "approvals", workload="support")
    assert (waiting["state"], before["state"], before["reason"]) == ("waiting", "superseded", approve.DECIDED)


@pytest.mark.parametrize("found_by", ["approval", "job"])
def test_a_dataset_is_outdated_though_a_kill_followed_the_decision(
    queue: RunQueue, monkeypatch: pytest.MonkeyPatch, found_by: str
) -> None:
    request = asked(queue)
    id = next(row["feedback_id"] for row in ask(queue.service, "rows", workload="support", state="taught"))
    with monkeypatch.context() as patched:
        patched.setattr(rows, "make_anew", lambda *_: None)
        ask(queue.service, "decide_rows", action="drop", ids=[id], reason="libel", user="anna")
    if found_by == "approval":
        with pytest.raises(RetunedError, match="it is made anew, and waits for approval again"):
            ask(queue.service, "decide_approval", id=request["id"], decision="approve", reason="fine", user="otto")
    else:
        queue.jobs.run("quality")
    queue.jobs.run("resume")
    assert queue.began == []
    second, before = ask(queue.service, "approvals", workload="support")
    assert (second["state"], before["state"]) == ("waiting", "superseded")
    assert second["counts"]["overruled"] == {"dropped": {"rows": 1}}


@pytest.mark.full
def test_a_dataset_that_an_earlier_release_built_is_made_anew_once(queue: RunQueue) -> None:
    """It is unknown from which decisions it was built."""
    asked(queue)
    queue.warehouse.execute("UPDATE datasets SET decisions = NULL")
    for _ in range(2):
        queue.jobs.run("quality")
        queue.jobs.run("resume")
    assert [one["state"] for one in ask(queue.service, "approvals", workload="support")] == ["waiting", "superseded"]


def test_without_it_a_dataset_is_trained_on_at_once(queue: RunQueue) -> None:
    queue.configure(**REVIEWED | {"dataset": {"minimum_rows": 1}})
    queue.runs.ask("support", asked_by="an operator")
    queue.jobs.run("resume")
    assert queue.began == ["support"]
    assert ask(queue.service, "approvals") == []


def test_a_cancelled_runs_review_holds_up_no_other_run(queue: RunQueue) -> None:
    asked(queue)
    command(queue.service, "cancel", "support", {"reason": "wrong rows"})
    (review,) = ask(queue.service, "approvals", workload="support")
    assert (review["state"], review["reason"]) == ("superseded", "its run was cancelled by an operator: wrong rows")
    queue.runs.ask("support", asked_by="an operator")
    assert queue.waits() == {"support": "turn"}


def test_what_waits_goes_on_when_a_review_is_not_required_any_more(queue: RunQueue) -> None:
    asked(queue)
    queue.configure(**REVIEWED | {"dataset": {"minimum_rows": 1}})
    queue.jobs.run("resume")
    assert queue.began == ["support"]
