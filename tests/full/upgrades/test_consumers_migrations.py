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
RELEASED = re.findall(r"^## (\d+\.\d+\.\d+) (?!.*unreleased)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


# Columns that nothing reads any more.
GONE = {
    "ledger_moments": {"interactions_squared", "gain_interactions"},
    "datasets": {"validation"},
    "models": {"provider_model"},
    "rating_periods": {"decided_at"},
    "runs": {"provider_job", "trained_tokens", "input_tokens", "output_tokens"},
}


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
        if table not in {"schema_migrations", "memory_positions"}:
            names = old[0].keys() - GONE.get(table, set())
            kept = [{name: row.get(name, "gone") for name in names} for row in after.get(table, [])]
            assert kept == [{name: row[name] for name in names} for row in old], table


def columns(path: Path) -> list[Any]:
    with duckdb.connect(str(path)) as connection:
        return connection.execute(
            "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() ORDER BY ALL"
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


def test_comments_of_answers_that_were_published_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = of_steps(STEPS[: STEPS.index("062_comments_of_answers.sql")], tmp_path, monkeypatch)
    with duckdb.connect(str(old)) as connection:
        connection.execute("""
            INSERT INTO label_requests BY NAME SELECT 'r' AS id, '2026-03-02' AS created_at, 'w' AS workload,
                'i' AS interaction_id, 'uncertain' AS reason, '' AS detail, true AS announced;
            INSERT INTO label_work VALUES
                ('r', 'ada', 'answered', '2026-03-02 09:00:00.123456', 'helpful', 'true', true),
                ('r', 'ben', 'answered', '2026-03-02 10:00:00', 'helpful', 'true', NULL);
            INSERT INTO feedback BY NAME SELECT 'f' AS id, TIMESTAMP '2026-03-02 09:00:00.123' AS timestamp,
                'i' AS interaction_id, 'comment' AS name, '"as \\"ever\\""' AS value, 'expert' AS source, 't' AS topic,
                0 AS partition, 0 AS offset, '2026-03-02' AS received_at;
        """)
    comments = {row["expert"]: row["comment"] for row in migrated(old)["label_work"]}
    assert comments == {"ada": 'as "ever"', "ben": None}


def test_what_asked_for_an_old_run_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = of_steps(STEPS[: STEPS.index("075_causes_of_runs.sql")], tmp_path, monkeypatch)
    erased = "the champion learned rows that were erased on 2026-03-01"
    expected = {
        '["asked for by ann"]': "person",
        f'["asked for by ann", "{erased}"]': "person",
        f'["{erased}"]': "erasure",
        f'["{erased}", "drift in the latest check"]': "policy",
        '["drift in the latest check", "asked for by nobody"]': "policy",
        "[]": "policy",
    }
    with duckdb.connect(str(old)) as connection:
        for reasons in expected:
            connection.execute(
                "INSERT INTO runs BY NAME SELECT $reasons AS id, 'w' AS workload, $reasons AS reasons, "
                "'failed' AS state, now()::TIMESTAMP AS started_at",
                {"reasons": reasons},
            )
    assert {row["reasons"]: row["cause"] for row in migrated(old)["runs"]} == expected


def test_the_memory_reads_anew_what_an_older_release_had_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = of_steps(STEPS[: STEPS.index("078_keys_of_questions.sql")], tmp_path, monkeypatch)
    with duckdb.connect(str(old)) as connection:
        fill(connection)
        assert connection.execute("FROM memory_positions").fetchall()
    assert migrated(old)["memory_positions"] == []


def test_the_sentence_of_an_old_drift_check_quotes_no_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = of_steps(STEPS[: STEPS.index("066_no_quotes.sql")], tmp_path, monkeypatch)
    texts = {
        "a": "1 of 9 features moved: topic from x to y, most in 'app', for example “it broke; why”; language up.",
        "b": "0 of 9 features moved.",
    }
    with duckdb.connect(str(old)) as connection:
        for id, text in texts.items():
            connection.execute(
                "INSERT INTO drift_checks BY NAME SELECT $id AS id, now()::TIMESTAMP AS created_at, 'w' AS workload, "
                "'[]' AS features, 0 AS reference_rows, 0 AS current_rows, $text AS detail",
                {"id": id, "text": text},
            )
    found = {row["id"]: row["detail"] for row in migrated(old)["drift_checks"]}
    assert found == {"a": "1 of 9 features moved: topic from x to y, most in 'app'; language up.", "b": texts["b"]}


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
    assert columns(path) == sorted([*shape, ("offsets", "seen", "BOOLEAN", True)])
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
