"""How long a scrape of /metrics takes while the daemon takes in events as fast as it can, for many workloads."""

import json
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from confluent_kafka import Producer

sys.path.insert(0, str(Path(__file__).parents[1]))

from ingest import event
from pressure import stored

from fixtures.daemon.daemons import running, settings_for
from fixtures.kafka.brokers import Broker, run_tansu

EVENTS, WORKLOADS = 1_000_000, 40
PAUSE_SECONDS = 0.02
LEAST_SCRAPES = 200


def feed(broker: Broker, topic: str) -> None:
    """Events of about 1 KB, in turn of each workload."""
    made = [json.dumps(event(0) | {"workload": f"support.{n}", "model": f"support.{n}@1"}) for n in range(WORKLOADS)]
    halves = [one.split(f"{0:032x}") for one in made]
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "compression.type": "lz4", "linger.ms": 20})
    for number in range(EVENTS):
        before, after = halves[number % WORKLOADS]
        producer.produce(topic, f"{before}{number:032x}{after}".encode())
        while len(producer) > 50_000:
            producer.poll(0.05)
    producer.flush()


def main() -> dict[str, float]:
    """Takes about a minute on two cores."""
    with tempfile.TemporaryDirectory() as name, run_tansu(Path(name)) as broker:
        settings = settings_for(broker, Path(name), schedule={})
        topic = settings["kafka"]["interactions_topic"]
        broker.create_topics(topic, settings["kafka"]["feedback_topic"])
        feed(broker, topic)
        taken: list[float] = []
        with running(Path(name), settings) as daemon:
            daemon.until(lambda: stored(daemon, topic) > 0, "the first events")
            size = 0
            while stored(daemon, topic) < EVENTS:
                for _ in range(10):
                    began = time.perf_counter()
                    with urllib.request.urlopen(f"{daemon.url}/metrics", timeout=10) as answer:
                        size = len(answer.read())
                    taken.append(time.perf_counter() - began)
                    time.sleep(PAUSE_SECONDS)
    assert len(taken) >= LEAST_SCRAPES, f"only {len(taken)} scrapes while events came in"
    return {
        "scrape_p99_seconds": statistics.quantiles(taken, n=100)[98],
        "scrape_median_seconds": statistics.median(taken),
        "scrape_bytes": float(size),
    }


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
