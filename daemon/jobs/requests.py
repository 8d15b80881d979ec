"""Requests to retrain: the policy's decision about one, and the move to another base model."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from retuned.consumers.errors import Busy, RetunedError
from retuned.daemon.jobs import holds
from retuned.daemon.jobs.context import Context
from retuned.daemon.owning import estimate, facts
from retuned.daemon.policy import decision as policy
from retuned.daemon.policy import evidence
from retuned.daemon.settings import Settings
from retuned.monitors.blindness import note
from retuned.retrain import queue, versions
from retuned.retrain.data import label_requests
from retuned.retrain.release import erased
from retuned.retrain.release.licence import check_licence
from retuned.retrain.training.base_model import check_base_model

if TYPE_CHECKING:
    from retuned.daemon.jobs.runs import Runs


def evidence_of(context: Context, workload: str, asked_by: str | None) -> policy.Evidence:
    """Returns the present evidence about a workload.

    Args:
        asked_by: who requested a run by hand; None: nobody.
    """
    settings, now = context.settings.for_workload(workload), context.now()
    found = evidence.gather(context.warehouse, settings, workload, now)
    paused = holds.paused(holds.pauses(context.warehouse), workload)
    found = replace(found, asked_by=asked_by, paused=paused)
    if (erased_at := erased.due(context.warehouse, workload, now)) is None:
        return found
    left, answer = erased.left(context.warehouse, workload), erased.answer(context.warehouse, workload)
    return replace(found, erased_at=erased_at, erased_left=left is not None, erased_answer=answer)


def end_runs(context: Context, runs: "Runs", workload: str, reason: str) -> None:
    """Cancel the runs of a workload if one of them has started, and remove their files.

    Raises:
        Busy: a run is still ending.
    """
    started = any(run["state"] != "waiting" for run in queue.unfinished(context.warehouse, workload))
    if started:
        try:
            runs.cancel(workload, "retuned", reason)
        except RetunedError as error:  # its version comes into service now
            raise Busy(str(error)) from error
    if any(active.workload == workload for active in runs.under_way()):
        raise Busy(f"workload {workload}: a run is ending; the erasure continues then")


def decide(context: Context, workload: str, found: policy.Evidence) -> policy.Decision:
    """Decide whether to retrain, store the decision if it is news, and request labels if there is too little to learn
    from."""
    warehouse, settings, now = context.warehouse, context.settings.for_workload(workload), context.now()
    rated = sum(period.total for period in found.ratings)
    needed = 2 * settings.policy.minimum_ratings if settings.policy.enabled else 0
    what = "ratings of the model in service (twice policy.minimum_ratings)"
    note(warehouse, workload, "policy", rated, needed, what, now)
    decision = policy.decide(found, settings.policy, now)
    if decision.retrain and (reason := queue.untrainable(warehouse, settings, workload)):
        decision = replace(decision, retrain=False, reasons=(*decision.reasons, f"but {reason}"))
    if decision.retrain and found.erased_at is None and (reason := _undecidable(context, workload, settings)):
        is_asked = found.asked_by is not None
        reason = f"{'though' if is_asked else 'but'} its version could not be promoted: {reason}"
        decision = replace(decision, retrain=is_asked, lacks_labels=not is_asked, reasons=(*decision.reasons, reason))
    trains = settings.models.base is not None and settings.models.retrains(workload)
    requests_labels = decision.lacks_labels and settings.labels.per_day > 0 and trains
    if requests_labels:
        decision = replace(decision, reasons=(*decision.reasons, "experts are asked for labels (retuned labels)"))
    context.metrics.decisions.labels(workload, "yes" if decision.retrain else "no").inc()
    is_news = evidence.store(warehouse, workload, decision, found, now)
    if requests_labels and is_news:
        label_requests.request(warehouse, settings, workload, now)
    return decision


def _undecidable(context: Context, workload: str, settings: Settings) -> str | None:
    """Returns why the gate could decide about no version now, as `retuned plan` has it; None: it could."""
    own = settings.incumbent
    if own.url is None or versions.champion(context.warehouse, workload) is not None:
        return None
    return estimate.undecidable(facts.judged(context.warehouse, workload, own.model), settings)


def rebase(context: Context, workload: str, folder: str, asked_by: str, reason: str) -> None:
    """Queue a training on another base model, on everything that the workload's champion learned.

    Args:
        folder: of the base model.

    Raises:
        RetunedError: the folder holds no model, or there is no champion to compare with.
    """
    settings, base = context.settings.for_workload(workload), Path(folder)
    if not base.is_absolute():
        raise RetunedError(f"base {base}: expected an absolute path of a folder on the daemon's machine")
    check_base_model(base, "base")
    check_licence(base, settings.models.allowed_licences, "base")
    if not settings.models.retrains(workload):
        raise RetunedError(f"workload {workload}: it is not retrained; add it to models.workloads")
    champion = versions.champion(context.warehouse, workload)
    if champion is None:
        raise RetunedError(
            f"workload {workload}: the base model serves, so there is nothing to train anew: set models.base to {base}"
        )
    if champion.base_hash == versions.base_hash(base):
        raise RetunedError(f"workload {workload}: {champion.name} was trained on {base} already")
    if settings.evaluate.engine == "server":
        raise RetunedError("evaluate.engine is server, which has one base model: set it to transformers to compare two")
    cause = f"asked for by {asked_by}: {champion.base_model} is to become {base}: {reason}"
    queue.enqueue(context.warehouse, workload, [cause], context.now(), base=base, cause="person")
