"""Several workloads that train at a time on a cluster, here a double of Ray whose jobs are processes, under a daemon
that is killed, and the commands of an operator."""

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from fixtures.cluster.ray import ray_double
from fixtures.daemon.daemons import App, running, settings_for
from fixtures.feedback.teaching import GOODS, questions
from fixtures.kafka.brokers import Broker
from fixtures.models.tiny import tiny_llama
from retuned.daemon.cli.main import main

WORKLOADS = ("sales", "support", "returns")


def test_two_train_at_a_time_are_taken_up_after_a_kill_and_end_one_by_one(
    tansu: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ray_double() as ray:
        settings = settings_for(
            tansu,
            tmp_path,
            models={"base": str(tiny_llama(tmp_path / "base")), "directory": str(tmp_path / "models")},
            train={"threads": 1, "epochs": 5_000, "dtype": "float32", "checkpoint_steps": 20},
            policy={"enabled": False},
            runner={"kind": "ray", "url": ray.url, "python": sys.executable, "at_a_time": 2},
        )
        app = App(settings)
        with running(tmp_path, settings) as daemon:
            config = ["--config", str(daemon.config)]

            def training(*workloads: str) -> bool:
                """These are under way, and learn."""
                found: list[dict[str, Any]] = daemon.status()["under_way"]
                return [one["workload"] for one in found if one.get("step")] == list(workloads)

            for workload in WORKLOADS:
                for question, right in questions(GOODS, slice(5)):
                    app.said(app.answered(question, "I cannot say.", workload=workload), "correction", right, "expert")
            app.flush()
            app.close()
            daemon.until(lambda: daemon.status()["ingestion"]["feedback"] == app.sent["feedback"], "events")
            for workload in WORKLOADS:
                assert main(["retrain", workload, *config]) == 0
            daemon.until(lambda: training("sales", "support"), "two trainings")
            status = daemon.described("/api/v1/status", "status")
            assert [one["runner"] for one in status["under_way"]] == ["ray", "ray"]
            (waits,) = status["queue"]
            assert (waits["workload"], waits["waits_for"]) == ("returns", "turn")
            assert "at most 2 at a time (runner.at_a_time), and 2 under way" in waits["reason"]
            capsys.readouterr()
            assert main(["status", *config]) == 0
            shown = capsys.readouterr().out.splitlines()
            assert "training  sales on Ray, support on Ray" in shown
            assert "in line   returns (turn)" in shown
            assert waits["reason"] in daemon.get("/system").text

            jobs = {body["metadata"]["workload"]: name for name, body in ray.bodies.items()}
            assert jobs.keys() == {"sales", "support"}
            daemon.stop(signal.SIGKILL)
            daemon.start()
            daemon.until(lambda: training("sales", "support"), "both trainings taken up")
            assert set(ray.names) == set(jobs.values())
            assert [row["state"] for row in daemon.workload("returns")["runs"]] == ["waiting"]

            assert main(["cancel", "sales", "--reason", "the wrong data", *config]) == 0
            daemon.until(lambda: training("support", "returns"), "the next training")
            assert [row["state"] for row in daemon.workload("sales")["runs"]] == ["cancelled"]
            assert ray.job(jobs["sales"])["status"] == "STOPPED"
            assert ray.job(jobs["support"])["status"] == "RUNNING"

            assert main(["pause", "support", *config]) == 0
            daemon.until(lambda: training("returns"), "the pause of one")
            assert [row["state"] for row in daemon.workload("support")["runs"]] == ["interrupted"]
            assert daemon.stop() == 0
