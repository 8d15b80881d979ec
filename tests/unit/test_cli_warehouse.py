"""Commands on a warehouse while no daemon runs: what only looks neither creates one nor migrates it."""

import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import yaml

from fixtures.kafka.brokers import free_port
from fixtures.releases.schemas import FOLDER, rows
from retuned.daemon.cli import check as checks
from retuned.daemon.cli.main import main
from retuned.daemon.settings import load

LOOKING = (
    ["status"],
    ["export", "interactions", "--output", "-"],
    ["lineage", "x"],
    ["labels"],
    ["dead-letters", "list"],
)
CHANGING = (
    ["retrain", "support"],
    ["promote", "support", "3f2a91c0"],
    ["evaluate", "support", "3f2a91c0", "--metric", "text"],
    ["rollback", "support"],
    ["report", "support"],
    ["dead-letters", "replay"],
    ["backup", "backups"],
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "check_broker", lambda _: "not asked")  # it would be waited for
    file = tmp_path / "retuned.yaml"
    folders = {"warehouse": {"path": "data/retuned.duckdb"}, "models": {"directory": "data/models"}}
    file.write_text(yaml.safe_dump({**folders, "http": {"port": free_port()}}))
    return file


@pytest.fixture
def old(config: Path) -> Path:
    """A warehouse as version 1.0.0 left it."""
    path = config.parent / "data" / "retuned.duckdb"
    path.parent.mkdir()
    with duckdb.connect(str(path)) as connection:
        connection.execute((FOLDER / "1.0.0.sql").read_text())
    return path


def schema_of(path: Path) -> int:
    with duckdb.connect(str(path)) as connection:
        return int(rows(connection)["schema_migrations"][-1]["number"])


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def checked(config: Path, what: str = "warehouse") -> tuple[str, str]:
    """What `retuned check` finds of something, and how it is."""
    return next((mark, found) for mark, name, found in checks.check(load(config)) if name == what)


def test_where_nothing_is_nothing_is_created(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (*LOOKING, *CHANGING, ["migrate"]):
        assert main(command) == 1, command
        assert "warehouse data/retuned.duckdb: does not exist yet; check warehouse.path" in capsys.readouterr().err, (
            command
        )
        assert below(config.parent) == {"retuned.yaml"}, command


def test_an_older_warehouse_is_refused_and_left_as_it_is(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("events.jsonl").write_text(json.dumps({"question": "Where?", "answer": "Here."}) + "\n")
    before = schema_of(old)
    for command in (*LOOKING, *CHANGING, ["import", "events.jsonl"]):
        assert main(command) == 1, command
        assert f"its schema is version {before} and " in (said := capsys.readouterr().err), command
        assert "`retuned migrate` or a start of the daemon" in said, command
        assert schema_of(old) == before, command
        assert below(old.parent) == {"retuned.duckdb"}, command


def test_the_check_leaves_an_older_warehouse_as_it_is(old: Path, config: Path) -> None:
    before = schema_of(old)
    mark, found = checked(config)
    assert mark == "ok"
    assert f"its schema is version {before} and " in found
    assert schema_of(old) == before


def test_the_check_creates_nothing(config: Path) -> None:
    mark, found = checked(config)
    assert mark == "ok"
    assert "is not there yet: the daemon creates it" in found
    assert below(config.parent) == {"retuned.yaml"}


def test_migrate_brings_it_up_to_date_once(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = schema_of(old)
    assert main(["migrate"]) == 0
    after = schema_of(old)
    assert f"migrated from schema {before} to {after}" in capsys.readouterr().out
    assert after > before
    assert below(old.parent) == {"retuned.duckdb", f"retuned.duckdb.schema-{before:03d}"}
    assert main(["migrate"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert main(["dead-letters", "list"]) == 0


def test_an_import_creates_the_first_warehouse(config: Path) -> None:
    Path("pairs.jsonl").write_text(json.dumps({"question": "Where?", "answer": "Here."}) + "\n")
    assert main(["import", "pairs.jsonl", "--workload", "support"]) == 0
    assert "data/retuned.duckdb" in below(config.parent)
