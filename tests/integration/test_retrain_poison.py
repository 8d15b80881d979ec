"""A hostile minority does not steer what datasets teach, and honest people are believed."""

from pathlib import Path

import pytest

from fixtures.feedback.traffic import new_warehouse
from fixtures.models.datasets import build_dataset
from fixtures.worlds.hostile import WORKLOAD, Attack, Effect, Month, effect
from retuned.retrain.settings import DatasetSettings, GateSettings, ModelsSettings, Settings


def measured(folder: Path, month: Month, **asked: bool) -> Effect:
    warehouse = new_warehouse(folder)
    month.into(warehouse)
    settings = Settings(
        models=ModelsSettings(directory=folder / "models"),
        dataset=DatasetSettings(minimum_rows=1, **asked),
        gate=GateSettings(minimum_examples=1),
    )
    built = build_dataset(warehouse, settings, WORKLOAD, month.end)
    found = effect(month, built, warehouse)
    warehouse.close()
    return found


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("kind", ["few", "many"])
def test_attacked_facts_are_taught_right(tmp_path: Path, kind: Attack, share: float) -> None:
    found = measured(tmp_path, Month(seed=1).people().attack(kind, share))
    assert found.taught_wrong == 0
    assert found.wrong_rows <= 0.05
    assert found.right_lost <= 0.02
    assert found.quarantined_honest <= 0.01
    assert found.quarantined_hostile >= 0.9


@pytest.mark.full
@pytest.mark.parametrize("kind", ["few", "many"])
def test_without_the_quarantine_the_attack_works(tmp_path: Path, kind: Attack) -> None:
    found = measured(tmp_path, Month(seed=1).people().attack(kind, 0.2), quarantine=False)
    assert found.taught_wrong > 0.3
    assert found.quarantined_hostile == 0


def test_with_nobody_hostile_hardly_anybody_is_quarantined(tmp_path: Path) -> None:
    found = measured(tmp_path, Month(seed=1).people(experts=0.1))
    assert found.quarantined_honest <= 0.002
    assert found.right_lost <= 0.01


def test_a_change_of_policy_is_taught_although_many_upheld_the_old_one(tmp_path: Path) -> None:
    month = Month(seed=1).people(changed_at=18)
    found = measured(tmp_path, month)
    assert found.right_lost <= 0.05
    assert found.quarantined_honest <= 0.05
