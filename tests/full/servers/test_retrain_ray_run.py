"""A whole retraining on the runner `ray`, here a double of Ray whose jobs are processes."""

import sys
import threading
from pathlib import Path
from typing import Any

from fixtures.cluster.ray import ray_double
from fixtures.feedback.teaching import GOODS, Teacher, teach_policies
from fixtures.models.tiny import ANY_LATENCY, tiny_llama
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.retrain import queue, run, versions
from retuned.retrain.data import dataset as datasets
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import (
    EvaluateSettings,
    GateSettings,
    ModelsSettings,
    RunnerSettings,
    Settings,
    TrainSettings,
)
from retuned.retrain.training.train import train


def test_a_run_that_loses_its_node_learns_what_a_local_one_learns(warehouse: Warehouse, tmp_path: Path) -> None:
    teach_policies(Teacher(warehouse), GOODS)
    local = Settings(
        models=ModelsSettings(base=tiny_llama(tmp_path / "base"), directory=tmp_path / "models"),
        train=TrainSettings(threads=1, learning_rate=5e-3, epochs=2, dtype="float32", checkpoint_steps=4),
        evaluate=EvaluateSettings(general_examples=3, max_new_tokens=8),
        gate=GateSettings(minimum_examples=15, maximum_latency_ratio=ANY_LATENCY, fold_rows=0),
    )
    lines: list[dict[str, Any]] = []
    with ray_double() as ray:

        def take(line: dict[str, Any]) -> None:
            lines.append(line)
            if line["stage"] == "train" and line.get("step") == 6 and len(ray.names) == 1:
                ray.lose_node(ray.names[0])

        settings = local.model_copy(update={"runner": RunnerSettings(kind="ray", url=ray.url, python=sys.executable)})
        run_id = queue.enqueue(warehouse, "support", ["by hand"], utc_now())
        rollout = Rollout(warehouse, settings, MemoryPublisher(), "events")
        made = run.resume(rollout, run_id, utc_now, threading.Event(), take)
        jobs = [body["metadata"] | {"of": body["submission_id"].split("-")[1]} for body in ray.bodies.values()]
    assert made.state == "succeeded", made.error
    assert [(job["of"], job["attempt"]) for job in jobs] == [("train", "1"), ("train", "2"), ("evaluate", "1")]
    assert sum("lost" in line for line in lines) == 1
    assert not list((tmp_path / "models" / "support" / "runs").iterdir())
    learned = tmp_path / "models" / "support" / str(made.version) / "adapter_model.safetensors"
    dataset = datasets.load(warehouse, "support", str(made.dataset_version))
    assert dataset is not None
    unbroken = train(dataset, None, local, tmp_path / "local")
    assert learned.read_bytes() == (Path(unbroken["adapter"]) / learned.name).read_bytes()
    assert made.version == versions.content_hash(Path(unbroken["adapter"]))
