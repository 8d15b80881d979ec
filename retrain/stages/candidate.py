"""The training and evaluation stages: the candidate, its evaluations, and those of the folds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from retuned.consumers.common.durable import replace_text
from retuned.retrain.data import dataset as datasets
from retuned.retrain.data import holdout
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.data.folds import can_fold, folds
from retuned.retrain.decision import gate
from retuned.retrain.decision.evaluate import evaluate
from retuned.retrain.decision.evaluation import FOLD, Evaluation
from retuned.retrain.memory import retire
from retuned.retrain.queue import EVALUATE, TRAIN
from retuned.retrain.scoring import exam
from retuned.retrain.settings import Settings
from retuned.retrain.stages.context import Context
from retuned.retrain.stages.decide import compared, stored_decision
from retuned.retrain.training.train import train
from retuned.retrain.versions import Version

LENGTHS = ("rows_cut", "rows_too_long", "rows_unasked")
"""Suffixes of figures that count rows beyond the maximum length, or beyond the most that are generated."""
_FILE = "evaluations.json"


def trained(run: Context, dataset: Dataset, folder: Path, **line: Any) -> dict[str, Any]:
    """Trains on a dataset, and returns the result of `train`.

    Args:
        line: further fields of each progress report.
    """

    def report(progress: dict[str, Any]) -> None:
        run.record.report("train", **line, **progress)

    return run.record.timed(
        "train_seconds",
        lambda: train(dataset, run.start, run.settings, folder / TRAIN, run.stop, report, run.rollout.lead),
    )


def evaluations(
    run: Context, dataset: Dataset, parent: Version | None, training: dict[str, Any]
) -> tuple[list[Evaluation], dict[str, float]]:
    """Returns the evaluations on the dataset, and the numbers of rows that were cut, too long or left out."""
    kept = run.folder / _FILE
    if kept.is_file():
        stored = json.loads(kept.read_text(encoding="utf-8"))
        return [Evaluation(**row) for row in stored["rows"]], stored["lengths"]
    run.record.report("evaluate")
    logged = _logged(run, dataset, "holdout", parent)
    pairs = exam.due(run.warehouse, run.workload, datasets.metric_of(dataset, run.settings).metric)
    memory = retire.questions(run.warehouse, run.workload)
    rows, figures = _evaluated(run, dataset, parent, training, run.folder, run.settings, logged, pairs, memory)
    lengths = {name: value for name, value in figures.items() if name.endswith(LENGTHS)}
    replace_text(kept, json.dumps({"rows": [asdict(row) for row in rows], "lengths": lengths}))
    return rows, lengths


def with_folds(
    run: Context,
    dataset: Dataset,
    parent: Version | None,
    training: dict[str, Any],
    rows: list[Evaluation],
    lengths: dict[str, float],
) -> list[Evaluation]:
    """Adds the evaluations of the folds (see `data.folds`), if the others are too little evidence."""
    new_rows = dataset.rows["train"] - dataset.replay
    if stored_decision(run) is not None or not can_fold(new_rows, run.settings):
        return rows
    if not gate.lacks_evidence(compared(run, dataset, rows, lengths)):
        return rows
    logged = _logged(run, dataset, "train", parent)
    rows = list(rows)
    for number, fold in enumerate(folds(dataset, run.folder), 1):
        if not (fold.rows["train"] and fold.rows["holdout"]):
            continue  # nearly all questions are related
        rows += _fold(run, number, fold, parent, training["dtype"], logged)
    return rows


def _logged(run: Context, dataset: Dataset, split: str, champion: Version | None) -> dict[str, str]:
    """Returns the answers to compare with: while no version serves, those of the incumbent, if there is one."""
    own = run.settings.incumbent
    incumbent = own.model if own.url and champion is None else None
    return datasets.logged_answers(run.warehouse, dataset, split, incumbent)


def _fold(
    run: Context, number: int, fold: Dataset, parent: Version | None, dtype: str, logged: dict[str, str]
) -> list[Evaluation]:
    """Trains without a fold, and returns the evaluations on it."""
    folder = fold.path.parent
    kept = folder / _FILE
    if kept.is_file():
        return [Evaluation(**row) for row in json.loads(kept.read_text(encoding="utf-8"))]
    run.record.report("train", fold=number, rows=fold.rows, dataset_version=fold.version)
    training = trained(run, fold, folder, fold=number)
    run.check_stop()
    run.record.report("evaluate", fold=number)
    without_general = run.settings.evaluate.model_copy(update={"general_examples": 0})
    settings = run.settings.model_copy(update={"evaluate": without_general})
    rows, _ = _evaluated(run, fold, parent, training | {"dtype": dtype}, folder, settings, logged, {}, fold=number)
    rows = [replace(row, split=FOLD) for row in rows if row.split == "holdout"]
    replace_text(kept, json.dumps([asdict(row) for row in rows]))
    run.check_stop()
    return rows


def _evaluated(
    run: Context,
    dataset: Dataset,
    parent: Version | None,
    training: Mapping[str, Any],
    folder: Path,
    settings: Settings,
    logged: dict[str, str],
    pairs: Mapping[str, Sequence[exam.Pair]],
    memory: Sequence[Mapping[str, Any]] = (),
    **line: Any,
) -> tuple[list[Evaluation], dict[str, float]]:
    rows, figures = run.record.timed(
        "evaluate_seconds",
        lambda: evaluate(
            dataset,
            parent,
            Path(training["adapter"]),
            settings,
            training["dtype"],
            folder / EVALUATE,
            run.stop,
            lambda progress: run.record.report("evaluate", **line, **progress),
            logged,
            run.rollout.lead,
            pairs,
            memory,
            holdout.tries(run.warehouse, run.workload, parent.version if parent else None),
        ),
    )
    run.record.paid(int(figures.get("judge_tokens", 0)))
    return rows, figures
