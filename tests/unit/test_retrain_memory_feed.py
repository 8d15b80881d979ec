"""The daemon's feed of the memory: what it sends to which caller, and what a gateway keeps of it."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.erasing import now
from retuned.consumers.settings import PrivacySettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.gateway.memory import feed as gateway_feed
from retuned.daemon.gateway.memory.lookup import Memory
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.operations.memory import Feed, memory_feed
from retuned.daemon.operations.operation import Caller
from retuned.retrain.memory import entries
from retuned.retrain.memory.feed import Reading, feed, stated
from retuned.retrain.memory.settings import MemorySettings
from retuned.retrain.settings import Settings

SETTINGS = Settings(memory=MemorySettings(mode="context"))
MESSAGES = [{"role": "user", "content": "Do you ship to Oslo?"}]


def add(warehouse: Warehouse, workload: str, answer: str = "Yes, in 5 days.") -> str:
    approved = stated(warehouse, SETTINGS, workload, Reading(MESSAGES), answer, "olga", now())
    return entries.add(warehouse, workload, approved, now(), "olga", "launch")


class Asked:
    """The operation, asked by callers with different bounds. The daemon knows no workload, as none has events."""

    def __init__(self, warehouse: Warehouse) -> None:
        jobs = SimpleNamespace(context=SimpleNamespace(workloads=list))
        self._local: Any = SimpleNamespace(jobs=jobs, warehouse=warehouse, settings=SETTINGS, configured=list)

    def __call__(self, after: int = 0, bounds: tuple[str, ...] | None = None) -> Any:
        return memory_feed.run(self._local, Feed(after=after), Caller("gateway", workloads=bounds))


def test_entries_of_workloads_without_events_are_sent_with_their_settings(warehouse: Warehouse) -> None:
    asked, id = Asked(warehouse), add(warehouse, "newbot")
    page = asked()
    assert [(one["id"], one["state"]) for one in page["entries"]] == [(id, "active")]
    assert page["modes"]["newbot"]["mode"] == "context"
    entries.decide(warehouse, "remove", [id], "wrong", "olga", now())
    later = asked(after=page["sequence"])
    assert [(one["id"], one["state"], one["answer"]) for one in later["entries"]] == [(id, "removed", "")]


def test_a_caller_gets_entries_and_settings_of_its_own_workloads_alone(warehouse: Warehouse) -> None:
    asked = Asked(warehouse)
    for workload in ("support.returns", "billing"):
        add(warehouse, workload)
    page = asked(bounds=("support.*",))
    assert {one["workload"] for one in page["entries"]} == page["modes"].keys() == {"support.returns"}


def test_other_bounds_begin_another_epoch_and_hold_out_the_same_units(warehouse: Warehouse) -> None:
    asked = Asked(warehouse)
    assert asked()["epoch"] == asked(bounds=("support",))["epoch"] == ""
    add(warehouse, "support")
    pages = [asked(bounds=bounds) for bounds in (None, ("support",), ("billing", "support"), ("support", "billing"))]
    epochs = [page["epoch"] for page in pages]
    assert epochs == [asked(bounds=bounds)["epoch"] for bounds in (None, ("support",), *[("billing", "support")] * 2)]
    assert len(set(epochs)) == 3
    assert len({page["modes"]["support"]["salt"] for page in pages}) == 1


def test_what_is_erased_leaves_the_gateway_though_its_workload_is_unknown(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_feed, "COMPACT_SECONDS", 0.0)
    file, id = tmp_path / gateway_feed.FILE, add(warehouse, "returns")

    async def fetch(after: int, limit: int) -> bytes:
        page = feed(warehouse, SETTINGS, [], after, limit)
        return json.dumps(page, default=lambda at: at.isoformat()).encode()

    async def steps() -> None:
        memory = Memory(PrivacySettings(), Metrics(CollectorRegistry()))
        followed = gateway_feed.Feed(tmp_path, memory, lambda: True, fetch)
        try:
            await followed.refresh()
            mode = memory.mode("returns")
            assert mode is not None
            fields = {"messages": json.dumps(MESSAGES).encode()}
            assert await memory.find(fields, "returns", "c-1", mode) is not None
            assert "Oslo" in file.read_text()
            with entries.changing, warehouse.transaction() as cursor:
                entries.erase(cursor, [id], now())
            await followed.refresh()
            assert await memory.find(fields, "returns", "c-1", mode) is None
            assert "Oslo" not in file.read_text()
        finally:
            memory.close()

    asyncio.run(steps())
