"""How much more of them ingest: events a second of two and of four ingesters, to those of one.

Names of people are redacted, which is a matter of processors alone; each process has one thread for it. So on a machine
with two processors two of them are the bound, less what the broker, the database and the storage take.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import yaml
from ingest import event
from kafka import KafkaProducer

from fixtures.cluster.servers import run_postgres
from fixtures.kafka.brokers import Broker, run_tansu, until

COUNTS = (1, 2, 4)
EVENTS = 1_500  # for each processor
PARTITIONS = 4
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def main() -> dict[str, float]:
    """Nothing where the extra `names` is missing."""
    try:
        import spacy  # noqa: F401
    except ModuleNotFoundError:
        print("cluster.ingesters: left out: the extra names is not installed", file=sys.stderr)
        return {}
    rates = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker, postgres = stack.enter_context(run_tansu(folder)), stack.enter_context(run_postgres())
        for count in COUNTS:
            rates[count] = _rate(folder / str(count), broker, postgres.create(f"of{count}"), count)
            print(f"{count} ingesters: {rates[count]:.0f} events a second", file=sys.stderr, flush=True)
    return {
        "cluster_ratio_2": rates[2] / rates[1],
        "cluster_ratio_4": rates[4] / rates[1],
        "cluster_names_events_per_second": rates[1],
        "cluster_processors": float(os.cpu_count() or 0),
    }


def _rate(folder: Path, broker: Broker, url: str, count: int) -> float:
    """Events a second of so many ingesters, from the first segment to the last one, while all have something to do."""
    folder.mkdir()
    name = f"of{count}"
    topics = {"interactions_topic": f"{name}.interactions", "feedback_topic": f"{name}.feedback"}
    broker.create_topics(*topics.values(), partitions=PARTITIONS)
    settings: dict[str, Any] = {
        "kafka": {"bootstrap_servers": broker.bootstrap_servers, "group_id": name, **topics},
        "ingest": {"batch_events": 50, "batch_seconds": 0.1},
        "privacy": {"user_key": "a key of at least sixteen characters", "names": True},
        "store": {"postgres_url": url, "objects_url": (folder / "objects").as_uri(), "segment_seconds": 1.0},
        "http": {"port": 0},
    }
    config, log = folder / "retuned.yaml", folder / "log"
    config.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "retuned.daemon.cli.main", "ingest", "--config", str(config)]
    total = EVENTS * min(count, os.cpu_count() or 1)
    with log.open("ab") as opened:
        processes = [
            subprocess.Popen(command, stdout=opened, stderr=opened, env=os.environ | ONE_THREAD) for _ in range(count)
        ]
    try:
        until(lambda: log.read_text().count("health and metrics on") == count, 240)
        _produce(broker, topics["interactions_topic"], PARTITIONS)  # what is imported once, and the group
        until(lambda: _recorded(url) == PARTITIONS, 240)
        time.sleep(5)
        _produce(broker, topics["interactions_topic"], total, first=PARTITIONS)
        until(lambda: _recorded(url) > PARTITIONS, 240)
        begun, began = _recorded(url), time.monotonic()
        until(lambda: _recorded(url) >= PARTITIONS + 0.9 * total, 900)
        return (_recorded(url) - begun) / (time.monotonic() - began)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _produce(broker: Broker, topic: str, count: int, first: int = 0) -> None:
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for number in range(first, first + count):
        producer.send(topic, json.dumps(event(number)).encode(), partition=number % PARTITIONS)
    producer.close()


def _recorded(url: str) -> int:
    try:
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT coalesce(sum(rows), 0) FROM retuned.segment_files").fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return 0
    return int(found[0]) if found else 0
