"""A rollout in a daemon as users start it, killed in the middle: two versions answer, users vote, the topic has it."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kafka import KafkaConsumer

from fixtures.daemon.daemons import App, Daemon, running
from fixtures.daemon.rollouts import begun
from fixtures.kafka.brokers import Broker
from retuned.daemon.cli.main import main

ROLLOUT: dict[str, Any] = {"steps": [0.25, 1.0], "holdback": 0.05, "minimum_seconds": 1.0, "minimum_answers": 100}


def rate(app: App, version: str, good: int, bad: int) -> None:
    """The votes against come evenly among the rest: the daemon may look at any part of them first."""
    for number in range(good + bad):
        id = app.answered(f"question {number}", "an answer", model=f"support@{version}")
        app.said(id, "helpful", number * bad % (good + bad) >= bad)


def told(settings: dict[str, Any], most: int) -> list[tuple[str, str, float]]:
    """The changes on the topic, each once, in their order."""
    kafka = settings["kafka"]
    consumer = KafkaConsumer(
        kafka["model_events_topic"],
        bootstrap_servers=kafka["bootstrap_servers"],
        auto_offset_reset="earliest",
        consumer_timeout_ms=20_000,
    )
    changes = dict[str, tuple[str, str, float]]()
    for record in consumer:
        change = json.loads(record.value)
        changes[change["id"]] = (change["event"], change["model"], change["share"])
        if len(changes) == most:
            break
    consumer.close()
    return list(changes.values())


def state(daemon: Daemon) -> tuple[str | None, str, float] | None:
    """The champion, and of the rollout under way its state and its share; None: there is none."""
    workload = daemon.workload()
    rollout = workload.get("rollout")
    return rollout and (workload["champion"], rollout["state"], rollout["share"])


@pytest.mark.full
@pytest.mark.parametrize("bad", [10, 75], ids=["as good", "worse"])
def test_a_rollout_goes_on_after_a_kill(bad: int, tansu: Broker, tmp_path: Path) -> None:
    settings = begun(tmp_path, tansu, ROLLOUT)
    with running(tmp_path, settings) as daemon:
        app = App(settings)
        rate(app, "v1", 270, 30)
        app.flush()
        topic = settings["kafka"]["feedback_topic"]
        daemon.until(lambda: daemon.metric("retuned_events_total", topic=topic) == 300, "the first votes")
        assert state(daemon) == ("v1", "canary", 0.25)
        daemon.until(lambda: (daemon.workload()["rollout"]["check"] or {}).get("verdict") == "hold", "a look")
        daemon.stop(signal.SIGKILL)
        rate(app, "v2", 100 - bad, bad)
        app.flush()
        app.close()
        daemon.start()
        if bad == 10:
            daemon.until(lambda: state(daemon) == ("v2", "holdback", 0.95), "the last step")
            daemon.stop(signal.SIGKILL)
            daemon.start()
            done = daemon.post("/api/v1/workloads/support/promote", version="v2", reason="sure")
            assert done.status_code == 200, done.text
        daemon.until(lambda: "champion" in daemon.workload() and state(daemon) is None, "the end of the rollout")
        assert daemon.workload()["champion"] == ("v2" if bad == 10 else "v1")
        log = daemon.log.read_text()
    begin = [("promoted", "support@v1", 1.0), ("canary", "support@v2", 0.25)]
    went = [("promoted", "support@v2", 0.95), ("completed", "support@v2", 1.0)]
    expected = begin + (went if bad == 10 else [("canary_rolled_back", "support@v1", 1.0)])
    assert told(settings, len(expected)) == expected
    said = "answers 0.95 of the conversations now" if bad == 10 else "the canary support@v2 is taken back: unhelpful"
    assert log.count(said) == 1


@pytest.mark.full
def test_passes_that_end_take_steps_too(tansu: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is a process that has seen none of the targets before."""
    settings = begun(tmp_path, tansu, ROLLOUT)
    app = App(settings)
    rate(app, "v1", 270, 30)
    rate(app, "v2", 90, 10)
    app.flush()
    app.close()
    config = tmp_path / "retuned.yaml"
    config.write_text(yaml.safe_dump(settings))
    time.sleep(ROLLOUT["minimum_seconds"])
    assert main(["run", "--once", "--config", str(config)]) == 0
    capsys.readouterr()
    assert main(["status", "--json", "--config", str(config)]) == 0
    rollout = json.loads(capsys.readouterr().out)["workloads"]["support"]["rollout"]
    assert (rollout["state"], rollout["share"]) == ("holdback", 0.95)
