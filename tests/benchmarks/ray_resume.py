"""A training of SmolLM2-135M on Ray that loses its node, its daemon and the head, beside an unbroken one on this
machine: is it the same adapter?

RETUNED_RAY names Ray's command, for example /opt/ray/bin/ray, which runs in a network of its own (`unshare`). Node and
head are killed with all that they run; the daemon is a process that follows the training, and is killed too. Each is
put back, with nothing of what it knew but the folder of the training. Some ten minutes on two cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from train import BASE, rows

from fixtures.cluster.ray import RayCluster, no_ray, ray_cluster
from retuned.daemon.demo.model import base_model
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.settings import ModelsSettings, RunnerSettings, Settings, TrainSettings
from retuned.retrain.training.train import train
from retuned.retrain.versions import content_hash

NODE_AT, DAEMON_AT, HEAD_AT = 5, 11, 17
"""Steps after which each is lost. A checkpoint is written every third."""
LOST = {NODE_AT: "the node", DAEMON_AT: "the daemon", HEAD_AT: "the head"}
SETTINGS = TrainSettings(engine="packed", dtype="float32", threads=1, epochs=3, batch_size=4, checkpoint_steps=3)
ROWS = 32


def main() -> dict[str, float]:
    """`ray_resume_equal`: 1.0 where weights and configuration of the adapters are equal, byte by byte, else 0.0; the
    steps of the training, and how many of them were made twice."""
    if reason := no_ray():
        print(f"ray_resume: skipped: {reason}", file=sys.stderr)
        return {}
    base_model(BASE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = pa.Table.from_pylist(rows(prefix=True))
        pq.write_table(table.slice(0, ROWS), folder / "train.parquet")
        whole = _train(folder, None, "whole", lambda _: None)
        with ray_cluster(folder) as cluster:
            result = _interrupted(cluster, folder)
        adapters = [Path(one["adapter"]) for one in (whole, result)]
        weights = [(adapter / "adapter_model.safetensors").read_bytes() for adapter in adapters]
        steps = _steps(folder / "lost")
        same = weights[0] == weights[1] and content_hash(adapters[0]) == content_hash(adapters[1])
    return {
        "ray_resume_equal": float(same),
        "ray_resume_steps": float(whole["steps"]),
        "ray_resume_repeated_steps": float(len(steps) - len(set(steps))),
    }


def _train(folder: Path, url: str | None, name: str, on_progress: Any) -> dict[str, Any]:
    """A training on the cluster at a URL, or on this machine, in a folder of this name."""
    runner = {"kind": "ray", "url": url, "python": sys.executable, "resources": {"trainer": 1}} if url else {}
    settings = Settings(
        models=ModelsSettings(base=BASE, directory=folder / "models"),
        train=SETTINGS,
        runner=RunnerSettings.model_validate(runner),
    )
    dataset = Dataset("d", "bench", datetime(2026, 11, 1), folder, {"train": ROWS}, 0, {})
    return train(dataset, None, settings, folder / name, None, on_progress)


def _interrupted(cluster: RayCluster, folder: Path) -> dict[str, Any]:
    """What a training on the cluster returned that lost all that there is to lose."""
    left = [NODE_AT, DAEMON_AT, HEAD_AT]
    while True:
        with closing(_daemon(cluster.url, folder)) as lines:
            for line in lines:
                if "result" in line:
                    attempts = len(list((folder / "lost").glob("attempt-*")))
                    assert attempts == 3, f"{attempts} attempts were made: node and head were not both lost"
                    result: dict[str, Any] = line["result"]
                    return result
                if line.keys() & {"lost", "ray_status", "node"}:
                    print(line, file=sys.stderr, flush=True)
                if not left or line.get("step", 0) < left[0]:
                    continue
                at = left.pop(0)
                print(f"after step {line['step']} {LOST[at]} is lost", file=sys.stderr, flush=True)
                if at == NODE_AT:
                    cluster.lose_node("node-1")
                    cluster.add_node("node-2")
                elif at == HEAD_AT:
                    cluster.lose_head()
                    cluster.start()
                    cluster.add_node("node-3")
                else:
                    break
            else:
                raise RuntimeError("the daemon ended before the training did")


def _steps(folder: Path) -> list[int]:
    """Those that all attempts made."""
    answers = (file.read_text() for file in folder.glob("attempt-*/answers.jsonl"))
    lines = [json.loads(line) for text in answers for line in text.splitlines()]
    return [line["step"] for line in lines if "step" in line]


def _daemon(url: str, folder: Path) -> Iterator[dict[str, Any]]:
    """What a process that follows the training reports; it is killed where the lines are closed."""
    command = [sys.executable, __file__, url, str(folder)]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=paths) as process:
        try:
            assert process.stdout is not None
            yield from map(json.loads, process.stdout)
        finally:
            process.kill()


if __name__ == "__main__":
    made = _train(Path(sys.argv[2]), sys.argv[1], "lost", lambda line: print(json.dumps(line), flush=True))
    print(json.dumps({"result": made}), flush=True)
