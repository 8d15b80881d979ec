"""Datasets: the rows that a model is trained and evaluated on. They are immutable; `build` writes them."""

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

SPLITS = ("train", "holdout", "regression")
THUMBS = "thumbs"
TRAFFIC = "traffic"
"""Unrated answers. Comparisons on them are no scores."""
SET_ASIDE = "set_aside"
REDUCED = ("train", "holdout")
"""The splits that retention keeps of a reduced dataset. Later datasets are built from them."""


class DatasetRefused(RetunedError):
    """The evidence is not suitable for a training."""


class TooFewRows(DatasetRefused):
    """There are too few rows for training and evaluation."""


class LostClass(DatasetRefused):
    """Most questions of a frequent answer or topic would be left out, and nothing would show it."""


class TooLongRows(DatasetRefused):
    """Too many rows are longer than the training's maximum length. The dataset is kept."""


class Leak(RetunedError):
    """A held-out question would be trained on. Nothing was written."""


@dataclass(frozen=True)
class Dataset:
    """A written dataset.

    Attributes:
        path: its folder: `train.parquet`, `holdout.parquet`, `regression.parquet`; `thumbs.parquet`, answers with a
            thumb, for preference training; `traffic.parquet`, recent unrated answers as completions;
            `set_aside.parquet`, rows that were left out, with the reason; `topics.json`, from which the next dataset
            takes the names of topics; `card.json`.
        rows: the number of rows of each split.
        replay: the number of rows of train that repeat an earlier dataset.
        card: the sources, and the numbers of rows that were left out by reason.
        removed_at: the time when retention deleted its folder, naive UTC; None if it exists.
        decisions: `overrides.digest` of what it was last built from; None: unknown.
    """

    version: str
    workload: str
    created_at: datetime
    path: Path
    rows: dict[str, int]
    replay: int
    card: dict[str, Any]
    removed_at: datetime | None = None
    decisions: str | None = None

    @property
    def conversations(self) -> int:
        """The number of recent conversations in which `asked` counts the questions of the rows; 0: nothing is counted.

        It is read beside the rows: a reduced dataset is written again with new counts, and keeps its card.
        """
        file = self.path / "card.json"
        return int(json.loads(file.read_text(encoding="utf-8")).get("conversations", 0)) if file.is_file() else 0

    @property
    def reduced(self) -> bool:
        """Whether retention removed all splits but those in REDUCED."""
        return self.path.is_dir() and not (self.path / "regression.parquet").exists()

    def split(self, name: str) -> list[dict[str, Any]]:
        """Returns the rows of a split: an `Example`'s columns, `replay`, and `asked`, the number of recent
        conversations that ask the question; instead of these two `desirable` for `thumbs`, `reason` and `detail` for
        `set_aside`. Empty if the dataset is reduced and the split is not in REDUCED."""
        if name not in REDUCED and self.reduced:
            return []
        rows: list[dict[str, Any]] = pq.read_table(self.path / f"{name}.parquet").to_pylist()
        return rows


def load(warehouse: Warehouse, workload: str, version: str) -> Dataset | None:
    """Returns a dataset; None if there is none of that version."""
    row = warehouse.row(QUERIES["dataset"], {"workload": workload, "version": version})
    if row is None:
        return None
    card = json.loads(row["card"])
    return Dataset(
        version=version,
        workload=workload,
        created_at=row["created_at"],
        path=Path(row["path"]),
        rows=card["rows"],
        replay=row["replay"],
        card=card,
        removed_at=row["removed_at"],
        decisions=row["decisions"],
    )


def logged_answers(
    warehouse: Warehouse, dataset: Dataset, split: str = "holdout", incumbent: str | None = None
) -> dict[str, str]:
    """Returns the known answers of production to the questions of a split, by row_id; with an incumbent, its alone."""
    about = {"workload": dataset.workload, "version": dataset.version}
    parameters = about | {"split": split, "incumbent": incumbent}
    return {
        row["row_id"]: logged_answer(row["response"], row["calls"])[1]
        for row in warehouse.rows(QUERIES["logged_answers"], parameters)
    }


def metric_of(dataset: Dataset, settings: Settings) -> Chosen:
    """Returns the metric for the answers of a dataset, with the reason."""
    kept = dataset.card.get("metric")
    approved = [] if kept else [row["completion"] for name in ("train", "holdout") for row in dataset.split(name)]
    return restored(settings, kept, approved)
