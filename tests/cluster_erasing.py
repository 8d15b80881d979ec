"""A daemon of a cluster that erases."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster_doubles import KEY, Cluster
from erasing import now
from prometheus_client import CollectorRegistry

from retuned.consumers.cluster import erasing
from retuned.consumers.cluster.control import Control
from retuned.consumers.cluster.conversations import keys_of
from retuned.consumers.cluster.follower import Follower, followed
from retuned.consumers.cluster.metrics import store_up
from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.cluster.source import SegmentSource
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import PrivacySettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.erasure.applied import AppliedErasures
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.settings import Settings


class Daemon:
    """A daemon of the cluster: a warehouse that follows the segments and the control tables."""

    def __init__(self, cluster: Cluster, folder: Path, *, leads: bool) -> None:
        self.cluster, self.folder = cluster, folder
        self.settings = Settings(
            warehouse={"path": folder / "w.duckdb"},
            models={"directory": folder / "models"},
            kafka=cluster.settings.kafka,
            privacy=PrivacySettings(user_key=KEY),  # type: ignore[arg-type]
            store=cluster.settings.store,
        )  # type: ignore[arg-type]
        self.warehouse: Warehouse = open_warehouse(self.settings.warehouse)
        registry = CollectorRegistry()
        self.source = SegmentSource(
            cluster.database(), cluster.objects, self.settings.kafka.topics, lambda: followed(self.warehouse)
        )
        self.ingest = Follower(self.source, self.warehouse, cluster.settings, Metrics(registry), store_up(registry))
        self.postgres = Postgres(cluster.settings.store)
        self.control = Control(self.postgres, self.warehouse)
        self.erasures = Erasures(self.warehouse, self.settings, threading.Event(), now, lambda *_: None)
        self.applied = AppliedErasures(self.warehouse, self.settings, threading.Event())
        self.erasures.segments = self._erase_segments
        self.erasures.problem_of_segment = lambda key: erasing.problem_of(self.postgres, cluster.objects, key)
        self.erasures.numbers = self._erase_numbers
        if leads:
            [(epoch,)] = self.postgres.rows("lead", {"instance": "leader", "seconds": 0.0})
            self.control.follow()
            self.control.epoch = epoch
            self.control.publish_all()

    def _erase_segments(self, tombstones: Any) -> Iterator[dict[str, Any]]:
        for file in erasing.erase(self.cluster.database(), self.cluster.objects, tombstones):
            if isinstance(file, erasing.Unreadable):
                yield {"key": file.file.key, "problem": file.problem}
                continue
            yield {"key_before": file.before.key, "key_after": file.after.key}

    def _erase_numbers(self, interactions: Any, conversations: Any) -> None:
        self.cluster.database().erase_placeholders(keys_of(self.erasures.keys, interactions, conversations))

    def follow(self) -> None:
        self.control.follow()
        while not self.ingest.caught_up or self.ingest.step():
            self.ingest.step()

    def ids(self, table: str) -> list[str]:
        return [row["id"] for row in self.warehouse.rows(f"SELECT id FROM {table} ORDER BY id")]

    def close(self) -> None:
        self.source.close()
        self.postgres.close()
        self.warehouse.close()
