"""Runs in hand, as an operator has them: killed, paused over a restart, cancelled, by the command line of a daemon."""

import json
import signal
from pathlib import Path

import pytest

from fixtures.daemon.daemons import App, running, settings_for
from fixtures.feedback.teaching import GOODS, questions
from fixtures.kafka.brokers import Broker
from fixtures.models.tiny import tiny_llama
from retuned.daemon.cli.main import main


@pytest.mark.full
def test_a_run_is_given_up_paused_over_a_restart_and_cancelled(tansu: Broker, tmp_path: Path) -> None:
    settings = settings_for(
        tansu,
        tmp_path,
        models={"base": str(tiny_llama(tmp_path / "base")), "directory": str(tmp_path / "models")},
        train={"threads": 1, "epochs": 500, "dtype": "float32", "checkpoint_steps": 5, "attempts": 1},
        policy={"enabled": False},
        logging={"format": "json"},
    )
    app = App(settings)
    with running(tmp_path, settings) as daemon:
        config = ["--config", str(daemon.config)]

        def training() -> bool:
            return daemon.status()["training"].get("stage") in ("dataset", "train")

        def state() -> str:
            found: str = daemon.workload()["runs"][0]["state"]
            return found

        for question, right in questions(GOODS, slice(5)):
            app.said(app.answered(question, "I cannot say."), "correction", right, "expert")
        app.flush()
        app.close()
        daemon.until(lambda: daemon.status()["ingestion"]["feedback"] == app.sent["feedback"], "events")
        assert main(["retrain", "support", *config]) == 0
        daemon.until(training, "training")
        daemon.stop(signal.SIGKILL)
        daemon.start()
        daemon.until(lambda: state() == "failed", "an end of attempts")
        assert "given up after 1 attempts in which the daemon was killed" in daemon.workload()["runs"][0]["error"]

        assert main(["pause", "--reason", "the machine is needed", *config]) == 0
        assert main(["retrain", "support", *config]) == 0
        assert daemon.stop() == 0
        daemon.start()
        (waits,) = daemon.described("/api/v1/status", "status")["queue"]
        assert (waits["workload"], waits["waits_for"]) == ("support", "paused")
        assert "Retraining of all workloads is paused" in daemon.get("/system").text
        daemon.until(lambda: daemon.metric("retuned_runs_waiting", workload="support", reason="paused"), "metric")
        assert daemon.post("/api/v1/training/cancel").status_code == 404
        assert main(["cancel", "support", "--reason", "the wrong data", *config]) == 0
        assert state() == "cancelled"
        assert main(["cancel", "support", *config]) == 1
        assert daemon.stop() == 0
    lines = [json.loads(line) for line in daemon.log.read_text().splitlines()]
    (failed,) = (line for line in lines if ": failed: " in line["message"])
    assert (failed["workload"], failed["level"]) == ("support", "info")
    assert failed["run"] in failed["message"]
    assert any(line.get("actor") and line["workload"] == "support" for line in lines)
