"""Thresholds of entries on a real dataset: rewordings are helped, near misses are not."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fixtures.feedback.teaching import Teacher, questions
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.memory import embed, entries
from retuned.retrain.memory.feed import Reading
from retuned.retrain.memory.lookup import look_up
from retuned.retrain.memory.related import Thresholds
from retuned.retrain.memory.settings import MemorySettings
from retuned.retrain.settings import Settings

SETTINGS = Settings(memory=MemorySettings(mode="context"))
GOODS = {
    "lamp": "14 days", "sofa": "30 days", "gift card": "5 euros", "kettle": "7 days", "carpet": "8 weeks",
    "bicycle": "2 years", "piano": "one month", "tent": "10 days", "mirror": "3 weeks",
}  # fmt: skip

pytestmark = pytest.mark.skipif(embed.load() is None, reason="the extra memory is not installed")


def dataset(warehouse: Warehouse, folder: Path, rows: list[tuple[str, str]]) -> None:
    """A dataset of these questions and answers."""
    table = [
        {
            "messages": json.dumps([{"role": "user", "content": question}]),
            "context": None,
            "tools": None,
            "completion": answer,
            "timestamp": Teacher(warehouse).now,
        }
        for question, answer in rows
    ]
    folder.mkdir()
    schema = {"context": pa.string(), "tools": pa.string()}
    columns = {name: pa.array([row[name] for row in table], schema.get(name)) for name in table[0]}
    pq.write_table(pa.table(columns), folder / "train.parquet")
    warehouse.insert(
        "datasets",
        version=folder.name,
        workload="support",
        created_at=Teacher(warehouse).now,
        path=str(folder),
        train=len(rows),
        holdout=0,
        replay=0,
        card=json.dumps({}),
    )


def taught(teacher: Teacher, question: str, answer: str) -> None:
    teacher.correct(question, "I cannot say.", answer)
    entries.follow(teacher.warehouse, SETTINGS, "support", teacher.now)
    Thresholds().update(teacher.warehouse, SETTINGS, "support")


def found(warehouse: Warehouse, question: str) -> str | None:
    result = look_up(warehouse, SETTINGS, "support", Reading([{"role": "user", "content": question}]), None)
    return str(result["message"]["content"]) if result["message"] else None


def test_a_reworded_question_is_helped_and_one_about_another_thing_is_not(
    teacher: Teacher, warehouse: Warehouse, tmp_path: Path
) -> None:
    dataset(warehouse, tmp_path / "d1", list(questions(GOODS)))
    taught(teacher, "tell me how long do i have to return a lamp?", "You have 21 days for it.")
    helped = found(warehouse, "tell me, how long do i have to return the lamp?")
    assert helped is not None
    assert "21 days" in helped
    assert found(warehouse, "tell me, how long do i have to return a sofa?") is None


def test_without_a_dataset_only_the_same_question_is_helped(teacher: Teacher, warehouse: Warehouse) -> None:
    taught(teacher, "How long may I return a lamp?", "You have 21 days for it.")
    assert found(warehouse, "How long may I return the lamp?") is None
    assert found(warehouse, " How long may I  return a lamp? ") is not None
