"""Runs: one retraining, from the evidence to the decision and the promotion (see `stages`)."""

import errno
import json
import shutil
import threading
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from retuned.consumers.common.process import Emit
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import Cancelled, RetunedError, StandsBy, StoreUnavailable, WarehouseError
from retuned.retrain.data.dataset import Dataset, DatasetRefused
from retuned.retrain.queue import discard
from retuned.retrain.release import registry
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.stages import dataset as data
from retuned.retrain.stages.candidate import LENGTHS, evaluations, trained, with_folds
from retuned.retrain.stages.context import Clock, Context
from retuned.retrain.stages.decide import decide, register, scores
from retuned.retrain.stages.promote import promote
from retuned.retrain.stages.traffic import with_verdicts
from retuned.retrain.versions import Version

State = Literal["succeeded", "refused", "failed", "interrupted", "cancelled"]


class Unwritable(RetunedError):
    """A file of a trained run cannot be written. Nothing that was trained is lost: resume the run once it can."""


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        state: succeeded (trained and decided), refused (the evidence does not suffice for a training), failed,
            cancelled, or interrupted (to be resumed).
        version: the candidate, if there is one.
        passed: the gate's decision, if there is one.
        promoted: the candidate is in service as the champion, as a canary or in shadow.
        share: the candidate's share of the traffic: 1.0 as the champion without a holdback; 0.0 in shadow or if it is
            not in service.
        reasons: the gate's reasons, or why the run ended without a decision.
        scores: the mean score on the holdout of base, champion, candidate and logged, the known answers of production.
        figures: the gate's figures.
        train_seconds, evaluate_seconds: wall time of the child processes, without the time they waited for a cluster.
        training: the result of `train`.
    """

    run_id: str
    workload: str
    state: State
    dataset_version: str | None = None
    parent_version: str | None = None
    version: str | None = None
    passed: bool | None = None
    promoted: bool = False
    share: float = 0.0
    reasons: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    training: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def resume(rollout: Rollout, run_id: str, now: Clock, stop: threading.Event, on_progress: Emit) -> RunResult:
    """Starts a waiting run, or resumes one that a stop or a crash interrupted.

    Several workloads may have a run in progress, each in a thread of its own. The caller ensures that no workload has
    two. A resumed run has the same dataset, its training continues from the last checkpoint, and finished stages are
    not repeated.

    Args:
        rollout: the warehouse, the settings, and promotions.
        stop: when set, the run ends as interrupted, after the child's grace period at the latest.
        on_progress: receives `{"stage": …, "workload": …}` with the fields of `train` and `evaluate`.

    Raises:
        WarehouseError: the warehouse cannot be written. Resume the run once it can.
        StoreUnavailable, StandsBy: the cluster's storage cannot be written, or another daemon leads.
        Unwritable: a file cannot be written after the training. Resume the run once it can.
    """
    row = rollout.warehouse.row("SELECT * FROM runs WHERE id = ?", [run_id])
    assert row is not None
    run = Context(rollout, row["workload"], run_id, now, stop, on_progress)
    try:
        run.record.begin(run.settings.train.attempts)
        run.folder.mkdir(parents=True, exist_ok=True)
        result = _stages(run)
    except DatasetRefused as error:
        result = _ended(run, "refused", str(error))
    except Cancelled as error:
        if (row := run.record.interrupted())["state"] == "cancelled":
            discard(rollout, run.workload, run_id)
            return _ended(run, "cancelled", row["error"])
        return _ended(run, "interrupted", str(error))  # the folder contains the checkpoint
    except WarehouseError:
        raise
    except (StoreUnavailable, StandsBy, Unwritable):
        run.record.interrupted()  # the run will be resumed, and no attempt has failed
        raise
    except RetunedError as error:
        result = _ended(run, "failed", str(error))
    except OSError as error:
        result = _ended(run, "failed", f"{_advice(run, error)} and retrain")
    except Exception as error:
        run.record.finish(state="failed", error=f"{type(error).__name__}: {first_line(error)}")
        raise
    row = run.record.finish(state=result.state, error=result.error, detail=json.dumps(asdict(result)))
    if row["state"] == "cancelled":
        result = _ended(run, "cancelled", row["error"])
    if result.state in ("succeeded", "refused", "cancelled"):
        shutil.rmtree(run.folder, ignore_errors=True)
    return result


def _stages(run: Context) -> RunResult:
    with run.span("data"):
        dataset, parent = data.obtain(run)
    run.check_stop()
    data.review(run, dataset, parent)
    run.record.report("train", rows=dataset.rows, dataset_version=dataset.version)
    with run.span("train"):
        training = trained(run, dataset, run.folder)
    try:
        return _decided(run, dataset, parent, training)
    except OSError as error:
        raise Unwritable(f"run {run.id}: {_advice(run, error)}; then the run resumes where it stopped") from error


def _decided(run: Context, dataset: Dataset, parent: Version | None, training: dict[str, Any]) -> RunResult:
    """Evaluates, decides about and releases what was trained."""
    run.check_stop()
    with run.span("evaluate"):
        rows, lengths = evaluations(run, dataset, parent, training)
        rows = with_folds(run, dataset, parent, training, with_verdicts(run, dataset, rows), lengths)
    with run.span("decide") as span:
        candidate = register(run, dataset, training, rows)
        lengths |= {f"train_{name}": float(training[name]) for name in LENGTHS if name in training}
        decision = decide(run, dataset, rows, candidate, lengths)
        span.set(version=candidate.version, outcome="passed" if decision.outcome else "refused")
    registry.renew_card(run.warehouse, candidate)  # before the promotion is announced
    run.check_stop()
    with run.span("release") as span:
        share = promote(run, decision, parent, candidate)
        if decision.outcome:
            run.rollout.follow_up_or_log(run.workload)
        span.set(version=candidate.version, promoted=share is not None)
    row = run.record.row()
    return RunResult(
        run_id=run.id,
        workload=run.workload,
        state="succeeded",
        dataset_version=dataset.version,
        parent_version=parent.version if parent else None,
        version=candidate.version,
        passed=decision.outcome,
        promoted=share is not None,
        share=share or 0.0,
        reasons=decision.reasons,
        scores=scores(rows),
        figures=decision.figures,
        train_seconds=row["train_seconds"],
        evaluate_seconds=row["evaluate_seconds"],
        training=training,
    )


def _advice(run: Context, error: OSError) -> str:
    """Returns what could not be written and why, and what to do."""
    remedy = "free space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make the path writable"
    return f"{error.filename or run.folder}: {error.strerror or error}; {remedy}"


def _ended(run: Context, state: State, error: str) -> RunResult:
    row = run.record.row()
    return RunResult(
        run_id=run.id,
        workload=run.workload,
        state=state,
        dataset_version=row["dataset_version"],
        parent_version=row["parent_version"],
        version=row["version"],
        reasons=[error],
        train_seconds=row["train_seconds"] or 0.0,
        evaluate_seconds=row["evaluate_seconds"] or 0.0,
        error=error,
    )
