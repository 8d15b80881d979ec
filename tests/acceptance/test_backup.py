"""A backup of a running daemon, its death, and a restore in another place: what is stored after it is what was sent."""

import random
import signal
import threading
from pathlib import Path

import duckdb
import pytest

from fixtures.daemon.daemons import App, Daemon, settings_for
from fixtures.kafka.brokers import Broker
from retuned.daemon.cli.main import main


@pytest.mark.full
def test_what_was_sent_is_stored_once_after_a_restore(
    tansu: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, backups = tmp_path / "first", tmp_path / "backups"
    first.mkdir()
    settings = settings_for(tansu, first)
    tansu.create_topics(*(settings["kafka"][f"{kind}_topic"] for kind in ("interactions", "feedback")))
    settings["ingest"] = {"batch_events": 50, "batch_seconds": 0.05}
    daemon, app, sent, stop = Daemon(first, settings), App(settings), set[str](), threading.Event()

    def send() -> None:
        while not stop.wait(0.002):
            sent.add(app.answered(f"Where is parcel {random.random()}?", "On its way."))

    sending = threading.Thread(target=send)
    try:
        daemon.start()
        sending.start()
        daemon.until(lambda: daemon.status()["ingestion"]["interactions"] > 100, "events")
        assert main(["backup", str(backups), "--config", str(daemon.config)]) == 0
        at_backup = daemon.status()["ingestion"]["interactions"]
        daemon.until(lambda: daemon.status()["ingestion"]["interactions"] > at_backup + 100, "events after the backup")
        daemon.stop(signal.SIGKILL)
        stop.set()
        sending.join()
        app.flush()
        (generation,) = (path.name for path in backups.iterdir() if path.is_dir())
        assert main(["backup", str(backups), "--verify"]) == 0
        assert f"ok    {generation}" in capsys.readouterr().out

        second = tmp_path / "second"
        second.mkdir()
        elsewhere = {"warehouse": {"path": str(second / "w.duckdb")}, "models": {"directory": str(second / "models")}}
        daemon = Daemon(second, {**settings, **elsewhere})
        assert main(["restore", str(backups), "--config", str(daemon.config)]) == 0
        assert f"{settings['kafka']['interactions_topic']}[0]@" in capsys.readouterr().out
        assert 100 < len(stored(daemon.warehouse)) <= at_backup
        daemon.start()
        daemon.until(lambda: daemon.status()["ingestion"]["interactions"] >= len(sent), "what came after the backup")
        daemon.stop()
    finally:
        stop.set()
        app.close()
        daemon.end()
    assert sorted(stored(daemon.warehouse)) == sorted(sent)  # none is lost, none is there twice


def stored(warehouse: Path) -> list[str]:
    with duckdb.connect(str(warehouse)) as connection:
        return [id for (id,) in connection.execute("SELECT id FROM interactions").fetchall()]
