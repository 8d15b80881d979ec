"""Folds: which rows are judged, by models that learned from which."""

from collections import Counter
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retuned.retrain.data.build import _SCHEMAS
from retuned.retrain.data.dataset import THUMBS, Dataset
from retuned.retrain.data.examples import Example
from retuned.retrain.data.folds import FOLDS, can_fold, folds
from retuned.retrain.data.identity import text_hash
from retuned.retrain.settings import GateSettings, Settings

AT = datetime(2026, 3, 2)
TOPICS = ("returns", "delivery")


def example(number: int, cluster: int | None = None) -> Example:
    """A question of its own wording; related to others of its cluster, as those of one conversation are."""
    asked = " ".join(text_hash(f"{number} {place}")[:6] for place in range(8))
    return Example(
        row_id=f"r{number}", prompt_hash=text_hash(asked), prompt=asked, question=asked,
        messages=f'[{{"role": "user", "content": "{asked}"}}]', completion=f"Answer {number}.", kind="correction",
        source="expert", rejected=None, context=None, interaction_id=f"i{number}", feedback_id=f"f{number}",
        timestamp=AT, received_at=AT, topic=TOPICS[number % 2],
        cluster=f"c{number if cluster is None else cluster}",
    )  # fmt: skip


def dataset(folder: Path, new: list[Example], replayed: list[Example], held_out: list[Example]) -> Dataset:
    rows = {
        "train": [row.as_row() | {"replay": False} for row in new]
        + [row.as_row() | {"replay": True} for row in replayed],
        "holdout": [row.as_row() | {"replay": False} for row in held_out],
        "regression": [],
        THUMBS: [example(901).as_row() | {"desirable": True}],
    }
    folder.mkdir()
    for name, values in rows.items():
        pq.write_table(pa.Table.from_pylist(values, schema=_SCHEMAS[name]), folder / f"{name}.parquet")
    counts = {name: len(values) for name, values in rows.items()}
    return Dataset("d", "support", AT, folder, counts, len(replayed), {"metric": None})


def ids(one: Dataset, split: str) -> list[str]:
    return [row["row_id"] for row in one.split(split)]


@pytest.fixture
def made(tmp_path: Path) -> tuple[Dataset, list[Dataset]]:
    new = [example(number) for number in range(30)]
    new.append(example(30, cluster=0))
    replayed = [example(number) for number in range(100, 110)]
    replayed.append(example(110, cluster=0))
    whole = dataset(tmp_path / "whole", new, replayed, [example(number) for number in range(200, 210)])
    return whole, list(folds(whole, tmp_path / "run"))


def test_each_new_row_is_judged_once_by_a_model_that_did_not_learn_it(made: tuple[Dataset, list[Dataset]]) -> None:
    whole, parts = made
    assert len(parts) == FOLDS == 4
    assert Counter(id for part in parts for id in ids(part, "holdout")) == Counter(f"r{number}" for number in range(31))
    for part in parts:
        judged, learned = set(ids(part, "holdout")), set(ids(part, "train"))
        assert not judged & learned
        assert judged | learned >= {f"r{number}" for number in range(31)}
        assert part.rows["train"] == len(learned)
        # What was held out of the dataset is learned by none.
        assert not learned & set(ids(whole, "holdout"))
        assert ids(part, THUMBS) == []
        assert Counter(row["topic"] for row in part.split("holdout")).keys() == set(TOPICS)
        assert 7 <= len(judged) <= 9


def test_the_questions_of_a_cluster_are_of_one_fold_and_what_repeats_an_earlier_dataset_is_not_judged(
    made: tuple[Dataset, list[Dataset]],
) -> None:
    (own,) = (part for part in made[1] if "r0" in ids(part, "holdout"))
    assert "r30" in ids(own, "holdout")
    assert "r110" not in ids(own, "train")
    for part in made[1]:
        assert {f"r{number}" for number in range(100, 110)} <= set(ids(part, "train"))
        assert part is own or "r110" in ids(part, "train")


def test_the_folds_of_a_run_that_is_taken_up_again_are_the_same(
    made: tuple[Dataset, list[Dataset]], tmp_path: Path
) -> None:
    times = [(part.path / "train.parquet").stat().st_mtime_ns for part in made[1]]
    again = list(folds(made[0], tmp_path / "run"))
    assert again == made[1]
    assert [(part.path / "train.parquet").stat().st_mtime_ns for part in again] == times


@pytest.mark.parametrize(("limit", "possible"), [(0, False), (30, False), (31, True), (200, True)])
def test_many_new_rows_and_next_to_none_are_not_dealt_into_folds(limit: int, possible: bool) -> None:
    settings = Settings(gate=GateSettings(fold_rows=limit))
    assert can_fold(31, settings) == possible
    assert not can_fold(3, settings)
