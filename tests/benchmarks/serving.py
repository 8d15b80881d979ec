"""Versions on a real vLLM: from decision to served, alone and under load, back after a kill, and a stale adapter.

    RETUNED_VLLM=/opt/vllm/bin/vllm python tests/benchmarks/run.py serving

Two adapters of SmolLM2-135M are trained, the second from the first, and evaluated, which records their effect probes.
A daemon promotes them in turn, first while nobody asks and then while eight clients do, through a gateway: each swap
loads one and unloads the other. Seconds to served are those of the table `deployments`; to answered, from there until
the first request was sent that the new version answered. Failed are requests without an answer, and mixed are
conversations whose versions changed otherwise than once, at a swap. After a kill of vLLM the seconds count from the
first answer of the new one. Skipped where RETUNED_VLLM names none.
"""

import json
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from conversations import GOES_ON, Conversations
from evaluate import train_two
from train import BASE, rows

from fixtures.daemon.daemons import Daemon, settings_for
from fixtures.daemon.gateways import Gateway
from fixtures.kafka.brokers import Broker, run_tansu
from fixtures.servers.models import VLLM, free_port, vllm_process
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.demo.model import base_model
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision.evaluate import evaluate
from retuned.retrain.generation import effect_probe
from retuned.retrain.release import registry
from retuned.retrain.release.targets.build import server
from retuned.retrain.release.targets.target import WrongModel
from retuned.retrain.serving_settings import ServerTarget
from retuned.retrain.settings import EvaluateSettings, ModelsSettings, Settings
from retuned.retrain.versions import Version

WORKLOAD = "bench"
SWAPS = 6
CLIENTS = 8
NOW = datetime(2026, 11, 1)


def main() -> dict[str, float]:
    """Some fifteen minutes on two cores."""
    if VLLM is None:
        print("serving: skipped: RETUNED_VLLM names no vLLM", file=sys.stderr)
        return {}
    base_model(BASE)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        broker = stack.enter_context(run_tansu(folder))
        port = free_port()
        bench = Bench(folder, broker, f"http://127.0.0.1:{port}/v1")
        stack.callback(bench.end)
        with vllm_process(BASE, "bfloat16", port) as running:
            bench.start()
            served, _ = bench.swaps()
            with bench.conversations.going_on(CLIENTS):
                served_loaded, answered_loaded = bench.swaps()
            os.killpg(running.pid, signal.SIGKILL)
            bench.daemon.until(lambda: bench.replica()["up"] is False, "a server that is away")
        with vllm_process(BASE, "bfloat16", port):
            began = time.monotonic()
            bench.daemon.until(bench.has_its_version, "the version, after a kill of the server")
            back = time.monotonic() - began
            bench.daemon.stop()
            stale = bench.stale()
        talks = bench.conversations
        for text in (*talks.failed, *talks.mixed):
            print(text, file=sys.stderr)
        return {
            "served_seconds": median(served[1:]),
            "served_first_seconds": served[0],
            "served_loaded_seconds": median(served_loaded),
            "answered_loaded_seconds": median(answered_loaded),
            "swap_answers": float(len(talks.answered)),
            "swap_failed": float(len(talks.failed)),
            "swap_mixed": float(len(talks.mixed)),
            "served_again_seconds": back,
            "stale_adapter_found": float(stale),
        }


class Bench:
    """Two versions, a daemon that brings them to vLLM, and a gateway before it."""

    def __init__(self, folder: Path, broker: Broker, url: str) -> None:
        self.url = url
        target: dict[str, Any] = {"kind": "vllm", "urls": [self.url], "timeout_seconds": 10.0}
        self._target = ServerTarget.model_validate(target)
        serving = {"targets": [target], "keep_seconds": 2.0, "drain_seconds": 1.0}
        sections = settings_for(broker, folder, serving=serving, policy={"enabled": False})
        sections["models"]["base"] = str(BASE)
        kafka = sections["kafka"]
        broker.create_topics(*(kafka[name] for name in kafka if name.endswith("_topic")))
        self._models = folder / "models"
        self.daemon = Daemon(folder, sections)
        warehouse = open_warehouse(WarehouseSettings(path=self.daemon.warehouse))
        self.old, self.new = _versions(folder, warehouse, self._models)
        warehouse.close()
        own = {"workloads": [WORKLOAD], "poll_seconds": 2.0}  # the default, which tests make shorter
        servers = broker.bootstrap_servers
        self._gateway = Gateway(folder, servers, [self.url], kafka=kafka, http={"port": self.daemon.port}, gateway=own)
        self.conversations = Conversations(self._gateway, WORKLOAD, tokens=8)

    def start(self) -> None:
        """With an answer of the base model: a workload without an event is unknown."""
        self.daemon.start()
        self._gateway.start()
        assert self.conversations.ask("before") is not None, self.conversations.failed
        self.daemon.until(lambda: self.daemon.workload(WORKLOAD).get("serving"), "an event")

    def end(self) -> None:
        self._gateway.end()
        self.daemon.end()

    def swaps(self) -> tuple[list[float], list[float]]:
        """Seconds from decision to served, and to answered where anybody asks, of a few promotions in turn, in each of
        which the version has to be loaded."""
        served, answered = [], []
        for number in range(SWAPS):
            promoted = (self.old, self.new)[number % 2]
            self.conversations.begin()
            time.sleep(2)
            done = self.daemon.post(
                f"/api/v1/workloads/{WORKLOAD}/promote", version=promoted.version, reason=f"swap {number}"
            )
            assert done.status_code == 200, done.text
            one = self.daemon.until(lambda version=promoted: self._served(version), "a version that is served")
            since, served_at = (
                datetime.fromisoformat(one[name]).replace(tzinfo=None) for name in ("since", "served_at")
            )
            served.append((served_at - since).total_seconds())
            if self.conversations.active:
                self.daemon.until(lambda name=promoted.name: self.conversations.all_with(name), "its answers")
                answered.append((self.conversations.first_asked[promoted.name] - since).total_seconds())
            self.daemon.until(lambda name=promoted.name: self._listed() == {name}, "the other one to be unloaded")
            self.conversations.end(promoted.name, GOES_ON)
            shown = f"{served[-1]:.2f} s" + (f", answered in {answered[-1]:.2f} s" if answered else "")
            print(f"{promoted.name} served in {shown}", file=sys.stderr, flush=True)
        return served, answered

    def replica(self) -> dict[str, Any]:
        """What the daemon knows of vLLM."""
        (found,) = self.daemon.workload(WORKLOAD)["serving"]["replicas"]
        return dict(found)

    def has_its_version(self) -> bool:
        """Whether vLLM has the champion again, and answers with it."""
        found = self.replica()
        return bool(found["up"] and found["models"]) and all(one["state"] == "serving" for one in found["models"])

    def stale(self) -> bool:
        """Whether the older adapter, loaded by hand under the name of the newer one, is told from it."""
        target = server(self._target, self.url, self._models)
        target.unload(self.new.name)
        target.server.load(self.new.name, self.old.path)
        try:
            target.verify(self.new)
        except WrongModel as error:
            print(error, file=sys.stderr)
            return "the adapter is stale" in str(error)
        return False

    def _served(self, version: Version) -> dict[str, Any] | None:
        deployed = self.daemon.workload(WORKLOAD)["serving"]["deployments"]
        return next((one for one in deployed if one["model"] == version.name and one["served_at"]), None)

    def _listed(self) -> set[str]:
        listed = httpx.get(f"{self.url}/models", timeout=30).json()["data"]
        return {model["id"] for model in listed if model.get("parent")}


def _versions(folder: Path, warehouse: Warehouse, models: Path) -> tuple[Version, Version]:
    """Both adapters as versions, with the probes that their evaluations recorded."""
    settings = Settings(
        models=ModelsSettings(base=BASE, directory=models),
        evaluate=EvaluateSettings(maximum_examples=2, max_new_tokens=4, general_examples=1),
    )
    trained = train_two(folder, 16)
    made = [row | {"context": None} for row in rows(prefix=True)[:2]]
    pq.write_table(pa.Table.from_pylist(made), folder / "holdout.parquet")
    pq.write_table(pa.Table.from_pylist(made[:0]), folder / "regression.parquet")
    dataset = Dataset("d", WORKLOAD, NOW, folder, {"holdout": len(made)}, 0, {})
    found: list[Version] = []
    for number, training in enumerate(trained):
        work = folder / f"evaluation-{number}"
        parent = found[-1] if found else None
        evaluate(dataset, parent, Path(training["adapter"]), settings, "bfloat16", work)
        probe = json.loads((work / effect_probe.FILE).read_text())
        version = registry.register(
            warehouse, models, WORKLOAD, Path(training["adapter"]), base_model=BASE,
            parent_version=parent and parent.version, dataset_version="d", run_id="r",
            details={"effect_probe": probe, "metrics": {}, "cost": {"train_seconds": 0.0}}, now=NOW,
        )  # fmt: skip
        found.append(version)
    old, new = found
    return old, new
