import json
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from fixtures.feedback.teaching import Teacher, question
from fixtures.models.datasets import build_dataset
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data import holdout
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.data.identity import normalise
from retuned.retrain.settings import DatasetSettings, GateSettings, ModelsSettings, Settings

NOW = datetime(2026, 4, 1)


class House:
    """A warehouse whose datasets are built, judged and promoted an hour apart."""

    def __init__(self, warehouse: Warehouse, folder: Path) -> None:
        self.warehouse, self.teacher, self.hours = warehouse, Teacher(warehouse), 0
        self.settings = Settings(
            models=ModelsSettings(directory=folder / "models"),
            dataset=DatasetSettings(minimum_rows=1),
            gate=GateSettings(minimum_examples=1, holdout_tries=2),
        )

    def teach(self, numbers: range, answer: str = "30 days", wrong: str = "No idea.") -> None:
        for number in numbers:
            self.teacher.correct(question(number), wrong, f"It takes {answer}.")

    def build(self) -> Dataset:
        self.hours += 1
        return build_dataset(self.warehouse, self.settings, "support", NOW + timedelta(hours=self.hours))

    def champion(self) -> str | None:
        row = self.warehouse.row("SELECT version FROM aliases WHERE alias = 'champion'")
        return row["version"] if row else None

    def decide(self, built: Dataset, kind: str = "gate", looks: int = 1) -> None:
        tries = {"tries": self.tries() + looks} if looks else {"examples": 3}
        run = f"run{self.hours}-{len(self.warehouse.rows('SELECT 1 FROM runs'))}"
        self.warehouse.insert(
            "runs", id=run, workload="support", reasons="[]", state="succeeded", started_at=NOW,
            dataset_version=built.version, parent_version=self.champion(),
        )  # fmt: skip
        self.warehouse.insert(
            "decisions", id=run, created_at=NOW, workload="support", kind=kind, outcome=False, reasons="[]",
            figures=json.dumps(tries), run_id=run,
        )  # fmt: skip

    def promote(self, built: Dataset) -> None:
        version = f"{len(self.warehouse.rows('SELECT 1 FROM models')):08x}"
        self.warehouse.insert(
            "models", version=version, workload="support", created_at=NOW, path="/nowhere", base_model="/base",
            base_hash="x", dataset_version=built.version, run_id="r", manifest="{}",
        )  # fmt: skip
        self.warehouse.execute("DELETE FROM aliases")
        self.warehouse.insert("aliases", workload="support", alias="champion", version=version, created_at=NOW)

    def tries(self) -> int:
        return holdout.tries(self.warehouse, "support", self.champion())


@pytest.fixture
def house(warehouse: Warehouse, tmp_path: Path) -> House:
    return House(warehouse, tmp_path)


def questions(built: Dataset, *splits: str) -> set[str]:
    return {row["question"] for name in splits for row in built.split(name)}


def test_comparisons_with_one_champion_are_counted_whatever_holdout_they_were_on(house: House) -> None:
    house.teach(range(60))
    first = house.build()
    assert house.tries() == 0
    house.decide(first, kind="retrain")
    house.decide(first, looks=0)  # for want of examples
    assert house.tries() == 0
    house.decide(first)
    assert house.tries() == 1
    house.decide(first, looks=2)  # on the holdout alone, and with folds
    assert house.tries() == 3
    # The questions that are held out are drawn anew; the error that was spent stays so.
    house.teach(range(60, 120))
    second = house.build()
    assert second.card["generation"] == 1
    house.decide(second)
    assert house.tries() == 4


def test_with_a_new_champion_the_comparisons_begin_anew(house: House) -> None:
    house.teach(range(60))
    first = house.build()
    house.decide(first)
    house.promote(first)
    assert house.tries() == 0
    house.teach(range(100, 160))
    second = house.build()
    house.decide(second)
    assert house.tries() == 1
    # Taken back: the base model serves again, with which one candidate was compared before.
    house.warehouse.execute("DELETE FROM aliases")
    assert house.tries() == 1
    house.decide(second)
    assert house.tries() == 2


@pytest.mark.full
def test_a_worn_out_holdout_is_drawn_anew_and_what_stood_in_it_is_never_taught(house: House) -> None:
    house.teach(range(120))
    first = house.build()
    worn = questions(first, "holdout")
    for _ in range(2):
        assert questions(house.build(), "holdout") == worn
        house.decide(first)
    second = house.build()
    assert second.card["generation"] == 1
    assert len(questions(second, "holdout")) > 10
    assert not questions(second, "holdout") & worn
    assert questions(second, "regression") == worn
    assert house.build().version == second.version

    for _ in range(2):
        house.decide(second)
    third = house.build()
    spent = worn | questions(second, "holdout")
    assert third.card["generation"] == 2
    assert questions(third, "regression") == spent
    assert not questions(third, "holdout", "train") & spent

    # Once promoted, it stays so: the next dataset of fresh evidence goes on with the latest draw.
    house.promote(third)
    house.teach(range(200, 320))
    fourth = house.build()
    assert fourth.card["generation"] == 2
    assert spent | questions(third, "holdout") == questions(fourth, "regression")
    assert not questions(fourth, "train") & (spent | questions(third, "holdout"))


def test_the_regression_set_only_grows_but_for_what_newer_evidence_contradicts(house: House) -> None:
    house.teach(range(60))
    first = house.build()
    house.promote(first)
    house.teach(range(100, 160))
    second = house.build()
    held = questions(first, "holdout")
    assert questions(second, "regression") == held
    house.promote(second)
    changed = sorted(held)[:3]
    for number in range(60):
        if normalise(question(number)) in changed:
            house.teacher.correct(question(number), "It takes 30 days.", "It takes 45 days.")
    house.teach(range(200, 260))
    third = house.build()
    gone = (held | questions(second, "holdout")) - questions(third, "regression")
    assert gone == set(changed) == questions(third, "holdout") & held  # judged on still, by the new answer
    assert third.card["left_out"]["superseded"] == 3
