"""Migrations: from every released version and from every step between, each row is found again."""

import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest
from schemas import FOLDER, ROOT, Rows, current, fill, rows, version

from retuned.consumers.errors import WarehouseError
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import connection as module
from retuned.consumers.warehouse.connection import MIGRATIONS, open_warehouse

STEPS = sorted(file.name for file in MIGRATIONS.iterdir() if re.match(r"\d{3}_.*\.sql$", file.name))
RELEASED = re.findall(r"^## (\d+\.\d+\.\d+) (?!.*unreleased)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def migrated(path: Path) -> Rows:
    """Open the file with today's code; then every row in it, without the list of migrations."""
    warehouse = open_warehouse(WarehouseSettings(path=path))
    with warehouse.cursor() as cursor:
        found = rows(cursor)
    warehouse.close()
    return found


def assert_kept(before: Rows, after: Rows) -> None:
    """Columns and tables may be new; what was there is there, with its values."""
    for table, old in before.items():
        if table != "schema_migrations":
            kept = [{name: row.get(name, "gone") for name in old[0]} for row in after.get(table, [])]
            assert kept == old, table


def columns(path: Path) -> list[Any]:
    with duckdb.connect(str(path)) as connection:
        return connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() ORDER BY ALL"
        ).fetchall()


def test_every_released_version_has_its_schema() -> None:
    """Else nothing would tell that a migration breaks what people have: run tests/schemas.py before a release."""
    missing = {*RELEASED, version()} - {file.stem for file in FOLDER.glob("*.sql")}
    assert not missing, f"tests/data/schemas lacks {missing}"


@pytest.mark.skipif(version() in RELEASED, reason="released: its schema is as it was")
def test_the_schema_of_the_coming_version_is_todays() -> None:
    assert (FOLDER / f"{version()}.sql").read_text() == current(), "run python tests/schemas.py"


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
    old, folder = tmp_path / "old.duckdb", tmp_path / "sql"
    folder.mkdir()
    for name in STEPS[:step]:
        (folder / name).write_text((MIGRATIONS / name).read_text(encoding="utf-8"))
    with monkeypatch.context() as context:
        context.setattr(module, "MIGRATIONS", folder)
        migrated(old)
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
    with pytest.raises(WarehouseError, match=r"901_broken\.sql failed \(.*no\); nothing of it was done"):
        open_warehouse(WarehouseSettings(path=path))
    assert columns(path) == sorted([*shape, ("offsets", "seen", "BOOLEAN", True)])
    (folder / "901_broken.sql").unlink()
    after = migrated(path)
    assert_kept(before, after)
    assert [row["number"] for row in after["schema_migrations"]][-1] == 900
