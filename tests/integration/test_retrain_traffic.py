"""The sample of recent traffic beside a dataset, and the child that makes datasets from an extract of the warehouse."""

import threading
from collections import Counter
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest

from fixtures.feedback.teaching import Teacher, question
from fixtures.models.datasets import build_dataset
from retuned.consumers.errors import Cancelled
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import attach
from retuned.retrain.data import build
from retuned.retrain.data.dataset import SPLITS, Dataset, TooFewRows
from retuned.retrain.settings import DatasetSettings, GateSettings, ModelsSettings, Settings
from retuned.retrain.versions import QUERIES

NOW = datetime(2026, 4, 1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        models=ModelsSettings(directory=tmp_path / "models"),
        dataset=DatasetSettings(minimum_rows=1, traffic_rows=10),
        gate=GateSettings(minimum_examples=1),
    )


@pytest.fixture
def teacher(teacher: Teacher) -> Teacher:
    for number in range(40):
        teacher.correct(question(number), "No idea.", "It takes 30 days.")
    return teacher


def talk(teacher: Teacher, conversation: str, numbers: range) -> list[str]:
    """Turns of a conversation that nobody says anything about."""
    asked = [teacher.ask(question(number), f"Answer {number}.") for number in numbers]
    teacher.warehouse.execute(
        "UPDATE interactions SET conversation_id = ? WHERE id IN (SELECT unnest(?))", [conversation, asked]
    )
    return asked


def asked(built: Dataset) -> set[str]:
    return {row["interaction_id"] for row in built.split("traffic")}


def test_each_conversation_counts_once_however_long_it_is(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    of = {}
    for number in range(14):
        turns = range(100 + 30 * number, 100 + 30 * number + (25 if number < 4 else 1))
        of |= dict.fromkeys(talk(teacher, f"c{number}", turns), number)
    built = build_dataset(warehouse, settings, "support", NOW)
    sample = built.split("traffic")
    assert len(sample) == built.card["traffic"] == 10
    assert max(Counter(of[row["interaction_id"]] for row in sample).values()) == 1
    assert {(row["kind"], row["feedback_id"]) for row in sample} == {("unrated", "")}
    assert all(row["completion"].startswith("Answer ") for row in sample)
    assert build_dataset(warehouse, settings, "support", NOW) == built


def test_what_was_rated_is_learned_or_is_old_is_no_traffic(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    old = teacher.ask(question(90), "An old answer.")
    warehouse.execute("UPDATE interactions SET timestamp = timestamp - INTERVAL 20 DAYS WHERE id = ?", [old])
    rated = teacher.ask(question(91), "A rated answer.")
    teacher.say(rated, "rating", 0.5)
    teacher.ask(question(92), "A demonstration.", model="demonstration")
    for number in range(5):
        teacher.ask(question(number), "Asked again, and nobody said anything.")
    free = teacher.ask(question(93), "Nobody said anything.")
    built = build_dataset(warehouse, settings, "support", NOW)
    assert asked(built) == {free}
    assert not asked(built) & {row["interaction_id"] for name in SPLITS for row in built.split(name)}
    stored = warehouse.rows("SELECT interaction_id FROM dataset_rows WHERE split = 'traffic'")
    assert stored == [{"interaction_id": free}]
    none = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, traffic_rows=0)})
    assert asked(build_dataset(warehouse, none, "support", NOW)) == set()


@pytest.mark.full
def test_a_child_makes_the_same_dataset_and_refuses_as_its_parent_would(
    warehouse: Warehouse, teacher: Teacher, settings: Settings, tmp_path: Path
) -> None:
    talk(teacher, "c", range(50, 60))
    made = build.build_dataset(warehouse, settings, "support", NOW, tmp_path / "work")
    assert build_dataset(warehouse, settings, "support", NOW) == made
    assert made.path.is_dir()
    assert not (tmp_path / "work" / "extract.duckdb").exists()
    strict = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=99)})
    with pytest.raises(TooFewRows, match=r"40 new examples; dataset.minimum_rows asks for 99"):
        build.build_dataset(warehouse, strict, "support", NOW, tmp_path / "work")
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(Cancelled):
        build.build_dataset(warehouse, strict, "support", NOW, tmp_path / "work", stopped)
    assert not (tmp_path / "work" / "extract.duckdb").exists()


def test_an_account_in_the_extract_is_as_old_as_in_the_warehouse(
    warehouse: Warehouse, teacher: Teacher, settings: Settings, tmp_path: Path
) -> None:
    elsewhere = Teacher(warehouse, "sales")
    elsewhere.say(elsewhere.ask(question(1), "No."), "helpful", True, "user", "anna")
    teacher.say(teacher.ask(question(70), "No."), "correction", "It takes 30 days.", "user", "anna")
    job = build.prepare(warehouse, settings, "support", tmp_path / "work", threading.Event())
    with closing(attach(WarehouseSettings(path=Path(job["extract"])), create=False)) as extract:
        accounts = {"accounts": ["anna", "nobody"]}
        assert extract.rows(QUERIES["first_seen"], accounts) == warehouse.rows(QUERIES["first_seen"], accounts)
        workloads = {row["workload"] for row in extract.rows("SELECT DISTINCT workload FROM interactions")}
        assert workloads == {"support", None}


def test_rows_know_how_often_recent_conversations_ask_their_question(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    """Rated or not, however spaced: 40 conversations correct, 10 ask again, 6 ask something else. What is older than
    the first answer without a rating does not count."""
    for number, days in enumerate((1, 2)):
        moved = teacher.ask(question(90 + number), "Nobody said anything.")
        warehouse.execute("UPDATE interactions SET timestamp = timestamp - to_days(?) WHERE id = ?", [days, moved])
        if days == 2:
            teacher.say(moved, "helpful", True)
    for number in range(10):
        teacher.ask(f"  {question(number % 2)} ", "Nobody said anything.")
    talk(teacher, "long", range(50, 60))
    for number in range(4):
        teacher.ask(question(70 + number), "Nobody said anything.")
    old = teacher.ask(question(0), "Long ago.")
    warehouse.execute("UPDATE interactions SET timestamp = timestamp - INTERVAL 20 DAYS WHERE id = ?", [old])
    built = build_dataset(warehouse, settings, "support", NOW)
    assert built.conversations == 56
    asked = {row["question"]: row["asked"] for name in SPLITS for row in built.split(name)}
    assert sorted(asked.values()) == [0] + [1] * 38 + [6] * 2
    none = settings.model_copy(update={"dataset": DatasetSettings(minimum_rows=1, traffic_rows=0)})
    assert build_dataset(warehouse, none, "support", NOW).conversations == 0


def test_a_dataset_that_is_written_again_counts_in_the_conversations_of_that_day(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    first = teacher.ask(question(90), "Nobody said anything.")
    warehouse.execute("UPDATE interactions SET timestamp = timestamp - to_days(1) WHERE id = ?", [first])
    built = build_dataset(warehouse, settings, "support", NOW)
    assert built.conversations == 41
    (built.path / "regression.parquet").unlink()
    for _ in range(20):
        teacher.ask(question(0), "Nobody said anything.")
    again = build_dataset(warehouse, settings, "support", NOW)
    assert again.version == built.version
    assert again.conversations == 61
    assert sum(row["asked"] for name in SPLITS for row in again.split(name)) <= again.conversations
