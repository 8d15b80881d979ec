"""Commands while no daemon is running: the same jobs, on the warehouse opened by this process."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from retuned.consumers.dead_letter import dead_letters
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka import KafkaPublisher
from retuned.consumers.memory import MemoryLog, MemorySource
from retuned.consumers.metrics import Metrics as ConsumerMetrics
from retuned.consumers.warehouse import open_warehouse, utc_now
from retuned.daemon.exports import Export, content
from retuned.daemon.jobs import Jobs
from retuned.daemon.jsontext import as_json
from retuned.daemon.metrics import Metrics
from retuned.daemon.settings import Settings
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain import registry
from retuned.retrain.labels import open_requests
from retuned.retrain.lineage import lineage
from retuned.retrain.metrics import Metrics as RetrainMetrics


@contextmanager
def offline(settings: Settings) -> Iterator[Jobs]:
    """The jobs without a schedule, for one command.

    Raises:
        WarehouseError: a daemon that does not answer on http.port has the warehouse open.
    """
    warehouse = open_warehouse(settings.warehouse)
    try:
        registry.reconcile(warehouse, settings)
        publisher = KafkaPublisher(settings.kafka)
        try:
            metrics = CollectorRegistry()
            yield Jobs(
                warehouse,
                settings,
                publisher,
                Metrics(metrics),
                MonitorMetrics(metrics),
                RetrainMetrics(metrics),
                threading.Event(),
                lambda _: None,
                utc_now,
            )
        finally:
            publisher.close()
    finally:
        warehouse.close()


def letters(settings: Settings, limit: int, reason: str | None) -> list[dict[str, Any]]:
    """The newest dead letters, as the daemon answers them."""
    with closing(open_warehouse(settings.warehouse)) as warehouse:
        found: list[dict[str, Any]] = json.loads(as_json(dead_letters(warehouse, limit, reason)))
        return found


def labels(settings: Settings, workload: str | None) -> list[dict[str, Any]]:
    """The answers that experts are asked to judge, as the daemon answers them."""
    with closing(open_warehouse(settings.warehouse)) as warehouse:
        return open_requests(warehouse, workload)


def replay(settings: Settings) -> dict[str, int]:
    """See `retuned.consumers.ingest.Ingest.replay`."""
    with ingestion(settings) as ingest:
        return ingest.replay()


@contextmanager
def ingestion(settings: Settings) -> Iterator[Ingest]:
    """What writes events, without a broker to read them from. Raises as `offline` does."""
    with closing(open_warehouse(settings.warehouse)) as warehouse, closing(KafkaPublisher(settings.kafka)) as publisher:
        source = MemorySource(MemoryLog(), (), dict)
        yield Ingest(source, warehouse, settings, ConsumerMetrics(CollectorRegistry()), publisher)


def export(settings: Settings, wanted: Export) -> Iterator[bytes]:
    """See `retuned.daemon.exports.content`."""
    with closing(open_warehouse(settings.warehouse)) as warehouse:
        yield from content(wanted, warehouse, settings)


def lineage_of(settings: Settings, id: str) -> dict[str, Any]:
    """See `retuned.retrain.lineage.lineage`; as the daemon answers it."""
    with closing(open_warehouse(settings.warehouse)) as warehouse:
        found: dict[str, Any] = json.loads(as_json(lineage(warehouse, id)))
        return found
