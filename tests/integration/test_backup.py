"""Backup and restore: what is in a backup, what a second one copies, and what a cut off or damaged one leaves."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest

from fixtures.faults.faults import no_small_disk, small_disk
from fixtures.faults.killed import backing_up, killed_at, restoring
from fixtures.feedback.traffic import interactions
from fixtures.releases.schemas import FOLDER, fill, rows
from retuned.consumers.common.durable import sha256
from retuned.consumers.errors import BackupError, Busy, Cancelled, WarehouseError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_existing, open_warehouse
from retuned.daemon.backup import create, manifest
from retuned.daemon.backup.create import back_up
from retuned.daemon.backup.restore import choose, restore
from retuned.daemon.settings import Settings

NOW = datetime(2026, 11, 24, 3, 0, 0)
DAY = timedelta(days=1)
LATER = NOW + DAY


def settings_in(folder: Path) -> Settings:
    return Settings(warehouse={"path": folder / "data" / "retuned.duckdb"}, models={"directory": folder / "models"})


@pytest.fixture
def house(tmp_path: Path) -> Iterator[tuple[Settings, Warehouse]]:
    """A daemon's folders, with something in each of them."""
    settings = settings_in(tmp_path / "house")
    warehouse = open_warehouse(settings.warehouse)
    interactions(warehouse, [f"Where is parcel {number}?" for number in range(20)], random.Random(0), start=NOW)
    data, support = settings.warehouse.path.parent, settings.models.directory / "support"
    written = {
        data / "retuned.duckdb.key": "secret",
        data / "archive" / "interactions" / "day=2026-08-01" / "0123.parquet": "archived",
        data / "archive" / "interactions" / "writing.tmp": "half",
        data / "reports" / "report.json": "{}",
        support / "3f2a91c0" / "adapter_model.safetensors": "weights",
        support / "datasets" / "d1" / "train.parquet": "rows",
        support / "runs" / "r1" / "checkpoint": "large, and made again",
        support / ".3f2a91c1.7.tmp" / "adapter_model.safetensors": "half",
    }
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (support / "champion").symlink_to("3f2a91c0")
    model = {"workload": "support", "created_at": NOW, "base_model": "b", "base_hash": "h", "run_id": "r1"}
    warehouse.insert(
        "models", version="3f2a91c0", dataset_version="d1", manifest="{}", path=str(support / "3f2a91c0"), **model
    )
    split = {"train": 1, "holdout": 0, "replay": 0}
    dataset = {"version": "d1", "workload": "support", "created_at": NOW, "card": "{}", **split}
    warehouse.insert("datasets", path=str(support / "datasets" / "d1"), **dataset)
    yield settings, warehouse
    warehouse.close()


def made(house: tuple[Settings, Warehouse], folder: Path, now: datetime = NOW, keep: int = 7) -> Any:
    settings, warehouse = house
    return back_up(warehouse, settings, folder, keep, now, threading.Event())


def text_files(folder: Path) -> dict[str, str]:
    """Every file but databases and manifests, and where each link leads."""
    return {
        path.relative_to(folder).as_posix(): f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or (path.is_file() and ".duckdb" not in path.name and path.name != manifest.MANIFEST)
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ids(path: Path) -> list[str]:
    with duckdb.connect(str(path)) as connection:
        return [id for (id,) in connection.execute("SELECT id FROM interactions ORDER BY id").fetchall()]


def test_what_is_in_a_backup_comes_back_in_other_places(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    _, warehouse = house
    made(house, tmp_path / "backups")
    sent = sorted(row["id"] for row in warehouse.rows("SELECT id FROM interactions"))
    target = settings_in(tmp_path / "new")
    done = restore(target, choose(tmp_path / "backups", None), replace=False, now=LATER)
    assert done.set_aside == []
    assert text_files(tmp_path / "new") == {
        "data/archive/interactions/day=2026-08-01/0123.parquet": "archived",
        "data/reports/report.json": "{}",
        "models/support/3f2a91c0/adapter_model.safetensors": "weights",
        "models/support/datasets/d1/train.parquet": "rows",
    }
    assert (tmp_path / "new" / "data" / "retuned.duckdb.key").read_text() == "secret"
    restored = open_existing(target.warehouse)
    (model,), (dataset,) = restored.rows("SELECT path FROM models"), restored.rows("SELECT path FROM datasets")
    assert sorted(row["id"] for row in restored.rows("SELECT id FROM interactions")) == sent
    restored.close()
    assert model["path"] == str(tmp_path / "new" / "models" / "support" / "3f2a91c0")
    assert dataset["path"] == str(tmp_path / "new" / "models" / "support" / "datasets" / "d1")
    assert set(names(tmp_path / "new" / "data")) == {"archive", "reports", "retuned.duckdb", "retuned.duckdb.key"}


def test_every_row_of_every_table_is_in_it(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    with house[1].cursor() as cursor:
        fill(cursor)
        before = rows(cursor)
    made(house, tmp_path / "backups")
    with duckdb.connect(str(choose(tmp_path / "backups", None) / manifest.WAREHOUSE)) as copy:
        assert rows(copy) == before


def test_a_second_backup_copies_what_is_new(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    folder, data = tmp_path / "backups", house[0].warehouse.path.parent
    made(house, folder)
    (data / "archive" / "interactions" / "day=2026-08-01" / "4567.parquet").write_text("more")
    (data / "reports" / "report.json").write_text("{ }")
    second = made(house, folder, LATER)
    assert second.copied_files == 3  # these two, and the warehouse
    first, last = manifest.generations(folder)
    linked = {
        file.path
        for file in manifest.read(last).files
        if (first / file.path).exists() and (first / file.path).samefile(last / file.path)
    }
    assert linked == {
        "user.key", "archive/interactions/day=2026-08-01/0123.parquet",
        "models/support/3f2a91c0/adapter_model.safetensors", "models/support/datasets/d1/train.parquet",
    }  # fmt: skip
    shutil.rmtree(first)
    assert list(manifest.verify(last)) == []


def test_a_restored_file_is_not_copied_again(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    made(house, tmp_path / "backups")
    target = settings_in(tmp_path / "new")
    restore(target, choose(tmp_path / "backups", None), replace=False, now=LATER)
    restored = open_existing(target.warehouse)
    assert made((target, restored), tmp_path / "backups", LATER).copied_files == 1  # the warehouse
    restored.close()


def test_the_newest_are_kept(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    for day in range(3):
        deleted = made(house, tmp_path / "backups", NOW + timedelta(days=day), keep=2).deleted
    assert deleted == ["2026-11-24T03-00-00Z"]
    assert names(tmp_path / "backups") == [manifest.MARKER, "2026-11-25T03-00-00Z", "2026-11-26T03-00-00Z"]


def test_one_that_a_person_has_renamed_is_kept_and_restored_by_its_name_alone(
    house: tuple[Settings, Warehouse], tmp_path: Path
) -> None:
    folder = tmp_path / "backups"
    renamed = Path(made(house, folder).generation)
    renamed.rename(folder / "before-upgrade")
    for day in range(1, 4):
        newest = made(house, folder, NOW + day * DAY, keep=1)
        assert newest.deleted == ([] if day == 1 else [(NOW + (day - 1) * DAY).strftime(manifest.NAME)])
    assert names(folder) == [".retuned-backup", "2026-11-27T03-00-00Z", "before-upgrade"]
    assert choose(folder, None).name == "2026-11-27T03-00-00Z"
    assert choose(folder, "before-upgrade").name == "before-upgrade"
    shutil.rmtree(folder / "2026-11-27T03-00-00Z")
    with pytest.raises(BackupError, match="--generation: before-upgrade"):
        choose(folder, None)


def test_a_link_that_leads_elsewhere_stands_for_its_content(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    models, elsewhere = house[0].models.directory, tmp_path / "disk2"
    elsewhere.mkdir()
    (models / "support").rename(elsewhere / "support")
    (models / "support").symlink_to(elsewhere / "support")
    (elsewhere / "support" / "around").symlink_to(elsewhere / "support")  # a loop
    (elsewhere / "notes").write_text("one file")
    (elsewhere / "support" / "notes").symlink_to(elsewhere / "notes")
    made(house, tmp_path / "backups")
    restore(settings_in(tmp_path / "new"), choose(tmp_path / "backups", None), replace=False, now=LATER)
    assert text_files(tmp_path / "new" / "models") == {
        "support/3f2a91c0/adapter_model.safetensors": "weights",
        "support/datasets/d1/train.parquet": "rows",
        "support/notes": "one file",
    }


def test_a_folder_that_cannot_be_listed_ends_the_backup(
    house: tuple[Settings, Warehouse], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, scandir = house[0].models.directory / "support" / "datasets", os.scandir

    def listed(path: Any) -> Any:  # root may list any
        if str(path) == str(closed):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)
    with pytest.raises(BackupError, match=f"{closed}: Permission denied"):
        made(house, tmp_path / "backups")
    assert names(tmp_path / "backups") == [".retuned-backup"]


def test_a_clock_that_goes_back_leaves_the_newest_the_newest(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    folder, ahead = tmp_path / "backups", NOW + timedelta(hours=2)
    made(house, folder, ahead)
    made(house, folder, ahead + timedelta(seconds=1))
    for hour in range(2):
        done = made(house, folder, NOW + hour * timedelta(hours=1), keep=2)
        newest = choose(folder, None)
        assert done.generation == str(newest)
        assert done.copied_files == 1  # the others are links to the one before
        assert manifest.read(newest).created_at.hour == NOW.hour + hour
    assert names(folder) == [manifest.MARKER, "2026-11-24T05-00-02Z", "2026-11-24T05-00-03Z"]


def test_two_of_one_second_are_two(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    made(house, tmp_path / "backups")
    made(house, tmp_path / "backups")
    assert len(manifest.generations(tmp_path / "backups")) == 2


def test_all_of_it_is_private(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    before = os.umask(0o077)
    made(house, tmp_path / "backups")
    os.umask(before)
    modes = {path: path.stat().st_mode & 0o077 for path in (tmp_path / "backups").rglob("*") if not path.is_symlink()}
    assert not any(modes.values()), modes


def test_events_that_come_in_meanwhile_are_in_it_whole_or_not_at_all(
    house: tuple[Settings, Warehouse], tmp_path: Path
) -> None:
    _, warehouse = house
    stop, ready = threading.Event(), threading.Event()
    warehouse.execute("DELETE FROM interactions")
    warehouse.execute("INSERT INTO offsets (topic, partition, next_offset) VALUES ('t', 0, 0)")

    def ingest() -> None:
        for number in range(100_000):
            with warehouse.transaction() as cursor:
                cursor.execute("UPDATE offsets SET next_offset = next_offset + 100")
                cursor.execute(
                    "INSERT INTO interactions BY NAME SELECT 'e' || (i + ?) AS id, now()::TIMESTAMP AS timestamp, "
                    "'w' AS workload, 'm' AS model, '[]' AS messages, '' AS response, 't' AS topic, 0 AS partition, "
                    'i AS "offset", now()::TIMESTAMP AS received_at FROM range(100) AS t(i)',
                    [number * 100],
                )
            if number == 20:
                ready.set()
            if stop.is_set():
                return

    thread = threading.Thread(target=ingest)
    thread.start()
    ready.wait(30)
    made(house, tmp_path / "backups")
    stop.set()
    thread.join()
    generation = choose(tmp_path / "backups", None)
    (offset,) = manifest.read(generation).offsets
    stored = ids(generation / manifest.WAREHOUSE)
    assert len(stored) == len(set(stored)) == offset.next_offset > 2_000
    after = warehouse.row("SELECT next_offset FROM offsets")
    assert after is not None
    assert after["next_offset"] > offset.next_offset  # it had not stopped


# What is damaged, cut off or in the way


@pytest.mark.parametrize("damage", ["changed", "shorter", "gone"])
def test_a_damaged_file_is_found_by_name_and_not_restored(
    house: tuple[Settings, Warehouse], tmp_path: Path, damage: str
) -> None:
    made(house, tmp_path / "backups")
    generation = choose(tmp_path / "backups", None)
    path = generation / "models" / "support" / "3f2a91c0" / "adapter_model.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        path.write_text("wEights" if damage == "changed" else "weight")
    (problem,) = manifest.verify(generation)
    assert problem.startswith(f"{path}: ")
    with pytest.raises(BackupError, match=r"adapter_model\.safetensors"):
        restore(settings_in(tmp_path / "new"), generation, replace=False, now=LATER)
    assert not [path for path in (tmp_path / "new").rglob("*") if not path.is_dir()]


def test_a_damaged_manifest_is_named_and_holds_up_no_new_backup(
    house: tuple[Settings, Warehouse], tmp_path: Path
) -> None:
    made(house, tmp_path / "backups")
    generation = choose(tmp_path / "backups", None)
    (generation / manifest.MANIFEST).write_text("{")
    with pytest.raises(BackupError, match=r"manifest\.json: cannot be read"):
        restore(settings_in(tmp_path / "new"), generation, replace=False, now=LATER)
    assert made(house, tmp_path / "backups", LATER).copied_files > 1
    assert list(manifest.verify(choose(tmp_path / "backups", None))) == []


@pytest.mark.parametrize("path", ["../outside", "/outside", "models/../../outside", "models/nul\0"])
def test_a_manifest_writes_nothing_outside(house: tuple[Settings, Warehouse], tmp_path: Path, path: str) -> None:
    made(house, tmp_path / "backups")
    generation = choose(tmp_path / "backups", None)
    content = json.loads((generation / manifest.MANIFEST).read_text())
    content["files"][0]["path"] = path
    (generation / manifest.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BackupError, match="outside the backup"):
        restore(settings_in(tmp_path / "new"), generation, replace=False, now=LATER)


def test_a_link_that_a_manifest_names_is_not_made(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    made(house, tmp_path / "backups")
    generation = choose(tmp_path / "backups", None)
    content = json.loads((generation / manifest.MANIFEST).read_text())
    content["links"] = [
        {"path": "models/support/champion", "target": "3f2a91c0"},  # as version 1.0 wrote it
        {"path": "models/out", "target": str(tmp_path / "victim")},
        {"path": "../../out", "target": "/etc"},
    ]
    (generation / manifest.MANIFEST).write_text(json.dumps(content))
    target = settings_in(tmp_path / "new")
    restore(target, generation, replace=False, now=LATER)
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_symlink()]
    assert set(names(target.models.directory)) == {"support"}


@pytest.mark.parametrize("kind", ["file", "folder", "manifest", "pipe", "elsewhere in the backup"])
def test_no_link_in_a_backup_is_followed(house: tuple[Settings, Warehouse], tmp_path: Path, kind: str) -> None:
    made(house, tmp_path / "backups")
    generation, elsewhere = choose(tmp_path / "backups", None), tmp_path / "elsewhere"
    path = generation / "models" / "support" / "3f2a91c0" / "adapter_model.safetensors"
    if kind == "folder":
        path.parent.rename(elsewhere)
        path.parent.symlink_to(elsewhere)
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif kind == "elsewhere in the backup":
        path.rename(path.with_name("other"))
        path.symlink_to("other")
    else:
        path = generation / manifest.MANIFEST if kind == "manifest" else path
        path.rename(elsewhere)
        path.symlink_to(elsewhere)
    with pytest.raises(BackupError, match=f"{path.name}.*(a link|not a regular file)"):
        restore(settings_in(tmp_path / "new"), generation, replace=False, now=LATER)
    assert not [path for path in (tmp_path / "new").rglob("*") if not path.is_dir()]


def test_what_no_manifest_names_is_not_restored(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    made(house, tmp_path / "backups")
    generation = choose(tmp_path / "backups", None)
    (generation / "models" / "planted").write_text("x")
    (generation / "models" / "out").symlink_to(tmp_path)
    target = settings_in(tmp_path / "new")
    restore(target, generation, replace=False, now=LATER)
    assert set(names(target.models.directory)) == {"support"}


def test_what_is_in_the_place_stays_unless_it_may_be_renamed(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    made(house, tmp_path / "backups")
    generation = choose(tmp_path / "backups", None)
    target = settings_in(tmp_path / "new")
    other = open_warehouse(target.warehouse)
    interactions(other, ["another one"], random.Random(1), start=NOW)
    kept = {path: path.read_bytes() for path in target.warehouse.path.parent.iterdir()}
    mine = sorted(row["id"] for row in other.rows("SELECT id FROM interactions"))
    other.close()
    for path, content in kept.items():  # as a crash leaves it, with a log that must not be read into another file
        path.write_bytes(content)
    with pytest.raises(BackupError, match=r"retuned\.duckdb\.wal, .*retuned\.duckdb would be replaced.*--replace"):
        restore(target, generation, replace=False, now=LATER)
    assert names(tmp_path / "new" / "data") == ["retuned.duckdb", "retuned.duckdb.wal"]
    done = restore(target, generation, replace=True, now=LATER)
    aside = tmp_path / "new" / "data" / "retuned.duckdb.replaced-2026-11-25T03-00-00Z"
    log = tmp_path / "new" / "data" / "retuned.duckdb.wal.replaced-2026-11-25T03-00-00Z"
    assert {aside, log} <= set(done.set_aside)
    assert len(ids(target.warehouse.path)) == 20
    log.rename(f"{aside}.wal")
    assert ids(aside) == mine


def test_a_restore_that_fails_leaves_everything_as_it_was(
    house: tuple[Settings, Warehouse], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(house, tmp_path / "backups")
    target = settings_in(tmp_path / "new")
    open_warehouse(target.warehouse).close()
    before = sorted((tmp_path / "new").rglob("*"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "adapter")

    monkeypatch.setattr(os, "utime", full)
    with pytest.raises(BackupError, match="adapter: No space left on device"):
        restore(target, choose(tmp_path / "backups", None), replace=True, now=LATER)
    assert sorted((tmp_path / "new").rglob("*")) == before
    open_existing(target.warehouse).close()


def test_without_the_key_the_one_that_is_there_stays_or_is_asked_for(
    house: tuple[Settings, Warehouse], tmp_path: Path
) -> None:
    settings, warehouse = house
    back_up(warehouse, settings, tmp_path / "backups", 7, NOW, threading.Event(), with_key=False)
    generation = choose(tmp_path / "backups", None)
    assert "secret" not in text_files(generation).values()
    target = settings_in(tmp_path / "new")
    key = target.warehouse.path.with_name("retuned.duckdb.key")
    assert restore(target, generation, replace=False, now=LATER).missing_key == key
    key.write_text("mine")
    done = restore(target, generation, replace=True, now=LATER)
    assert done.missing_key is None
    assert key.read_text() == "mine"


def test_a_link_to_a_place_stays_one(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    made(house, tmp_path / "backups")
    target = settings_in(tmp_path / "new")
    (tmp_path / "disk" / "models").mkdir(parents=True)
    (tmp_path / "new").mkdir()
    target.models.directory.symlink_to(tmp_path / "disk" / "models")
    restore(target, choose(tmp_path / "backups", None), replace=False, now=LATER)
    assert target.models.directory.is_symlink()
    assert names(tmp_path / "disk" / "models") == ["support"]
    with duckdb.connect(str(target.warehouse.path)) as connection:
        path = connection.execute("SELECT path FROM models").fetchone()
    assert path == (str(tmp_path / "disk" / "models" / "support" / "3f2a91c0"),)


@pytest.mark.skipif(no_small_disk() is not None, reason=str(no_small_disk()))
def test_a_place_that_cannot_be_renamed_is_named(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    made(house, tmp_path / "backups")
    target = settings_in(tmp_path / "new")
    target.models.directory.mkdir(parents=True)
    with small_disk(target.models.directory), pytest.raises(BackupError, match="models is a mount point"):
        restore(target, choose(tmp_path / "backups", None), replace=False, now=LATER)
    assert not target.warehouse.path.exists()


def test_nothing_is_restored_under_a_daemon(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    made(house, tmp_path / "backups")
    code = (
        "import sys; from pathlib import Path; from retuned.consumers.settings import WarehouseSettings\n"
        "from retuned.consumers.warehouse.opening import open_warehouse\n"
        "held = open_warehouse(WarehouseSettings(path=Path(sys.argv[1]))); print('open', flush=True); sys.stdin.read()"
    )
    target = settings_in(tmp_path / "new")
    command = [sys.executable, "-c", code, str(target.warehouse.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        with pytest.raises(BackupError, match="is in use; stop the daemon first"):
            restore(target, choose(tmp_path / "backups", None), replace=True, now=LATER)
        daemon.communicate()


@pytest.mark.full
def test_a_daemon_that_starts_during_a_restore_is_refused(
    house: tuple[Settings, Warehouse], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(house, tmp_path / "backups")
    target = settings_in(tmp_path / "new")
    open_warehouse(target.warehouse).close()
    configuration = tmp_path / "retuned.yaml"
    configuration.write_text(f"warehouse: {{path: {target.warehouse.path}}}\nhttp: {{port: 0}}\n")
    started, verify = [], manifest.verify

    def verifying(generation: Path) -> Iterator[str]:
        """While everything is hashed, which takes minutes, a daemon starts."""
        command = [Path(sys.executable).with_name("retuned"), "--config", str(configuration), "run"]
        started.append(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False))
        yield from verify(generation)

    monkeypatch.setattr(manifest, "verify", verifying)
    restore(target, choose(tmp_path / "backups", None), replace=True, now=LATER)
    (daemon,) = started
    assert daemon.returncode != 0
    assert "a restore into it is running" in daemon.stderr
    restored = open_existing(target.warehouse)
    assert len(restored.rows("SELECT id FROM interactions")) == 20
    restored.close()


def test_a_daemon_that_looked_before_the_restore_began_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    open_warehouse(settings.warehouse).close()
    marker, connect = settings.warehouse.path.with_name("retuned.duckdb.restoring"), duckdb.connect

    def connecting(*arguments: Any, **options: Any) -> duckdb.DuckDBPyConnection:
        marker.touch()  # a restore begins between the look and the lock
        return connect(*arguments, **options)

    monkeypatch.setattr(duckdb, "connect", connecting)
    with pytest.raises(WarehouseError, match="a restore into it is running"):
        open_existing(settings.warehouse)
    monkeypatch.undo()
    marker.unlink()
    open_existing(settings.warehouse).close()  # nothing holds it


def test_one_restore_at_a_time(
    house: tuple[Settings, Warehouse], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(house, tmp_path / "backups")
    generation, target, verify = choose(tmp_path / "backups", None), settings_in(tmp_path / "new"), manifest.verify

    def verifying(of: Path) -> Iterator[str]:
        with pytest.raises(BackupError, match=r"another restore into .* is under way; wait for it"):
            restore(target, generation, replace=True, now=LATER)
        yield from verify(of)

    monkeypatch.setattr(manifest, "verify", verifying)
    restore(target, generation, replace=False, now=LATER)
    assert len(ids(target.warehouse.path)) == 20


@pytest.mark.full
def test_another_generation_is_restored_once_one_that_was_cut_off_is_whole(
    house: tuple[Settings, Warehouse], tmp_path: Path
) -> None:
    settings, warehouse = house
    made(house, tmp_path / "backups")
    interactions(warehouse, ["Where is my refund?"], random.Random(1), start=LATER)
    (settings.models.directory / "support" / "3f2a91c0" / "adapter_model.safetensors").write_text("better weights")
    made(house, tmp_path / "backups", LATER)
    first, last = manifest.generations(tmp_path / "backups")
    target, change = settings_in(tmp_path / "new"), 20
    while killed_at(change, restoring, target, first, LATER):
        marker = target.warehouse.path.with_name("retuned.duckdb.restoring")
        if marker.exists() and '"copied":true' in marker.read_text():
            break
        change += 3
    else:
        pytest.fail("it was never killed while it moved files")
    restore(target, last, replace=True, now=LATER)
    assert len(ids(target.warehouse.path)) == 21
    weights = target.models.directory / "support" / "3f2a91c0" / "adapter_model.safetensors"
    assert weights.read_text() == "better weights"
    (aside,) = target.warehouse.path.parent.glob("retuned.duckdb.replaced-*")
    assert len(ids(aside)) == 20  # the first generation, whole


def test_a_backup_of_a_newer_version_is_refused(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    house[1].execute("INSERT INTO schema_migrations VALUES (999, '999_later.sql', '2026-03-02')")
    made(house, tmp_path / "backups")
    with pytest.raises(BackupError, match=r"schema \(999\) is newer than this retuned knows"):
        restore(settings_in(tmp_path / "new"), choose(tmp_path / "backups", None), replace=False, now=LATER)


def test_a_backup_of_an_older_version_is_migrated_when_it_is_opened(
    house: tuple[Settings, Warehouse], tmp_path: Path
) -> None:
    """As a backup that an older version made: its warehouse, and a manifest that fits."""
    made(house, tmp_path / "backups")
    generation = choose(tmp_path / "backups", None)
    (generation / manifest.WAREHOUSE).unlink()
    with duckdb.connect(str(generation / manifest.WAREHOUSE)) as old:
        old.execute((FOLDER / "1.0.0.sql").read_text())
    content = json.loads((generation / manifest.MANIFEST).read_text())
    (entry,) = (file for file in content["files"] if file["path"] == manifest.WAREHOUSE)
    entry["bytes"] = (generation / manifest.WAREHOUSE).stat().st_size
    entry["sha256"] = sha256(generation / manifest.WAREHOUSE)
    content["schema"] = 80
    (generation / manifest.MANIFEST).write_text(json.dumps(content))
    target = settings_in(tmp_path / "new")
    restore(target, generation, replace=False, now=LATER)
    with pytest.raises(WarehouseError, match="retuned migrate"):
        open_existing(target.warehouse)
    open_warehouse(target.warehouse).close()
    open_existing(target.warehouse).close()


def test_a_folder_of_other_things_is_refused(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(BackupError, match="holds other files"):
        made(house, tmp_path / "photos")
    assert names(tmp_path / "photos") == ["cat.jpg"]
    with pytest.raises(BackupError, match="lies in a folder that is backed up"):
        made(house, house[0].models.directory / "backups")
    with pytest.raises(BackupError, match="no backup is there"):
        choose(tmp_path / "photos", None)


def test_one_at_a_time(house: tuple[Settings, Warehouse], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def while_it_is_made(*_: object) -> None:
        with pytest.raises(Busy, match="another backup is under way"):
            made(house, tmp_path / "backups", LATER)
        raise BackupError("enough")

    monkeypatch.setattr(create, "copy_to", while_it_is_made)
    with pytest.raises(BackupError, match="enough"):
        made(house, tmp_path / "backups")


def test_one_that_is_stopped_leaves_nothing(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    made(house, tmp_path / "backups")
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        back_up(house[1], house[0], tmp_path / "backups", 7, LATER, stop)
    assert names(tmp_path / "backups") == [manifest.MARKER, "2026-11-24T03-00-00Z"]


@pytest.mark.skipif(no_small_disk() is not None, reason=str(no_small_disk()))
def test_a_full_disk_leaves_earlier_backups_and_the_warehouse(
    house: tuple[Settings, Warehouse], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, warehouse = house
    disk = tmp_path / "disk"
    disk.mkdir()
    with small_disk(disk):
        made(house, disk / "backups")
        free = shutil.disk_usage(disk).free
        (disk / "ballast").write_bytes(bytes(free - 2**17))
        with monkeypatch.context() as context:
            context.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**30))
            with pytest.raises(BackupError, match=r"cannot be written .*free space and try again"):
                made(house, disk / "backups", LATER)
            context.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
            with pytest.raises(BackupError, match="10 bytes are free and the next file takes"):
                made(house, disk / "backups", LATER)
        (disk / "ballast").unlink()
        (only,) = manifest.generations(disk / "backups")
        assert names(disk / "backups") == [manifest.MARKER, only.name]
        assert list(manifest.verify(only)) == []
        warehouse.execute("DELETE FROM interactions")  # it goes on
        made(house, disk / "backups", LATER)


# Killed


@pytest.mark.full
def test_one_that_is_killed_is_none_and_harms_none(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    settings, warehouse = house
    folder = tmp_path / "backups"
    made(house, folder)
    warehouse.close()
    kills = 0
    while killed_at(8 * kills, backing_up, settings, folder, 1, LATER + kills * DAY):
        kills += 1
        for generation in manifest.generations(folder):
            assert list(manifest.verify(generation)) == []
        assert manifest.generations(folder)
    assert kills > 2
    (last,) = manifest.generations(folder)
    assert names(folder) == [manifest.MARKER, last.name]
    assert list(manifest.verify(last)) == []


@pytest.mark.full
def test_a_restore_that_is_killed_goes_on_and_loses_nothing(house: tuple[Settings, Warehouse], tmp_path: Path) -> None:
    made(house, tmp_path / "backups")
    generation = choose(tmp_path / "backups", None)
    backed_up = ids(generation / manifest.WAREHOUSE)
    before = settings_in(tmp_path / "before")
    open_warehouse(before.warehouse).close()
    before.models.directory.mkdir()
    (before.models.directory / "mine").touch()
    states, change, was_killed = set(), 0, True
    while was_killed:
        folder = tmp_path / f"killed-{change}"
        shutil.copytree(tmp_path / "before", folder)
        target = settings_in(folder)
        was_killed = killed_at(change, restoring, target, generation, LATER)
        states.add(state := state_of(target.warehouse.path))
        if state == "cut off":
            with pytest.raises(WarehouseError, match="run the same `retuned restore` again"):
                open_existing(target.warehouse)
            restore(target, generation, replace=True, now=LATER + DAY)
        if state != "as it was":
            assert ids(target.warehouse.path) == backed_up
            assert text_files(folder / "models")["support/datasets/d1/train.parquet"] == "rows"
            (aside,) = target.warehouse.path.parent.glob("retuned.duckdb.replaced-*")
            assert ids(aside) == []
            assert len(list(folder.glob("models.replaced-*/mine"))) == 1
            assert not [name for name in names(folder) + names(folder / "data") if name.startswith(".")]
        change += 4  # each one takes long, and shows nothing more
    assert states == {"as it was", "cut off", "in place"}


def state_of(path: Path) -> str:
    if path.with_name(path.name + ".restoring").exists():
        return "cut off"
    return "in place" if ids(path) else "as it was"
