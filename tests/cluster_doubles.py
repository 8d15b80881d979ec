"""Ingesters over a log in memory, a database and a folder, and what they have stored."""

import hashlib
import json
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
from ingestion import settings_for
from prometheus_client import CollectorRegistry

from retuned.consumers.cluster.database import Database
from retuned.consumers.cluster.ingester import Ingester
from retuned.consumers.cluster.metrics import Metrics as SegmentMetrics
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.errors import Reassigned, StoreUnavailable
from retuned.consumers.kafka.memory import MemoryLog, MemoryPublisher, MemorySource
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import PrivacySettings, Settings, StoreSettings

KEY = "a key of at least sixteen characters"


class Cluster:
    """A log, a database and a folder, and the ingesters that share them."""

    def __init__(self, folder: Path, url: str) -> None:
        self.log, self.url, self.folder = MemoryLog(), url, folder / "objects"
        base = settings_for(folder)
        self.settings = Settings(
            kafka=base.kafka,
            ingest=base.ingest.model_copy(update={"batch_seconds": 0.01}),
            warehouse=base.warehouse,
            privacy=PrivacySettings(user_key=KEY),  # type: ignore[arg-type]
            store=StoreSettings(
                postgres_url=url,  # type: ignore[arg-type]
                objects_url=self.folder.as_uri(),
                segment_seconds=0.01,
            ),
        )
        self.objects = Objects(self.settings.store)
        self.opened: list[Database] = []
        self.publisher = MemoryPublisher()

    def database(self) -> Database:
        self.opened.append(Database(self.settings.store))
        return self.opened[-1]

    def ingester(
        self,
        settings: Settings | None = None,
        database: Database | None = None,
        objects: Objects | None = None,
        registry: CollectorRegistry | None = None,
    ) -> Ingester:
        database, settings = database or self.database(), settings or self.settings
        source = MemorySource(self.log, settings.kafka.topics, database.offsets, identities=database.identities)
        registry = registry or CollectorRegistry()
        return Ingester(
            source,
            database,
            objects or self.objects,
            settings,
            Metrics(registry),
            SegmentMetrics(registry),
            self.publisher,
        )

    def send(self, *events: dict[str, Any] | bytes, partition: int = 0) -> None:
        for event in events:
            kafka = self.settings.kafka
            topic = kafka.feedback_topic if b"interaction_id" in encoded(event) else kafka.interactions_topic
            self.log.append(topic, encoded(event), partition)

    def query(self, sql: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql.encode()).fetchall()

    def stored(self, table: str = "interactions") -> list[dict[str, Any]]:
        """The rows of a table, in the order of the segments."""
        files = self.query(
            f"SELECT key, rows, bytes, sha256 FROM retuned.segment_files WHERE table_name = '{table}' ORDER BY number"
        )
        rows: list[dict[str, Any]] = []
        for key, count, size, sha256 in files:
            content = (self.folder / key).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (size, sha256)
            found = pq.ParquetFile(self.folder / key).read().to_pylist()
            assert len(found) == count
            rows += found
        return rows

    def ids(self) -> list[str]:
        return [row["id"] for row in self.stored()]

    def close(self) -> None:
        for database in self.opened:
            database.close()

    def files(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.parquet")}


def encoded(event: dict[str, Any] | bytes) -> bytes:
    return event if isinstance(event, bytes) else json.dumps(event).encode()


def drain(ingester: Ingester, steps: int = 20) -> int:
    """Step until nothing comes, over what may pass. Returns the number of messages."""
    messages = 0
    for _ in range(steps):
        try:
            if not (count := ingester.step()):
                return messages
            messages += count
        except (Reassigned, StoreUnavailable):
            pass
    raise AssertionError(f"it goes on after {steps} steps")
