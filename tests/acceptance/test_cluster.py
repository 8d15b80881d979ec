"""An ingester and two daemons of a cluster, of which the one that leads is killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fixtures.daemon.daemons import App, Daemon, settings_for, stored
from fixtures.kafka.brokers import Broker

pytest.importorskip("obstore", reason="the extra cluster is not installed")


def test_the_other_one_takes_over_and_has_each_event_once(
    tansu: Broker, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = {"kind": "cluster", "postgres_url": database, "objects_url": (tmp_path / "objects").as_uri()}
    privacy = {"user_key": "a key of at least sixteen characters"}
    settings = settings_for(tansu, tmp_path, store=store, privacy=privacy)
    tansu.create_topics(*(settings["kafka"][key] for key in settings["kafka"] if key.endswith("_topic")))
    app = App(settings)
    request.addfinalizer(app.close)

    def start(name: str) -> Daemon:
        folder = tmp_path / name
        folder.mkdir()
        own = {"warehouse": {"path": str(folder / "retuned.duckdb")}, "models": {"directory": str(folder / "models")}}
        daemon = Daemon(folder, settings | own)
        request.addfinalizer(daemon.end)
        daemon.start()
        return daemon

    def answer() -> None:
        for number in range(50):
            app.answered(f"question {number}", "an answer")
        app.flush()

    config = tmp_path / "ingester.yaml"
    config.write_text(yaml.safe_dump(settings | {"http": {"port": 0}}))
    command = [sys.executable, "-m", "retuned.daemon.cli.main", "ingest", "--config", str(config)]
    ingester = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        first = start("first")
        answer()
        first.until(lambda: stored(first, app), "events")
        second = start("second")
        first.stop(signal.SIGKILL)
        answer()
        second.until(lambda: second.post("/api/v1/workloads/support/pause").is_success, "one that leads")
        second.until(lambda: stored(second, app), "events")
        assert second.stop() == 0
    finally:
        ingester.terminate()
        ingester.wait(timeout=30)
