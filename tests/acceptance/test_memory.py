"""The memory of corrections in a running daemon: from an expert's correction in Kafka to the feed of gateways."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.daemon.daemons import App, Daemon, running, settings_for
from fixtures.kafka.brokers import Broker

QUESTION = "How long may I return a lamp?"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tansu: Broker) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("memory")
    return settings_for(tansu, folder, workloads={"support": {"memory": {"mode": "context"}}})


@pytest.fixture(scope="module")
def app(settings: dict[str, Any]) -> Iterator[App]:
    made = App(settings)
    made.said(made.answered("Are you open on Sunday?", "No."), "helpful", True)  # makes the topics
    made.flush()
    yield made
    made.close()


@pytest.fixture(scope="module")
def daemon(settings: dict[str, Any], app: App) -> Iterator[Daemon]:  # noqa: ARG001
    with running(Path(settings["warehouse"]["path"]).parents[1], settings) as made:
        yield made


def feed(daemon: Daemon, after: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = daemon.get(f"/api/v1/memory/feed?after={after}").json()
    return found


def entry(daemon: Daemon, answer: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        return next((one for one in feed(daemon)["entries"] if one["answer"] == answer), None)

    one: dict[str, Any] = daemon.until(found, f"an entry {answer}", 30)
    return one


def command(daemon: Daemon, *arguments: str) -> str:
    given = [sys.executable, "-m", "retuned.daemon.cli.main", "--config", str(daemon.config), "memory", *arguments]
    done = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False, cwd=daemon.folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_experts_correction_reaches_the_feed_within_seconds(daemon: Daemon, app: App) -> None:
    asked = app.answered(QUESTION, "You have 30 days.")
    app.flush()
    daemon.until(lambda: daemon.status()["ingestion"]["interactions"] == 2, "the interaction", 60)
    app.said(asked, "correction", "You have 14 days.", "expert")
    app.flush()
    one = entry(daemon, "You have 14 days.")
    assert (one["workload"], one["question"], one["state"], one["threshold"]) == ("support", QUESTION, "active", None)
    found = feed(daemon)
    settings = {"mode": "context", "holdout_share": 0.1, "similar": True, "error_rate": 0.02}
    assert settings.items() <= found["modes"]["support"].items()
    assert found["epoch"]
    assert not found["more"]
    assert feed(daemon, found["sequence"])["entries"] == []


def test_an_app_without_the_gateway_looks_it_up(daemon: Daemon, app: App) -> None:  # noqa: ARG001
    one = entry(daemon, "You have 14 days.")
    asked = {"workload": "support", "messages": [{"role": "user", "content": f"  {QUESTION} "}]}
    found = daemon.post("/api/v1/memory/lookup", **asked).json()
    assert (found["entries"], found["held_out"], found["match"]) == ([one["id"]], [], "same")
    assert "> You have 14 days." in found["message"]["content"]
    other = daemon.post("/api/v1/memory/lookup", workload="support", messages=[{"role": "user", "content": "Hi"}])
    assert other.json()["entries"] == []


def test_a_person_adds_edits_freezes_and_removes_entries(daemon: Daemon, app: App) -> None:  # noqa: ARG001
    said = ("--reason", "policy of March", "--author", "olga")
    command(daemon, "add", "support", "--question", "Do you ship to Oslo?", "--answer", "Yes, in 5 days.", *said)
    one = entry(daemon, "Yes, in 5 days.")
    command(daemon, "edit", one["id"], "--answer", "Yes, in 4 days.", *said)
    other = entry(daemon, "Yes, in 4 days.")
    changed = {row["id"]: row for row in feed(daemon, one["sequence"])["entries"]}
    assert (changed[one["id"]]["state"], changed[one["id"]]["answer"]) == ("superseded", "")
    command(daemon, "freeze", other["id"], *said)
    assert other["id"] not in {row["id"] for row in feed(daemon)["entries"]}
    command(daemon, "unfreeze", other["id"], *said)
    assert entry(daemon, "Yes, in 4 days.")["id"] == other["id"]
    command(daemon, "remove", other["id"], *said)
    (removed,) = json.loads(command(daemon, "list", "support", "--state", "removed", "--json"))
    assert (removed["id"], removed["reason"]) == (other["id"], "policy of March")
    assert removed["changed_by"].startswith("olga")
    assert "removed" in command(daemon, "show", other["id"])
