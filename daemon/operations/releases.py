"""Operations on versions: evaluation, promotion, rollback; on approvals and reports."""

from datetime import date, datetime, time
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field

from retuned.consumers.errors import RetunedError
from retuned.daemon.operations.answers import Approval, Decided, Done, ModelVersion
from retuned.daemon.operations.fields import Named, OfWorkload, Reason, Text, User, Workload
from retuned.daemon.operations.operation import (
    LONG_SECONDS,
    Caller,
    InvalidRequest,
    NotFound,
    Placeholder,
    Request,
    operation,
)
from retuned.daemon.operations.training import Why

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local

Decision = Literal["approve", "refuse"]
VERDICTS: dict[Decision, Literal["approved", "refused"]] = {"approve": "approved", "refuse": "refused"}
Version = Annotated[str, Field(min_length=1, description="a version of the workload, for example 3f2a91c0, or base")]


class Evaluate(Request):
    workload: Workload
    version: Version
    metric: Annotated[str | None, Field(description="the metric, for example text; default: metric.name")] = None


@operation(
    "POST",
    "/workloads/{workload}/evaluate",
    least="operator",
    by_leader=True,
    seconds=LONG_SECONDS,
    command="evaluate",
)
def evaluate(local: "Local", request: Evaluate, caller: Caller) -> Done:
    """Judge a version again from the answers of its evaluation, for information only."""
    from retuned.daemon.jobs import tasks

    workload = local.known(request.workload, caller)
    judged = tasks.evaluate_again(local.jobs.context, workload, request.version, request.metric)
    return Done(workload=workload, done=" ".join(judged.reasons), outcome=judged.outcome)


@operation("GET", "/versions", least="viewer")
def versions(local: "Local", request: OfWorkload, caller: Caller) -> list[ModelVersion]:
    """The latest versions, the newest first, at most 100."""
    from retuned.daemon import status

    return cast("list[ModelVersion]", status.versions(local.warehouse, local.only(request.workload, caller)))


class Promote(Request):
    workload: Workload
    version: Version
    reason: Why = None


@operation("POST", "/workloads/{workload}/promote", least="operator", by_leader=True, command="promote")
def promote(local: "Local", request: Promote, caller: Caller) -> Done:
    """Put a version into service."""
    workload, context = local.known(request.workload, caller), local.jobs.context
    why = _because(local, request.reason, caller)
    serving = context.rollout.promote(workload, request.version, "operator", why, context.now())
    return Done(workload=workload, done=_in_service(workload, serving))


class Rollback(Request):
    workload: Workload
    version: Annotated[
        str | None, Field(description="take back this version only: refused if it no longer serves; default: any")
    ] = None
    reason: Why = None


@operation("POST", "/workloads/{workload}/rollback", least="operator", by_leader=True, command="rollback")
def rollback(local: "Local", request: Rollback, caller: Caller) -> Done:
    """Put the previous version back into service."""
    from retuned.retrain.release.routes import under_way
    from retuned.retrain.versions import model_name

    workload, context = local.known(request.workload, caller), local.jobs.context
    running = under_way(local.warehouse, workload)
    why = _because(local, request.reason, caller)
    previous = context.rollout.rollback(workload, "operator", why, context.now(), request.version)
    done = f"{_in_service(workload, previous)} again"
    if running is not None and running.state == "canary":
        done = f"{model_name(workload, running.version)} is taken back; {_in_service(workload, previous)}"
    return Done(workload=workload, done=done)


class KeepErased(Request):
    workload: Workload
    until: Annotated[
        str, Field(description="the day on which forget.weights applies again, UTC, as 2027-01-31"), Placeholder("DATE")
    ]
    reason: Annotated[Text, Field(description="the reason, kept with the decision"), Placeholder("REASON")]
    user: User = None


@operation("POST", "/workloads/{workload}/keep-erased", least="admin", by_leader=True, command="keep-erased")
def keep_erased(local: "Local", request: KeepErased, caller: Caller) -> Done:
    """Keep a champion that learned erased rows in service until a day."""
    from retuned.retrain import versions
    from retuned.retrain.release import erased

    workload, now = local.known(request.workload, caller), local.jobs.context.now()
    try:
        until = datetime.combine(date.fromisoformat(request.until), time())
    except ValueError as error:
        raise InvalidRequest(f"until: expected a day, as 2027-01-31, got {request.until}") from error
    if until <= now:
        raise InvalidRequest(f"until: expected a day after {now:%Y-%m-%d}, got {request.until}")
    champion = versions.champion(local.warehouse, workload)
    if champion is None or champion.version not in versions.erased_since(local.warehouse, workload):
        raise RetunedError(f"workload {workload}: the model in service learned no rows that were erased")
    author = caller.author(request.user) or local.actor(caller)
    erased.keep(local.warehouse, workload, until, author, request.reason, now)
    return Done(workload=workload, done=f"{champion.name} may stay in service until {request.until}")


class Report(Request):
    workload: Workload


@operation("POST", "/workloads/{workload}/report", least="operator", by_leader=True, command="report")
def report(local: "Local", request: Report, caller: Caller) -> Done:
    """Write a report of this month so far, for decision makers."""
    workload = local.known(request.workload, caller)
    written = local.jobs.report_so_far(workload)
    return Done(workload=workload, done=f"the report of this month so far will be at /reports/{written}")


@operation("GET", "/approvals", least="viewer", bound="own")
def approvals(local: "Local", request: OfWorkload, caller: Caller) -> list[Approval]:
    """List the requests for approval, of versions that the gate passed and of datasets.

    Waiting requests come first, then the latest; at most 100 are listed.
    """
    from retuned.retrain.release import approvals

    found = approvals.listed(local.warehouse, request.workload)
    return cast("list[Approval]", [one for one in found if caller.may_see(one["workload"])])


@operation("GET", "/approvals/{id}", least="viewer", bound="own")
def approval(local: "Local", request: Named, caller: Caller) -> Approval:
    """Get a request for approval."""
    found = _approval(local, request.id)
    caller.check(found["workload"])
    return found


class Decide(Request):
    id: Annotated[str, Field(description="the request's id")]
    decision: Annotated[Decision, Field(description="the decision")]
    reason: Reason
    user: User = None


@operation("POST", "/approvals/{id}", least="operator", by_leader=True, bound="own")
def decide_approval(local: "Local", request: Decide, caller: Caller) -> Decided:
    """Approve or refuse a version or a dataset that waits for approval.

    An approved version is put into service, an approved dataset is trained on. Repeating the same decision changes
    nothing and returns the same answer.
    """
    from retuned.retrain.release import approvals, approve
    from retuned.retrain.release.routes import in_part, under_way

    caller.check(_approval(local, request.id)["workload"])
    context, actor = local.jobs.context, local.actor(caller, request.user)
    verdict = approvals.Verdict(request.id, VERDICTS[request.decision], actor, request.reason)
    settled = approve.decide(context.rollout, verdict, context.now())
    local.jobs.runs.wake()  # a run may wait for the approval of its dataset
    running = under_way(local.warehouse, settled.workload)
    if settled.state == "refused":
        done = str(settled)
    elif settled.kind == "dataset":
        done = f"{settled.name} is approved, and its training continues"
    elif running is not None and running.version == settled.version:
        done = f"{settled.name} {in_part(running.share)}"
    else:
        done = _in_service(settled.workload, settled.version)
    return cast("Decided", {"workload": settled.workload, "state": settled.state, "done": done})


def _approval(local: "Local", id: str) -> Approval:
    from retuned.retrain.release import approvals

    row: Any = next(iter(approvals.listed(local.warehouse, id=id)), None)
    if row is None:
        raise NotFound("no such request for approval; GET /api/v1/approvals lists them")
    return cast("Approval", row)


def _because(local: "Local", reason: str | None, caller: Caller) -> str:
    """Returns the reason of a change, with the caller if known."""
    asked = f"asked for by {local.actor(caller)}"
    if not reason:
        return asked
    return f"{reason} ({asked})" if caller.name else reason


def _in_service(workload: str, version: str | None) -> str:
    from retuned.retrain.versions import model_name

    name = model_name(workload, version)
    return f"{name} is the champion" if version else f"no champion: {name}, the base model, serves"
