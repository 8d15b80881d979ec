"""A daemon that starts while the broker is away: everything but ingestion is served, and ingestion follows."""

from pathlib import Path

import pytest
from brokers import Broker, run_tansu
from daemons import App, Daemon, settings_for

from retuned.consumers.errors import BrokerRefused
from retuned.daemon import app
from retuned.daemon.settings import Settings


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


def test_a_broker_that_refuses_ends_the_start(tansu: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> str:
        raise BrokerRefused("kafka: the credentials are refused")

    monkeypatch.setattr(app, "check_broker", refuse)
    with pytest.raises(BrokerRefused):
        app.App(Settings(**settings_for(tansu, tmp_path, http={"port": 0})))
