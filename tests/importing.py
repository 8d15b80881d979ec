"""What takes files: a warehouse by itself, or one of a cluster's daemons, and files to take."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.memory import MemoryLog, MemoryPublisher, MemorySource
from retuned.consumers.metrics import Metrics
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.operations.files import FileIntake
from retuned.daemon.operations.local import Local
from retuned.daemon.settings import Settings
from retuned.daemon.transfer.exports import Export, content
from retuned.daemon.transfer.imports import import_files

if TYPE_CHECKING:  # they need the extra cluster
    from retuned.consumers.cluster.database import Database
    from retuned.consumers.cluster.objects import Objects

PLACE = ("topic", "partition", "offset", "received_at", "batch")
EVENTS = ("interactions", "feedback")
KEY = "a key of at least sixteen characters"


class House:
    """A warehouse and what writes into it."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        self.settings = Settings(warehouse={"path": folder / "w.duckdb"}, **sections)
        self.warehouse: Warehouse = open_warehouse(self.settings.warehouse)
        self.log, self.registry, self.publisher = MemoryLog(), CollectorRegistry(), MemoryPublisher()
        self._thread: threading.Thread | None = None
        self._build()

    def _build(self) -> None:
        self.ingest = Ingest(
            MemorySource(self.log, ["interactions", "feedback"], dict),
            self.warehouse,
            self.settings,
            Metrics(self.registry),
        )
        self.service = Local(self._jobs(), self.ingest)
        self.files = FileIntake(self.service)

    def _jobs(self) -> Jobs:
        metrics: list[Any] = [None] * 3
        context = Context(
            self.warehouse, self.settings, self.publisher, *metrics, threading.Event(), lambda: datetime(2030, 1, 1)
        )
        return Jobs(context, lambda _: None)

    def take(self, *paths: Path, workload: str | None = None) -> int:
        return import_files(list(paths), None, workload, self.settings, self.files)

    def send(self, *events: dict[str, Any]) -> None:
        """By Kafka."""
        for event in events:
            self.log.append("interactions", json.dumps(event).encode())

    def count(self, table: str) -> int:
        row = self.warehouse.row(f"SELECT count(*) AS n FROM {table}")
        assert row is not None
        return int(row["n"])

    def events(self) -> dict[str, list[dict[str, Any]]]:
        """All events but for where they came from, what is nested decoded."""
        return {table: [plain(row) for row in self.warehouse.rows(f"FROM {table} ORDER BY id")] for table in EVENTS}

    def export(self, what: str, format: str = "jsonl", **more: str) -> bytes:
        return b"".join(content(Export(what, format, **more), self.warehouse, self.settings))

    def lines(self, what: str, **more: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.export(what, **more).splitlines()]

    @contextmanager
    def running(self) -> Iterator[threading.Thread]:
        """While its thread ingests, as it may already."""
        if self._thread is not None:
            yield self._thread
            return
        stop = threading.Event()
        self._thread = threading.Thread(target=self.ingest.run, args=(stop,))
        self._thread.start()
        try:
            yield self._thread
        finally:
            stop.set()
            self._thread.join(10)
            self._thread = None

    def close(self) -> None:
        self.warehouse.close()


class Node(House):
    """A daemon of a cluster: its warehouse, and what follows the segments into it."""

    def __init__(
        self,
        folder: Path,
        url: str,
        database: "type[Database] | None" = None,
        objects: "type[Objects] | None" = None,
        **sections: Any,
    ) -> None:
        """Nodes of one cluster have one URL of PostgreSQL, and folders that lie side by side."""
        from retuned.consumers.cluster.database import Database
        from retuned.consumers.cluster.objects import Objects

        self._classes = database or Database, objects or Objects
        store = {"kind": "cluster", "postgres_url": url, "objects_url": (folder.parent / "objects").as_uri()}
        super().__init__(folder, **{"store": store, "privacy": {"user_key": KEY}, **sections})

    def _build(self) -> None:
        from retuned.consumers.cluster.follower import Follower, followed
        from retuned.consumers.cluster.ingester import Ingester
        from retuned.consumers.cluster.intake import SegmentIntake
        from retuned.consumers.cluster.metrics import Metrics as SegmentMetrics
        from retuned.consumers.cluster.metrics import store_up
        from retuned.consumers.cluster.source import SegmentSource

        new_database, new_objects = self._classes
        metrics, topics = Metrics(self.registry), self.settings.kafka.topics
        self.database, self.objects = new_database(self.settings.store), new_objects(self.settings.store)
        self._source = SegmentSource(self.database, self.objects, topics, lambda: followed(self.warehouse))
        self.ingest: Follower = Follower(self._source, self.warehouse, self.settings, metrics, store_up(self.registry))
        self.intake = SegmentIntake(self.database, self.objects, self.ingest, self.settings, metrics, self.publisher)
        self.service = Local(self._jobs(), self.ingest, intake=self.intake)
        self.files = FileIntake(self.service)
        registry = CollectorRegistry()
        source = MemorySource(self.log, topics, self.database.offsets, identities=self.database.identities)
        self._ingester = Ingester(
            source, self.database, self.objects, self.settings, Metrics(registry), SegmentMetrics(registry)
        )

    def send(self, *events: dict[str, Any]) -> None:
        for event in events:
            self.log.append(self.settings.kafka.interactions_topic, json.dumps(event).encode())
        self._ingester.step()

    def follow(self) -> None:
        """Once, to the end."""
        while self.ingest.step() or not self.ingest.caught_up:
            pass

    def close(self) -> None:
        self._source.close()
        super().close()


def plain(row: dict[str, Any]) -> dict[str, Any]:
    nested = ("messages", "context", "attributes", "value")
    return {
        key: json.loads(value) if key in nested and value is not None else value
        for key, value in row.items()
        if key not in PLACE
    }


@contextmanager
def opened(folder: Path, **sections: Any) -> Iterator[House]:
    folder.mkdir(exist_ok=True)
    house = House(folder, **sections)
    try:
        yield house
    finally:
        house.close()


@contextmanager
def following(folder: Path, url: str, **more: Any) -> Iterator[Node]:
    """A daemon of a cluster, which follows the segments."""
    folder.mkdir(exist_ok=True)
    node = Node(folder, url, **more)
    try:
        with node.running():
            yield node
    finally:
        node.close()


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def logged(number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": f"i{number}",
        "timestamp": f"2024-01-{1 + number % 28:02}T09:30:00.123456Z",
        "workload": "support",
        "model": "m",
        "messages": [{"role": "user", "content": f"question {number}"}],
        "response": "an answer",
        **more,
    }


def pairs(count: int) -> list[dict[str, str]]:
    return [{"question": f"question {n}", "answer": f"answer {n}"} for n in range(count)]
