"""Requests a person's approval, and carries out the decision."""

import json
import logging
import uuid
from dataclasses import asdict
from datetime import datetime, timedelta

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.audit import by_rule
from retuned.consumers.warehouse.connection import insert
from retuned.retrain.data import dataset as datasets
from retuned.retrain.data import overrides
from retuned.retrain.release import approvals
from retuned.retrain.release.approvals import Approval, Kind, Verdict
from retuned.retrain.release.exclusive import one_at_a_time
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.versions import QUERIES

log = logging.getLogger(__name__)
DECIDED = "people decided about its rows after it was built; it is made anew"


@one_at_a_time
def request(
    rollout: Rollout,
    workload: str,
    version: str,
    champion: str | None,
    run_id: str,
    now: datetime,
    kind: Kind = "version",
) -> Approval:
    """Requests approval of a version or a dataset. Supersedes a request that waits.

    A run makes one request of a kind, however often it is resumed, and another one if it built its dataset again. A
    version that a person has refused gets no new request. A request for a dataset is superseded at once if people
    decided about its rows while it was built.

    Args:
        champion: the version that it was compared with; None for the base model.

    Returns:
        the request: a new one, the run's earlier one, or the one in which the version was refused.
    """
    warehouse = rollout.warehouse
    known = approvals.of_run(warehouse, run_id, kind)
    if known is not None and kind == "dataset" and known.state == "superseded":
        known = None
    if (known := known or approvals.refused(warehouse, workload, version)) is not None:
        return known
    is_late = kind == "dataset" and _is_outdated(rollout, workload, version)
    within = timedelta(seconds=rollout.settings.for_workload(workload).rollout.approve_within_seconds)
    approval = Approval(
        id=uuid.uuid4().hex,
        workload=workload,
        version=version,
        champion=champion,
        run_id=run_id,
        requested_at=now,
        expires_at=now + within,
        state="superseded" if is_late else "waiting",
        decided_at=now if is_late else None,
        actor=None,
        reason=DECIDED if is_late else None,
        announced=False,
        kind=kind,
    )
    after = "passed the gate" if kind == "version" else "was made"
    with warehouse.transaction() as cursor:
        approvals.supersede(cursor, workload, f"{approval.name} {after} after it", now, kind)
        insert(cursor, "approvals", **asdict(approval))
        rule = "gate" if kind == "version" else "review"
        warehouse.trail.note(cursor, by_rule(rule, "approval_requested", workload=workload, subject=approval.name))
    log.info("%s: %s (`retuned approve %s`)", workload, approval, workload)
    return approval


def decide(rollout: Rollout, verdict: Verdict, now: datetime) -> Approval:
    """Approves or refuses a request. An approved version is put into service; an approved dataset is trained on.

    Repeating the same decision changes nothing.

    Raises:
        RetunedError: there is no such request, or it is settled differently.
    """
    settled = _settle(rollout, verdict, now)
    rollout.follow_up_or_log(settled.workload)
    return settled


@one_at_a_time
def _settle(rollout: Rollout, verdict: Verdict, now: datetime) -> Approval:
    _expire(rollout, now)
    request = approvals.find(rollout.warehouse, verdict.approval_id)
    if request is None:
        raise RetunedError(f"approval {verdict.approval_id}: unknown; `retuned approve` lists those that wait")
    if request.state == "waiting":
        is_dataset = request.kind == "dataset"
        if is_dataset and verdict.state == "approved" and make_anew(rollout, request.workload, DECIDED, now):
            raise RetunedError(f"{request.name}: {DECIDED}, and waits for approval again")
        if not is_dataset and verdict.state == "approved":
            row = rollout.warehouse.row(QUERIES["gate_decision"], {"run_id": request.run_id})
            passed = f"{json.loads(row['reasons'])[0]} " if row else ""
            reason = f"{passed}(approved by {verdict.actor}: {verdict.reason})"
            rollout.begin(request.workload, request.version, "approver", reason, now, verdict)
        else:
            with rollout.warehouse.transaction() as cursor:
                approvals.settle(cursor, verdict, now)
        log.info("%s: %s is %s by %s", request.workload, request.name, verdict.state, verdict.actor)
    elif (request.state, request.actor, request.reason) != (verdict.state, verdict.actor, verdict.reason):
        raise RetunedError(f"{request}; nothing is changed")
    settled = approvals.find(rollout.warehouse, request.id)
    assert settled is not None
    return settled


@one_at_a_time
def make_anew(rollout: Rollout, workload: str | None, reason: str, now: datetime) -> list[str]:
    """Supersedes waiting requests for datasets that were built from other decisions than those in force, so that their
    runs build new ones. Returns their workloads."""
    outdated = [
        one.workload
        for one in approvals.waiting(rollout.warehouse, workload)
        if one.kind == "dataset" and _is_outdated(rollout, one.workload, one.version)
    ]
    for name in outdated:
        with rollout.warehouse.transaction() as cursor:
            approvals.supersede(cursor, name, reason, now, "dataset")
    return outdated


def _is_outdated(rollout: Rollout, workload: str, version: str) -> bool:
    """Returns whether a dataset was built from other decisions about its rows than those in force. It is outdated, too,
    if an earlier release built it: from which decisions is unknown."""
    dataset = datasets.load(rollout.warehouse, workload, version)
    return dataset is not None and dataset.decisions != overrides.digest(rollout.warehouse, workload)


def expire(rollout: Rollout, now: datetime) -> None:
    """Expires the requests whose time is over, and supersedes those for outdated datasets, of all workloads."""
    make_anew(rollout, None, DECIDED, now)  # a kill came between a decision and its own call
    for workload in _expire(rollout, now):
        rollout.follow_up_or_log(workload)


@one_at_a_time
def _expire(rollout: Rollout, now: datetime) -> list[str]:
    overdue = approvals.overdue(rollout.warehouse, now)
    for request in overdue:
        values = {"id": request.id, "state": "expired", "actor": None, "reason": None, "now": request.expires_at}
        with rollout.warehouse.transaction() as cursor:
            cursor.execute(approvals.QUERIES["settle"], values)
            about = {"workload": request.workload, "subject": request.name}
            rollout.warehouse.trail.note(cursor, by_rule("approval", "approval_expired", **about))
        log.warning("%s: nobody decided on %s, the request has expired", request.workload, request.name)
    return [request.workload for request in overdue]
