"""A training on Ray that loses its node, then its daemon, then the head, beside an unbroken one: the same adapter?

RETUNED_RAY names Ray's command, for example /opt/ray/bin/ray; it needs `unshare`."""

import sys
import tempfile
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from models import tiny_llama
from ray_clusters import RayCluster, no_ray, ray_cluster
from trainings import dataset

from retuned.retrain.data.dataset import Dataset
from retuned.retrain.settings import ModelsSettings, RunnerSettings, Settings, TrainSettings
from retuned.retrain.training.train import train

NODE_AT, DAEMON_AT, HEAD_AT = 20, 60, 100
"""Steps at which each is lost; a checkpoint is written every four."""


class _DaemonKilled(BaseException):
    pass


def main() -> dict[str, float]:
    """`ray_resume_equal`: 1.0 where the adapters are equal, byte by byte; and how many steps were made twice."""
    if reason := no_ray():
        print(f"ray_resume: skipped: {reason}", file=sys.stderr)
        return {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = tiny_llama(folder / "base", layers=6, hidden=256)  # its steps take long enough to be seen
        rows = dataset(folder / "data", train=240)
        made = Dataset("d1", "support", datetime(2026, 3, 2), rows, {"train": 240, "validation": 8}, 0, {})
        whole = train(made, None, _settings(folder, base), folder / "whole")
        with ray_cluster(folder) as cluster:
            settings = _settings(folder, base, url=cluster.url)
            steps, result = _interrupted(cluster, made, settings, folder / "lost")
        files = [Path(one["adapter"]) / "adapter_model.safetensors" for one in (whole, result)]
        return {
            "ray_resume_equal": float(files[0].read_bytes() == files[1].read_bytes()),
            "ray_resume_steps": float(whole["steps"]),
            "ray_resume_repeated_steps": float(len(steps) - len(set(steps))),
        }


def _settings(folder: Path, base: Path, url: str | None = None) -> Settings:
    on_ray = RunnerSettings(kind="ray", url=url, python=sys.executable, resources={"trainer": 1}) if url else None
    return Settings(
        models=ModelsSettings(base=base, directory=folder / "models"),
        train=TrainSettings(
            engine="packed", dtype="float32", threads=1, epochs=6, patience=6, checkpoint_steps=4, learning_rate=5e-3
        ),
        **({"runner": on_ray} if on_ray else {}),
    )


def _interrupted(cluster: RayCluster, made: Dataset, settings: Settings, folder: Path) -> tuple[list[int], Any]:
    steps: list[int] = []
    left = {NODE_AT, DAEMON_AT, HEAD_AT}

    def take(line: dict[str, Any]) -> None:
        if line.keys() & {"lost", "ray_status", "node"}:
            print(line, file=sys.stderr, flush=True)
        if (step := line.get("step")) is None:
            return
        steps.append(step)
        due = {at for at in left if step >= at}
        left.difference_update(due)
        if NODE_AT in due:
            cluster.lose_node("node-1")
            cluster.add_node("node-2")
        if HEAD_AT in due:
            cluster.lose_head()
            cluster.start()
            cluster.add_node("node-3")
        if DAEMON_AT in due:
            raise _DaemonKilled

    while True:
        try:
            return steps, train(made, None, settings, folder, threading.Event(), take)
        except _DaemonKilled:
            steps.clear()  # the next daemon reads all that the attempt has reported
