"""How far ingestion falls behind in a cluster while a person is erased out of 200,000 interactions.

    python tests/benchmarks/run.py cluster.erasure

A broker, PostgreSQL, an S3 server, an ingester and two daemons. An app sends a steady stream. The lag of the ingester
is the age of the oldest event that is in no segment, that of a daemon the age of the oldest one that its API does not
count: an answer that waits for the swap of a warehouse counts with the time of its arrival.
"""

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import httpx
import yaml
from kafka import KafkaProducer

from fixtures.cluster.servers import S3_ENVIRONMENT, run_postgres, run_s3
from fixtures.daemon.daemons import Daemon, settings_for
from fixtures.kafka.brokers import run_tansu, until
from retuned.consumers.cluster.database import Database
from retuned.consumers.settings import StoreSettings

INTERACTIONS, USERS = 200_000, 3_000
EVENTS_PER_SECOND = 50
PHASE_SECONDS = 30.0
PHASES = ("before", "during", "after")
WORDS = [f"{random.Random(number).getrandbits(28):07x}" for number in range(20_011)]


class Stream:
    """An app that answers its users at a steady pace."""

    def __init__(self, servers: str, topic: str) -> None:
        self._producer, self._topic = KafkaProducer(bootstrap_servers=servers, linger_ms=5), topic
        self.sent = list[float]()

    def send(self) -> None:
        number = len(self.sent)
        drawn, now = random.Random(number), datetime.now(UTC)
        event = {
            "id": f"i{number}",
            "timestamp": now.isoformat(),
            "workload": "support",
            "model": "base",
            "messages": [{"role": "user", "content": " ".join(drawn.choices(WORDS, k=120))}],
            "response": "On its way.",
            "conversation_id": f"c{number % USERS}-{number // USERS // 5}",
            "user_id": f"u{number % USERS}",
        }
        self._producer.send(self._topic, json.dumps(event).encode())
        self.sent.append(now.timestamp())

    def fill(self) -> None:
        for _ in range(INTERACTIONS):
            self.send()
        self._producer.flush()

    def run(self, stop: threading.Event) -> None:
        began, before = time.monotonic(), len(self.sent)
        while not stop.wait(max(0.0, began + (len(self.sent) - before) / EVENTS_PER_SECOND - time.monotonic())):
            self.send()
        self._producer.close()

    def age(self, stored: int, now: float) -> float:
        """The age of the oldest event that is not among the first so many."""
        return max(0.0, now - self.sent[stored]) if stored < len(self.sent) else 0.0


class Lags:
    """What is asked again and again for how many events are stored."""

    def __init__(self, stream: Stream, stored: dict[str, Callable[[], int]]) -> None:
        self._stream, self._stop, self.phase = stream, threading.Event(), PHASES[0]
        self.found: dict[tuple[str, str], list[float]] = {}
        self._threads = [threading.Thread(target=self._ask, args=one) for one in stored.items()]

    def __enter__(self) -> "Lags":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str, stored: Callable[[], int]) -> None:
        while not self._stop.wait(0.25):
            phase = self.phase
            with suppress(httpx.HTTPError):
                self.found.setdefault((name, phase), []).append(self._stream.age(stored(), time.time()))


def main() -> dict[str, float]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker, postgres = stack.enter_context(run_tansu(folder)), stack.enter_context(run_postgres())
        storage = stack.enter_context(run_s3(folder))
        os.environ |= S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{storage.port}"}
        boto3.client("s3").create_bucket(Bucket="segments")
        url = postgres.create("erasure")
        settings = settings_for(
            broker,
            folder,
            policy={"enabled": False},
            schedule={},
            store={"kind": "cluster", "postgres_url": url, "objects_url": "s3://segments/x", "segment_seconds": 1.0},
            privacy={"user_key": "a key of at least sixteen characters"},
        )
        topics = [name for key, name in settings["kafka"].items() if key.endswith("_topic")]
        broker.create_topics(*topics)
        stack.callback(_ingester(folder, settings).kill)
        daemons = {}
        for name in ("leader", "other"):  # the first one that is up leads
            (folder / name).mkdir()
            paths = {"path": str(folder / name / "retuned.duckdb")}, {"directory": str(folder / name / "models")}
            daemons[name] = Daemon(folder / name, settings | {"warehouse": paths[0], "models": paths[1]})
            stack.callback(daemons[name].end)
            daemons[name].start()
            until(lambda: daemons["leader"].metric("retuned_leader") == 1.0, 60)
        stream = Stream(broker.bootstrap_servers, settings["kafka"]["interactions_topic"])
        stream.fill()
        for name, daemon in daemons.items():
            daemon.until(lambda daemon=daemon: _counted(daemon) == INTERACTIONS, f"all events at the {name}", 1_200)
        return _measured(stream, daemons, StoreSettings(postgres_url=url))  # type: ignore[arg-type]


def _measured(stream: Stream, daemons: dict[str, Daemon], store: StoreSettings) -> dict[str, float]:
    leader, other = daemons.values()
    database, stop = Database(store), threading.Event()
    sending = threading.Thread(target=stream.run, args=(stop,))
    sending.start()
    stored: dict[str, Callable[[], int]] = {"ingester": lambda: sum(database.offsets().values())}
    stored |= {name: lambda daemon=daemon: _counted(daemon) for name, daemon in daemons.items()}
    time.sleep(10)
    gone = INTERACTIONS // USERS + 1
    with Lags(stream, stored) as lags:
        time.sleep(PHASE_SECONDS)
        lags.phase, began = "during", time.monotonic()
        id = leader.post("/api/v1/erasures", user_id="u7", reason="benchmark").raise_for_status().json()["id"]
        done = leader.until(lambda: _erasure(leader, id), "the end of the erasure", 600)
        at_leader = time.monotonic() - began
        until(lambda: f"erasure {id}: applied here" in other.log.read_text(), 600)
        everywhere = time.monotonic() - began
        time.sleep(max(0.0, PHASE_SECONDS - everywhere))
        lags.phase = "after"
        time.sleep(PHASE_SECONDS)
    stop.set()
    sending.join()
    database.close()
    print(f"{done['rows']} rows, {len(done['segments'])} files of segments, {gone} expected", file=sys.stderr)
    found = {
        "cluster_erasure_seconds": at_leader,
        "cluster_erasure_everywhere_seconds": everywhere,
        "cluster_erasure_paused_seconds": done["warehouse"]["ingestion_paused_seconds"],
    }
    for name, phase in itertools.product(stored, PHASES):
        ages = lags.found[name, phase]
        found |= {
            f"cluster_erasure_{name}_lag_{phase}_seconds": statistics.median(ages),
            f"cluster_erasure_{name}_lag_{phase}_longest_seconds": max(ages),
        }
    return found


def _ingester(folder: Path, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    config = folder / "ingester.yaml"
    config.write_text(yaml.safe_dump({**settings, "http": {"port": 0}}))
    command = [sys.executable, "-m", "retuned.daemon.cli.main", "ingest", "--config", str(config)]
    with (folder / "ingester.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _counted(daemon: Daemon) -> int:
    return int(daemon.status()["ingestion"]["interactions"])


def _erasure(daemon: Daemon, id: str) -> dict[str, Any] | None:
    """The receipt; None: it is not done."""
    found = daemon.get(f"/api/v1/erasures/{id}").raise_for_status().json()
    return dict(found["receipt"]) if found["state"] == "done" else None
