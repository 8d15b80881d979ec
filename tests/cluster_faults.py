"""What can go wrong in a cluster while events flow, and what its segments hold afterwards."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pyarrow.parquet as pq
import yaml
from brokers import Broker, Proxy, free_port, until
from clusters import S3_ENVIRONMENT, Postgres
from daemons import Daemon
from faults import event, stored
from kafka import KafkaProducer

from retuned.consumers.cluster.artifacts import PREFIX
from retuned.consumers.cluster.database import Database
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.cluster.sweep import sweep
from retuned.consumers.settings import StoreSettings

PARTITIONS = 6
SESSION_SECONDS = 2.0
_numbers = itertools.count()


class Ingesters:
    """`retuned ingest`, several times, before one broker, one database and one bucket."""

    def __init__(self, folder: Path, broker: Broker, postgres: Postgres, s3: Broker, count: int) -> None:
        name = f"cluster-{next(_numbers)}"
        self.folder, self.broker, self.postgres = folder, broker, postgres
        self.topic, self.group, self.log = f"{name}.interactions", name, folder / "ingesters.log"
        broker.create_topics(self.topic, f"{name}.feedback", partitions=PARTITIONS)
        self.url = postgres.create(name)
        self.s3 = Proxy(s3.port)
        self.environment = S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.s3.port}"}
        httpx.put(f"http://127.0.0.1:{s3.port}/{name}").raise_for_status()
        settings = {
            "kafka": {
                "bootstrap_servers": broker.bootstrap_servers,
                "group_id": name,
                "interactions_topic": self.topic,
                "feedback_topic": f"{name}.feedback",
                "session_timeout_seconds": SESSION_SECONDS,
            },
            "ingest": {"batch_events": 1_000, "batch_seconds": 0.1},
            "privacy": {"user_key": "a key of at least sixteen characters"},
            "store": {"postgres_url": self.url, "objects_url": f"s3://{name}", "segment_seconds": 0.2},
            "http": {"port": 0},
        }
        (folder / "daemon").mkdir()
        warehouse = {"path": str(folder / "daemon" / "retuned.duckdb")}
        store = settings["store"] | {"kind": "cluster"}
        of_daemon = settings | {"warehouse": warehouse, "store": store, "models": {"directory": str(folder / "models")}}
        self.daemon = Daemon(folder / "daemon", {**of_daemon, "http": {}})
        self.config = folder / "retuned.yaml"
        self.config.write_text(yaml.safe_dump(settings))
        self.store = StoreSettings(**settings["store"])
        self.objects = Objects(self.store)
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * count

    def start(self, number: int) -> None:
        with self.log.open("ab") as log:
            self.processes[number] = subprocess.Popen(
                [sys.executable, "-m", "retuned.daemon.cli.main", "ingest", "--config", str(self.config)],
                stdout=log,
                stderr=log,
                env=os.environ | self.environment,
            )

    def kill(self, number: int) -> None:
        process = self.processes[number]
        assert process is not None
        process.kill()
        process.wait()
        self.processes[number] = None

    def end(self) -> None:
        for number, process in enumerate(self.processes):
            if process is not None:
                self.kill(number)
        self.daemon.end()
        self.s3.close()

    def stop(self) -> None:
        """As an operator does; each must end by itself and say that all is well."""
        for process in self.processes:
            assert process is not None
            process.terminate()
        for process in self.processes:
            assert process is not None
            assert process.wait(30) == 0, self.log.read_text()[-3000:]

    def query(self, sql: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql.encode()).fetchall()

    def recorded(self) -> int:
        """Events in segments, as the database has them."""
        try:
            return int(self.query("SELECT coalesce(sum(rows), 0) FROM retuned.segment_files")[0][0])
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return 0

    def rows(self) -> list[tuple[str, str, int, int]]:
        """Id and place of each event in the segments, in their order."""
        found: list[tuple[str, str, int, int]] = []
        for (key,) in self.query("SELECT key FROM retuned.segment_files ORDER BY number"):
            columns = pq.read_table(
                BytesIO(self.objects.get(key)), columns=["id", "topic", "partition", "offset"]
            ).to_pydict()
            found += zip(*columns.values(), strict=True)
        return found

    def files(self) -> set[str]:
        """All but artifacts: at the start of a month, the daemon stores a report."""
        return {key for page in self.objects.list("") for key in page if not key.startswith(PREFIX)}


# What happens, to a cluster and one of its ingesters


def killed(cluster: Ingesters, number: int) -> None:
    cluster.kill(number)
    cluster.start(number)


def frozen(cluster: Ingesters, number: int) -> None:
    """For longer than its session: others get its partitions, then it wakes up with a batch in hand."""
    process = cluster.processes[number]
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    time.sleep(SESSION_SECONDS + 1.5)
    process.send_signal(signal.SIGCONT)


def daemon_killed(cluster: Ingesters, _: int) -> None:
    cluster.daemon.stop(signal.SIGKILL)
    cluster.daemon.launch()


def database_killed(cluster: Ingesters, _: int) -> None:
    cluster.postgres.stop(signal.SIGKILL)
    time.sleep(0.5)
    cluster.postgres.start()


def storage_cut(cluster: Ingesters, _: int) -> None:
    """Requests under way end without an answer, and for a second none is taken."""
    target, cluster.s3.target = cluster.s3.target, free_port()
    cluster.s3.cut()
    time.sleep(1.0)
    cluster.s3.target = target


FAULTS: dict[str, Callable[[Ingesters, int], None]] = {
    "killed": killed,
    "frozen": frozen,
    "daemon killed": daemon_killed,
    "database killed": database_killed,
    "storage cut": storage_cut,
}


def survive(
    faults: list[str], broker: Broker, postgres: Postgres, s3: Broker, folder: Path, events: int, times: int, count: int
) -> dict[str, int]:
    """Let faults happen, one after the other and to one ingester after the other, while events come; what is left.

    `left` are files that are in no segment once all is swept.
    """
    cluster = Ingesters(folder, broker, postgres, s3, count)
    chance = random.Random(0)
    done, happened = threading.Event(), Counter[str]()

    def send() -> None:
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all")
        for number in range(events):
            producer.send(cluster.topic, event(number), partition=number % PARTITIONS)
            if number % 200 == 0:
                producer.flush()
                # Events go on as long as faults do: the last ones come when all have happened.
                while number / events > (happened.total() + 1) / (times + 1):
                    time.sleep(0.05)
        producer.close()
        done.set()

    sending = threading.Thread(target=send)
    try:
        for number in range(count):
            cluster.start(number)
        cluster.daemon.launch()
        until(lambda: _begun(cluster) == count, 240)
        sending.start()
        for turn in range(times):
            time.sleep(chance.uniform(0.5, 1.5))
            name = faults[turn % len(faults)]
            FAULTS[name](cluster, turn % count)
            happened[name] += 1
        sending.join(240)
        until(lambda: cluster.recorded() >= events, 240)
        until(lambda: _begun(cluster) == count + happened["killed"], 240)
        time.sleep(SESSION_SECONDS)
        cluster.stop()
        cluster.daemon.until(
            lambda: (
                cluster.daemon.answers("/readyz") and cluster.daemon.status()["ingestion"]["interactions"] >= events
            ),
            "all events",
        )
        assert cluster.daemon.stop() == 0
        followed = stored(cluster.daemon.warehouse)
        found = cluster.rows()
        database = Database(cluster.store)
        topics = (cluster.topic, cluster.topic.replace("interactions", "feedback"))
        database.claim([(topic, partition) for topic in topics for partition in range(PARTITIONS)])  # all have ended
        swept = sweep(database, cluster.objects)
        database.close()
        recorded = {key for (key,) in cluster.query("SELECT key FROM retuned.segment_files")}
        left = len(cluster.files() - recorded)
        missing = len(recorded - cluster.files())
    finally:
        cluster.end()
    ids = Counter(id for id, _, _, _ in found)
    return {
        **happened,
        "sent": events,
        "stored": len(found),
        "lost": events - len(ids) + missing,
        "doubled": len(found) - len(ids),
        "followed": followed.rows,
        "followed doubled": followed.rows - followed.distinct,
        "swept": swept,
        "left": left,
    }


def _begun(cluster: Ingesters) -> int:
    return cluster.log.read_text().count("health and metrics on")
