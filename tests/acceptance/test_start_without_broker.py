"""A daemon that starts while the broker is away: everything but ingestion is served, and ingestion follows."""

from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from fixtures.daemon.daemons import App, Daemon, settings_for
from fixtures.feedback.teaching import Teacher
from fixtures.kafka.brokers import Broker, free_port, run_tansu
from retuned.consumers.errors import BrokerRefused
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.opening import open_existing, open_warehouse
from retuned.daemon import app
from retuned.daemon.cli.main import main
from retuned.daemon.settings import Settings


@pytest.mark.full
def test_it_serves_at_once_and_reads_when_the_broker_comes(tmp_path: Path) -> None:
    with run_tansu(tmp_path) as broker:
        settings = settings_for(broker, tmp_path)
        broker.stop()
        daemon = Daemon(tmp_path, settings)
        try:
            daemon.launch()
            daemon.until(lambda: daemon.answers("/healthz"), "a page")
            unready = daemon.get("/readyz")
            assert unready.status_code == 503
            assert broker.bootstrap_servers in unready.text
            assert daemon.get("/").status_code == daemon.get("/metrics").status_code == 200
            assert daemon.status()["ingestion"]["broker_up"] is False
            # It is refused for a reason of its own: no event has named that workload yet.
            assert "support: unknown" in daemon.post("/api/v1/workloads/support/rollback").text
            broker.start()
            broker.create_topics(settings["kafka"]["interactions_topic"], settings["kafka"]["feedback_topic"])
            producing = App(settings)
            producing.answered("Where is my parcel?", "On its way.")
            producing.close()
            daemon.until(lambda: daemon.status()["ingestion"]["interactions"] == 1, "an interaction")
            assert daemon.answers("/readyz")
        finally:
            daemon.end()


@pytest.mark.full
def test_one_pass_measures_what_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fixtures.feedback.teaching.START", utc_now() - timedelta(minutes=5))
    kafka = {"bootstrap_servers": f"127.0.0.1:{free_port()}"}
    settings: dict[str, Any] = {"kafka": kafka, "warehouse": {"path": str(tmp_path / "retuned.duckdb")}}
    config = tmp_path / "retuned.yaml"
    config.write_text(yaml.safe_dump(settings))
    with closing(open_warehouse(WarehouseSettings(path=settings["warehouse"]["path"]))) as warehouse:
        teacher = Teacher(warehouse)
        teacher.say(teacher.ask("Where is my parcel?", "On its way."), "helpful", True, "user", "user-1")
    assert main(["run", "--once", "--config", str(config)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert kafka["bootstrap_servers"] in last
    assert "no events were read, and the jobs ran on those that are stored" in last
    with closing(open_existing(WarehouseSettings(path=settings["warehouse"]["path"]))) as warehouse:
        assert warehouse.rows("SELECT * FROM quality WHERE metric = 'helpful_rate'")


def test_a_broker_that_refuses_ends_the_start(tansu: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> str:
        raise BrokerRefused("kafka: the credentials are refused")

    monkeypatch.setattr(app, "check_broker", refuse)
    with pytest.raises(BrokerRefused):
        app.App(Settings(**settings_for(tansu, tmp_path, http={"port": 0})))
