"""Two workloads in one daemon, one of which has settings of its own: every job goes by them."""

import json
import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.teaching import START, Teacher, question
from fixtures.feedback.traffic import interactions, promoted, prompts, serves
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings
from retuned.daemon.transfer.exports import Export, content

OWN = {
    "windows": {"minimum_rows": 700, "current_seconds": 600.5},
    "watch": {"enabled": False},
    "dataset": {"accepted_answers": False},
}


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    settings = Settings.model_validate(
        {
            "warehouse": {"path": tmp_path / "w.duckdb"},
            "models": {"directory": tmp_path / "models"},
            "workloads": {"own*": OWN},
        }
    )
    with opened(settings) as service:
        service.jobs.context.publisher = MemoryPublisher()
        yield service


def by_workload(local: Local, query: str) -> dict[str, Any]:
    return {row["workload"]: row["value"] for row in local.warehouse.rows(query)}


def test_windows_and_the_watch_of_each(local: Local) -> None:
    rng, now = random.Random(0), START + timedelta(hours=1)
    local.jobs.context.now = lambda: now
    for number, workload in enumerate(("own.a", "plain")):
        interactions(local.warehouse, prompts(60, rng), rng, workload=workload, offset=100 * number)
        promoted(local.warehouse, f"p-{workload}", "3f2a91c0", None, START, workload=workload)
        serves(local.warehouse, "3f2a91c0", START, workload)
    for job in ("quality", "watch", "drift"):
        local.jobs.run(job)
    measured = by_workload(
        local, "SELECT workload, n AS value FROM quality WHERE metric = 'input_tokens' AND model = '*'"
    )
    assert measured == {"own.a": 10, "plain": 60}
    needed = by_workload(local, "SELECT workload, detail AS value FROM drift_checks")
    found = {workload: detail.split("; ")[-1] for workload, detail in needed.items()}
    assert found == {
        "own.a": "each needs 700 (windows.minimum_rows).",
        "plain": "each needs 100 (windows.minimum_rows).",
    }
    assert by_workload(local, "SELECT DISTINCT workload, true AS value FROM watch_checks") == {"plain": True}


def test_the_dataset_of_each(local: Local) -> None:
    for workload in ("own.a", "plain"):
        teacher = Teacher(local.warehouse, workload)
        teacher.correct(question(1), "I cannot say.", "Within 14 days.")
        teacher.say(teacher.ask(question(2), "Within 30 days."), "helpful", True)
    exported = {
        workload: {
            json.loads(line)["messages"][-1]["content"]
            for line in b"".join(
                content(Export("chat", workload=workload), local.warehouse, local.settings)
            ).splitlines()
        }
        for workload in ("own.a", "plain")
    }
    assert exported["own.a"] < exported["plain"]
    assert "Within 30 days." not in exported["own.a"]
