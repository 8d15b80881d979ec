"""`retuned check` beside a daemon, and names of workloads that nothing knows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from brokers import free_port
from doors import FakeDaemon, Place
from models import tiny_llama
from ray_clusters import ray_double

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import open_warehouse
from retuned.daemon.cli import check as checks
from retuned.daemon.cli.main import main
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.remote import RemoteService
from retuned.daemon.settings import Settings, load
from retuned.daemon.web.routes import process_application
from retuned.daemon.web.server import Server

pytestmark = pytest.mark.usefixtures("forked_children")

WORKLOADS = {"support.refunds": {"train": {"rank": 8}}}


class Deployment:
    """A configuration with a warehouse, and at will something that answers on its port as a daemon does."""

    def __init__(self, folder: Path) -> None:
        self.warehouse, self.file = folder / "retuned.duckdb", folder / "retuned.yaml"
        self.daemon, self.port = FakeDaemon(), free_port()

    def write(self, workloads: dict[str, Any] | None = None, **more: Any) -> None:
        content = {
            "warehouse": {"path": str(self.warehouse)},
            "http": {"port": self.port},
            "workloads": workloads or {},
        }
        self.file.write_text(yaml.safe_dump({**content, **more}))

    def fill(self, *workloads: str) -> None:
        opened = open_warehouse(WarehouseSettings(path=self.warehouse))
        for name in workloads:
            opened.execute("INSERT INTO aliases VALUES (?, 'champion', 'x', now())", [name])
        opened.close()

    def found(self) -> dict[str, tuple[str, str]]:
        return {name: (mark, text) for mark, name, text in checks.check(load(self.file))}


@pytest.fixture
def deployed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "check_broker", lambda _: "not asked")  # it would be waited for
    deployment = Deployment(tmp_path)
    deployment.write()
    return deployment


@pytest.fixture
def served(deployed: Deployment) -> Iterator[Deployment]:
    """The daemon of this very configuration answers."""
    place = Place(HttpSettings(port=0), deployed.daemon)
    deployed.port = place.port
    deployed.daemon.found = {
        "version": "0.2.0",
        "started_at": "2026-04-01T06:00:00Z",
        "storage": {"path": str(deployed.warehouse.resolve())},
        "workloads": {"support.refunds": {}},
    }
    deployed.write()
    yield deployed
    place.server.stop()


def test_its_own_daemon_is_recognised(served: Deployment) -> None:
    found = served.found()
    assert found["warehouse"] == ("ok", f"{served.warehouse} is open in the daemon that runs")
    assert found["http"][0] == "ok"
    assert "is the daemon's that runs (version 0.2.0, since 2026-04-01T06:00:00)" in found["http"][1]
    assert not served.warehouse.exists()


def test_an_ingester_is_recognised(deployed: Deployment) -> None:
    server = Server(process_application(deployed.daemon, Settings()), HttpSettings(port=0))
    server.start()
    try:
        deployed.port = int(server.url.rpartition(":")[2])
        deployed.write()
        mark, text = deployed.found()["http"]
        assert (mark, "is the ingester's that runs" in text) == ("ok", True)
        with pytest.raises(RetunedError, match=r"an ingester answers here: .* ask a daemon"):
            RemoteService(load(deployed.file)).labels(None)
    finally:
        server.stop()


def test_a_daemon_of_another_warehouse_is_a_problem(served: Deployment) -> None:
    served.daemon.found["storage"] = {"path": "/elsewhere/retuned.duckdb"}
    mark, text = served.found()["http"]
    assert mark == "FAIL"
    assert "has the warehouse /elsewhere/retuned.duckdb open" in text
    assert "give one of them another port" in text


def test_names_of_workloads_are_compared_with_those_that_the_daemon_knows(served: Deployment) -> None:
    served.write({"support.refnds": {"train": {"rank": 8}}})
    mark, text = served.found()["workloads"]
    assert mark == "warn"
    assert "workloads.support.refnds: no workload that is known has this name; did you mean support.refunds?" in text
    served.write(WORKLOADS)
    assert served.found()["workloads"][0] == "ok"


def test_names_of_workloads_are_compared_with_those_in_the_warehouse(deployed: Deployment) -> None:
    deployed.write({"support.refnds": {"train": {"rank": 8}}})
    assert deployed.found()["workloads"] == ("ok", "no event has told yet which workloads there are")
    deployed.fill("support.refunds")
    assert deployed.found()["workloads"][0] == "warn"


def test_what_is_not_configured_is_not_listed(
    deployed: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_llama(tmp_path / "base")
    deployed.write(models={"base": str(base), "directory": str(tmp_path / "models")})
    assert main(["--config", str(deployed.file), "check"]) == 0
    *lines, empty, result = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "none" in line]
    assert {line[6:].split(":")[0].split(" /")[0] for line in lines} == {
        *("configuration", "broker", "warehouse", "privacy", "base model", "adapter", "memory", "target folder"),
        *("models", "disk", "http"),
    }
    assert (empty, result) == ("", f"{len(lines)} checks, none failed")

    deployed.write(models={"base": str(tmp_path / "away")}, drift={"embedding_model": str(tmp_path / "nowhere")})
    assert main(["--config", str(deployed.file), "check"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith(" 2 failed: base model, drift")


def test_embedding_models_of_drift_are_tried(deployed: Deployment, tmp_path: Path) -> None:
    assert "drift" not in deployed.found()
    deployed.write({"sales": {"drift": {"embedding_model": str(tmp_path / "nowhere")}}})
    mark, text = deployed.found()["drift of sales"]
    assert (mark, "nowhere is no folder of a model of model2vec" in text) == ("FAIL", True)


def test_a_check_with_a_warning_is_sound(
    deployed: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.write({"sales": {"train": {"rank": 8}}}, models={"base": str(tiny_llama(tmp_path / "base"))})
    deployed.fill("support")
    assert main(["check"]) == 0
    said = capsys.readouterr().out
    assert "warn  workloads: workloads.sales: no workload that is known has this name; known are support;" in said


def test_no_plan_for_a_name_that_nothing_knows(
    deployed: Deployment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(tiny_llama(tmp_path / "base"))
    deployed.write(WORKLOADS, models={"base": base})
    assert main(["check", "--plan", "anything"]) == 0  # nothing is known yet
    deployed.fill("sales.de")
    capsys.readouterr()
    assert main(["check", "--plan", "sales.d"]) == 1
    said = capsys.readouterr().err
    assert "workload sales.d: no event and no entry of workloads has this name; did you mean sales.de?" in said
    assert main(["check", "--plan", "sales.de"]) == 0
    assert main(["check", "--plan", "support.refunds"]) == 0  # it is configured before its first event


def test_what_is_in_force_for_a_name_that_nothing_knows(
    deployed: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployed.fill("sales.de")
    assert main(["config", "--workload", "sales.d"]) == 0
    assert "no event and no entry of workloads has this name; did you mean sales.de?" in capsys.readouterr().err
    assert main(["config", "--workload", "sales.de"]) == 0
    assert capsys.readouterr().err == ""


def test_a_ray_cluster_is_asked_that_of_a_workload_too(deployed: Deployment) -> None:
    with ray_double() as ray:
        runner = {"kind": "ray", "url": ray.url, "resources": {"GPU": 1}}
        deployed.write({"large": {"runner": runner | {"resources": {"GPU": 4}}}}, runner=runner)
        found = deployed.found()
        assert found["runner"] == ("ok", f"Ray 2.60.0 at {ray.url}, of which a job takes GPU 1")
        assert found["runner of large"] == ("ok", f"Ray 2.60.0 at {ray.url}, of which a job takes GPU 4")
        ray.token = "a secret of many characters"
        mark, text = deployed.found()["runner"]
        assert mark == "FAIL"
        assert "set runner.token or runner.token_file" in text
    deployed.write()
    assert "runner" not in deployed.found()


def test_a_cluster_without_an_address_is_refused(deployed: Deployment) -> None:
    deployed.write(runner={"kind": "ray", "url": "http://127.0.0.1:9", "resources": {}})
    with pytest.raises(ConfigurationError, match=r"runner: resources: Ray runs what asks for none on its head node"):
        load(deployed.file)
    deployed.write(runner={"kind": "ray"})
    with pytest.raises(ConfigurationError, match="runner: kind is ray: name the cluster with url"):
        load(deployed.file)


def test_a_training_on_a_cluster_needs_no_memory_here(deployed: Deployment, tmp_path: Path) -> None:
    base = tiny_llama(tmp_path / "base")
    deployed.write(models={"base": str(base)}, train={"memory_bytes": 2**50})
    assert deployed.found()["memory"][0] == "FAIL"
    runner = {"kind": "ray", "url": "http://127.0.0.1:9"}
    deployed.write(models={"base": str(base)}, train={"memory_bytes": 2**50}, runner=runner)
    assert deployed.found()["memory"][0] == "ok"
