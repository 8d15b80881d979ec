"""Commands while no daemon is running: the same jobs, on the warehouse opened by this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry

from retuned.consumers.kafka import KafkaPublisher
from retuned.consumers.warehouse import open_warehouse, utc_now
from retuned.daemon.jobs import Jobs
from retuned.daemon.metrics import Metrics
from retuned.daemon.settings import Settings
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain import registry
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
