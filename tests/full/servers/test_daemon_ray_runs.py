"""Whole retrainings of two workloads at a time, on a double of Ray whose jobs are processes."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from fixtures.cluster.ray import ray_double
from fixtures.feedback.teaching import GOODS, Teacher, teach_policies
from fixtures.models.tiny import ANY_LATENCY, tiny_llama
from retuned.daemon.operations.local import opened
from retuned.daemon.settings import Settings
from retuned.monitors.money import ledger


def test_two_workloads_train_at_a_time_and_a_lost_node_of_one_delays_that_alone(tmp_path: Path) -> None:
    with ray_double() as ray:
        settings = Settings.model_validate(
            {
                "warehouse": {"path": tmp_path / "retuned.duckdb"},
                "models": {"base": tiny_llama(tmp_path / "base"), "directory": tmp_path / "models"},
                "train": {
                    "threads": 1, "learning_rate": 5e-3, "epochs": 2, "dtype": "float32", "checkpoint_steps": 4,
                },
                "evaluate": {"general_examples": 3, "max_new_tokens": 8},
                "gate": {"minimum_examples": 15, "maximum_latency_ratio": ANY_LATENCY, "fold_rows": 0},
                "policy": {"enabled": False},
                "roi": {"training_hourly_rate": 60.0},
                "runner": {"kind": "ray", "url": ray.url, "python": sys.executable},
            }
        )  # fmt: skip
        with opened(settings) as local:
            runs, warehouse = local.jobs.runs, local.warehouse
            for workload in ("sales", "support"):
                teach_policies(Teacher(warehouse, workload), GOODS)
                runs.ask(workload, asked_by="an operator")
            at_once: list[set[Any]] = []
            lost: list[str] = []

            def show(progress: dict[str, Any]) -> None:
                at_once.append({one.workload for one in runs.under_way() if one.progress["stage"] == "train"})
                if progress["workload"] == "sales" and progress.get("step") == 6 and not lost:
                    lost.append(progress["ray_job"])
                    ray.lose_node(lost[0])

            runs.show = show
            made = {result.workload: result for result in runs.run_waiting()}
            assert {workload: result.state for workload, result in made.items()} == {
                "sales": "succeeded",
                "support": "succeeded",
            }, [result.error for result in made.values()]
            assert {"sales", "support"} in at_once
            jobs = Counter((body["metadata"]["workload"], name.split("-")[1]) for name, body in ray.bodies.items())
            assert jobs == {
                ("sales", "train"): 2, ("sales", "evaluate"): 1, ("support", "train"): 1, ("support", "evaluate"): 1,
            }  # fmt: skip
            for _ in range(2):
                ledger.book(warehouse, settings, local.jobs.context.now())
            booked = warehouse.rows("SELECT workload, reference FROM ledger WHERE item = 'training' ORDER BY workload")
            assert [(row["workload"], row["reference"]) for row in booked] == [
                (workload, made[workload].run_id) for workload in ("sales", "support")
            ]
