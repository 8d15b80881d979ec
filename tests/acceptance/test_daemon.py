"""The daemon as a process: what its user sees, from the first event to a promoted adapter, a stop, and a restart."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaConsumer

from fixtures.daemon.daemons import App, Daemon, running, settings_for, stored
from fixtures.feedback.teaching import GOODS, questions
from fixtures.kafka.brokers import Broker, free_port, run_tansu
from fixtures.models.tiny import ANY_LATENCY
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.cli.main import main


def learning(broker: Broker, folder: Path, base: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration under which a tiny model learns in seconds, when asked."""
    return settings_for(
        broker,
        folder,
        models={"base": str(base), "directory": str(folder / "models")},
        train={"threads": 1, "learning_rate": 5e-3, "epochs": 8, "dtype": "float32", "checkpoint_steps": 5},
        evaluate={"general_examples": 9},
        gate={"minimum_examples": 15, "maximum_latency_ratio": ANY_LATENCY, "fold_rows": 0},
        policy={"new_corrections": None},
        **sections,
    )


def teach(app: App) -> None:
    """Every question about the goods, answered wrong and corrected."""
    for question, right in questions(GOODS):
        app.said(app.answered(question, "I cannot say."), "correction", right, "expert")
    app.flush()


def cli(*arguments: str, config: Path) -> subprocess.CompletedProcess[str]:
    """A command, here in this process: each of its own would first import for a second."""
    with redirect_stdout(StringIO()) as output, redirect_stderr(StringIO()) as errors:
        status = main([arguments[0], "--config", str(config), *arguments[1:]])
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def run(*arguments: str, config: Path) -> subprocess.CompletedProcess[str]:
    """The daemon as a process that ends by itself."""
    command = [sys.executable, "-m", "retuned.daemon.cli.main", "run", "--config", str(config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def app_of(request: pytest.FixtureRequest) -> Any:
    def make(settings: dict[str, Any]) -> App:
        app = App(settings)
        request.addfinalizer(app.close)
        return app

    return make


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What a daemon and its children would ask for a server elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield listener


@pytest.mark.parametrize("processes", ["forked", pytest.param("started", marks=pytest.mark.full)])
def test_from_events_to_a_promoted_adapter_and_back(
    tansu: Broker,
    tmp_path: Path,
    base: Path,
    app_of: Any,
    processes: str,
    proxy: socket.socket,
    request: pytest.FixtureRequest,
) -> None:
    if processes == "started":
        request.getfixturevalue("real_processes")
    settings = learning(tansu, tmp_path, base)
    app = app_of(settings)
    with running(tmp_path, settings) as daemon:
        teach(app)
        daemon.until(lambda: stored(daemon, app), "events")
        daemon.until(lambda: "support" in daemon.status()["workloads"], "workload")
        topic = settings["kafka"]["interactions_topic"]
        daemon.until(lambda: daemon.metric("retuned_events_total", topic=topic) == app.sent["interactions"], "metric")

        # Asked by the command line, which speaks to the running daemon.
        asked = cli("retrain", "support", config=daemon.config)
        assert asked.returncode == 0, asked.stderr
        assert "a retraining is" in asked.stdout
        daemon.until(lambda: daemon.workload()["champion"], "champion")
        daemon.until(lambda: daemon.workload()["runs"][0]["state"] == "succeeded", "end of the run")
        workload = daemon.workload()
        version = workload["champion"]
        gate = next(decision for decision in workload["decisions"] if decision["kind"] == "gate")
        assert gate["outcome"]
        assert "The candidate scores" in gate["reasons"][0]
        assert workload["runs"][0]["state"] == "succeeded"
        assert workload["runs"][0]["reasons"] == ["asked for by an operator"]

        # What servers load, and the announcement they wait for.
        folder = tmp_path / "models" / "support" / version
        assert (folder / "adapter_model.safetensors").is_file()
        assert (tmp_path / "models" / "support" / "champion").resolve() == folder.resolve()
        (announced,) = messages(settings, 1)
        assert announced["event"] == "promoted"
        assert announced["model"] == f"support@{version}"
        assert Path(announced["path"]) == folder.resolve()

        # From the exemplar of a metric to the page of an answer, and to what learned from it.
        accept = {"Accept": "application/openmetrics-text"}
        exemplar = re.compile(r'^retuned_feedback_total{name="correction".*# {interaction_id="(.+?)"}', re.MULTILINE)
        corrected = daemon.until(lambda: exemplar.search(daemon.get("/metrics", accept).text), "exemplar")
        rows = daemon.get(f"/api/v1/lineage/support@{version}").json()["rows"]
        (dataset,) = {row["dataset_version"] for row in rows}
        assert "I cannot say." in daemon.get(f"/interactions/{corrected[1]}").text
        for row in {row["split"]: row for row in rows}.values():
            page = daemon.get(f"/interactions/{row['interaction_id']}").text
            judged = row["split"] == "holdout"
            assert ("Answers of models that were evaluated on it" in page) == judged
            assert (f"<td>support@{version}</td>" in page) == bool(row["models"])
            for text in ("I cannot say.", "correction", dataset, row["split"]):
                assert text in page, text

        daemon.until(lambda: daemon.metric("retuned_model_info", workload="support", alias="champion"), "metric")
        assert daemon.metric("retuned_training_runs_total", workload="support", state="succeeded") == 1
        assert daemon.metric("retuned_promotions_total", workload="support", event="promoted") == 1

        # Back to the base model, and the app is told.
        assert cli("rollback", "support", "--reason", "it was rude", config=daemon.config).returncode == 0
        assert daemon.workload()["champion"] is None
        assert messages(settings, 2)[1] | {"reason": "it was rude", "path": None} == messages(settings, 2)[1]
        again = cli("rollback", "support", config=daemon.config)
        assert again.returncode == 1
        assert "no previous champion to go back to" in again.stderr
        assert daemon.stop() == 0

    # No daemon: the commands open the warehouse themselves.
    assert cli("promote", "support", version, config=daemon.config).returncode == 0
    shown = json.loads(cli("status", "--json", config=daemon.config).stdout)
    assert shown["running"] is False
    assert shown["workloads"]["support"]["champion"] == version
    assert f"support@{version}" in cli("status", "support", config=daemon.config).stdout
    unknown = cli("promote", "support", "ffffffff", config=daemon.config)
    assert unknown.returncode == 1
    assert version in unknown.stderr  # it names what there is
    with pytest.raises(BlockingIOError):
        proxy.accept()  # nobody has asked anyone outside of this machine


def messages(settings: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The first messages of the model-events topic."""
    kafka = settings["kafka"]
    consumer = KafkaConsumer(
        kafka["model_events_topic"],
        bootstrap_servers=kafka["bootstrap_servers"],
        auto_offset_reset="earliest",
        consumer_timeout_ms=20_000,
    )
    try:
        return [json.loads(next(consumer).value) for _ in range(count)]
    finally:
        consumer.close()


@pytest.mark.full
def test_a_stop_during_training_is_quick_and_the_run_is_taken_up(
    tansu: Broker, tmp_path: Path, base: Path, app_of: Any
) -> None:
    settings = learning(tansu, tmp_path, base)
    settings["train"] |= {"epochs": 15, "learning_rate": 2e-3}
    app = app_of(settings)
    with running(tmp_path, settings) as daemon:
        teach(app)
        daemon.until(lambda: stored(daemon, app), "events")
        daemon.post("/api/v1/workloads/support/retrain").raise_for_status()
        daemon.until(lambda: daemon.status()["training"].get("step", 0) >= 7, "training")
        assert daemon.stop() == 0  # in time: else it leaves by force, with another status
        before = open_warehouse(WarehouseSettings(path=tmp_path / "data" / "retuned.duckdb"))
        run = before.row("SELECT * FROM runs")
        before.close()
        assert run is not None
        assert run["state"] == "interrupted"

        daemon.start()
        first = daemon.until(lambda: daemon.status()["training"].get("step"), "training")
        assert first >= 5  # from the checkpoint, not from the start
        # Killed without a warning, it goes on all the same.
        daemon.stop(signal.SIGKILL)
        daemon.start()
        daemon.until(lambda: daemon.workload()["runs"][0]["state"] == "succeeded", "end of the run")
        assert len(daemon.workload()["runs"]) == 1
        assert stored(daemon, app)


def test_nothing_is_lost_or_doubled_over_kills_and_restarts(tansu: Broker, tmp_path: Path, app_of: Any) -> None:
    settings = settings_for(tansu, tmp_path)
    app = app_of(settings)
    with running(tmp_path, settings) as daemon:
        for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
            before = daemon.status()["ingestion"]["interactions"]
            for number in range(700):
                interaction = app.answered(f"question {number}", "an answer")
                app.said(interaction, "helpful", number % 2 == 0)
            # Tansu never gives a group away whose only member died while it joined: wait until it reads.
            daemon.until(lambda before=before: daemon.status()["ingestion"]["interactions"] > before, "first events")
            daemon.stop(how)
            app.flush()
            daemon.start()
        daemon.until(lambda: stored(daemon, app), "events")
        time.sleep(1)
        assert stored(daemon, app)
        figures = daemon.workload()["quality"]
        helpful = next(f for f in figures if f["metric"] == "helpful_rate" and f["model"] == "*")
        assert helpful["source"] == "user"
        assert helpful["value"] == pytest.approx(0.5, abs=0.05)


def test_bad_events_are_counted_and_shown_and_stop_nothing(tansu: Broker, tmp_path: Path, app_of: Any) -> None:
    settings = settings_for(tansu, tmp_path)
    app = app_of(settings)

    def letters(*arguments: str) -> str:
        done = cli("dead-letters", *arguments, config=daemon.config)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with running(tmp_path, settings) as daemon:
        app.answered("a question", "an answer, write to jo@example.org")
        app.producer.send(settings["kafka"]["interactions_topic"], {"id": "x", "response": "mail jo@example.org"})
        app.answered("another", "answer")
        app.flush()
        daemon.until(lambda: daemon.status()["ingestion"]["interactions"] == 2, "events")
        assert daemon.status()["ingestion"]["dead_letters"] == 1
        daemon.until(lambda: daemon.metric("retuned_dead_letters_total") == 1, "metric")
        succeeded = "retuned_job_last_success_timestamp_seconds"
        assert time.time() - daemon.until(lambda: daemon.metric(succeeded, task="quality"), "a measurement") < 60
        assert daemon.described("/api/v1/status", "status")["workloads"].keys() == {"support"}
        assert len(daemon.described("/api/v1/dead-letters?reason=not_an_event", "deadLetters")) == 1
        listed = letters("list")
        assert re.search(r"  not_an_event\n +detail +Object missing required field `timestamp`\n$", listed)
        assert "0 of 1 dead letters are events now; 0 were stored" in letters("replay")
        assert letters("list", "--reason", "not_json") == ""
        assert daemon.stop() == 0
    assert letters("list") == listed  # also while no daemon runs
    assert json.loads(letters("list", "--json"))[0]["payload"] == ('{"id":"x","response":"mail <EMAIL_1>"}')
    assert "0 of 1" in letters("replay")
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "data" / "retuned.duckdb"))
    everything = str(warehouse.rows("SELECT * FROM interactions")) + str(warehouse.rows("SELECT * FROM dead_letters"))
    warehouse.close()
    assert "<EMAIL_1>" in everything
    assert "jo@example.org" not in everything
    assert "jo@example.org" not in daemon.log.read_text()


@pytest.mark.full
def test_a_training_child_that_dies_is_told_and_promotes_nothing(
    tansu: Broker, tmp_path: Path, base: Path, app_of: Any
) -> None:
    broken = tmp_path / "broken-base"
    broken.mkdir()
    for file in base.iterdir():
        (broken / file.name).write_bytes(
            file.read_bytes() if file.suffix != ".safetensors" else file.read_bytes()[:2_000]
        )
    settings = learning(tansu, tmp_path, broken)
    app = app_of(settings)
    with running(tmp_path, settings) as daemon:
        teach(app)
        daemon.until(lambda: stored(daemon, app), "events")
        daemon.post("/api/v1/workloads/support/retrain").raise_for_status()
        daemon.until(lambda: (daemon.workload().get("runs") or [{}])[0].get("state") == "failed", "failure")
        assert daemon.workload()["runs"][0]["error"].startswith("train: ")
        assert daemon.workload()["champion"] is None
        assert daemon.answers("/healthz")


@pytest.mark.full
def test_a_broker_that_goes_away_makes_the_daemon_unready_not_dead(tmp_path: Path) -> None:
    with run_tansu(tmp_path) as broker, running(tmp_path, settings_for(broker, tmp_path)) as daemon:
        broker.stop(signal.SIGKILL)
        daemon.until(lambda: daemon.get("/readyz").status_code == 503, "unready daemon", 60)
        assert broker.bootstrap_servers in daemon.get("/readyz").text
        assert daemon.answers("/healthz")
        assert daemon.metric("retuned_broker_up") == 0
        broker.start()
        daemon.until(lambda: daemon.answers("/readyz"), "ready daemon", 60)
        assert daemon.stop() == 0


def test_one_pass_takes_everything_in_and_ends(tansu: Broker, tmp_path: Path, app_of: Any) -> None:
    settings = settings_for(tansu, tmp_path)
    app = app_of(settings)
    app.said(app.answered("a question", "an answer"), "helpful", True)
    app.flush()
    config = tmp_path / "retuned.yaml"
    config.write_text(yaml.safe_dump(settings))
    done = run("--once", config=config)
    assert done.returncode == 0, done.stderr
    shown = json.loads(cli("status", "--json", config=config).stdout)
    assert (shown["ingestion"]["interactions"], shown["ingestion"]["feedback"]) == (1, 1)
    assert any(figure["metric"] == "helpful_rate" for figure in shown["workloads"]["support"]["quality"])


def test_what_cannot_start_says_why_in_one_line(tansu: Broker, tmp_path: Path) -> None:
    config = tmp_path / "retuned.yaml"

    def refused(**sections: Any) -> str:
        settings = settings_for(tansu, tmp_path)
        settings["http"] = {"port": free_port()}
        for name, section in sections.items():
            settings[name] = settings.get(name, {}) | section
        config.write_text(yaml.safe_dump(settings))
        done = run(config=config)
        assert done.returncode == 1
        lines = done.stderr.strip().splitlines()
        assert lines[-1].startswith("retuned: ")
        assert "Traceback" not in done.stderr
        return lines[-1]

    assert "did you mean bootstrap_servers?" in refused(kafka={"bootstrap_server": "x"})
    assert "models.base: /nowhere does not exist" in refused(models={"base": "/nowhere"})
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "is another retuned running?" in refused(http={"port": taken.getsockname()[1]})
    (tmp_path / "text").write_text("not a database, but long enough to be taken for one" * 100)
    assert "warehouse" in refused(warehouse={"path": str(tmp_path / "text")})


@pytest.fixture(scope="module")
def served(tansu: Broker, tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Daemon]:
    """A daemon to which nothing happens: one for all tests that change nothing in it."""
    folder = tmp_path_factory.mktemp("served")
    models = {"base": str(base), "directory": str(folder / "models")}
    with running(folder, settings_for(tansu, folder, models=models)) as daemon:
        yield daemon


def test_a_warehouse_in_use_names_the_process(served: Daemon, tmp_path: Path) -> None:
    assert served.process is not None
    second = tmp_path / "second.yaml"
    second.write_text(yaml.safe_dump({**served.settings, "http": {"port": free_port()}}))
    done = run(config=second)
    assert done.returncode == 1
    assert f"in use by process {served.process.pid}" in done.stderr


def test_check_tries_everything(tansu: Broker, tmp_path: Path, base: Path) -> None:
    config = tmp_path / "retuned.yaml"
    settings = settings_for(tansu, tmp_path, models={"base": str(base), "directory": str(tmp_path / "models")})
    settings["http"] = {"port": free_port()}
    config.write_text(yaml.safe_dump(settings))
    good = cli("check", config=config)
    assert good.returncode == 0, good.stdout
    *lines, _, result = good.stdout.splitlines()
    topics, metric = [line for line in lines if not line.startswith("ok")]
    assert topics.startswith("warn  broker: ")
    assert "does not exist yet" in topics
    assert metric.startswith("warn  metric: auto: without a judge")
    assert result == "12 checks, 2 with a warning, none failed"
    assert not (tmp_path / "data" / "retuned.duckdb").exists()  # a check leaves nothing behind
    settings["kafka"]["bootstrap_servers"] = f"127.0.0.1:{free_port()}"
    settings["models"]["base"] = str(tmp_path)
    settings["privacy"] = {"user_key_file": str(tmp_path / "nowhere")}
    config.write_text(yaml.safe_dump(settings))
    bad = cli("check", config=config)
    assert bad.returncode == 1
    failed = [line for line in bad.stdout.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 3
    assert "base model" in failed[0]  # what a start tries comes first
    assert "broker" in failed[1]
    assert "privacy.user_key_file" in failed[2]


def test_check_beside_its_own_daemon(served: Daemon) -> None:
    done = cli("check", config=served.config)
    assert done.returncode == 0, done.stdout
    assert f"{served.settings['warehouse']['path']} is open in the daemon that runs" in done.stdout
    assert f"127.0.0.1:{served.port} is the daemon's that runs" in done.stdout


def test_what_http_refuses(served: Daemon) -> None:
    import httpx

    assert served.get("/nothing").status_code == 404
    unheard = served.get("/api/v1/lineage/support%403f2a91c0")
    assert unheard.status_code == 404
    assert unheard.json()["error"].startswith("lineage: support@3f2a91c0 is in no dataset")
    assert served.get("/reports/..%2f..%2fretuned").status_code == 404
    assert served.post("/api/v1/workloads/support/explode").status_code == 404
    unknown = served.post("/api/v1/workloads/support/retrain")
    assert unknown.status_code == 404
    assert "no event has arrived" in unknown.json()["error"]
    path = f"{served.url}/api/v1/workloads/support/retrain"
    assert httpx.post(path, content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert httpx.post(path, content="[", headers={"Content-Type": "application/json"}).status_code == 400
    # A page of another site, by a name that resolves to this machine.
    assert httpx.get(f"{served.url}/api/v1/status", headers={"Host": "evil.example"}).status_code == 400


LOOK, ACT = "may-look-at-it-all", "may-do-something-too"


def test_tokens_decide_who_may_read_and_who_may_command(tansu: Broker, tmp_path: Path) -> None:
    import httpx

    settings = settings_for(tansu, tmp_path, http={"viewer_token": LOOK, "operator_token": ACT})
    with running(tmp_path, settings) as daemon:
        status, retrain = f"{daemon.url}/api/v1/status", f"{daemon.url}/api/v1/workloads/support/retrain"

        def code(url: str, token: str | None, method: str = "GET") -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return httpx.request(method, url, headers=headers, json={} if method == "POST" else None).status_code

        assert [code(status, token) for token in (None, "wrong", LOOK, ACT)] == [401, 401, 200, 200]
        assert [code(f"{daemon.url}/metrics", token) for token in (None, LOOK)] == [401, 200]
        assert [code(retrain, token, "POST") for token in (None, LOOK, ACT)] == [401, 403, 404]
        assert code(f"{daemon.url}/healthz", None) == 200
        assert httpx.get(daemon.url, auth=("anyone", LOOK)).status_code == 200  # as a browser asks
        assert httpx.get(daemon.url, auth=("anyone", "wrong")).status_code == 401
        assert httpx.get(daemon.url, headers={"Authorization": "Basic %%%"}).status_code == 401
        assert cli("status", config=daemon.config).returncode == 0  # the command line takes the configured token
