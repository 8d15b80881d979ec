"""What the policy is told of a workload: each figure counts what belongs to it and nothing else."""

import json
import random
from collections.abc import Iterator, Mapping
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.traffic import START, feedback, interactions, promoted
from fixtures.models.tiny import tiny_llama
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.policy.decision import Evidence
from retuned.daemon.policy.evidence import forget, has_ended
from retuned.daemon.policy.ratings import Ratings
from retuned.daemon.settings import Settings

NOON = "0 12 * * *"
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOW = START + 20 * DAY
NOTHING: Mapping[str, Any] = {}
SPLITS = dict.fromkeys(("train", "holdout", "replay"), 0)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Local]:
    settings = Settings(
        warehouse={"path": tmp_path / "w.duckdb"},
        models={"directory": tmp_path / "models"},
        windows={"reference_seconds": 86_400, "current_seconds": 86_400, "minimum_rows": 1},
        policy={"payback_days": 10, "drift_checks": 3},
    )
    with opened(settings) as local:
        yield local


def evidence(service: Local) -> Evidence:
    service.jobs.context.now = lambda: NOW
    return service.jobs.runs.evidence("support")


numbers = iter(range(10**9))


def asked(service: Local, when: datetime, workload: str = "support", count: int = 1, **more: Any) -> list[str]:
    """So many answers at one time, and their ids."""
    texts, at = ["where is it"] * count, {"start": when, "step": timedelta(0), "offset": next(numbers) * 100}
    return interactions(service.warehouse, texts, random.Random(3), workload=workload, **at, **more)


def said(service: Local, ids: list[str], name: str, value: Any, when: datetime, source: str = "user") -> None:
    if ids:
        feedback(service.warehouse, ids, name, value, source=source, when=when, offset=next(numbers) * 100)


def dataset(service: Local, version: str, until: datetime, workload: str = "support") -> None:
    card = json.dumps({"evidence_until": until.isoformat()})
    service.warehouse.insert(
        "datasets", version=version, workload=workload, created_at=until, path="", card=card, **SPLITS
    )


def ran(service: Local, id: str, started: datetime, **columns: Any) -> None:
    row = {"id": id, "workload": "support", "reasons": "[]", "state": "succeeded", "started_at": started}
    row |= {"finished_at": started + HOUR, "train_seconds": 60.0, "evaluate_seconds": 30.0, "dataset_version": "d"}
    service.warehouse.insert("runs", **row | columns)


def model(service: Local, version: str, dataset_version: str, workload: str = "support") -> None:
    service.warehouse.insert(
        "models", version=version, workload=workload, created_at=START, path="", base_model="", base_hash="",
        parent_version=None, dataset_version=dataset_version, run_id="r", manifest="{}",
    )  # fmt: skip


def in_service(service: Local, version: str, since: datetime, workload: str = "support") -> None:
    service.warehouse.insert("aliases", workload=workload, alias="champion", version=version, created_at=since)


def test_where_nothing_happened_nothing_is_known(service: Local) -> None:
    assert evidence(service) == Evidence()


def test_past_runs_are_those_that_were_decided_and_took_time(service: Local) -> None:
    dataset(service, "d", START)
    dataset(service, "d", START, "sales")
    dataset(service, "of sales", START, "sales")
    for id, columns in {
        "failed": {"state": "failed"},
        "refused": {"state": "refused"},
        "of another": {"workload": "sales"},
        "at once": {"train_seconds": None, "evaluate_seconds": None},
        "of no dataset": {"dataset_version": None},
    }.items():
        ran(service, id, START, **columns)
    for number in range(20):  # they take no place of the latest twenty
        ran(service, f"of another's dataset {number}", START + 30 * DAY, dataset_version="of sales")
    assert evidence(service).money is None
    for number in range(21):
        scores = {"champion": 0.5, "base": 0.1, "candidate": number / 100}
        detail = json.dumps({"promoted": number % 2 == 0, "scores": scores})
        ran(service, f"run {number}", START + number * HOUR, detail=detail)
    money = evidence(service).money
    assert money is not None
    assert {(run.seconds, run.before) for run in money.runs} == {(90.0, 0.5)}
    assert sorted((run.after, run.promoted) for run in money.runs) == [
        (number / 100, number % 2 == 0)
        for number in range(1, 21)  # the latest twenty
    ]


def test_a_run_had_the_corrections_that_its_parents_dataset_had_not(service: Local) -> None:
    for days in range(1, 8):
        said(service, asked(service, START + days * DAY, count=days), "correction", "Here.", START + days * DAY)
        said(service, asked(service, START + days * DAY), "comment", "No.", START + days * DAY)
        sales = asked(service, START + days * DAY, "sales")
        said(service, sales, "correction", "Here.", START + days * DAY)
    dataset(service, "old", START + 2 * DAY)
    dataset(service, "old", START + 6 * DAY, "sales")
    dataset(service, "new", START + 4 * DAY)
    dataset(service, "oldest", START)
    model(service, "v1", "oldest", "sales")
    model(service, "v1", "old")
    detail = json.dumps({"scores": {"base": 0.25, "candidate": 0.75}})
    ran(service, "first", START + 2 * DAY, dataset_version="old", detail=detail)
    ran(service, "second", START + 4 * DAY, dataset_version="new", parent_version="v1", detail=detail)
    money = evidence(service).money
    assert money is not None
    # Up to a dataset's own evidence, which is in it.
    assert sorted(run.corrections for run in money.runs) == [1 + 2, 3 + 4]
    assert {(run.promoted, run.before, run.after) for run in money.runs} == {(False, 0.25, 0.75)}


def test_answers_that_were_imported_earned_nothing_here(service: Local) -> None:
    dataset(service, "d", START)
    ran(service, "run", START)
    since = datetime.combine(NOW - 10 * DAY, time())  # of whole days: the ledger is summed by day
    counted = asked(service, since + HOUR, count=4)
    others = [
        *asked(service, since + HOUR, count=7, topic="import:0123456789abcdef"),
        *asked(service, since - HOUR, count=7),
        *asked(service, since + HOUR, "sales", count=7),
        *asked(service, since + HOUR, count=7, model="demonstration"),
    ]
    assert len(counted + others) == 4 + 4 * 7
    booked = {"item": "time_saved", "quantity": 1.0, "unit": "h", "rate": 1.0, "reference": "r"}
    for id, columns in {
        "counted": {},
        "loss": {"amount": -1.0},
        "before": {"created_at": since, "amount": 100.0},
        "cost": {"kind": "cost", "amount": 100.0},
        "other": {"workload": "sales", "amount": 100.0},
        "absurd": {"amount": 1e200},
        "whether right or wrong": {"item": "third_party_replaced", "amount": 50.0},
    }.items():
        row = {"id": id, "created_at": since + HOUR, "workload": "support", "kind": "gain", "amount": 3.0}
        service.warehouse.insert("ledger", **booked | row | columns)
    money = evidence(service).money
    assert money is not None
    assert (money.answers, money.gains) == (4, 2.0)
    assert money.days == pytest.approx((NOW - since - HOUR) / DAY)


def test_ratings_are_those_of_users_since_the_promotion(service: Local) -> None:
    promotion = NOW - 4 * DAY
    in_service(service, "v1", promotion)
    in_service(service, "v1", START, "sales")
    for when, helpful, rated in (
        (promotion - HOUR, 5, 5),  # of the model before
        (promotion, 2, 3),
        (promotion + 23 * HOUR, 1, 4),
        (promotion + DAY, 6, 6),
        (NOW - DAY - HOUR, 7, 9),
        (NOW - DAY + HOUR, 1, 2),  # they have not had their day to be rated
    ):
        ids = asked(service, when, count=rated)
        said(service, ids[:helpful], "helpful", True, when)
        said(service, ids[helpful:], "helpful", False, when)
        said(service, ids, "hallucination", True, when)
        said(service, asked(service, when, count=3), "helpful", True, when, "expert")
        said(service, asked(service, when, "sales", count=3), "helpful", True, when)
    assert evidence(service).ratings == (Ratings(3, 7), Ratings(6, 6), Ratings(7, 9))


def test_what_answers_are_worth_goes_by_the_ratings_of_the_payback_time(service: Local) -> None:
    dataset(service, "d", START)
    ran(service, "run", START)
    in_service(service, "v1", START)
    for when, helpful in ((NOW - 12 * DAY, True), (NOW - 5 * DAY, False), (NOW - 2 * DAY, True)):
        said(service, asked(service, when, count=3), "helpful", helpful, when)
    money = evidence(service).money
    assert money is not None
    assert (money.ratings.helpful, money.ratings.total) == (3, 6)


def test_runs_that_were_not_promoted_count_since_a_promotion_or_a_request(service: Local) -> None:
    dataset(service, "d", START)
    for number, columns in enumerate((
        {}, {"state": "refused"}, {"state": "failed"}, {"detail": '{"promoted": false}'}, {"workload": "sales"},
    )):  # fmt: skip
        ran(service, f"first {number}", START + number * HOUR, **columns)
    ran(service, "rebase", START, kind="rebase")
    ran(service, "in a canary", START, detail='{"promoted": true}')
    ran(service, "too few rows", START, state="refused", dataset_version=None)
    ran(service, "undecided", START)
    decided(service, START, kind="gate", run_id="undecided", figures='{"undecided": 1.0}')
    ran(service, "by hand, of another", START + 9 * DAY, workload="sales", cause="person")
    promoted(service.warehouse, "of another", "v1", None, START + 9 * DAY, actor="gate", workload="sales")
    assert evidence(service).refused_runs == 3
    promoted(service.warehouse, "1", "v1", None, START + DAY, actor="gate")
    promoted(service.warehouse, "2", "v0", "v1", START + 3 * DAY, event="rolled_back")
    ran(service, "promoted", START + DAY, detail='{"promoted": true}')
    ran(service, "next", START + 2 * DAY)
    assert evidence(service).refused_runs == 1
    ran(service, "by hand", START + 4 * DAY, cause="person")
    assert evidence(service).refused_runs == 0
    ran(service, "after", START + 5 * DAY, reasons='["drift in each of the latest 2 checks"]')
    assert evidence(service).refused_runs == 1


@pytest.mark.parametrize("wrong_share", [0.2, None])
def test_no_run_begins_that_the_gate_cannot_decide_unless_a_person_asks(
    tmp_path: Path, wrong_share: float | None
) -> None:
    """What `retuned plan` computes from: the demonstrations are enough to teach, and nothing compares with them."""
    base = tmp_path / "base"
    tiny_llama(base)
    settings = Settings(
        warehouse={"path": tmp_path / "w.duckdb"},
        models={"directory": tmp_path / "models", "base": base},
        incumbent={"url": "http://127.0.0.1:9/v1", "model": "large", "margin": 0.1, "wrong_share": wrong_share},
        gate={"fold_rows": 0},
        dataset={"holdout_share": 0.5, "learn_from_incumbent": True},
        labels={"per_day": 0},
        policy={"new_corrections": 20},
    )
    kinds = "4 that people corrected"
    with opened(settings) as service:
        runs = service.jobs.runs
        service.jobs.context.now = lambda: NOW
        demonstrated = asked(service, START, count=90, model="demonstration")
        said(service, demonstrated, "correction", "Here.", START)
        if wrong_share is not None:
            said(service, asked(service, START, count=8, model="large"), "correction", "Here.", START)
            said(service, asked(service, START, count=80, model="large"), "helpful", True, START)
        else:
            said(service, asked(service, START, count=8, model="large"), "helpful", True, START)
            kinds = "4 that people called good"
        decision = runs.ask("support")
        assert not decision.retrain
        assert decision.reasons[-1] == (
            f"but its version could not be promoted: of the incumbent's answers {kinds} would be held out, and the "
            "gate compares no fewer than 20 (gate.minimum_examples)"
        )
        assert runs.queue() == []
        by_hand = runs.ask("support", asked_by="anna")
        assert by_hand.retrain
        assert by_hand.reasons[-1] == decision.reasons[-1].replace("but", "though", 1)
        runs.cancel("support", "anna", "a test")
        name, value = ("helpful", True) if wrong_share is None else ("correction", "There.")
        said(service, asked(service, START + DAY, count=32, model="large"), name, value, START + DAY)
        service.warehouse.execute("DELETE FROM runs")
        assert runs.ask("support").retrain


def asked_approval(service: Local, run_id: str, state: str, kind: str = "version") -> None:
    when = {
        "requested_at": START,
        "expires_at": START + DAY,
        "decided_at": None if state == "waiting" else START + HOUR,
    }
    service.warehouse.insert(
        "approvals", id=f"{kind} {run_id}", workload="support", version=run_id, run_id=run_id, state=state, kind=kind,
        announced=True, **when,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "refused"),
    [("waiting", 0), ("approved", 0), ("superseded", 0), ("refused", 1), ("expired", 1), (None, 1)],
)
def test_what_waits_for_approval_is_not_counted_as_refused(service: Local, state: str | None, refused: int) -> None:
    dataset(service, "d", START)
    ran(service, "run", START, detail='{"promoted": false}')
    asked_approval(service, "run", "approved", "dataset")
    if state:
        asked_approval(service, "run", state)
    assert evidence(service).refused_runs == refused


def test_of_past_runs_what_was_approved_was_promoted_and_what_waits_is_not_known_yet(service: Local) -> None:
    dataset(service, "d", START)
    for number, state in enumerate(("approved", "refused", "expired", "waiting")):
        scores = {"champion": 0.5, "candidate": 0.6 + number / 10}
        ran(service, state, START + number * HOUR, detail=json.dumps({"promoted": False, "scores": scores}))
        asked_approval(service, state, state)
        asked_approval(service, state, {"refused": "approved", "expired": "waiting"}.get(state, "expired"), "dataset")
    money = evidence(service).money
    assert money is not None
    assert sorted((run.after, run.promoted) for run in money.runs) == [(0.6, True), (0.7, False), (0.8, False)]


def test_corrections_are_counted_since_the_dataset_and_since_the_last_run(service: Local) -> None:
    dataset(service, "older", START - DAY)
    for workload, old, new in (("sales", 0, 1), ("support", 2, 4)):
        dataset(service, "old", START + old * DAY, workload)
        dataset(service, "new", START + new * DAY, workload)
        model(service, "v0", "new", workload)
        model(service, "v1", "new" if workload == "sales" else "old", workload)
        model(service, "v2", "new", workload)
        for alias, version, days in (("previous", "v0", 9), ("champion", "v1", 3), ("other", "v2", 9)):
            service.warehouse.insert(
                "aliases", workload=workload, alias=alias, version=version, created_at=START + days * DAY
            )
    ran(service, "last", START + 5 * DAY, dataset_version="new")
    ran(service, "of another", START + 9 * DAY, workload="sales", dataset_version="old")
    for days in (1, 2, 3, 4, 5, 6, 7):
        when = START + days * DAY
        said(service, asked(service, when), "correction", "Here.", when)
        said(service, asked(service, when), "helpful", False, when)
        said(service, asked(service, when, "sales"), "correction", "Here.", when)
    found = evidence(service)
    assert (found.corrections_to_learn, found.untried_corrections, found.new_corrections) == (5, 3, 3)
    service.warehouse.insert(
        "account_decisions", id="ban", workload="support", user_id="bob", action="ban", reason="spam", author="ann",
        decided_at=START,
    )  # fmt: skip
    feedback(
        service.warehouse, asked(service, START + 7 * DAY), "correction", "Here.", when=START + 7 * DAY, user_id="bob",
        offset=next(numbers) * 100,
    )  # fmt: skip
    assert evidence(service) == found, "nothing is learned from a banned account"
    # One arrives when both have; it is about the model that answered.
    said(service, asked(service, START + DAY), "correction", "Here.", START + 9 * DAY)
    said(service, asked(service, START + DAY, received_at=START + 9 * DAY), "correction", "Here.", START + DAY)
    said(service, asked(service, START + DAY, model="demonstration"), "correction", "Here.", START + 9 * DAY)
    found = evidence(service)
    assert (found.corrections_to_learn, found.untried_corrections, found.new_corrections) == (8, 6, 4)


def withdrawn(
    service: Local, how: str, approval: Mapping[str, Any] = NOTHING, erased: Mapping[str, Any] = NOTHING
) -> None:
    """An erasure withdraws the version `v2` of the run `last`."""
    model(service, "v2", "later")
    service.warehouse.insert("erasures", id="e", requested_at=START, state="done")
    row = {"erasure_id": "e", "workload": "support", "version": "v2", "dataset_version": "later", "rows": 1}
    service.warehouse.insert("erasure_versions", **row | erased)
    if how == "canary":
        promoted(service.warehouse, "c", "v1", "v2", NOW, event="canary_rolled_back", actor="erasure")
    elif how == "waiting":
        row = {"id": "a", "workload": "support", "version": "v2", "run_id": "last", "state": "superseded"}
        when = {"requested_at": START, "expires_at": NOW, "decided_at": NOW}
        service.warehouse.insert("approvals", **row | {"announced": True} | when | approval)


@pytest.mark.parametrize(
    "columns",
    [{"workload": "sales"}, {"event": "canary_started"}, {"actor": "watch"}, {"previous_version": "v3"}],
    ids=str,
)
def test_another_end_of_a_canary_leaves_no_evidence_to_the_next(service: Local, columns: dict[str, Any]) -> None:
    dataset(service, "later", START + 6 * DAY)
    said(service, asked(service, START + 4 * DAY), "correction", "Here.", START + 4 * DAY)
    ran(service, "last", START + 6 * DAY, dataset_version="later", version="v2")
    ended = {"previous_version": "v2", "event": "canary_rolled_back", "actor": "erasure"} | columns
    promoted(service.warehouse, "c", "v1", ended.pop("previous_version"), NOW, **ended)
    assert evidence(service).untried_corrections == 0


@pytest.mark.parametrize(
    ("approval", "erased"),
    [
        ({}, {"workload": "sales"}),
        ({}, {"version": "v3", "dataset_version": "older"}),
        ({"kind": "dataset"}, {}),
        ({"state": "refused"}, {}),
        ({"run_id": "first"}, {}),
    ],
    ids=str,
)
def test_another_end_of_an_approval_leaves_no_evidence_to_the_next(
    service: Local, approval: dict[str, Any], erased: dict[str, Any]
) -> None:
    dataset(service, "later", START + 6 * DAY)
    said(service, asked(service, START + 4 * DAY), "correction", "Here.", START + 4 * DAY)
    ran(service, "last", START + 6 * DAY, dataset_version="later", version="v2")
    withdrawn(service, "waiting", approval, erased)
    assert evidence(service).untried_corrections == 0


@pytest.mark.parametrize(
    ("columns", "erased", "untried"),
    [
        ({"state": "failed", "error": "the disk is full"}, None, 2),
        ({"state": "cancelled", "cause": "erasure"}, None, 2),
        ({"state": "cancelled", "cause": "policy"}, None, 0),  # a person cancelled it: it is not to be repeated
        ({"state": "refused"}, None, 0),
        ({"state": "succeeded"}, None, 0),
        ({"state": "running", "finished_at": None}, None, 0),
        ({"state": "succeeded"}, "canary", 2),
        ({"state": "succeeded"}, "waiting", 2),
        ({"state": "succeeded"}, "refused by the gate", 0),
    ],
)
def test_a_run_that_came_to_no_decision_leaves_its_evidence_to_the_next(
    service: Local, columns: dict[str, Any], erased: str | None, untried: int
) -> None:
    dataset(service, "first", START + 2 * DAY)
    dataset(service, "later", START + 6 * DAY)
    ran(service, "first", START + 2 * DAY, dataset_version="first")
    for days in (1, 4, 5):
        when = START + days * DAY
        said(service, asked(service, when), "correction", "Here.", when)
    for days in (3, 4, 5):
        drift = {"id": f"check {days}", "created_at": START + days * DAY, "drifted": True}
        rows = {"reference_rows": 10, "current_rows": 10, "features": "[]", "detail": ""}
        service.warehouse.insert("drift_checks", workload="support", **drift, **rows)
    ran(service, "last", START + 6 * DAY, **{"dataset_version": "later", "version": "v2"} | columns)
    if erased:
        withdrawn(service, erased)
    found = evidence(service)
    assert (found.untried_corrections, found.new_corrections, found.taken_back) == (untried, untried, False)
    ended = columns.get("finished_at", START + 6 * DAY + HOUR)
    assert found.last_run_finished_at == ended, "the cool-down counts from any run"
    if ended and erased != "canary":  # a change of versions ends earlier drift
        assert len(found.drifted) == (3 if untried else 0)


def test_runs_that_failed_count_since_one_that_was_decided_or_asked_for(service: Local) -> None:
    def fails(id: str, days: float, **columns: Any) -> int:
        ran(service, id, START + days * DAY, **{"state": "failed"} | columns)
        return evidence(service).failed_runs

    assert fails("1", 1) == 1
    assert fails("of another", 2, workload="sales") == 1
    assert fails("of another, decided", 9, workload="sales", state="refused") == 1
    assert fails("rebase", 2, kind="rebase") == 1
    assert fails("2", 2) == 2
    assert fails("cancelled", 3, state="cancelled") == 2
    assert fails("by hand", 4, cause="person") == 0
    assert fails("3", 5) == 1
    assert fails("decided", 6, state="refused") == 0
    assert fails("4", 7) == 1


@pytest.mark.parametrize("state", ["waiting", "running", "interrupted"])
def test_a_run_that_has_not_ended_is_under_way_whatever_began_since(service: Local, state: str) -> None:
    ran(service, "of another", START, workload="sales", state=state, finished_at=None)
    assert not evidence(service).running
    ran(service, "passed, and waits", START, state=state, finished_at=None)
    ran(service, "by hand", START + DAY, state="refused")
    assert evidence(service).running


def test_a_decision_is_stored_when_it_is_another_than_the_last_of_its_workload(service: Local) -> None:
    asked(service, START)
    asked(service, START, "sales")
    service.jobs.context.now = lambda: NOW
    stored = "SELECT count(*) AS n FROM decisions WHERE workload = 'support' AND kind = 'retrain'"
    service.jobs.runs.ask("support")
    service.jobs.context.now = lambda: NOW + HOUR
    service.jobs.runs.ask("sales", asked_by="an operator")
    gate = {"id": "gate", "created_at": NOW + HOUR, "workload": "support", "kind": "gate", "outcome": True}
    service.warehouse.insert("decisions", **gate, reasons="[]", figures="{}", run_id="r")
    service.jobs.context.now = lambda: NOW + 2 * HOUR
    service.jobs.runs.ask("support")
    assert service.warehouse.row(stored) == {"n": 1}
    service.jobs.runs.ask("support", asked_by="an operator")
    assert service.warehouse.row(stored) == {"n": 2}


def test_drift_is_that_of_the_latest_checks_since_the_last_run(service: Local) -> None:
    def checked(when: datetime, drifted: bool | None, workload: str = "support") -> None:
        service.warehouse.insert(
            "drift_checks", id=str(next(numbers)), created_at=when, workload=workload, drifted=drifted, severity=None,
            features="[]", reference_rows=1, current_rows=1, report=None, detail="",
        )  # fmt: skip

    dataset(service, "d", START)
    ran(service, "last", START + DAY)
    checked(START + DAY + HOUR, True)  # when the run ended
    assert evidence(service).drifted == ()
    checked(START + 2 * DAY, None)
    checked(START + 3 * DAY, True)
    checked(START + 4 * DAY, True, "sales")
    assert evidence(service).drifted == (True, None)
    promoted(service.warehouse, "before", "v", None, START, actor="gate")
    promoted(service.warehouse, "of another", "v", None, START + 9 * DAY, actor="gate", workload="sales")
    canary = {"version": "v", "previous_version": None, "step_since": START + 7 * DAY, "created_at": START}
    canary |= {"share": 0.25, "state": "canary", "ended_at": None}
    service.warehouse.insert("rollouts", id="of another", workload="sales", **canary)
    checked(START + 5 * DAY, False)
    checked(START + 6 * DAY, True)
    assert evidence(service).drifted == (True, False, True)  # policy.drift_checks
    accepted = {"start": START + 5 * DAY, "actor": "anna", "reason": "a new product"}
    service.warehouse.insert("drift_references", workload="sales", created_at=START + 7 * DAY, **accepted)
    assert evidence(service).drifted == (True, False, True)
    service.warehouse.insert("drift_references", workload="support", created_at=START + 6 * DAY, **accepted)
    assert evidence(service).drifted == ()
    checked(START + 7 * DAY, True)
    assert evidence(service).drifted == (True,)

    # A canary does better, and the answers with it: that is no reason to train yet another one.
    service.warehouse.insert("rollouts", id="x", workload="support", **canary)
    assert evidence(service).drifted == ()
    service.warehouse.execute("UPDATE rollouts SET share = 0 WHERE id = 'x'")  # it is asked in shadow
    assert evidence(service).drifted == (True,)
    service.warehouse.execute("UPDATE rollouts SET share = 1, state = 'done' WHERE id = 'x'")
    promoted(service.warehouse, "p", "v", None, START + 7 * DAY + HOUR, actor="rollout")
    assert evidence(service).drifted == ()
    checked(START + 8 * DAY, True)
    assert evidence(service).drifted == (True,)


def test_a_version_is_taken_back_when_it_was_rolled_back_in_its_workload(service: Local) -> None:
    dataset(service, "d", START)
    ran(service, "first", START, version="v1")
    ran(service, "last", START + DAY, version="v2")
    ran(service, "of another", START + 2 * DAY, workload="sales", version="v3")
    found = evidence(service)
    assert (found.taken_back, found.running) == (False, False)
    assert found.last_run_finished_at == START + DAY + HOUR
    warehouse, back = service.warehouse, {"event": "rolled_back"}
    promoted(warehouse, "1", "v0", "v1", NOW, **back)
    promoted(warehouse, "2", "v3", "v2", NOW)
    promoted(warehouse, "3", "v0", "v2", NOW, workload="sales", **back)
    assert not evidence(service).taken_back
    promoted(warehouse, "4", "v0", "v2", NOW, **back)
    assert evidence(service).taken_back
    ran(service, "next", START + 3 * DAY, version="v4", state="interrupted", finished_at=None)
    found = evidence(service)
    assert (found.taken_back, found.running) == (False, True)


def decided(service: Local, when: datetime, **columns: Any) -> None:
    settled, expression = columns.pop("settled", False), columns.pop("expression", NOON)
    figures = {"retrain_cron": expression, "scheduled_time_settled": settled}
    row = {"id": str(next(numbers)), "created_at": when, "workload": "support", "kind": "retrain", "outcome": False}
    row |= {"reasons": "[]", "figures": json.dumps(figures), "run_id": None}
    service.warehouse.insert("decisions", **row | columns)


def test_a_time_of_the_schedule_has_come_since_the_schedule_was_seen_or_settled(tmp_path: Path) -> None:
    noon = datetime.combine(NOW, time(12))
    settings = Settings(warehouse={"path": tmp_path / "w.duckdb"}, schedule={"retrain_cron": NOON})
    with opened(settings) as service:

        def due() -> bool:
            service.jobs.context.now = lambda: noon + HOUR
            return service.jobs.runs.evidence("support").scheduled

        ran(service, "last", START)
        for columns in ({"workload": "sales"}, {"kind": "gate"}, {"expression": "0 3 * * *"}):
            decided(service, noon - DAY, **columns)
            assert not due(), columns
        decided(service, noon - 3 * DAY)  # before another schedule
        decided(service, noon + HOUR / 4)
        assert not due()
        service.warehouse.execute("DELETE FROM decisions WHERE figures ->> 'retrain_cron' <> ?", [NOON])
        assert due()
        decided(service, noon + HOUR / 3, settled=True)
        assert not due()


def test_old_refusals_to_retrain_are_forgotten_but_the_last_one(service: Local) -> None:
    for number, (days, columns) in enumerate((
        (1, {}), (2, {}), (1, {"outcome": True}), (1, {"kind": "gate"}), (8, {}), (9, {}), (1, {"workload": "sales"}),
        (2, {"workload": "sales"}), (1, {"workload": "quiet"}), (3, {"workload": "quiet", "kind": "gate"}),
    )):  # fmt: skip
        decided(service, START + days * DAY, id=f"{number}", **columns)
    assert forget(service.warehouse, ["support", "quiet"], START + 7 * DAY) == 2
    left = service.warehouse.rows("SELECT id FROM decisions ORDER BY id")
    assert [row["id"] for row in left] == list("23456789")


def test_a_run_that_waits_for_an_erasure_alone_ends_when_nothing_is_due(service: Local) -> None:
    waiting = {"state": "waiting", "cause": "erasure", "finished_at": None}
    for id, columns in {
        "waits": waiting, "began": waiting | {"state": "running"}, "asked for": waiting | {"cause": "policy"}
    }.items():  # fmt: skip
        ran(service, id, START, **columns)
    assert has_ended(service.warehouse, "support", "waits", NOW)
    assert not any(has_ended(service.warehouse, "support", id, NOW) for id in ("began", "asked for", "unknown"))
