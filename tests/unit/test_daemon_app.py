"""The daemon's process: what it sets of the interpreter and of the allocator, and what ends its start."""

import errno
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from fixtures.feedback.traffic import START
from fixtures.kafka.brokers import until
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon import app
from retuned.daemon.app import App, run_once
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jobs.parts import PartsFailed
from retuned.daemon.settings import Settings
from retuned.daemon.web.server import bind
from retuned.retrain.scoring.metric import check_metric

OPENS = "import duckdb, sys; duckdb.connect(sys.argv[1]).close()"
LARGE_BUFFERS = """
import ctypes
from retuned.daemon.process import tune_interpreter

def in_heap(buffer):
    place = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    with open("/proc/self/maps") as maps:
        ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps if line.endswith("[heap]\\n")]
    return any(low <= place < high for low, high in ranges)

tune_interpreter()
for _ in range(2):  # glibc maps the first ones by itself; having seen them go, it would keep the next ones
    buffers = [bytearray(4 << 20) for _ in range(16)]
    print(sum(map(in_heap, buffers)))
    del buffers
"""


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_large_buffers_are_given_back() -> None:
    """What is mapped apart from the heap goes back to the system; up to 8 MiB may lie free at the heap's end."""
    done = subprocess.run([sys.executable, "-c", LARGE_BUFFERS], capture_output=True, text=True, check=True)
    assert max(map(int, done.stdout.split())) <= 2, done.stdout


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_signal_during_the_start_ends_it(tmp_path: Path) -> None:
    """Also in a container, whose first process ignores signals that it does not handle."""
    config = tmp_path / "retuned.yaml"
    config.write_text("kafka: {bootstrap_servers: '127.0.0.1:9'}\nhttp: {port: 0}\n", encoding="utf-8")
    command = [sys.executable, "-m", "retuned.daemon.cli.main", "run", "--config", str(config)]
    starting = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)

    def handles_signals() -> bool:
        status = Path(f"/proc/{starting.pid}/status").read_text(encoding="utf-8")
        caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
        return bool(caught >> (signal.SIGTERM - 1) & 1)

    until(handles_signals)
    starting.send_signal(signal.SIGTERM)
    assert starting.wait(30) == 128 + signal.SIGTERM


@pytest.mark.processes
def test_a_metric_that_cannot_be_imported_ends_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is imported by another process: it may load a gigabyte."""
    (tmp_path / "ours_heavy.py").write_text(
        "import decimal\ndef near(answer, approved, example):\n    return 1.0\ndef bare():\n    return 1.0\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def settings(name: str) -> Settings:
        own = {"metric": {"name": name}}
        paths = {"warehouse": {"path": tmp_path / "w.duckdb"}, "models": {"directory": tmp_path / "models"}}
        return Settings(**paths, kafka={"bootstrap_servers": "127.0.0.1:9"}, workloads={"support": own})

    for name, wrong in (
        (
            "ours_heavy:nearly",
            "cannot be imported \\(AttributeError: .*; install its package where retuned is installed",
        ),
        ("ours_light:near", "cannot be imported \\(ModuleNotFoundError"),
        ("ours_heavy:bare", "cannot be called with answer, approved answer and example"),
    ):
        with pytest.raises(ConfigurationError, match=rf"^workloads\.support: metric\.name: {name} {wrong}"):
            App(settings(name))
        assert not (tmp_path / "w.duckdb").exists()
    check_metric(settings("ours_heavy:near").for_workload("support"))
    assert "ours_heavy" not in sys.modules


@pytest.mark.full
def test_the_port_of_a_daemon_that_took_any_is_the_one_that_others_are_told(tmp_path: Path) -> None:
    paths = {"warehouse": {"path": tmp_path / "w.duckdb"}, "models": {"directory": tmp_path / "models"}}
    started = App(Settings(**paths, kafka={"bootstrap_servers": "127.0.0.1:9"}, http={"port": 0}))
    try:
        assert started.settings.http.port > 0
        assert started.server.url == started.settings.http.own_url
    finally:
        started.stop()
    with closing(bind(started.settings.http)):
        pass


def test_a_judge_without_an_address_ends_the_start(tmp_path: Path) -> None:
    paths = {"warehouse": {"path": tmp_path / "w.duckdb"}, "models": {"directory": tmp_path / "models"}}
    metric = {"name": "judge", "criteria": "It is polite."}
    with pytest.raises(ConfigurationError, match=r"^evaluate\.judge_url: null; metric.name judge needs"):
        App(Settings(**paths, metric=metric))


@pytest.mark.processes
def test_a_pass_that_fails_at_its_beginning_lets_go_of_the_warehouse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "models")

    monkeypatch.setattr("retuned.retrain.release.registry.reconcile", fails)
    path = tmp_path / "w.duckdb"
    folders = {"warehouse": {"path": path}, "models": {"directory": tmp_path / "models"}}
    with pytest.raises(OSError, match="Input/output error") as failed:
        run_once(Settings(**folders, kafka={"bootstrap_servers": "127.0.0.1:9"}, http={"port": 0}))  # type: ignore[arg-type]
    opened = subprocess.run([sys.executable, "-c", OPENS, str(path)], capture_output=True, text=True, check=False)
    assert opened.returncode == 0, opened.stderr
    assert failed.value.filename == "models"


@pytest.mark.processes
def test_a_pass_erases_first_and_a_job_that_fails_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, run = [], Jobs.run

    def noted(jobs: Jobs, id: str) -> None:
        made.append(id)
        run(jobs, id)
        if id in ("erasures", "resume"):
            raise RetunedError(f"{id}: a file cannot be read")

    monkeypatch.setattr(Jobs, "run", noted)
    folders = {"warehouse": {"path": tmp_path / "w.duckdb"}, "models": {"directory": tmp_path / "models"}}
    settings = Settings(**folders, kafka={"bootstrap_servers": "127.0.0.1:9"}, http={"port": 0})  # type: ignore[arg-type]
    with closing(open_warehouse(settings.warehouse)) as warehouse:
        row = {"id": "e", "requested_at": START, "requested_by": "dpo", "state": "requested"}
        warehouse.insert("erasures", **row, selection='{"interactions": ["i"]}')
    with pytest.raises(PartsFailed, match=r"erasures: a file cannot be read; resume: a file"):
        run_once(settings)
    assert made[0] == "erasures"
    assert made.index("watch") < made.index("erased") < made.index("resume") < made.index("retention")
    with closing(open_warehouse(settings.warehouse)) as warehouse:
        assert warehouse.rows("SELECT state FROM erasures") == [{"state": "done"}]


def test_a_start_that_fails_names_its_cause_also_where_stopping_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exited = threading.Event()

    class Failing:
        def __init__(self, _: Settings) -> None:
            self.error, self.stopping = None, threading.Event()

        def start(self) -> None:
            raise RetunedError("the table is locked")

        def stop(self) -> None:
            assert exited.wait(60)

    monkeypatch.setattr(app, "App", Failing)
    monkeypatch.setattr(app, "STOP_SECONDS", 0.01)
    monkeypatch.setattr(app.os, "_exit", lambda _: exited.set())
    monkeypatch.setattr(app, "exit_on_signals", lambda _: None)
    with pytest.raises(RetunedError, match="the table is locked"):
        app.run(Settings())
    assert "stopping: the table is locked" in caplog.text
    assert caplog.text.index("the table is locked") < caplog.text.index("not stopped after")
