"""`retuned import` and `retuned export` as their user runs them: with the daemon at work, killed, and without it."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pyarrow.parquet as pq
import pytest
import yaml

from fixtures.daemon.daemons import App, Daemon, running, settings_for
from fixtures.feedback.teaching import GOODS, questions
from fixtures.kafka.brokers import Broker, free_port
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.settings import load

ROWS = 20_000


def command(config: Path, *arguments: Any) -> list[str]:
    return [sys.executable, "-m", "retuned.daemon.cli.main", *map(str, arguments), "--config", str(config)]


def cli(config: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(config, *arguments), capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Years of logs, and one row that is none."""
    path = tmp_path_factory.mktemp("logs") / "logs.jsonl"
    with path.open("w") as file:
        for number in range(ROWS):
            question = {"role": "user", "content": f"Until when can I return tent {number}?"}
            event = {"id": f"i{number}", "timestamp": "2024-05-06T07:08:09Z", "model": "m", "messages": [question]}
            file.write(json.dumps({**event, "response": "Within 30 days. " * 20}) + "\n")
        file.write('{"mail": "jo@example.org"}\n')
    return path


@pytest.fixture
def daemon(tansu: Broker, tmp_path: Path) -> Iterator[Daemon]:
    with running(tmp_path, settings_for(tansu, tmp_path)) as made:
        yield made


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """A configuration without a daemon and without a broker."""
    path = tmp_path / "retuned.yaml"
    settings = {
        "kafka": {"bootstrap_servers": f"127.0.0.1:{free_port()}"},
        "http": {"port": free_port()},
        "warehouse": {"path": str(tmp_path / "data" / "retuned.duckdb")},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def nodes(tansu: Broker, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Daemon]]:
    """Two daemons of a cluster."""
    pytest.importorskip("obstore", reason="the extra cluster is not installed")
    url, objects = request.getfixturevalue("database"), (tmp_path / "objects").as_uri()
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        settings = settings_for(
            tansu,
            tmp_path / name,
            store={"kind": "cluster", "postgres_url": url, "objects_url": objects},
            privacy={"user_key": "a key of at least sixteen characters"},
            ingest={"batch_events": 4_000},
        )
        tansu.create_topics(*(settings["kafka"][key] for key in settings["kafka"] if key.endswith("_topic")))
        made.append(Daemon(tmp_path / name, settings))
    try:
        for daemon in made:
            daemon.start()
        yield made
    finally:
        for daemon in made:
            daemon.end()


def kill_in_the_middle(config: Path, logs: Path) -> None:
    """Kill the import once some of it is stored: its bar says so."""
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        command(config, "import", logs, "--workload", "support"), stdout=secondary, stderr=secondary
    ) as process:
        os.close(secondary)
        seen = b""
        while b"rows" not in seen:
            seen += os.read(primary, 1_000)
        process.kill()
        with suppress(OSError):
            while os.read(primary, 1_000):
                pass
    os.close(primary)
    assert "█".encode() in seen or "░".encode() in seen


def finish_and_check(config: Path, logs: Path) -> None:
    """The same command again stores the rest and says where it went on; a third time there is nothing to do."""
    done = cli(config, "import", logs, "--workload", "support")
    assert done.returncode == 1  # for the row that is none
    assert "continues after row " in done.stderr
    assert "\r" not in done.stderr  # a bar is for terminals
    assert f"row {ROWS + 1}: not_an_event: neither an event nor a question with an answer" in done.stdout
    again = cli(config, "import", logs, "--workload", "support")
    assert (again.returncode, again.stderr) == (1, "")  # that row is refused still
    assert f"nothing is left to import; of the {ROWS + 1:,} earlier rows 1 were refused" in again.stdout


def counts(path: Path) -> dict[str, Any] | None:
    warehouse = open_warehouse(WarehouseSettings(path=path))
    try:
        return warehouse.row(
            "SELECT count(*) AS n, count(DISTINCT id) AS ids, (SELECT count(*) FROM dead_letters) AS dead "
            "FROM interactions"
        )
    finally:
        warehouse.close()


@pytest.mark.full
def test_killed_and_repeated_while_the_daemon_takes_events(daemon: Daemon, tmp_path: Path, logs: Path) -> None:
    app = App(yaml.safe_load(daemon.config.read_text()))
    for number in range(500):
        app.answered(f"question {number}", "an answer")
    kill_in_the_middle(daemon.config, logs)
    for number in range(500):
        app.answered(f"another question {number}", "an answer")
    finish_and_check(daemon.config, logs)
    app.flush()
    app.close()
    daemon.until(lambda: daemon.status()["ingestion"]["interactions"] == ROWS + 1_000, "all events")
    assert daemon.stop() == 0
    assert counts(tmp_path / "data" / "retuned.duckdb") == {"n": ROWS + 1_000, "ids": ROWS + 1_000, "dead": 1}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_killed_with_its_daemon_and_repeated_at_another_one_of_the_cluster(nodes: list[Daemon], logs: Path) -> None:
    one, two = nodes
    kill_in_the_middle(one.config, logs)
    one.stop(signal.SIGKILL)
    finish_and_check(two.config, logs)
    refused = cli(one.config, "import", logs, "--workload", "support")
    assert (refused.returncode, "no daemon runs there; on a cluster" in refused.stderr) == (1, True)
    one.start()
    for daemon in nodes:
        daemon.until(lambda daemon=daemon: daemon.status()["ingestion"]["interactions"] == ROWS, "all rows")
        assert daemon.stop() == 0
        assert counts(daemon.warehouse) == {"n": ROWS, "ids": ROWS, "dead": 1}


@pytest.mark.full
def test_killed_and_repeated_without_a_daemon(alone: Path, tmp_path: Path, logs: Path) -> None:
    kill_in_the_middle(alone, logs)
    finish_and_check(alone, logs)
    assert counts(tmp_path / "data" / "retuned.duckdb") == {"n": ROWS, "ids": ROWS, "dead": 1}


@pytest.mark.full
def test_export_from_the_daemon_and_without_it_is_the_same(daemon: Daemon, tmp_path: Path) -> None:
    faq = tmp_path / "faq.csv"
    lines = [f"{question} I am anna@example.org.,{right}" for question, right in questions(GOODS, slice(0, 3))]
    faq.write_text("\n".join(["question,answer", *lines]))
    done = cli(daemon.config, "import", faq, "--workload", "support")
    assert (done.returncode, done.stderr) == (0, "")
    assert "stored      60 interactions, 60 feedback" in done.stdout
    asked = [("interactions", "jsonl"), ("feedback", "parquet")]
    for what, format in asked:
        path = tmp_path / f"running-{what}.{format}"
        done = cli(daemon.config, "export", what, "--output", path)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert f"{path}: {path.stat().st_size:,} bytes" in done.stderr
    chat = daemon.get("/api/v1/exports/chat").text
    by_curl = daemon.get("/api/v1/exports/interactions?workload=support")
    assert by_curl.text == (tmp_path / "running-interactions.jsonl").read_text()
    assert daemon.get("/api/v1/exports/nothing").json()["error"].startswith("export: nothing is none of")
    assert daemon.stop() == 0
    for what, format in asked:
        path = tmp_path / f"alone-{what}.{format}"
        assert cli(daemon.config, "export", what, "-o", path).returncode == 0
        assert path.read_bytes() == (tmp_path / f"running-{what}.{format}").read_bytes()
    assert pq.read_table(tmp_path / "alone-feedback.parquet").num_rows == 60
    printed = cli(daemon.config, "export", "chat", "-o", "-")
    assert printed.stdout == chat
    assert "<EMAIL_1>" in printed.stdout
    assert "@example.org" not in printed.stdout
    assert [file.name for file in tmp_path.glob(".*.tmp")] == []


@pytest.mark.full
def test_who_may_import_and_export(tansu: Broker, tmp_path: Path) -> None:
    looks, operates = "looks-at-everything", "may-do-everything"
    tokens = {"operator_token": operates, "viewer_token": looks}
    file = "/imports/0123456789abcdef"
    with running(tmp_path, settings_for(tansu, tmp_path, http=tokens)) as daemon:

        def sent(method: str, path: str, token: str | None, **more: Any) -> int:
            headers = {"Content-Type": "application/msgpack"} | ({"Authorization": f"Bearer {token}"} if token else {})
            return httpx.request(method, f"{daemon.url}/api/v1{path}", headers=headers, timeout=20, **more).status_code

        assert [sent("GET", "/exports/chat", token) for token in (None, looks, operates)] == [401, 403, 200]
        assert [sent("GET", file, token) for token in (None, looks, operates)] == [401, 403, 200]
        assert [sent("POST", file, token, content=b"") for token in (None, looks, operates)] == [
            401,
            403,
            400,
        ]
        assert sent("GET", "/imports/..", operates) == sent("GET", "/imports/x", operates) == 404
        backwards = msgspec.msgpack.encode((5, 3, []))
        assert sent("POST", file, operates, content=backwards) == 400
        assert sent("POST", file, operates, content=msgspec.msgpack.encode((5, 6, []))) == 409
        large = (b"x" * 2**20 for _ in range(60))
        with suppress(httpx.WriteError):  # it may close before all was sent
            assert sent("POST", file, operates, content=large) == 413
        assert (
            httpx.post(f"{daemon.url}/api/v1{file}", auth=("", operates), content=b"{}", timeout=20).status_code == 415
        )
        faq = tmp_path / "faq.jsonl"
        faq.write_text('{"question": "q", "answer": "a"}\n')
        done = cli(daemon.config, "import", faq, "--workload", "w")
        assert (done.returncode, done.stderr) == (0, "")
        assert cli(daemon.config, "export", "chat", "-o", "-").returncode == 0
        assert daemon.answers("/healthz")


@pytest.mark.parametrize(
    "asked", [("status", "--json"), ("export", "interactions", "-o", "-"), ("check",)], ids=" ".join
)
def test_who_reads_no_further_is_no_error(alone: Path, asked: tuple[str, ...]) -> None:
    open_warehouse(load(alone).warehouse).close()
    read, write = os.pipe()
    os.close(read)  # as `head` leaves it
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(
            command(alone, *asked), stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert done.returncode == 0
