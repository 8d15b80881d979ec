"""Migrations: from every released version and from every step between, each row is found again."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest

from fixtures.releases.schemas import FOLDER, ROOT, Rows, current, fill, rows, version
from retuned.consumers.errors import WarehouseError
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import schema as module
from retuned.consumers.warehouse.connection import rows_of
from retuned.consumers.warehouse.opening import open_existing, open_warehouse
from retuned.consumers.warehouse.schema import MIGRATIONS
from runner.empty_warehouse import EMPTY

STEPS = sorted(file.name for file in MIGRATIONS.iterdir() if re.match(r"\d{3}_.*\.sql$", file.name))
RELEASED = re.findall(r"^## ([1-9]\d*\.\d+\.\d+) (?!.*unreleased)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def migrated(path: Path) -> Rows:
    """Open the file with today's code; then every row in it, without the list of migrations, and of the views that were
    tables once."""
    warehouse = open_warehouse(WarehouseSettings(path=path))
    with warehouse.cursor() as cursor:
        views = {name for (name,) in cursor.execute("SELECT view_name FROM duckdb_views()").fetchall()}
        found = rows(cursor) | {name: rows_of(cursor.execute(f"FROM {name}")) for name in views & {"quarantine"}}
    warehouse.close()
    return found


def of_steps(steps: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that has seen only these migrations."""
    old, known = folder / "old.duckdb", folder / "sql"
    known.mkdir()
    for name in steps:
        (known / name).write_text((MIGRATIONS / name).read_text(encoding="utf-8"))
    with monkeypatch.context() as context:
        context.setattr(module, "MIGRATIONS", known)
        context.delenv(EMPTY)
        migrated(old)
    return old


def assert_kept(before: Rows, after: Rows) -> None:
    """Columns and tables may be new; what was there is there, with its values, but for what is read anew."""
    for table, old in before.items():
        if table not in {"schema_migrations", "memory_positions", "ledger_progress"}:
            kept = [{name: row.get(name, "gone") for name in old[0]} for row in after.get(table, [])]
            assert kept == old, table


def columns(path: Path) -> list[Any]:
    with duckdb.connect(str(path)) as connection:
        return connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable, comment FROM duckdb_columns() ORDER BY ALL"
        ).fetchall()


def test_every_released_version_has_its_schema() -> None:
    """Else a migration could break what people have: run tests/fixtures/releases/schemas.py before a release."""
    missing = {*RELEASED, version()} - {file.stem for file in FOLDER.glob("*.sql")}
    assert not missing, f"tests/data/schemas lacks {missing}"


@pytest.mark.skipif(version() in RELEASED, reason="released: its schema is as it was")
def test_the_schema_of_the_coming_version_is_todays() -> None:
    assert (FOLDER / f"{version()}.sql").read_text() == current(), "run python tests/fixtures/releases/schemas.py"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.sql")), ids=lambda file: file.stem)
def test_a_file_of_every_version_keeps_each_row(file: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.duckdb"
    with duckdb.connect(str(old)) as connection:
        connection.execute(file.read_text())
        before = rows(connection)
    assert len(before) > 15
    assert all(before.values())
    assert_kept(before, migrated(old))
    migrated(tmp_path / "new.duckdb")
    assert columns(old) == columns(tmp_path / "new.duckdb")


@pytest.mark.parametrize("step", range(1, len(STEPS)), ids=STEPS[:-1])
def test_a_file_of_every_step_keeps_each_row(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = of_steps(STEPS[:step], tmp_path, monkeypatch)
    with duckdb.connect(str(old)) as connection:
        fill(connection)
        before = rows(connection)
    assert_kept(before, migrated(old))


def test_a_migration_that_fails_half_way_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "w.duckdb", tmp_path / "sql"
    migrated(path)
    with duckdb.connect(str(path)) as connection:
        fill(connection)
    before, shape = migrated(path), columns(path)
    shutil.copytree(str(MIGRATIONS), folder)
    (folder / "900_sound.sql").write_text("ALTER TABLE offsets ADD COLUMN seen BOOLEAN;")
    (folder / "901_broken.sql").write_text(
        "CREATE TABLE more (n INTEGER); ALTER TABLE quality DROP COLUMN n; DELETE FROM interactions; "
        "SELECT error('no');"
    )
    monkeypatch.setattr(module, "MIGRATIONS", folder)
    with pytest.raises(WarehouseError, match=r"901_broken\.sql failed \(.*no\) and was rolled back"):
        open_warehouse(WarehouseSettings(path=path))
    assert set(columns(path)) == {*shape, ("offsets", "seen", "BOOLEAN", True, None)}
    (folder / "901_broken.sql").unlink()
    after = migrated(path)
    assert_kept(before, after)
    assert [row["number"] for row in after["schema_migrations"]][-1] == 900


def old_file(folder: Path, released: str = RELEASED[-1]) -> tuple[Path, Rows]:
    """A file as a released version left it, and its rows."""
    path = folder / "retuned.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute((FOLDER / f"{released}.sql").read_text())
        return path, rows(connection)


def copies(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.schema-*"))


def test_a_copy_of_the_file_is_kept_before_it_is_migrated(tmp_path: Path) -> None:
    path, before = old_file(tmp_path)
    migrated(path)
    (copy,) = copies(path)
    with duckdb.connect(str(copy)) as connection:
        assert rows(connection) == before
    migrated(path)
    migrated(tmp_path / "new.duckdb")
    assert copies(path) == [copy]  # of what was not migrated there is none


def test_the_last_two_copies_are_kept(tmp_path: Path) -> None:
    path, _ = old_file(tmp_path)
    older = [path.with_name(f"{path.name}.schema-{number:03d}") for number in (1, 2)]
    for file in older:
        file.write_bytes(b"older")
    migrated(path)
    assert older[0] not in copies(path)
    assert older[1] in copies(path)
    assert len(copies(path)) == 2


def test_without_room_for_a_copy_the_file_is_not_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before = old_file(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(WarehouseError, match=r"not migrated: the file cannot be copied before .*10 bytes are free"):
        open_warehouse(WarehouseSettings(path=path))
    with duckdb.connect(str(path)) as connection:
        assert rows(connection) == before
    assert copies(path) == []


def test_an_older_file_is_left_as_it_is_by_who_only_opens_it(tmp_path: Path) -> None:
    path, before = old_file(tmp_path)
    with pytest.raises(WarehouseError, match=r"schema is version \d+ and this retuned requires \d+; `retuned migrate`"):
        open_existing(WarehouseSettings(path=path))
    with duckdb.connect(str(path)) as connection:
        assert rows(connection) == before


@pytest.mark.parametrize("opens", [open_existing, open_warehouse])
def test_a_newer_file_is_refused(opens: Callable[[WarehouseSettings], object], tmp_path: Path) -> None:
    path = tmp_path / "retuned.duckdb"
    migrated(path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (999, '999_later.sql', '2026-03-02')")
    with pytest.raises(WarehouseError, match=r"schema \(999\) is newer than this retuned knows .*; upgrade retuned"):
        opens(WarehouseSettings(path=path))
    assert copies(path) == []


@pytest.mark.parametrize("opens", [open_existing, open_warehouse])
def test_a_file_from_before_1_0_is_refused_and_left_as_it_is(
    opens: Callable[[WarehouseSettings], object], tmp_path: Path
) -> None:
    path, _ = old_file(tmp_path)
    with duckdb.connect(str(path)) as connection:
        connection.execute("DELETE FROM schema_migrations WHERE number > 70")
        before = rows(connection)
    with pytest.raises(WarehouseError, match=r"schema \(70\) is from before .* 1\.0; migrate it with retuned 1\.0"):
        opens(WarehouseSettings(path=path))
    with duckdb.connect(str(path)) as connection:
        assert rows(connection) == before
    assert copies(path) == []


def test_every_table_and_column_has_a_description_in_the_file(tmp_path: Path) -> None:
    migrated(tmp_path / "new.duckdb")
    with duckdb.connect(str(tmp_path / "new.duckdb")) as connection:
        tables = connection.execute("SELECT table_name FROM duckdb_tables() WHERE comment IS NULL").fetchall()
        views = connection.execute(
            "SELECT view_name FROM duckdb_views() WHERE comment IS NULL AND NOT internal"
        ).fetchall()
        undescribed = connection.execute(
            "SELECT table_name, column_name FROM duckdb_columns() SEMI JOIN duckdb_tables() USING (table_name) "
            "WHERE comment IS NULL"
        ).fetchall()
        about = dict(
            connection.execute(
                "SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'memory_entries'"
            ).fetchall()
        )
    assert (tables, views, undescribed) == ([], [], [])
    assert about["question_key"] == "identity of the question, hex"
    assert about["extras"].startswith("what else the model read")  # of a column that a later migration added


def test_where_there_is_no_file_none_is_created_by_who_only_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "retuned.duckdb"
    with pytest.raises(WarehouseError, match=r"does not exist yet; check warehouse\.path"):
        open_existing(WarehouseSettings(path=path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opens", [open_existing, open_warehouse])
def test_while_a_restore_is_unfinished_nothing_opens_the_file(
    opens: Callable[[WarehouseSettings], object], tmp_path: Path
) -> None:
    path = tmp_path / "retuned.duckdb"
    (tmp_path / "retuned.duckdb.restoring").write_text("{}")
    with pytest.raises(
        WarehouseError, match=r"a restore into it is running or was interrupted.*run the same `retuned restore` again"
    ):
        opens(WarehouseSettings(path=path))
    assert not path.exists()
