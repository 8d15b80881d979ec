"""An ingestion of one warehouse, from memory or from a broker, and events to send through it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.kafka.memory import MemoryLog, MemoryPublisher, MemorySource
from retuned.consumers.kafka.source import KafkaSource
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import IngestSettings, KafkaSettings, Settings, WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.writer import stored_identities, stored_offsets

numbers = iter(range(1000))


def interaction(id: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": id,
        "timestamp": "2026-11-24T09:30:00Z",
        "workload": "support.refunds",
        "model": "base",
        "messages": [{"role": "user", "content": "Where is my parcel?"}],
        "response": "On its way.",
    } | changes


def feedback(id: str, interaction_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": id,
        "timestamp": "2026-11-24T09:31:00Z",
        "interaction_id": interaction_id,
        "name": "helpful",
        "value": True,
    } | changes


def settings_for(folder: Path, bootstrap_servers: str = "memory", **kafka: Any) -> Settings:
    number = next(numbers)
    names = {"interactions_topic": f"in-{number}", "feedback_topic": f"fb-{number}", "group_id": f"group-{number}"}
    return Settings(
        kafka=KafkaSettings(bootstrap_servers=bootstrap_servers, session_timeout_seconds=2, **(names | kafka)),
        ingest=IngestSettings(batch_seconds=0.2, max_age_days=73_000),
        warehouse=WarehouseSettings(path=folder / f"w{number}.duckdb"),
    )


@contextmanager
def not_writable(warehouse: Warehouse, table: str) -> Iterator[None]:
    """A table that can be read and to which nothing can be written: a view stands in its place."""
    warehouse.execute(f"ALTER TABLE {table} RENAME TO kept_{table}")
    warehouse.execute(f"CREATE VIEW {table} AS SELECT * FROM kept_{table}")
    yield
    warehouse.execute(f"DROP VIEW {table}")
    warehouse.execute(f"ALTER TABLE kept_{table} RENAME TO {table}")


class _Ready(MemorySource):
    """All that it is to read is in the log before: while it is drained, it waits for nothing."""

    drained = False

    def poll(self, max_records: int, timeout_seconds: float) -> Batch:
        return super().poll(max_records, 0.0 if self.drained else timeout_seconds)


class Rig:
    """An ingestion of one warehouse, by memory or by a broker."""

    def __init__(self, settings: Settings, warehouse: Warehouse, log: MemoryLog | None = None) -> None:
        self.settings, self.warehouse, self.log = settings, warehouse, log
        self.registry = CollectorRegistry()
        self.publisher = MemoryPublisher()
        self.stored = (lambda: stored_offsets(warehouse)), (lambda: stored_identities(warehouse))
        topics = settings.kafka.topics
        self.source: Any = (
            _Ready(log, topics, self.stored[0], identities=self.stored[1])
            if log
            else KafkaSource(settings.kafka, *self.stored)
        )
        self.ingest = Ingest(self.source, warehouse, settings, Metrics(self.registry), self.publisher)

    def send(self, *events: dict[str, Any] | bytes) -> None:
        assert self.log
        for event in events:
            is_feedback = isinstance(event, dict) and "interaction_id" in event
            topic = self.settings.kafka.feedback_topic if is_feedback else self.settings.kafka.interactions_topic
            self.log.append(topic, event if isinstance(event, bytes) else json.dumps(event).encode())

    def drain(self) -> int:
        total, self.source.drained = 0, True
        try:
            while count := self.ingest.step():
                total += count
        finally:
            self.source.drained = False
        return total

    def count(self, name: str, /, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0
