"""Asking for a person's approval of what the gate passed, and what follows from the answer."""

import json
import logging
import uuid
from dataclasses import asdict
from datetime import datetime, timedelta

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import insert
from retuned.retrain.release import approvals
from retuned.retrain.release.approvals import Approval, Verdict
from retuned.retrain.release.rollout import Rollout, one_at_a_time
from retuned.retrain.versions import QUERIES

log = logging.getLogger(__name__)


@one_at_a_time
def request(
    rollout: Rollout, workload: str, version: str, champion: str | None, run_id: str, now: datetime
) -> Approval:
    """Have a version that the gate passed wait for a person, in place of one that waited before.

    A run makes one request, however often it is taken up, and none for a version that a person refused.

    Args:
        champion: what it was compared with; None: the base model.

    Returns:
        the request, or the one that stands for it: that of the run, or in which the version was refused.
    """
    warehouse = rollout.warehouse
    known = approvals.of_run(warehouse, run_id) or approvals.refused(warehouse, workload, version)
    if known is not None:
        return known
    within = timedelta(seconds=rollout.settings.for_workload(workload).rollout.approve_within_seconds)
    made = Approval(
        id=uuid.uuid4().hex,
        workload=workload,
        version=version,
        champion=champion,
        run_id=run_id,
        requested_at=now,
        expires_at=now + within,
        state="waiting",
        decided_at=None,
        actor=None,
        reason=None,
        announced=False,
    )
    with warehouse.transaction() as cursor:
        approvals.supersede(cursor, workload, f"{made.name} passed the gate after it", now)
        insert(cursor, "approvals", **asdict(made))
    log.info("%s: %s (`retuned approve %s`)", workload, made, workload)
    return made


def decide(rollout: Rollout, verdict: Verdict, now: datetime) -> Approval:
    """Approve a request, which puts its version into service as the gate would have, or refuse it.

    The same verdict again changes nothing.

    Raises:
        RetunedError: there is no such request, or it is settled otherwise.
    """
    settled = _settle(rollout, verdict, now)
    rollout.follow_up_or_log(settled.workload)
    return settled


@one_at_a_time
def _settle(rollout: Rollout, verdict: Verdict, now: datetime) -> Approval:
    _expire(rollout, now)
    found = approvals.find(rollout.warehouse, verdict.approval_id)
    if found is None:
        raise RetunedError(f"approval {verdict.approval_id}: unknown; `retuned approve` lists those that wait")
    if found.state == "waiting":
        if verdict.state == "approved":
            row = rollout.warehouse.row(QUERIES["gate_decision"], {"run_id": found.run_id})
            passed = f"{json.loads(row['reasons'])[0]} " if row else ""
            reason = f"{passed}(approved by {verdict.actor}: {verdict.reason})"
            rollout.begin(found.workload, found.version, "approver", reason, now, verdict)
        else:
            with rollout.warehouse.transaction() as cursor:
                approvals.settle(cursor, verdict, now)
        log.info("%s: %s is %s by %s: %s", found.workload, found.name, verdict.state, verdict.actor, verdict.reason)
    elif (found.state, found.actor, found.reason) != (verdict.state, verdict.actor, verdict.reason):
        raise RetunedError(f"{found}; nothing is changed")
    settled = approvals.find(rollout.warehouse, found.id)
    assert settled is not None
    return settled


def expire(rollout: Rollout, now: datetime) -> None:
    """End the requests whose time is over, of all workloads."""
    for workload in _expire(rollout, now):
        rollout.follow_up_or_log(workload)


@one_at_a_time
def _expire(rollout: Rollout, now: datetime) -> list[str]:
    found = approvals.overdue(rollout.warehouse, now)
    for one in found:
        given = {"id": one.id, "state": "expired", "actor": None, "reason": None, "now": one.expires_at}
        rollout.warehouse.execute(approvals.QUERIES["settle"], given)
        log.warning("%s: nobody decided on %s, the request has expired", one.workload, one.name)
    return [one.workload for one in found]
