"""The queries of the monitors on a warehouse that follows segments, beside those on one that reads Kafka itself.

Both store the same events from one log, in batches of one size. What quality measures of a window, and what drift reads
of two, is done in turns on both; the figure is the median of the ratios of a round.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ingest import event
from prometheus_client import CollectorRegistry

from fixtures.cluster.doubles import KEY, Cluster
from fixtures.cluster.servers import run_postgres
from retuned.consumers.cluster.follower import Follower, followed
from retuned.consumers.cluster.metrics import store_up
from retuned.consumers.cluster.source import SegmentSource
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.memory import MemorySource
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import PrivacySettings, WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.settings import Settings
from retuned.monitors.drift import check as drift
from retuned.monitors.drift.windows import windows
from retuned.monitors.quality import measure as quality

EVENTS, DAYS, ROUNDS = 120_000, 4, 7
WORKLOAD = "support.refunds"


def main() -> dict[str, float]:
    """Some two minutes."""
    with tempfile.TemporaryDirectory() as name, run_postgres() as server:
        folder = Path(name)
        cluster = Cluster(folder, server.create("queries"))
        _fill(cluster)
        with closing(_by_kafka(cluster, folder)) as alone, closing(_by_segments(cluster, folder)) as follower:
            counts = [one.row("SELECT count(*) AS n FROM interactions") for one in (alone, follower)]
            assert counts == [{"n": EVENTS}] * 2, counts
            now, found = utc_now(), dict[str, float]()
            for title, work in _queries(folder, now).items():
                ratios = []
                for number in range(ROUNDS):
                    pair = (alone, follower) if number % 2 else (follower, alone)
                    took = {id(one): _seconds(work, one) for one in pair}
                    ratios.append(took[id(follower)] / took[id(alone)])
                found[f"cluster_query_ratio_{title}"] = statistics.median(ratios)
        cluster.close()
    return found | {"cluster_query_ratio": max(found.values())}


def _queries(folder: Path, now: datetime) -> dict[str, Callable[[Warehouse], Any]]:
    settings = Settings().for_workload(WORKLOAD)

    def read_drift(warehouse: Warehouse) -> None:
        found = windows(warehouse, settings.windows, WORKLOAD, now)
        assert found is not None
        drift.write_features(warehouse, settings, found, now, folder / "features.parquet")

    def measure(warehouse: Warehouse) -> None:
        assert quality.measure(warehouse, settings, WORKLOAD, now)

    return {"drift": read_drift, "quality": measure}


def _fill(cluster: Cluster) -> None:
    """Answers of the last days, three to a conversation, 2% of them rated."""
    luck, end = random.Random(0), datetime.now(UTC)
    step = timedelta(days=DAYS) / EVENTS
    for number in range(EVENTS):
        at = (end - (EVENTS - number) * step).isoformat()
        cluster.send({**event(number), "timestamp": at})
        if luck.random() < 0.02:
            vote = {"id": f"f{number}", "interaction_id": f"{number:032x}", "name": "helpful"}
            cluster.send({**vote, "value": luck.random() < 0.8, "timestamp": at, "source": "user"})


def _by_kafka(cluster: Cluster, folder: Path) -> Warehouse:
    warehouse = open_warehouse(WarehouseSettings(path=folder / "alone.duckdb"))
    source = MemorySource(cluster.log, cluster.settings.kafka.topics, dict)
    privacy = PrivacySettings(user_key=KEY)  # type: ignore[arg-type]
    settings = cluster.settings.model_copy(update={"privacy": privacy})
    ingest = Ingest(source, warehouse, settings, Metrics(CollectorRegistry()))
    while ingest.step():
        pass
    warehouse.checkpoint()
    return warehouse


def _by_segments(cluster: Cluster, folder: Path) -> Warehouse:
    ingester = cluster.ingester()
    while ingester.step():
        pass
    warehouse, registry = open_warehouse(WarehouseSettings(path=folder / "follower.duckdb")), CollectorRegistry()
    source = SegmentSource(
        cluster.database(), cluster.objects, cluster.settings.kafka.topics, lambda: followed(warehouse)
    )
    follower = Follower(source, warehouse, cluster.settings, Metrics(registry), store_up(registry))
    while follower.step() or not follower.caught_up:
        pass
    warehouse.checkpoint()
    return warehouse


def _seconds(work: Callable[[Warehouse], Any], warehouse: Warehouse) -> float:
    began = time.process_time()
    work(warehouse)
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(str(main()))
