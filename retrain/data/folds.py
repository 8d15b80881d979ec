"""Folds: what was learned is judged on too, by models that learned without it, where the holdout is too small alone.

Cross-validation (Stone 1974): the rows are dealt into folds, and a model is trained for each on all the others. What
these models answer is held for the candidate's, which learned from more. Folds share most of what they learn from, so
their answers are a little less independent than those of one model to as many rows (Bengio and Grandvalet 2004).
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.common.durable import written_aside
from retuned.retrain.data.dataset import THUMBS, Dataset
from retuned.retrain.data.examples import restored
from retuned.retrain.data.questions import questions_of
from retuned.retrain.data.similarity import Template
from retuned.retrain.settings import Settings

FOLDS = 4


def can_fold(new_rows: int, settings: Settings) -> bool:
    """Whether there are so few new rows to learn from that four more trainings are worth it. A provider would be paid
    for each."""
    return settings.train.engine != "api" and FOLDS <= new_rows <= settings.gate.fold_rows


def folds(dataset: Dataset, settings: Settings, folder: Path) -> Iterator[Dataset]:
    """The datasets of the folds, each written into a folder of its own: `holdout` with the fold's rows, `train` and
    `validation` without what asks their questions, no regression set, thumbs or traffic.

    Rows that ask the same question are of one fold, and every topic is dealt out evenly. What repeats an earlier
    dataset is not judged: the champion has learned it.
    """
    rows, validation = dataset.split("train"), dataset.split("validation")
    examples = [
        restored({name: value for name, value in row.items() if name != "replay"}) for row in (*rows, *validation)
    ]
    template = Template(example.prompt for example in examples)
    question = questions_of(examples, settings.dataset.near_duplicate_similarity, template)
    of = {example.row_id: question[example.prompt_hash] for example in examples}
    new = sorted((row for row in rows if not row["replay"]), key=lambda row: (row["topic"] or "", of[row["row_id"]]))
    fold_of = {one: place % FOLDS for place, one in enumerate(dict.fromkeys(of[row["row_id"]] for row in new))}
    schema, thumbs = (pq.read_schema(dataset.path / f"{name}.parquet") for name in ("train", THUMBS))
    for fold in range(FOLDS):
        parts = {
            "train": [row for row in rows if fold_of.get(of[row["row_id"]]) != fold],
            "validation": [row for row in validation if fold_of.get(of[row["row_id"]]) != fold],
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
