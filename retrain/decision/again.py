"""Repeats the decision on a version under another metric or configuration, from the stored answers of its evaluation.

Nothing is trained or generated. The result is for information and changes nothing that serves.
"""

import json
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from retuned.consumers.child import child_main
from retuned.consumers.common.process import Emit
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.retrain import versions
from retuned.retrain.data import dataset as datasets
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision.compare import compare
from retuned.retrain.decision.evaluation import (
    BASE,
    CANDIDATE,
    CHAMPION,
    FOLD,
    LOGGED,
    SLICES,
    UNASKED,
    Evaluation,
    as_row,
    summary,
)
from retuned.retrain.decision.measures import scored, with_agreement
from retuned.retrain.decision.metric_job import judge_key, metric_in_child, metric_job
from retuned.retrain.decision.pairs import Decision
from retuned.retrain.runners.local import LocalRunner
from retuned.retrain.runners.runner import Work
from retuned.retrain.settings import METRICS, Settings
from retuned.retrain.versions import QUERIES

KIND = "evaluation"
"""The kind of the stored decision."""
SCORED = ("holdout", "regression", FOLD, SLICES)


def evaluate_again(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    version: str,
    metric: str | None,
    now: datetime,
    stop: threading.Event,
) -> Decision:
    """Returns what the gate would decide today on a version's evaluation, and stores evaluations and decision.

    Args:
        metric: as in `metric.name`; None uses the configured one.
        now: naive UTC.

    Raises:
        RetunedError: the version, its dataset or its evaluation is missing, or the metric is not available.
        ChildFailed: the child failed or died.
    """
    if metric is not None:
        settings = _with_metric(settings, metric)
    evaluated = _evaluated(warehouse, workload, version)
    chosen = datasets.metric_of(evaluated.dataset, settings)
    rows = _scored(evaluated.rows, evaluated.dataset, settings, stop)
    decision = compare(
        rows,
        chosen.metric,
        settings,
        serving=evaluated.names[CHAMPION] is not None,
        tries=evaluated.tries,
        unasked=evaluated.unasked,
        conversations=evaluated.dataset.conversations,
    )
    would = "would pass" if decision.outcome else "would not pass"
    name = versions.model_name(workload, version)
    reasons = [f"For information: by the metric {chosen.metric.name} {name} {would} the gate.", *decision.reasons]
    decision = Decision(decision.outcome, [*reasons, str(chosen)], summary(rows) | decision.figures)
    _store(warehouse, workload, evaluated, rows, decision, chosen.metric.name, now)
    return decision


@dataclass(frozen=True)
class _Evaluated:
    """The evaluation of a run, as stored.

    Attributes:
        names: the names that base, champion and candidate have in the table `evaluations`.
        tries: how many comparisons with this champion the gate had counted before.
        unasked: the number of holdout rows that were not drawn.
    """

    run_id: str
    dataset: Dataset
    names: dict[str, str]
    rows: list[Evaluation]
    tries: int
    unasked: int


def _evaluated(warehouse: Warehouse, workload: str, version: str) -> _Evaluated:
    """Reads the evaluation of a version.

    Raises:
        RetunedError: the version, its dataset or its evaluation is missing.
    """
    model = versions.find(warehouse, workload, version)
    if model is None:
        raise RetunedError(f"{workload}@{version}: there is no such version; `retuned export models` lists them")
    run = warehouse.row("SELECT id, parent_version, dataset_version FROM runs WHERE id = ?", [model.run_id])
    dataset = datasets.load(warehouse, workload, model.dataset_version)
    if run is None or dataset is None or not dataset.path.is_dir() or dataset.reduced:
        raise RetunedError(
            f"{model.name}: retention has removed the dataset {model.dataset_version} of its evaluation; retrain"
        )
    names = {BASE: BASE, LOGGED: LOGGED, CHAMPION: run["parent_version"], CANDIDATE: version}
    rows = _stored(warehouse, run["id"], names)
    if not rows:
        raise RetunedError(f"{model.name}: retention has removed its evaluation; retrain")
    gate = warehouse.row(QUERIES["gate_decision"], {"run_id": run["id"]})
    figures = json.loads(gate["figures"]) if gate else {}
    tries, unasked = int(figures.get("earlier_tries", 0)), int(figures.get(UNASKED, 0))
    return _Evaluated(run["id"], dataset, names, rows, tries, unasked)


def _store(
    warehouse: Warehouse,
    workload: str,
    evaluated: _Evaluated,
    rows: list[Evaluation],
    decision: Decision,
    metric: str,
    now: datetime,
) -> None:
    id = f"{evaluated.run_id}-evaluation-{now:%Y%m%dT%H%M%S%f}"
    shared = {"run_id": id, "workload": workload, "dataset_version": evaluated.dataset.version}
    with warehouse.transaction() as cursor:
        for row in rows:
            insert(cursor, "evaluations", **shared, **as_row(row, evaluated.names))
        insert(
            cursor,
            "decisions",
            id=id,
            created_at=now,
            workload=workload,
            kind=KIND,
            metric=metric,
            outcome=decision.outcome,
            reasons=json.dumps(decision.reasons),
            figures=json.dumps(decision.figures),
            run_id=evaluated.run_id,
        )


def _with_metric(settings: Settings, metric: str) -> Settings:
    """Returns the configuration with another metric.

    Raises:
        RetunedError: no metric has that name, or it lacks something it requires.
    """
    if metric not in (*METRICS, settings.metric.name):  # a request must not name code to run
        raise RetunedError(
            f"metric {metric}: expected one of {', '.join(METRICS)}; to use your own function, set metric.name "
            "in the configuration"
        )
    if metric == "judge" and settings.evaluate.judge_url is None:
        raise RetunedError("metric judge: set evaluate.judge_url to a language model that judges")
    return settings.model_copy(update={"metric": settings.metric.model_copy(update={"name": metric})})


def _stored(warehouse: Warehouse, run_id: str, names: Mapping[str, str | None]) -> list[Evaluation]:
    """Returns the stored evaluations of a run, without the groups of the metric used at the time."""
    known = {name: model for model, name in names.items() if name is not None}
    columns = {field.name for field in fields(Evaluation)}
    evaluations = []
    for row in warehouse.rows("SELECT * FROM evaluations WHERE run_id = ?", [run_id]):
        values = {name: value for name, value in row.items() if name in columns}
        groups = [
            group
            for group in json.loads(row["groups"] or "[]")
            if values["split"] == SLICES or group.startswith("tool:")
        ]
        evaluations.append(Evaluation(**values | {"model": known[row["model"]], "groups": groups}))
    return evaluations


def _scored(rows: list[Evaluation], dataset: Dataset, settings: Settings, stop: threading.Event) -> list[Evaluation]:
    """Returns the evaluations scored by the configured metric, which a child process computes."""
    metric = datasets.metric_of(dataset, settings).as_dict()
    with tempfile.TemporaryDirectory() as folder:
        task = Work(
            "retuned.retrain.decision.again",
            metric_job(metric, dataset.workload, settings)
            | {"rows": [asdict(row) for row in rows], "dataset": str(dataset.path)},
            Path(folder),
            timeout_seconds=settings.evaluate.timeout_seconds,
            environment=judge_key(settings.evaluate),
        )
        result = LocalRunner(settings.train).run(task, stop, lambda _: None)
    return [Evaluation(**row) for row in result["rows"]]


def work(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    """Runs in the child: scores the stored answers."""
    import pyarrow.parquet as pq

    metric = metric_in_child(job)
    splits = ("holdout", "regression", "train", "traffic")
    files = (Path(job["dataset"]) / f"{name}.parquet" for name in splits)
    tables = (pq.read_table(file).to_pylist() for file in files if file.is_file())
    by_id = {row["row_id"]: row for row in chain.from_iterable(tables)}
    examples = list(by_id.values())
    rows = []
    for row in (Evaluation(**values) for values in job["rows"]):
        known = by_id.get(row.row_id, {})
        rows.append(replace(row, cluster=known.get("cluster"), asked=known.get("asked") or 0, agreement=None))
    evaluations, tokens = scored([row for row in rows if row.split in SCORED and row.row_id in by_id], examples, metric)
    evaluations += [row for row in rows if row.split not in SCORED]
    evaluations = with_agreement(evaluations, examples, metric)
    return {"rows": [asdict(row) for row in evaluations], "tokens": tokens}


if __name__ == "__main__":
    child_main(work)
