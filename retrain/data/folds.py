"""Folds: evaluates training rows, too, if the holdout is too small, by models that were trained without them.

Cross-validation (Stone 1974): the rows are dealt into folds, and for each fold a model is trained on all others. The
answers of these models stand for those of the candidate, which was trained on more rows. Folds share most of their
training rows, so their answers depend on each other. The interval takes them as independent: no unbiased estimate of
that variance exists (Bengio and Grandvalet 2004), so its error is not exactly the promised one.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.common.durable import written_aside
from retuned.retrain.data.dataset import THUMBS, Dataset
from retuned.retrain.settings import Settings

FOLDS = 4


def can_fold(new_rows: int, settings: Settings) -> bool:
    """Returns whether there are few enough new training rows that four more trainings are worth their cost."""
    return FOLDS <= new_rows <= settings.gate.fold_rows


def folds(dataset: Dataset, folder: Path) -> Iterator[Dataset]:
    """Yields the dataset of each fold, written to a folder of its own.

    `holdout` contains the fold's rows, `train` all rows whose questions are not related to them. There is no regression
    set, and there are no thumbs or traffic. Related questions, as the dataset grouped them, share a fold, and every
    topic is dealt evenly. Rows of earlier datasets are in no holdout, because the champion was trained on them.
    """
    rows = dataset.split("train")
    of = {row["row_id"]: row["cluster"] or row["prompt_hash"] for row in rows}
    new = sorted((row for row in rows if not row["replay"]), key=lambda row: (row["topic"] or "", of[row["row_id"]]))
    fold_of = {one: place % FOLDS for place, one in enumerate(dict.fromkeys(of[row["row_id"]] for row in new))}
    schema, thumbs = (pq.read_schema(dataset.path / f"{name}.parquet") for name in ("train", THUMBS))
    for fold in range(FOLDS):
        parts = {
            "train": [row for row in rows if fold_of.get(of[row["row_id"]]) != fold],
            "holdout": [row for row in new if fold_of[of[row["row_id"]]] == fold],
            "regression": [],
            THUMBS: [],
        }
        path = folder / f"fold-{fold}" / "dataset"
        if not path.is_dir():
            with written_aside(path) as aside:
                for name, own in parts.items():
                    table = pa.Table.from_pylist(own, schema=thumbs if name == THUMBS else schema)
                    pq.write_table(table, aside / f"{name}.parquet")
                (aside / "card.json").write_text(json.dumps(dataset.card) + "\n", encoding="utf-8")
        yield replace(dataset, path=path.resolve(), rows={name: len(own) for name, own in parts.items()})
