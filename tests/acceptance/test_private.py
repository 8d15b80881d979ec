"""What is written is readable by the user that runs retuned alone, however it is started."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from fixtures.daemon.daemons import Daemon, settings_for
from fixtures.kafka.brokers import Broker, free_port

RETUNED = Path(sys.executable).with_name("retuned")
EVENT = {
    "id": "i1",
    "timestamp": datetime.now(UTC).isoformat(),  # a report is of this month
    "workload": "support",
    "model": "support@base",
    "messages": [{"role": "user", "content": "Where is my parcel?"}],
    "response": "On its way.",
    "user_id": "u1",
}


def open_to_others(folder: Path) -> dict[str, str]:
    """What others may touch, with its mode."""
    modes = {path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in everything(folder)}
    return {name: oct(mode) for name, mode in modes.items() if mode & 0o077}


def everything(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.rglob("*")


@pytest.mark.full
def test_the_console_script_writes_for_its_user_alone(tmp_path: Path) -> None:
    data, models = tmp_path / "data", tmp_path / "models"
    config = tmp_path / "retuned.yaml"
    settings = {
        "warehouse": {"path": str(data / "retuned.duckdb")},
        "models": {"directory": str(models)},
        "http": {"port": free_port()},
        "schedule": {"report_cron": None},
    }
    config.write_text(yaml.safe_dump(settings))
    (tmp_path / "events.jsonl").write_text(json.dumps(EVENT) + "\n")
    exported = data / "interactions.jsonl"
    for arguments in (
        ["import", tmp_path / "events.jsonl"],
        ["report", "support"],
        ["export", "interactions", "-o", exported],
    ):
        command = [RETUNED, arguments[0], "--config", config, *arguments[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, umask=0o022)
        assert done.returncode == 0, done.stderr
    assert {"retuned.duckdb", "retuned.duckdb.key", "reports", exported.name} <= {
        path.name for path in everything(data)
    }
    assert open_to_others(data) == {}


@pytest.mark.full
@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_a_daemon_tightens_what_was_left_open(tansu: Broker, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, settings_for(tansu, tmp_path))
    try:
        daemon.start()
        daemon.stop()
        data = daemon.warehouse.parent
        (data / "archive").mkdir()
        for path in everything(data):
            path.chmod(0o755 if path.is_dir() else 0o644)
        daemon.start()
        assert open_to_others(data) == {".": "0o755"}  # it may be shared, so that is only said
        assert f"chmod -R go-rwx {data}" in daemon.log.read_text()
    finally:
        daemon.end()
