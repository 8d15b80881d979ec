"""The command line: its options, and what it prints when there is nothing to print."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from fixtures.feedback.teaching import Teacher
from fixtures.kafka.brokers import free_port
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.cli.main import main
from retuned.daemon.cli.progress import queue
from retuned.daemon.jobs.progress import words


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    folders = {"warehouse": {"path": str(tmp_path / "w.duckdb")}, "models": {"directory": str(tmp_path / "models")}}
    file.write_text(yaml.safe_dump({**folders, "http": {"port": free_port()}}))
    return file


def test_options_of_all_commands_stand_before_the_command_or_behind_it(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, other = ["--config", str(config)], ["--config", str(config.parent / "none.yaml")]
    open_warehouse(WarehouseSettings(path=config.parent / "w.duckdb")).close()
    for arguments in (
        [*given, "--verbose", "labels", "--json"],
        ["labels", "--json", *given, "--verbose"],
        ["--verbose", "labels", "--json", *given],
        [*other, "labels", "--json", *given],
    ):
        assert main(arguments) == 0
        assert capsys.readouterr().out == "[]\n"
    assert main([*given, "labels", *other]) == 1
    assert "none.yaml: cannot be read" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert (main(["--version"]), capsys.readouterr().out) == (0, f"retuned {project['version']}\n")


def test_help_lists_commands_by_group_and_explains_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0
    shown = capsys.readouterr().out
    groups = [line for line in shown.splitlines() if re.fullmatch(r"\w+:", line)]
    assert groups == ["Options:", "run:", "watch:", "teach:", "train:", "release:", "data:", "admin:"]
    assert main(["rebase", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Usage: retuned rebase [OPTIONS] WORKLOAD\n" in shown
    assert re.search(r"WORKLOAD +a workload that has events", shown)
    assert re.search(r"--base DIR +folder of the base model.* \[required\]", " ".join(shown.split()))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["promote", "support"], "Missing argument 'VERSION'"),
        (["rebase", "support"], "Missing option '--base'"),
        (["status", "--jsn"], "No such option '--jsn'"),
        (["stats"], "No such command 'stats'"),
        (["drift", "accept"], "Missing argument 'WORKLOAD'"),
        (["score", "f", "--workload", "w", "--metric", "text"], "give one of --workload, --metric and --scorer"),
    ],
)
def test_a_wrong_command_line_has_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    assert main(arguments) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.processes
def test_help_imports_nothing_of_the_server_and_the_database() -> None:
    heavy = ["starlette", "duckdb", "torch", "yaml", "httpx", "pydantic_settings", "apscheduler"]
    code = (
        "import sys; from retuned.daemon.cli.main import main; assert main(['--help']) == 0; "
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.processes
def test_a_shell_completes_commands() -> None:
    environment = os.environ | {"_RETUNED_COMPLETE": "bash_complete", "COMP_WORDS": "retuned ro", "COMP_CWORD": "1"}
    code = "from retuned.daemon.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,rollback", "plain,rows"]


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
    assert f"base: {config.parent / 'new'} does not exist" in capsys.readouterr().err


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
