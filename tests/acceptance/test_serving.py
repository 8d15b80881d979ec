"""Versions on their way to a model server, by a daemon as a user runs it."""

import signal
from pathlib import Path

import pytest

from fixtures.daemon.daemons import App, running, settings_for
from fixtures.kafka.brokers import Broker
from fixtures.models.served import WORKLOAD, Adapters, Served
from fixtures.servers.models import free_port, serving
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.full
def test_promoted_killed_and_restarted(tansu: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters, port = Adapters(tmp_path / "adapters"), free_port()
    target = {"kind": "vllm", "urls": [f"http://127.0.0.1:{port}/v1"], "timeout_seconds": 20.0}
    settings = settings_for(tansu, tmp_path, serving={"targets": [{"kind": "folder"}, target]})
    settings["models"]["base"] = str(adapters.base)
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "data" / "retuned.duckdb"))
    served = Served(tmp_path, warehouse, adapters)
    old, new = served.old, served.new
    warehouse.close()
    app = App(settings)
    app.answered("Where is my parcel?", "On its way.", workload=WORKLOAD)
    app.flush()
    app.close()
    with running(tmp_path, settings) as daemon:
        config = ["--config", str(daemon.config)]
        labels = {"target": "vllm", "replica": target["urls"][0]}

        def in_sync() -> bool:
            return daemon.metric("retuned_replica_in_sync", workload=WORKLOAD, **labels) == 1

        with serving(adapters.base, port=port) as double:
            daemon.until(lambda: daemon.workload(WORKLOAD), "events")
            assert main(["promote", WORKLOAD, old.version, *config]) == 0
            daemon.until(in_sync, "the first version")
            assert main(["promote", WORKLOAD, new.version, *config]) == 0
            daemon.until(lambda: new.name in double.loaded, "the second version")
            daemon.stop(signal.SIGKILL)  # at its probe, more or less
            daemon.start()
            daemon.until(in_sync, "the second version, after a kill")
            assert double.history == [f"+{old.name}", f"+{new.name}"]
            links = {
                link.name: link.resolve() for link in (tmp_path / "models" / WORKLOAD).iterdir() if link.is_symlink()
            }
            assert links == {"champion": new.path, "previous": old.path}
            found = daemon.described("/api/v1/status", "status")["workloads"][WORKLOAD]["serving"]
            first, second = found["deployments"]
            assert (first["model"], first["aliases"], first["share"]) == (new.name, ["champion"], 1)
            assert (second["model"], second["aliases"], second["share"]) == (old.name, ["previous"], 0)
            assert first["served_at"] is not None
            (server,) = (one for one in found["replicas"] if one["target"] == "vllm")
            assert {model["model"]: (model["state"], model["probe"]) for model in server["models"]} == {
                old.name: ("serving", True),
                new.name: ("serving", True),
            }
            assert target["urls"][0] in daemon.get(f"/workloads/{WORKLOAD}").text
        daemon.until(lambda: daemon.metric("retuned_replica_up", **labels) == 0, "a server that is away")
        assert daemon.metric("retuned_replica_in_sync", workload=WORKLOAD, **labels) is None

        def printed() -> str:
            assert main(["status", WORKLOAD, "--verbose", *config]) == 0
            return capsys.readouterr().out

        daemon.until(lambda: "does not answer" in printed(), "a line of the status")  # which is up to two seconds old
        with serving(adapters.base, port=port) as double:
            daemon.until(in_sync, "a server that is back")
            assert set(double.loaded) == {old.name, new.name}
        assert daemon.stop() == 0
