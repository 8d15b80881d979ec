"""The release stage: puts a candidate that passed the gate into service."""

from retuned.consumers.errors import Cancelled
from retuned.retrain import versions
from retuned.retrain.decision.pairs import Decision
from retuned.retrain.release import approve, erased
from retuned.retrain.release.exclusive import one_at_a_time
from retuned.retrain.release.rollout import in_words
from retuned.retrain.release.routes import under_way
from retuned.retrain.stages.context import Context
from retuned.retrain.versions import QUERIES, Version


@one_at_a_time
def promote(run: Context, decision: Decision, parent: Version | None, candidate: Version) -> float | None:
    """Promotes the candidate, or requests a person's approval. Returns its share of the traffic; None: not in service.

    The candidate is not promoted if the champion changed since the comparison, or if it was taken back before, as after
    an interruption or a training that results in the same weights again. If an erasure took the champion out of service
    meanwhile, the comparison with it still holds: the candidate is what was to replace it.

    Raises:
        Cancelled: the run was cancelled, or another rollout is in progress; the run resumes once that has ended.
    """
    if run.record.row()["state"] == "cancelled":
        raise Cancelled(f"run {run.id}: cancelled before it was done")
    if not decision.outcome:
        return None
    champion = versions.champion(run.warehouse, run.workload)
    serving = champion.version if champion else None
    running = under_way(run.warehouse, run.workload)
    if running is not None and running.version == candidate.version:
        return running.share  # promoted before an interruption
    if serving == candidate.version:
        return 1.0
    key = {"workload": run.workload, "version": candidate.version}
    if (taken_back := run.warehouse.row(QUERIES["taken_back"], key)) is not None:
        decision.reasons.append(f"Not promoted: {candidate.name} was taken back before: {taken_back['reason']}")
        return None
    compared = parent.version if parent else None
    if serving != compared and _has_left(run, compared, serving, candidate):
        name = versions.model_name(run.workload, compared)
        decision.reasons.append(f"An erasure took {name} out of service after the comparison.")
    elif serving != compared:
        decision.reasons.append(
            f"Not promoted: {versions.model_name(run.workload, serving)} was put into service while the candidate "
            "was trained, and they were not compared."
        )
        return None
    if running is not None:
        raise Cancelled(
            f"run {run.id}: {candidate.name} passed the gate, and comes into service once this has ended: "
            f"{in_words(running)}"
        )
    if run.settings.rollout.approve == "required":
        request = approve.request(run.rollout, run.workload, candidate.version, compared, run.id, run.now())
        decision.reasons.append(f"Not promoted: {request}.")
        run.record.report("approval", version=candidate.version)
        return None
    share = run.rollout.begin(run.workload, candidate.version, "gate", decision.reasons[0], run.now())
    run.record.report("promoted", version=candidate.version, share=share)
    return share


def _has_left(run: Context, compared: str | None, serving: str | None, candidate: Version) -> bool:
    """Whether an erasure replaced the champion that the candidate was compared with, and the candidate is clean."""
    if compared is None or not erased.replaced(run.warehouse, run.workload, compared, serving):
        return False
    return candidate.version not in versions.erased_since(run.warehouse, run.workload)
