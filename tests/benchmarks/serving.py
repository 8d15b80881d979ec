"""Versions on a real vLLM: from decision to served, back after a kill, and a stale adapter under a known name.

    RETUNED_VLLM=/opt/vllm/bin/vllm python tests/benchmarks/run.py serving

Two adapters of SmolLM2-135M are trained, the second from the first, and evaluated, which records their effect probes.
Seconds to served are those of the table `deployments`, over a few swaps, each of which loads: the version is
unloaded first. After a kill they count from the first answer of the new server. Skipped where RETUNED_VLLM names none.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.parquet as pq
from evaluate import train_two
from model_servers import VLLM, free_port, vllm_process
from traffic import new_warehouse
from train import BASE, rows

from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.daemon.demo.model import base_model
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision.evaluate import evaluate
from retuned.retrain.generation import effect_probe
from retuned.retrain.release import registry
from retuned.retrain.release.deployments import deployments
from retuned.retrain.release.reconciler import EVERY_SECONDS, Reconciler, Replica
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.release.targets.build import build, places
from retuned.retrain.release.targets.target import WrongModel
from retuned.retrain.serving_settings import ServingSettings
from retuned.retrain.settings import EvaluateSettings, ModelsSettings, Settings
from retuned.retrain.versions import Version

WORKLOAD = "bench"
SWAPS = 6
NOW = datetime(2026, 11, 1)


def main() -> dict[str, float]:
    """Some fifteen minutes on two cores."""
    if VLLM is None:
        print("serving: skipped: RETUNED_VLLM names no vLLM", file=sys.stderr)
        return {}
    base_model(BASE)
    port = free_port()
    target = {"kind": "vllm", "urls": [f"http://127.0.0.1:{port}/v1"], "timeout_seconds": 10.0}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        settings = Settings(
            models=ModelsSettings(base=BASE, directory=folder / "models"),
            evaluate=EvaluateSettings(maximum_examples=2, max_new_tokens=4, general_examples=1),
            serving=ServingSettings.model_validate({"targets": [target]}),
        )
        warehouse = new_warehouse(folder)
        stack.callback(warehouse.close)
        bench = Bench(warehouse, settings, *_versions(folder, warehouse, settings))
        stack.callback(bench.reconciler.close)
        with vllm_process(BASE, "bfloat16", port) as server:
            served = bench.swaps()
            print(f"to served: {', '.join(f'{one:.2f}' for one in served)} s", file=sys.stderr)
            os.killpg(server.pid, signal.SIGKILL)
            bench.wait(lambda replica: replica.up is False)
        with vllm_process(BASE, "bfloat16", port):
            began = time.monotonic()
            bench.wait(lambda replica: replica.in_sync(WORKLOAD) is True)
            back = time.monotonic() - began
            stale = bench.stale()
        return {"served_seconds": median(served[1:]), "served_first_seconds": served[0]} | {
            "served_again_seconds": back,
            "stale_adapter_found": float(stale),
        }


class Bench:
    """Two versions, and what makes vLLM have them, as the daemon does."""

    def __init__(self, warehouse: Warehouse, settings: Settings, old: Version, new: Version) -> None:
        self.warehouse, self.old, self.new = warehouse, old, new
        self.reconciler = Reconciler(warehouse, settings, utc_now)
        self.rollout = Rollout(warehouse, settings, MemoryPublisher(), "events", reconcile=self.reconciler.tick)
        (place,) = places(settings, [WORKLOAD])
        self.target = build(place, settings, warehouse, utc_now)

    def wait(self, condition: Callable[[Replica], bool]) -> None:
        """Look at the replica as often as the daemon does, until something is the case."""
        while True:
            self.reconciler.tick()
            for _ in range(round(EVERY_SECONDS / 0.02)):
                if any(map(condition, self.reconciler.replicas(WORKLOAD))):
                    return
                time.sleep(0.02)

    def swaps(self) -> list[float]:
        """From decision to served, for each of a few promotions of a version that has to be loaded."""
        seconds = []
        for number in range(SWAPS):
            promoted = (self.old, self.new)[number % 2]
            self.target.unload(promoted.name)
            version = promoted.version
            self.rollout.promote(WORKLOAD, version, "operator", "a swap", utc_now())

            def served(_: Replica, version: str = version) -> bool:
                return any(one.version == version and one.served_at for one in deployments(self.warehouse))

            self.wait(served)
            one = next(one for one in deployments(self.warehouse) if one.version == version)
            assert one.served_at is not None
            seconds.append((one.served_at - one.since).total_seconds())
        return seconds

    def stale(self) -> bool:
        """Whether the older adapter, loaded by hand under the name of the newer one, is told from it."""
        self.target.unload(self.new.name)
        self.target.server.load(self.new.name, self.old.path)  # type: ignore[attr-defined]
        try:
            self.target.verify(self.new)
        except WrongModel as error:
            print(error, file=sys.stderr)
            return "the adapter is stale" in str(error)
        return False


def _versions(folder: Path, warehouse: Warehouse, settings: Settings) -> list[Version]:
    """Both adapters as versions, with the probes that their evaluations recorded."""
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
            warehouse, settings.models.directory, WORKLOAD, Path(training["adapter"]), base_model=BASE,
            parent_version=parent and parent.version, dataset_version="d", run_id="r",
            details={"effect_probe": probe, "metrics": {}, "cost": {"train_seconds": 0.0}}, now=NOW,
        )  # fmt: skip
        found.append(version)
    return found
