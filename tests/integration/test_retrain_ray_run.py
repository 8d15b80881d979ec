"""Whole retrainings on the runner `ray`, here a double of Ray whose jobs are processes."""

import sys
import threading
from pathlib import Path
from typing import Any

from models import tiny_llama
from ray_clusters import ray_double
from teaching import GOODS, Teacher, teach_policies

from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import open_warehouse, utc_now
from retuned.retrain import queue, run
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.run import RunResult
from retuned.retrain.settings import (
    EvaluateSettings,
    GateSettings,
    ModelsSettings,
    RunnerSettings,
    Settings,
    TrainSettings,
)

Lines = list[dict[str, Any]]


def retrained(folder: Path, base: Path, runner: RunnerSettings, take: Any) -> RunResult:
    """One run on a new warehouse, which is taught what all of them are."""
    opened = open_warehouse(WarehouseSettings(path=folder / "w.duckdb"))
    try:
        teach_policies(Teacher(opened), GOODS)
        settings = Settings(
            models=ModelsSettings(base=base, directory=folder / "models"),
            train=TrainSettings(threads=1, learning_rate=5e-3, epochs=2, dtype="float32", checkpoint_steps=4),
            evaluate=EvaluateSettings(general_examples=3, max_new_tokens=8),
            gate=GateSettings(minimum_examples=15, maximum_latency_ratio=50, fold_rows=0),
            runner=runner,
        )
        run_id = queue.put_in_line(opened, "support", ["by hand"], utc_now())
        return run.take_up(
            Rollout(opened, settings, MemoryPublisher(), "events"), run_id, utc_now, threading.Event(), take
        )
    finally:
        opened.close()


def test_a_run_that_loses_its_node_learns_what_a_local_one_learns(tmp_path: Path) -> None:
    base, lines = tiny_llama(tmp_path / "base"), Lines()
    for name in ("local", "ray"):
        (tmp_path / name).mkdir()
    local = retrained(tmp_path / "local", base, RunnerSettings(), lambda _: None)
    with ray_double() as ray:

        def take(line: dict[str, Any]) -> None:
            lines.append(line)
            if line["stage"] == "train" and line.get("step") == 6 and len(ray.names) == 1:
                ray.lose_node(ray.names[0])

        runner = RunnerSettings(kind="ray", url=ray.url, python=sys.executable)
        on_ray = retrained(tmp_path / "ray", base, runner, take)
        jobs = [body["metadata"] | {"of": body["submission_id"].split("-")[1]} for body in ray.bodies.values()]
    assert local.state == on_ray.state == "succeeded", on_ray.error
    assert on_ray.dataset_version == local.dataset_version
    weights = [
        (tmp_path / name / "models" / "support" / str(made.version) / "adapter_model.safetensors").read_bytes()
        for name, made in (("local", local), ("ray", on_ray))
    ]
    assert weights[0] == weights[1]
    assert on_ray.scores == local.scores
    assert [(job["of"], job["attempt"]) for job in jobs] == [("train", "1"), ("train", "2"), ("evaluate", "1")]
    assert sum("lost" in line for line in lines) == 1
    assert not list((tmp_path / "ray" / "models" / "support" / "runs").iterdir())
