"""The decision stage: registers the candidate, and stores the gate's decision on it."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from retuned.consumers.warehouse.connection import insert
from retuned.retrain import versions
from retuned.retrain.data import dataset as datasets
from retuned.retrain.data import holdout
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision import gate
from retuned.retrain.decision.compare import answers, compare
from retuned.retrain.decision.evaluation import (
    BASE,
    CANDIDATE,
    CHAMPION,
    LOGGED,
    UNASKED,
    Evaluation,
    as_row,
    summary,
)
from retuned.retrain.decision.pairs import Decision, Refusal
from retuned.retrain.generation import effect_probe
from retuned.retrain.queue import EVALUATE
from retuned.retrain.release import registry
from retuned.retrain.scoring import exam
from retuned.retrain.scoring.metric import Chosen
from retuned.retrain.settings import SECRETS
from retuned.retrain.stages.context import Context
from retuned.retrain.stages.traffic import opinion
from retuned.retrain.versions import QUERIES, Version


def register(run: Context, dataset: Dataset, training: dict[str, Any], rows: list[Evaluation]) -> Version:
    """Registers the candidate as a version."""
    row = run.record.row()
    sections = {"dataset", "train", "evaluate", "gate"}
    details: dict[str, Any] = {
        "objective": run.settings.objective,
        "settings": run.settings.model_dump(mode="json", include=sections, exclude=SECRETS),
        "training": {name: value for name, value in training.items() if name != "adapter"},
        "metrics": {
            "holdout_rows": dataset.rows["holdout"],
            **{f"holdout_score_{model}": value for model, value in scores(rows).items()},
        },
        "cost": {"train_seconds": row["train_seconds"], "evaluate_seconds": row["evaluate_seconds"]},
    }
    if run.rebased_from:
        details["rebased_from"] = run.rebased_from
    probe = run.folder / EVALUATE / effect_probe.FILE
    if probe.is_file():
        details["effect_probe"] = json.loads(probe.read_text(encoding="utf-8"))
    version = registry.register(
        run.warehouse,
        run.settings.models.directory,
        run.workload,
        Path(training["adapter"]),
        base_model=versions.need_base(run.settings.base),
        parent_version=run.start.version if run.start else None,
        dataset_version=dataset.version,
        run_id=run.id,
        details=details,
        now=run.now(),
        key_file=run.settings.audit.key_file,
    )
    run.record.update(version=version.version)
    return version


def scores(rows: list[Evaluation]) -> dict[str, float]:
    """Returns the mean score of each model on the holdout."""
    values = {
        model: [row.score for row in answers(rows, model, "holdout") if row.score is not None]
        for model in dict.fromkeys(row.model for row in rows if row.split == "holdout")
    }
    return {model: fmean(own) for model, own in values.items() if own}


def compared(run: Context, dataset: Dataset, rows: list[Evaluation], lengths: dict[str, float]) -> Decision:
    """Returns the gate's decision on evaluations."""
    parent = run.record.row()["parent_version"]
    with run.exclusively():
        return compare(
            rows,
            datasets.metric_of(dataset, run.settings).metric,
            run.settings,
            serving=parent is not None,
            tries=holdout.tries(run.warehouse, run.workload, parent),
            unasked=int(lengths.get(UNASKED, 0)),
            forgets=run.forgets,
            conversations=dataset.conversations,
        )


def stored_decision(run: Context) -> Decision | None:
    """Returns the gate's decision, if the run has one already."""
    row = run.warehouse.row(QUERIES["gate_decision"], {"run_id": run.id})
    return Decision(row["outcome"], json.loads(row["reasons"]), json.loads(row["figures"])) if row else None


def decide(
    run: Context, dataset: Dataset, rows: list[Evaluation], candidate: Version, lengths: dict[str, float]
) -> Decision:
    """Decides about the candidate. Stores evaluations and decision in one transaction, so a resumed run finds both."""
    if (stored := stored_decision(run)) is not None:
        return stored
    champion = run.record.row()["parent_version"]
    metric = datasets.metric_of(dataset, run.settings)
    marks, bar = exam.read(run.folder / EVALUATE), run.settings.metric.exam_bar
    with run.warehouse.transaction() as cursor:
        permission = exam.permission(cursor, run.workload, metric.metric, marks, bar, run.now())
    decision = gate.examined(compared(run, dataset, rows, lengths), permission)
    if candidate.version == champion:
        because, takes = "it did not change the champion", "more to learn from, or other settings of train"
        decision = decision.refused(Refusal("training", because, takes))
    reasons = [*decision.reasons, *opinion(run).failed(run.settings.evaluate), str(metric)]
    decision = replace(decision, reasons=reasons, figures=summary(rows) | lengths | decision.figures)
    names = {BASE: BASE, LOGGED: LOGGED, CHAMPION: champion, CANDIDATE: candidate.version}
    _store(run, dataset, [as_row(row, names) for row in rows], decision, metric)
    run.record.report(
        "gate",
        outcome=decision.outcome,
        reasons=decision.reasons,
        figures=decision.figures,
        version=candidate.version,
    )
    return decision


def _store(run: Context, dataset: Dataset, rows: list[dict[str, Any]], decision: Decision, metric: Chosen) -> None:
    shared = {"run_id": run.id, "workload": run.workload}
    with run.warehouse.transaction() as cursor:
        for row in rows:
            insert(cursor, "evaluations", dataset_version=dataset.version, **shared, **row)
        insert(
            cursor,
            "decisions",
            id=f"{run.id}-gate",
            created_at=run.now(),
            kind="gate",
            metric=metric.metric.name,
            outcome=decision.outcome,
            reasons=json.dumps(decision.reasons),
            figures=json.dumps(decision.figures),
            **shared,
        )
