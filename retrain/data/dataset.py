"""Datasets: what a training learns from and is judged on, written once and never changed. `build` makes them."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.examples import logged_answer
from retuned.retrain.scoring.metric import Chosen, restored
from retuned.retrain.settings import Settings
from retuned.retrain.versions import QUERIES

SPLITS = ("train", "validation", "holdout", "regression")
THUMBS = "thumbs"
TRAFFIC = "traffic"
"""Answers that nobody said anything about: what is compared on them is no score."""
SET_ASIDE = "set_aside"
REDUCED = ("train", "holdout")
"""The splits of a dataset that retention reduced to what later ones are made from."""


class DatasetRefused(RetunedError):
    """Nothing is trained on this evidence."""


class TooFewRows(DatasetRefused):
    """There is not enough evidence to learn from and to be judged on."""


class LostClass(DatasetRefused):
    """Most questions of a frequent answer or topic would be left out: it would be neither learned nor judged."""


class TooLongRows(DatasetRefused):
    """Too many rows are longer than the training may read. The dataset stays."""


class Leak(RetunedError):
    """Something that is judged on would have been trained on. Nothing was written."""


@dataclass(frozen=True)
class Dataset:
    """A written dataset.

    Attributes:
        path: its folder: `train.parquet`, `validation.parquet`, `holdout.parquet`, `regression.parquet`;
            `thumbs.parquet`, answers that people called helpful or not, for preference training; `traffic.parquet`,
            recent answers that nobody rated, as completions; `set_aside.parquet`, what was left out and why;
            `topics.json`, by which the next dataset names the same topics; `card.json`.
        rows: number of rows of each split.
        replay: rows of train that repeat an earlier dataset.
        card: what it was made from, and what was left out and why.
        removed_at: when retention deleted its folder, naive UTC; None: it is there.
    """

    version: str
    workload: str
    created_at: datetime
    path: Path
    rows: dict[str, int]
    replay: int
    card: dict[str, Any]
    removed_at: datetime | None = None

    @property
    def reduced(self) -> bool:
        """Whether retention left the splits in REDUCED alone."""
        return self.path.is_dir() and not (self.path / "regression.parquet").exists()

    def split(self, name: str) -> list[dict[str, Any]]:
        """The rows of a split: an `Example`'s columns and `replay`. Of `thumbs`, `desirable` in its place; of
        `set_aside`, `reason` and `detail`. Of a reduced dataset, none but those of REDUCED."""
        if name not in REDUCED and self.reduced:
            return []
        rows: list[dict[str, Any]] = pq.read_table(self.path / f"{name}.parquet").to_pylist()
        return rows


def load(warehouse: Warehouse, workload: str, version: str) -> Dataset | None:
    """A dataset that was written, or None."""
    row = warehouse.row(QUERIES["dataset"], {"workload": workload, "version": version})
    if row is None:
        return None
    card = json.loads(row["card"])
    return Dataset(
        version, workload, row["created_at"], Path(row["path"]), card["rows"], row["replay"], card, row["removed_at"]
    )


def logged_answers(warehouse: Warehouse, dataset: Dataset, split: str = "holdout") -> dict[str, str]:
    """What production answered to the questions of a split, by row_id, as far as it is known."""
    parameters = {"workload": dataset.workload, "version": dataset.version, "split": split}
    return {
        row["row_id"]: logged_answer(row["response"], row["calls"])[1]
        for row in warehouse.rows(QUERIES["logged_answers"], parameters)
    }


def metric_of(dataset: Dataset, settings: Settings) -> Chosen:
    """The metric that the answers of a dataset are scored by, and why."""
    kept = dataset.card.get("metric")
    approved = [] if kept else [row["completion"] for name in ("train", "holdout") for row in dataset.split(name)]
    return restored(settings, kept, approved)
