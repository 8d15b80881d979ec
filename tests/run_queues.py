"""A daemon's queue of runs without a daemon, with trainings that end when the test says so."""

import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from retuned.consumers.errors import Cancelled
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.jobs.runs import Runs
from retuned.daemon.metrics import Metrics
from retuned.daemon.operations.local import Local
from retuned.daemon.settings import Settings
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.data import dataset as datasets
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.metrics import Metrics as RetrainMetrics
from retuned.retrain.settings import Settings as RetrainSettings
from retuned.retrain.stages import candidate as candidate_stage
from retuned.retrain.stages import dataset as dataset_stage

NOON = datetime(2026, 4, 1, 12)


def model(folder: Path, weights: bytes = b"weights") -> Path:
    """What counts as a base model as long as nobody loads it."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


class RunQueue:
    """A daemon's queue of runs without a daemon: runs are made in a thread, as far as the test lets them."""

    def __init__(self, warehouse: Warehouse, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.warehouse, self.folder, self.now = warehouse, folder, NOON
        self.began: list[str] = []
        self.settings: dict[str, RetrainSettings] = {}  # by workload, that it was trained with
        self.at_train: Callable[[str], Any] = lambda _: None
        self.models = {"base": model(folder / "base"), "directory": folder / "models"}
        self.collectors = CollectorRegistry()
        self.stop = threading.Event()
        monkeypatch.setattr(candidate_stage, "train", self.train)
        made = Dataset("d", "support", NOON, folder, dict.fromkeys(("train", "holdout"), 9), 0, {})
        monkeypatch.setattr(dataset_stage, "build_dataset", lambda *_: made)
        monkeypatch.setattr(datasets, "load", lambda *_: made)
        self.configure()

    def configure(self, **sections: Any) -> None:
        """Begin anew on the same warehouse, as after a restart."""
        self.collectors, self.stop = CollectorRegistry(), threading.Event()
        warehouse = {"path": self.warehouse.path}
        settings = Settings.model_validate({"models": self.models, "warehouse": warehouse, **sections})
        registry = self.collectors
        metrics = Metrics(registry), MonitorMetrics(registry), RetrainMetrics(registry)
        publisher = MemoryPublisher()
        context = Context(self.warehouse, settings, publisher, *metrics, self.stop, lambda: self.now)
        self.jobs = Jobs(context, print)
        self.runs: Runs = self.jobs.runs
        self.service = Local(self.jobs)

    def train(self, *given: Any) -> dict[str, Any]:
        """As a child's parent does: it works until it is stopped, and has files."""
        settings, folder, stop, on_progress = given[2:6]
        workload = folder.parents[2].name
        self.settings[workload] = settings
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint").touch()
        self.began.append(workload)
        on_progress({"step": 1, "steps": 9, "loss": 1.0, "tokens_per_second": 1.0})
        self.at_train(workload)
        if stop.wait(20):
            raise Cancelled("train: stopped before it was done")
        raise AssertionError("nothing stopped it")

    def work(self) -> threading.Thread:
        """Make what is in line, in the thread that trains."""
        thread = threading.Thread(target=self.jobs.run, args=("resume",))
        thread.start()
        return thread

    def states(self) -> dict[str, str]:
        found = self.warehouse.rows("SELECT workload, state FROM runs ORDER BY started_at, id")
        return {row["workload"]: row["state"] for row in found}

    def waits(self) -> dict[str, str]:
        return {one["workload"]: one["waits_for"] for one in self.runs.queue()}

    def files(self, workload: str) -> list[Path]:
        return list((self.folder / "models" / workload / "runs").glob("*"))

    def pauses(self) -> float | None:
        return self.collectors.get_sample_value("retuned_training_pauses")

    def waiting(self, workload: str, reason: str) -> float | None:
        self.runs.wake()
        return self.collectors.get_sample_value("retuned_runs_waiting", {"workload": workload, "reason": reason})
