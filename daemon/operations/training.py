"""Operations on retraining: start, rebase, pause, resume, cancel, and the checks of drift."""

from typing import TYPE_CHECKING, Annotated, cast

from pydantic import Field

from retuned.consumers.common.times import shown
from retuned.consumers.errors import RetunedError
from retuned.daemon.operations.answers import Done, DriftExample, Run
from retuned.daemon.operations.fields import OfOne, OfWorkload, Workload, check_path
from retuned.daemon.operations.operation import LONG_SECONDS, Caller, Placeholder, Request, operation

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local
    from retuned.monitors.drift.check import DriftCheck
    from retuned.retrain.run import RunResult

Why = Annotated[str | None, Field(description="the reason, kept with the decision")]


class Retrain(Request):
    workload: Workload
    now: Annotated[bool, Field(description="start even outside schedule.training_hours")] = False
    reason: Why = None


@operation("POST", "/workloads/{workload}/retrain", least="operator", by_leader=True, command="retrain")
def retrain(local: "Local", request: Retrain, caller: Caller) -> Done:
    """Retrain a workload now."""
    workload, runs = local.known(request.workload, caller), local.jobs.runs
    decision = runs.ask(workload, asked_by=local.actor(caller), at_any_hour=request.now)
    if not decision.retrain:
        raise RetunedError(f"workload {workload}: not retrained: {'; '.join(decision.reasons)}")
    ended = [_outcome(result) for result in runs.run_waiting(workload)]
    done = ended or [_progress(local, workload), *_holds(local, workload)]
    return Done(workload=workload, done="; ".join(done), reasons=list(decision.reasons), run=decision.run)


class Rebase(Request):
    workload: Workload
    base: Annotated[
        str,
        Field(min_length=1, description="folder of the base model, an absolute path on the daemon's machine"),
        Placeholder("DIR"),
    ]
    reason: Why = None


@operation(
    "POST", "/workloads/{workload}/rebase", least="operator", by_leader=True, seconds=LONG_SECONDS, command="rebase"
)
def rebase(local: "Local", request: Rebase, caller: Caller) -> Done:
    """Train a workload on another base model, and move it there if the result is better."""
    check_path(request.base, "base")
    workload, runs = local.known(request.workload, caller), local.jobs.runs
    runs.rebase(workload, request.base, local.actor(caller), given(request.reason))
    runs.run_waiting(workload)
    return Done(
        workload=workload, done="; ".join([f"a training on {request.base} is queued", *_holds(local, workload)])
    )


class Pause(Request):
    workload: Annotated[str | None, Field(description="the workload to pause; default: all workloads")] = None
    reason: Why = None


@operation(
    "POST",
    "/workloads/{workload}/pause",
    "/training/pause",
    least="operator",
    by_leader=True,
    command="pause",
)
def pause(local: "Local", request: Pause, caller: Caller) -> Done:
    """Pause retraining: no run starts, and a run under way stops at a checkpoint."""
    workload = local.only(request.workload, caller)
    local.jobs.runs.pause(workload, local.actor(caller), given(request.reason))
    return Done(workload=workload, done="no retraining starts until `retuned resume`; events are still stored")


class Resume(Request):
    workload: Annotated[str | None, Field(description="the workload to resume; default: all workloads")] = None


@operation(
    "POST",
    "/workloads/{workload}/resume",
    "/training/resume",
    least="operator",
    by_leader=True,
    command="resume",
)
def resume(local: "Local", request: Resume, caller: Caller) -> Done:
    """End a pause and continue the runs that it stopped."""
    workload = local.only(request.workload, caller)
    local.jobs.runs.resume(workload, local.actor(caller))
    return Done(workload=workload, done="; ".join(["retraining is resumed", *_holds(local, workload)]))


class Cancel(Request):
    workload: Workload
    run: Annotated[str | None, Field(description="the id of a run; default: all of the workload")] = None
    reason: Why = None


@operation("POST", "/workloads/{workload}/cancel", least="operator", by_leader=True, command="cancel")
def cancel(local: "Local", request: Cancel, caller: Caller) -> Done:
    """Cancel the retraining of a workload, under way or queued."""
    workload = local.known(request.workload, caller)
    ids = local.jobs.runs.cancel(workload, local.actor(caller), given(request.reason), request.run)
    return Done(workload=workload, done=f"cancelled: run {', '.join(ids)}")


@operation("GET", "/runs", least="viewer")
def runs(local: "Local", request: OfWorkload, caller: Caller) -> list[Run]:
    """The latest retrainings: those under way first, then those in line, then the newest; at most 100."""
    from retuned.daemon import status

    return cast("list[Run]", status.runs(local.jobs, local.only(request.workload, caller)))


class CheckDrift(Request):
    workload: Workload
    as_of: Annotated[
        str | None,
        Field(description="the time of the check, ISO 8601, UTC; default: now"),
        Placeholder("TIME"),
    ] = None


@operation(
    "POST",
    "/workloads/{workload}/check-drift",
    least="operator",
    by_leader=True,
    seconds=LONG_SECONDS,
    command="drift check",
)
def check_drift(local: "Local", request: CheckDrift, caller: Caller) -> Done:
    """Check a workload for drift now, or as of a time in imported history, and store the check."""
    from retuned.consumers.common.times import utc
    from retuned.daemon.jobs import tasks

    workload, as_of = local.known(request.workload, caller), utc("check-drift: as_of", request.as_of)
    return Done(workload=workload, done=_finding(tasks.check_drift_of(local.jobs.context, workload, as_of)))


@operation("GET", "/workloads/{workload}/drift-examples", least="operator", refused=404, reads="conversations")
def drift_examples(local: "Local", request: OfOne, caller: Caller) -> list[DriftExample]:
    """List a current prompt for each feature that moved in the latest drift check."""
    from retuned.monitors.drift.check import examples

    return cast("list[DriftExample]", examples(local.warehouse, local.known(request.workload, caller)))


class AcceptDrift(Request):
    workload: Workload
    reason: Annotated[str | None, Field(description="why current traffic is normal; kept with the reference")] = None


@operation(
    "POST",
    "/workloads/{workload}/accept-drift",
    least="operator",
    by_leader=True,
    seconds=LONG_SECONDS,
    command="drift accept",
)
def accept_drift(local: "Local", request: AcceptDrift, caller: Caller) -> Done:
    """Accept the current window as the reference of drift checks, until the champion changes."""
    from retuned.daemon.jobs import tasks

    workload = local.known(request.workload, caller)
    if not request.reason:
        raise RetunedError("accept-drift: give the reason why the current traffic is normal")
    done = tasks.accept_drift(local.jobs.context, workload, local.actor(caller), request.reason)
    return Done(workload=workload, done=done)


def given(reason: str | None) -> str:
    """Returns the reason to store, also if none was given."""
    return reason or "no reason was given"


def _progress(local: "Local", workload: str) -> str:
    """Describes whether the requested run of a workload has begun or is queued."""
    runs = local.jobs.runs
    is_under_way = any(run.workload == workload for run in runs.under_way())
    if any(run["workload"] == workload for run in runs.queue()):
        return "a retraining is queued" + (" behind the one under way" if is_under_way else "")
    return "a retraining is under way"


def _holds(local: "Local", workload: str | None) -> list[str]:
    """Returns the reasons that keep runs of a workload, or of any, from starting."""
    found = (
        run["reason"]
        for run in local.jobs.runs.queue()
        if workload in (None, run["workload"]) and run["waits_for"] != "turn"
    )
    return list(dict.fromkeys(found))


def _outcome(result: "RunResult") -> str:
    """Describes the result of a run.

    Raises:
        RetunedError: the run failed.
    """
    from retuned.retrain.release.routes import in_part
    from retuned.retrain.versions import model_name

    reasons = " ".join(result.reasons)
    if result.state == "failed":
        raise RetunedError(f"workload {result.workload}: the retraining failed: {reasons}")
    if result.state != "succeeded":
        return f"the retraining is {result.state}: {reasons}"
    name = model_name(result.workload, result.version)
    if not result.promoted:
        return f"{name} is trained and not promoted: {reasons}"
    serves = "is the champion" if result.share == 1.0 else in_part(result.share)
    return f"{name} {serves}: {reasons}"


def _finding(check: "DriftCheck") -> str:
    """Describes the result of a drift check."""
    as_of = f"as of {shown(check.created_at)}"
    if check.drifted is None:
        return f"{as_of}: {check.detail}"
    rows = f"{check.current_rows:,} conversations against {check.reference_rows:,} of the reference"
    text = f"{as_of}, {rows}: {check.detail}"
    if check.drifted:
        interval = f"{check.severity_low:.0%} to {check.severity_high:.0%}"
        text += f" About {check.severity:.0%} of the current events must differ from before ({interval})."
    return f"{text} Report: /reports/{check.id}" if check.report else text
