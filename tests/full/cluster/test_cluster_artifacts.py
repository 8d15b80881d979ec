"""What daemons of a cluster write and remove, in its storage and on each machine: versions, datasets and reports."""

import shutil
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("obstore", reason="the extra cluster is not installed")

from fixtures.cluster.artifacts import Machine, away, content, keys
from fixtures.daemon.promoting import model_row
from fixtures.feedback.teaching import Teacher, question
from fixtures.models.datasets import build_dataset
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.errors import StoreUnavailable
from retuned.consumers.settings import StoreSettings, WarehouseSettings
from retuned.consumers.warehouse.artifacts import Artifacts
from retuned.daemon import artifacts
from retuned.daemon.settings import Settings
from retuned.monitors.drift import check as drift
from retuned.retrain import versions
from retuned.retrain.release import registry, retention
from retuned.retrain.settings import DatasetSettings, GateSettings, ModelsSettings
from retuned.retrain.versions import Version

NOW = datetime(2026, 4, 1, 12, 30)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def objects(storage: Path) -> Objects:
    return Objects(StoreSettings(objects_url=storage.as_uri()))


@pytest.fixture
def leader(tmp_path: Path, objects: Objects) -> Iterator[Machine]:
    made = Machine(tmp_path / "leader", objects)
    yield made
    made.warehouse.close()


@pytest.fixture
def other(tmp_path: Path, objects: Objects) -> Iterator[Machine]:
    made = Machine(tmp_path / "other", objects, epoch=2)
    yield made
    made.warehouse.close()


def settings(machine: Machine) -> Settings:
    return Settings(
        warehouse=WarehouseSettings(path=machine.warehouse.path),
        models=ModelsSettings(directory=machine.models),
        dataset=DatasetSettings(minimum_rows=1),
        gate=GateSettings(minimum_examples=1),
        store=StoreSettings(kind="cluster", objects_url=machine.objects.url),
    )


def register(machine: Machine, weights: str = "weights") -> Version:
    base, adapter = machine.folder / "base", machine.folder / "adapter"
    for folder in (base, adapter):
        folder.mkdir(exist_ok=True)
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_text("base")
    (adapter / "adapter_config.json").write_text('{"r": 16}')
    (adapter / "adapter_model.safetensors").write_text(weights)
    return registry.register(
        machine.warehouse,
        machine.models,
        "support",
        adapter,
        base_model=base,
        parent_version=None,
        dataset_version="d1",
        run_id="r1",
        details={},
        now=NOW,
    )


def serve(machine: Machine, champion: str, previous: str) -> None:
    machine.warehouse.execute("DELETE FROM aliases")
    for alias, version in (("champion", champion), ("previous", previous)):
        machine.warehouse.insert("aliases", workload="support", alias=alias, version=version, created_at=NOW)


def remove_old(machine: Machine) -> retention.Removed:
    return retention.remove(machine.warehouse, settings(machine), "support", NOW, 1, None)


def test_a_version_is_none_until_the_storage_has_it(leader: Machine, other: Machine, storage: Path) -> None:
    with away(storage), pytest.raises(StoreUnavailable):
        register(leader)
    assert versions.versions_of(leader.warehouse, "support") == []
    assert leader.rows() == []
    made = register(leader)
    serve(leader, made.version, made.version)
    assert other.follow(leader)
    registry.reconcile(other.warehouse, settings(other))
    champion = other.models / "support" / "champion"
    assert content(champion) == content(made.path)
    assert (champion / "adapter_model.safetensors").read_text() == "weights"


def test_a_renewed_card_is_everywhere(leader: Machine, other: Machine, storage: Path) -> None:
    made = register(leader)
    assert other.follow(leader)
    before = content(other.models)
    leader.warehouse.insert(
        "evaluations", run_id="r1", workload="support", dataset_version="d1", model="base", split="holdout",
        row_id="row", score=0.5, token_f1=1.0, output="…",
    )  # fmt: skip
    with away(storage), pytest.raises(StoreUnavailable):
        registry.renew_card(leader.warehouse, made)
    registry.renew_card(leader.warehouse, made)
    assert other.follow(leader)
    assert content(other.models) == content(leader.models) != before


def test_what_retention_removes_is_gone_everywhere(
    leader: Machine, other: Machine, storage: Path, objects: Objects
) -> None:
    gone, kept = register(leader, "one"), register(leader, "two")
    leader.warehouse.execute(
        "UPDATE models SET created_at = ? WHERE version = ?", [NOW - timedelta(days=1), gone.version]
    )
    serve(leader, kept.version, kept.version)
    assert other.follow(leader)
    with away(storage):
        assert remove_old(leader).versions == 1
        assert other.follow(leader)
        assert [path.name for path in (other.models / "support").iterdir()] == [kept.version]
        with pytest.raises(StoreUnavailable):
            artifacts.settle(leader.warehouse, settings(leader))
    assert len(keys(objects)) == 10, "and a removal that is not done yet is known"
    artifacts.settle(leader.warehouse, settings(leader))
    assert len(keys(objects)) == 5
    assert [path.name for path in (leader.models / "support").iterdir()] == [kept.version]


def test_what_was_removed_while_a_machine_was_down_goes_at_its_start(leader: Machine, other: Machine) -> None:
    gone, kept = register(leader, "one"), register(leader, "two")
    assert other.follow(leader)
    leader.warehouse.execute(
        "UPDATE models SET created_at = ? WHERE version = ?", [NOW - timedelta(days=1), gone.version]
    )
    serve(leader, kept.version, kept.version)
    remove_old(leader)
    artifacts.settle(leader.warehouse, settings(leader))
    other.start()
    assert other.follow(leader)
    assert artifacts.follow(other.warehouse, settings(other), first=True)
    assert [path.name for path in (other.models / "support").iterdir()] == [kept.version]


def test_a_dataset_is_reduced_everywhere(leader: Machine, other: Machine, storage: Path) -> None:
    teacher, made = Teacher(leader.warehouse), []
    for number in range(3):
        for asked in range(20 * number, 20 * number + 20):
            teacher.correct(question(asked), "No idea.", f"It takes {number + 2} days.")
        made.append(build_dataset(leader.warehouse, settings(leader), "support", teacher.now))
        parent = f"v{number - 1}" if number else None
        row = model_row(f"v{number}", leader.models / "support" / f"v{number}", teacher.now)
        leader.warehouse.insert("models", **row | {"dataset_version": made[-1].version, "parent_version": parent})
        serve(leader, f"v{number}", f"v{max(0, number - 1)}")
    assert other.follow(leader)
    assert content(other.models) == content(leader.models)
    with away(storage), pytest.raises(StoreUnavailable):
        remove_old(leader)
    assert remove_old(leader).reduced == 1, "one that was not done everywhere is not done"
    assert remove_old(leader).reduced == 0
    assert other.follow(leader)
    assert content(other.models) == content(leader.models)
    reduced = other.models / "support" / "datasets" / made[0].version
    assert {path.name for path in reduced.iterdir()} == {"train.parquet", "holdout.parquet", "card.json"}


def checked(machine: Machine, number: int) -> drift.DriftCheck:
    """A drift check with its report, as `drift.check` leaves it."""
    identity = f"2026040{number}T120000-aaaaaaa{number}"
    machine.reports.mkdir(exist_ok=True)
    for suffix in (".json", ".html"):
        (machine.reports / f"{identity}{suffix}").write_text(suffix)
    report = machine.reports / f"{identity}.json"
    found = drift.DriftCheck(
        identity, NOW + timedelta(days=number), "support", False, 0.0, [], 9, 9, report, "No drift."
    )
    drift._store(machine.warehouse, found)
    return found


def test_reports_of_drift_checks_come_and_go(leader: Machine, other: Machine, storage: Path, objects: Objects) -> None:
    with away(storage), pytest.raises(StoreUnavailable):
        checked(leader, 1)
    assert leader.warehouse.rows("FROM drift_checks") == []
    for number in (1, 2):
        checked(leader, number)
    assert other.follow(leader)
    assert len(content(other.reports)) == 4
    drift.thin(leader.warehouse, ["support"], 0, None, None)
    assert other.follow(leader)
    assert len(content(other.reports)) == 2
    artifacts.settle(leader.warehouse, settings(leader))
    assert other.follow(leader)
    assert len(keys(objects)) == 2
    assert content(other.reports) == content(leader.reports)


def test_what_is_older_than_the_cluster_is_put_there(leader: Machine, other: Machine, objects: Objects) -> None:
    stored = leader.warehouse.artifacts
    leader.warehouse.artifacts = Artifacts()
    gone, kept = register(leader, "one"), register(leader, "two")
    checked(leader, 1)
    for suffix in (".json", ".html"):
        (leader.reports / f"2026-03-support-abcdef{suffix}").write_text(suffix)
    shutil.rmtree(gone.path)
    leader.warehouse.artifacts = stored
    artifacts.settle(leader.warehouse, settings(leader))
    before = keys(objects)
    artifacts.settle(leader.warehouse, settings(leader))
    assert keys(objects) == before
    assert other.follow(leader)
    assert content(other.models) == content(leader.models)
    assert content(other.reports) == content(leader.reports)
    # A removal by a daemon that had no cluster.
    leader.warehouse.execute("UPDATE models SET removed_at = ? WHERE version = ?", [NOW, kept.version])
    leader.warehouse.execute("UPDATE drift_checks SET report = NULL")
    artifacts.settle(leader.warehouse, settings(leader))
    assert len(keys(objects)) == 2, "the report of the month"
