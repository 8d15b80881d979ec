"""Which versions, datasets and folders stay, what is reported of those that were removed, and what a crash leaves."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.teaching import Teacher, question
from fixtures.models.datasets import build_dataset
from retuned.consumers.errors import RetunedError
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import versions
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.data.lineage import lineage
from retuned.retrain.release import registry, retention
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import DatasetSettings, GateSettings, ModelsSettings, Settings

START, DAY = datetime(2026, 3, 2, 9, 0, 0), timedelta(days=1)
NOW = START + 100 * DAY


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(models=ModelsSettings(directory=tmp_path / "models"))


def trained(
    warehouse: Warehouse, settings: Settings, number: int, parent: int | None = None, state: str = "succeeded"
) -> None:
    """A run that made version v1 of dataset d1, and so on; a run without an end has no version yet."""
    home, when = settings.models.directory / "support", START + number * DAY
    ended = state not in ("running", "interrupted")
    for path in (home / "datasets" / f"d{number}", home / "runs" / f"r{number}", *([home / f"v{number}"] * ended)):
        path.mkdir(parents=True)
        (path / "content").write_text("…")
    rows = dict.fromkeys(("train", "holdout", "replay"), 1)
    warehouse.insert(
        "datasets", version=f"d{number}", workload="support", created_at=when, card=json.dumps({"rows": rows}),
        path=str(home / "datasets" / f"d{number}"), **rows,
    )  # fmt: skip
    warehouse.insert(
        "dataset_rows", dataset_version=f"d{number}", row_id=f"row{number}", split="train", prompt_hash="p",
        interaction_id=f"i{number}", feedback_id=f"f{number}",
    )  # fmt: skip
    warehouse.insert(
        "runs", id=f"r{number}", workload="support", reasons="[]", state=state, started_at=when,
        finished_at=when if ended else None, dataset_version=f"d{number}",
        version=f"v{number}" if ended else None, parent_version=parent and f"v{parent}",
    )  # fmt: skip
    if not ended:
        return
    warehouse.insert(
        "evaluations", run_id=f"r{number}", workload="support", dataset_version=f"d{number}", model="base",
        split="holdout", row_id="row", score=1.0, token_f1=1.0, output="…",
    )  # fmt: skip
    warehouse.insert(
        "models", version=f"v{number}", workload="support", created_at=when, path=str(home / f"v{number}"),
        base_model="", base_hash="", parent_version=parent and f"v{parent}", dataset_version=f"d{number}",
        run_id=f"r{number}", manifest="{}",
    )  # fmt: skip


def serve(warehouse: Warehouse, champion: str | None, previous: str | None) -> None:
    warehouse.execute("DELETE FROM aliases")
    for alias, version in (("champion", champion), ("previous", previous)):
        warehouse.insert("aliases", workload="support", alias=alias, version=version, created_at=START)


def remove(warehouse: Warehouse, settings: Settings, **kept: Any) -> retention.Removed:
    kept = {"keep_versions": 2, "failed_run_days": None} | kept
    return retention.remove(warehouse, settings, "support", NOW, **kept)


def there(settings: Settings) -> dict[str, list[str]]:
    """What lies in the folder of the workload."""
    home = settings.models.directory / "support"
    kinds = {"versions": home, "datasets": home / "datasets", "runs": home / "runs"}
    names = {kind: sorted(path.name for path in folder.iterdir()) for kind, folder in kinds.items()}
    return names | {"versions": [name for name in names["versions"] if name not in ("datasets", "runs")]}


def stored(warehouse: Warehouse) -> dict[str, list[str]]:
    """What rows name."""
    queries = {
        "versions": "SELECT version AS name FROM models WHERE removed_at IS NULL",
        "datasets": "SELECT version AS name FROM datasets WHERE removed_at IS NULL",
        "rows": "SELECT dataset_version AS name FROM dataset_rows",
        "evaluations": "SELECT run_id AS name FROM evaluations",
    }
    return {kind: sorted(row["name"] for row in warehouse.rows(query)) for kind, query in queries.items()}


def test_what_serves_what_is_new_and_what_they_learned_from_stays(warehouse: Warehouse, settings: Settings) -> None:
    for number, parent in ((1, None), (2, 1), (3, 1), (4, 2), (5, 4), (6, 4), (7, 4), (8, 4)):
        trained(warehouse, settings, number, parent)
    serve(warehouse, "v4", "v5")
    assert remove(warehouse, settings) == retention.Removed(versions=4, datasets=1)
    kept = ["v4", "v5", "v7", "v8"]
    # v4 learned from 2 and 1 by way of those it began from; on 5 and later ones was decided since the champion's.
    learned = ["d1", "d2", "d4", "d5", "d6", "d7", "d8"]
    assert there(settings) == {"versions": kept, "datasets": learned, "runs": [f"r{n}" for n in range(1, 9)]}
    assert stored(warehouse) == {
        "versions": kept, "datasets": learned, "rows": learned, "evaluations": ["r4", "r5", "r7", "r8"]
    }  # fmt: skip
    assert remove(warehouse, settings) == retention.Removed()
    assert warehouse.row("SELECT count(*) AS n FROM models") == {"n": 8}


def test_the_base_model_as_champion_keeps_every_dataset_that_is_counted_from(
    warehouse: Warehouse, settings: Settings
) -> None:
    for number in range(1, 6):
        trained(warehouse, settings, number)
    serve(warehouse, "v1", None)
    remove(warehouse, settings)
    assert there(settings)["versions"] == ["v1", "v4", "v5"]
    assert there(settings)["datasets"] == ["d1", "d2", "d3", "d4", "d5"]


def test_nothing_goes_that_a_run_under_way_needs(warehouse: Warehouse, settings: Settings) -> None:
    for number in range(1, 5):
        trained(warehouse, settings, number)
    trained(warehouse, settings, 5, parent=1, state="interrupted")
    serve(warehouse, "v4", "v3")
    remove(warehouse, settings, keep_versions=1, failed_run_days=1)
    assert there(settings) == {"versions": ["v1", "v3", "v4"], "datasets": ["d1", "d3", "d4", "d5"], "runs": ["r5"]}


def test_without_limits_everything_stays(warehouse: Warehouse, settings: Settings) -> None:
    for number in range(1, 5):
        trained(warehouse, settings, number, state="failed")
    serve(warehouse, "v4", "v4")
    assert remove(warehouse, settings, keep_versions=None) == retention.Removed()
    assert len(there(settings)["versions"]) == 4
    left = remove(warehouse, settings, keep_versions=None, failed_run_days=98)  # 1 to 4 days after the start they ended
    assert left == retention.Removed(run_folders=1)
    assert there(settings)["runs"] == ["r2", "r3", "r4"]


def test_what_was_removed_is_named_and_not_promoted(warehouse: Warehouse, settings: Settings) -> None:
    for number in range(1, 4):
        trained(warehouse, settings, number)
    serve(warehouse, "v3", "v3")
    remove(warehouse, settings, keep_versions=1)
    (version,) = lineage(warehouse, "support@v1")["removed"]
    assert (version["kind"], version["version"], version["removed_at"]) == ("version", "v1", NOW)
    (dataset,) = lineage(warehouse, "d1")["removed"]
    assert (dataset["kind"], dataset["workload"], dataset["created_at"]) == ("dataset", "support", START + DAY)
    assert lineage(warehouse, "f3")["removed"] == []
    with pytest.raises(RetunedError, match=r"retention removed 2 datasets until 2026-06-10"):
        lineage(warehouse, "f1")
    rollout = Rollout(warehouse, settings, MemoryPublisher(), "models")
    with pytest.raises(RetunedError, match=r"v1 was removed on 2026-06-10; known are v3, base"):
        rollout.promote("support", "v1", "operator", "", NOW)


def test_a_version_that_is_made_again_is_there_again(
    warehouse: Warehouse, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "model.safetensors").write_text("weights")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text("{}")

    def register() -> versions.Version:
        return registry.register(
            warehouse, settings.models.directory, "support", adapter, base_model=tmp_path / "base", parent_version=None,
            dataset_version="d1", run_id="r1", details={}, now=START,
        )  # fmt: skip

    made = register()
    trained(warehouse, settings, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda *_: None)  # the process ends before the folder is deleted
    remove(warehouse, settings, keep_versions=1)
    monkeypatch.undo()
    assert not made.path.exists()
    assert versions.find(warehouse, "support", made.version).removed_at == NOW  # type: ignore[union-attr]
    assert register().removed_at is None
    assert (made.path / "adapter_model.safetensors").exists()
    remove(warehouse, settings, keep_versions=None)
    assert made.path.exists()


def test_folders_that_a_crash_left_are_deleted_later(
    warehouse: Warehouse, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        trained(warehouse, settings, number)
    serve(warehouse, "v3", "v3")

    def full(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(RetunedError, match="cannot be deleted"):
        remove(warehouse, settings, keep_versions=1)
    monkeypatch.undo()
    assert stored(warehouse)["versions"] == ["v3"]
    assert len(there(settings)["versions"]) == 3
    (settings.models.directory / "support" / "unknown").mkdir()  # what no row names is left alone
    remove(warehouse, settings, keep_versions=1)
    assert there(settings) == {"versions": ["unknown", "v3"], "datasets": ["d3"], "runs": ["r1", "r2", "r3"]}


def test_rows_that_another_workload_shares_stay(warehouse: Warehouse, settings: Settings) -> None:
    for number in range(1, 3):
        trained(warehouse, settings, number)
    serve(warehouse, "v2", "v2")
    warehouse.execute(
        "INSERT INTO datasets BY NAME SELECT * REPLACE ('other' AS workload) FROM datasets WHERE version = 'd1'"
    )
    remove(warehouse, settings, keep_versions=1)
    assert stored(warehouse)["rows"] == ["d1", "d2"]


def promoted(warehouse: Warehouse, built: Dataset, number: int, when: datetime) -> None:
    """A version that learned from a dataset and from the version before it serves."""
    warehouse.insert(
        "models", version=f"v{number}", workload="support", created_at=when, path="", base_model="", base_hash="",
        parent_version=f"v{number - 1}" if number else None, dataset_version=built.version, run_id=f"r{number}",
        manifest="{}",
    )  # fmt: skip
    serve(warehouse, f"v{number}", f"v{max(number - 1, 0)}")


def built_anew(warehouse: Warehouse, settings: Settings, now: datetime) -> dict[str, Any]:
    """What the next dataset holds; nothing of it stays."""
    built = build_dataset(warehouse, settings, "support", now)
    content = {name: sorted(map(str, built.split(name))) for name in ("train", "holdout", "regression")}
    shutil.rmtree(built.path)
    warehouse.execute("DELETE FROM datasets WHERE version = ?", [built.version])
    warehouse.execute("DELETE FROM dataset_rows WHERE dataset_version = ?", [built.version])
    return content | {"version": built.version}


@pytest.mark.full
def test_the_next_dataset_is_the_same_after_older_ones_are_reduced(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    settings = settings.model_copy(
        update={
            "dataset": DatasetSettings(minimum_rows=1, replay_share=0.6),
            "gate": GateSettings(minimum_examples=1),
        }
    )
    made = []
    for number in range(5):
        for asked in range(40 * number, 40 * number + 40):
            teacher.correct(question(asked), "No idea.", f"It takes {number + 2} days.")
        if made:  # some of what was learned and judged on has another answer now
            for name in ("train", "holdout"):
                teacher.correct(made[-1].split(name)[0]["question"], "It takes long.", "It takes 99 days.")
        made.append(build_dataset(warehouse, settings, "support", teacher.now))
        promoted(warehouse, made[-1], number, teacher.now)
    for asked in range(200, 240):
        teacher.correct(question(asked), "No idea.", "It takes 50 days.")
    before = built_anew(warehouse, settings, teacher.now)
    assert len(before["regression"]) > 20
    size = sum(path.stat().st_size for path in settings.models.directory.rglob("*.parquet"))
    learned = [row["row_id"] for row in made[0].split("train")]

    assert remove(warehouse, settings, keep_versions=2) == retention.Removed(versions=3, reduced=3)

    for dataset in made[:3]:
        assert {path.name for path in dataset.path.iterdir()} == {"train.parquet", "holdout.parquet", "card.json"}
    assert sum(path.stat().st_size for path in settings.models.directory.rglob("*.parquet")) < 0.7 * size
    assert built_anew(warehouse, settings, teacher.now) == before
    serve(warehouse, "v3", "v4")  # taken back
    assert built_anew(warehouse, settings, teacher.now)["regression"]
    models = {model for row in learned for found in lineage(warehouse, row)["rows"] for model in found["models"]}
    assert {"support@v3", "support@v4"} <= models
    assert remove(warehouse, settings, keep_versions=2) == retention.Removed()

    promoted(warehouse, build_dataset(warehouse, settings, "support", teacher.now), 5, teacher.now)
    few = settings.model_copy(update={"dataset": DatasetSettings(maximum_rows=30)})
    assert remove(warehouse, few, keep_versions=1) == retention.Removed(versions=1, reduced=1)
    assert [len(dataset.split("train")) for dataset in made[:4]][:2] == [0, 0]
    assert sum(len(dataset.split("train")) for dataset in made[:4]) == 30


def test_while_the_base_model_may_serve_again_no_dataset_is_reduced(
    warehouse: Warehouse, teacher: Teacher, settings: Settings
) -> None:
    settings = settings.model_copy(
        update={"dataset": DatasetSettings(minimum_rows=1), "gate": GateSettings(minimum_examples=1)}
    )
    for number in range(2):
        for asked in range(40 * number, 40 * number + 40):
            teacher.correct(question(asked), "No idea.", "It takes 2 days.")
        promoted(warehouse, build_dataset(warehouse, settings, "support", teacher.now), number, teacher.now)
    serve(warehouse, "v1", None)
    assert remove(warehouse, settings, keep_versions=1).reduced == 0
    serve(warehouse, "v1", "v1")
    assert remove(warehouse, settings, keep_versions=1).reduced == 1
