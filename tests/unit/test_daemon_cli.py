"""The command line: its options, and what it prints when there is nothing to print."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from brokers import free_port
from teaching import Teacher

from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import open_warehouse
from retuned.daemon.cli.main import main, parser
from retuned.daemon.cli.progress import queue
from retuned.daemon.jobs.progress import words


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump({**folders, "http": {"port": free_port()}}))
    return file


def test_options_of_all_commands_stand_before_the_command_or_behind_it() -> None:
    for arguments in (
        ["--config", "a.yaml", "--verbose", "status"],
        ["status", "--config", "a.yaml", "--verbose"],
        ["--verbose", "status", "--config", "a.yaml"],
        ["--config", "b.yaml", "status", "--config", "a.yaml", "--verbose"],
    ):
        options = parser().parse_args(arguments)
        assert (options.config, options.verbose) == (Path("a.yaml"), True)
    options = parser().parse_args(["status"])
    assert (options.config, options.verbose) == (None, False)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert (left.value.code, capsys.readouterr().out) == (0, f"retuned {project['version']}\n")


@pytest.mark.parametrize(
    ("command", "printed"),
    [(["labels"], "no answer waits for an expert\n"), (["dead-letters", "list"], "no dead letters\n")],
)
def test_an_empty_list_is_said_to_be_empty(
    config: Path, capsys: pytest.CaptureFixture[str], command: list[str], printed: str
) -> None:
    open_warehouse(WarehouseSettings(path=config.parent / "w.duckdb")).close()
    assert main(["--config", str(config), *command]) == 0
    out, err = capsys.readouterr()
    assert (out, err.endswith(printed)) == ("", True)
    assert main([*command, "--config", str(config), "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_an_empty_export_is_said_to_be_empty(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_warehouse(WarehouseSettings(path=config.parent / "w.duckdb")).close()
    file = config.parent / "ledger.jsonl"
    for where, named in ((str(file), str(file)), ("-", "export")):
        assert main(["export", "ledger", "--output", where, "--config", str(config)]) == 0
        assert f"{named}: empty, there are no such rows of ledger\n" in capsys.readouterr().err
    assert file.read_bytes() == b""


def test_a_rebase_is_asked_for_with_the_whole_path_of_the_base_model(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = open_warehouse(WarehouseSettings(path=config.parent / "w.duckdb"))
    Teacher(warehouse).ask("where is my parcel", "here")
    warehouse.close()
    monkeypatch.chdir(config.parent)
    assert main(["rebase", "support", "--base", "new", "--config", str(config)]) == 1
    assert f"base: {config.parent / 'new'} is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        ({"stage": "train", "ray_status": "PENDING"}, "train, on Ray: PENDING"),
        ({"stage": "train", "ray_status": "AWAY", "step": 3, "steps": 90}, "train, on Ray: AWAY"),
        ({"stage": "train", "ray_status": "RUNNING", "step": 3, "steps": 90}, "train, step 3, steps 90"),
        ({"stage": "gate", "ray_status": "AWAY"}, "gate"),  # its last word on the stage before
    ],
)
def test_what_a_job_on_ray_waits_for_is_shown(progress: dict[str, Any], shown: str) -> None:
    assert words(progress) == shown


def test_the_runs_under_way_and_those_in_line_are_shown_in_their_order() -> None:
    begun = [{"workload": "support", "runner": "ray"}, {"workload": "sales", "runner": "local"}]
    in_line = [{"workload": f"w{number:02}", "waits_for": "turn"} for number in range(12)]
    assert queue({"under_way": begun, "queue": in_line}) == [
        "training  support on Ray, sales on this machine",
        f"in line   {', '.join(f'w{number:02} (turn)' for number in range(10))} and 2 more",
    ]
    assert queue({"under_way": [], "queue": []}) == []
