"""What one event, one segment and one workload cost: the unit costs that docs/capacity.md counts with.

    python tests/benchmarks/run.py capacity              all of them; half an hour on two cores
    python tests/benchmarks/run.py capacity.events       one part: events, names, segments, workloads

`events`: answers of about 1 KB, the words of ordinary texts in random order so that no two are alike for a compression,
go from a broker (Tansu) through a daemon without a cluster, and through an ingester (PostgreSQL, an S3 server in a
process of its own) and a follower: CPU of the process that does it, of PostgreSQL, and bytes of each form. `names`: an
ingester that looks for names of people too, where the extra is installed. `segments`: how fast PostgreSQL records them,
with every commit on the disk. `workloads`: the jobs of a minute in which nothing came in, by the number of workloads.

CPU is that of all threads of a process, so that a busy machine changes it little; rates are the machine's.
"""

import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from kafka import KafkaProducer
from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).parents[1]))

import months
from ingest import ORDINARY, event

from fixtures.cluster.servers import S3_ENVIRONMENT, Postgres, run_postgres, run_s3
from fixtures.kafka.brokers import Broker, run_tansu
from retuned.consumers.cluster.database import Database, File, Move
from retuned.consumers.cluster.follower import Follower, followed
from retuned.consumers.cluster.ingester import Ingester
from retuned.consumers.cluster.metrics import Metrics as SegmentMetrics
from retuned.consumers.cluster.metrics import store_up
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.cluster.source import SegmentSource
from retuned.consumers.errors import ConfigurationError, Reassigned
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.source import KafkaSource
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import (
    IngestSettings,
    KafkaSettings,
    PrivacySettings,
    Settings,
    StoreSettings,
    WarehouseSettings,
)
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.writer import stored_offsets
from retuned.daemon.process import tune_interpreter

EVENTS, NAMED_EVENTS = 200_000, 1_000
RECORDED, AT_ONCE = 500, 8
WORKLOADS = (10, 50)
DAYS = 15
KEY = "a key of at least sixteen characters"


def main(part: str = "") -> dict[str, float]:
    """Each part in a process of its own, so that none has another's threads and memory."""
    parts = (part,) if part else tuple(PARTS)
    found: dict[str, float] = {}
    for name in parts:
        child = subprocess.run([sys.executable, __file__, name], check=True, stdout=subprocess.PIPE, text=True)
        found |= json.loads(child.stdout)
    return found


def events() -> dict[str, float]:
    """Of the daemon alone, an ingester, a follower."""
    tune_interpreter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(run_tansu(folder))
        postgres, store = _cluster(stack, folder)
        broker.create_topics("interactions", "feedback")
        size, on_kafka = _produce(broker, EVENTS)
        alone = _alone(folder, broker)
        cluster = _Cluster(folder, broker, store, postgres)
        made = cluster.ingest(EVENTS, PrivacySettings(user_key=KEY))
        unredacted = cluster.ingest(EVENTS, PrivacySettings(user_key=KEY, redact=False))
        followed = cluster.follow(folder, EVENTS)
    return {
        "capacity_event_bytes": size,
        "capacity_kafka_bytes": on_kafka,
        "capacity_daemon_microseconds": alone,
        "capacity_ingester_unredacted_microseconds": unredacted["microseconds"],
        **{f"capacity_ingester_{name}": value for name, value in made.items()},
        **{f"capacity_follower_{name}": value for name, value in followed.items()},
    }


def names() -> dict[str, float]:
    """Of an ingester that looks for names; nothing where the extra `names` is missing."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(run_tansu(folder))
        postgres, store = _cluster(stack, folder)
        broker.create_topics("interactions", "feedback")
        _produce(broker, NAMED_EVENTS)
        try:
            made = _Cluster(folder, broker, store, postgres).ingest(
                NAMED_EVENTS, PrivacySettings(user_key=KEY, names=True)
            )
        except ConfigurationError as error:
            print(f"names: left out ({error})", file=sys.stderr)
            return {}
    return {"capacity_ingester_names_microseconds": made["microseconds"]}


def segments() -> dict[str, float]:
    """Segments a second that one ingester records, and eight together; bytes of each in the database."""
    with run_postgres() as server:
        _execute(server.url(), "ALTER SYSTEM SET fsync = on", "SELECT pg_reload_conf()")
        url = server.create("segments")
        databases = [Database(StoreSettings(postgres_url=url)) for _ in range(AT_ONCE)]  # type: ignore[arg-type]
        epochs = {n: database.claim([("interactions", n)])["interactions", n] for n, database in enumerate(databases)}
        empty = _execute(url, "SELECT pg_database_size(current_database())")
        before = _cpu_of(server)
        began = time.perf_counter()
        _record(databases[0], 0, epochs[0], RECORDED)
        alone = RECORDED / (time.perf_counter() - began)
        threads = [
            threading.Thread(target=_record, args=(database, n, epochs[n], RECORDED, RECORDED if n == 0 else 0))
            for n, database in enumerate(databases)
        ]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        together = AT_ONCE * RECORDED / (time.perf_counter() - began)
        recorded = (AT_ONCE + 1) * RECORDED
        spent = _cpu_of(server) - before
        _execute(url, "CHECKPOINT")
        size = _execute(url, "SELECT pg_database_size(current_database())") - empty
        for database in databases:
            database.close()
    return {
        "capacity_segments_per_second_1": alone,
        "capacity_segments_per_second_8": together,
        "capacity_segment_postgres_microseconds": 1e6 * spent / recorded,
        "capacity_segment_postgres_bytes": size / recorded,
    }


def workloads() -> dict[str, float]:
    """Of the daemon's jobs; half a month is made, as by the benchmark `months`."""
    found = {}
    for count in WORKLOADS:
        months.WORKLOADS = count
        with tempfile.TemporaryDirectory() as name:
            year = months.Year(Path(name), (DAYS,))
            year.run(0, DAYS)
            command = [sys.executable, months.__file__, name, year.now.isoformat()]
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured = json.loads(child.stdout)
        found[f"capacity_{count}_workloads_idle_cpu_seconds"] = measured["idle_cpu_seconds"]
        found[f"capacity_{count}_workloads_memory_mib"] = measured["memory_mib"]
        found[f"capacity_{count}_workloads_scrape_seconds"] = measured["scrape_seconds"]
    return found


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "events": events,
    "names": names,
    "segments": segments,
    "workloads": workloads,
}


class _Cluster:
    """An ingester, then a follower, on the same topics."""

    def __init__(self, folder: Path, broker: Broker, store: StoreSettings, postgres: Postgres) -> None:
        self._folder, self._broker, self._store, self._postgres = folder, broker, store, postgres
        self._runs = 0

    def ingest(self, count: int, privacy: PrivacySettings) -> dict[str, float]:
        """Everything that is in the topics, into a database of its own."""
        self._runs += 1
        url = self._postgres.create(f"run{self._runs}")
        self._last = self._store.model_copy(update={"postgres_url": StoreSettings(postgres_url=url).postgres_url})
        settings = self._settings(privacy, count // 20)
        database, metrics = Database(settings.store), SegmentMetrics(CollectorRegistry())
        source = KafkaSource(settings.kafka, database.offsets, database.identities, shared=True)
        ingester = Ingester(source, database, Objects(settings.store), settings, Metrics(CollectorRegistry()), metrics)
        done = 0
        while not done:  # joining the group, and what is imported once
            with suppress(Reassigned):
                done = ingester.step()
        first, cpu, of_postgres = done, time.process_time(), _cpu_of(self._postgres)
        while done < count:
            done += ingester.step()
        spent = time.process_time() - cpu
        of_postgres = _cpu_of(self._postgres) - of_postgres
        source.close()
        database.close()
        rows, size, segments = _rows(
            url, "SELECT sum(rows), sum(bytes), count(DISTINCT number) FROM retuned.segment_files"
        )[0]
        return {
            "microseconds": 1e6 * spent / (done - first),
            "postgres_microseconds": 1e6 * of_postgres / (done - first),
            "parquet_bytes": float(size / rows),
            "events_per_segment": float(rows / segments),
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    def follow(self, folder: Path, count: int) -> dict[str, float]:
        """The segments of the last run, into a new warehouse."""
        settings = self._settings(PrivacySettings(user_key=KEY))
        with closing(open_warehouse(WarehouseSettings(path=folder / "followed.duckdb"))) as warehouse:
            registry = CollectorRegistry()
            source = SegmentSource(
                Database(settings.store), Objects(settings.store), settings.kafka.topics, lambda: followed(warehouse)
            )
            follower = Follower(source, warehouse, settings, Metrics(registry), store_up(registry))
            cpu, began = time.process_time(), time.perf_counter()
            while not (follower.caught_up and follower.events_seen >= count):
                follower.step()
            spent, took = time.process_time() - cpu, time.perf_counter() - began
            warehouse.checkpoint()
            held = warehouse.row("SELECT count(*) AS n FROM interactions")
            assert held == {"n": count}, held
            size = warehouse.size().used
            source.close()
        return {
            "microseconds": 1e6 * spent / count,
            "events_per_second": count / took,
            "duckdb_bytes": size / count,
        }

    def _settings(self, privacy: PrivacySettings, batch_events: int = 10_240) -> Settings:
        return Settings(
            kafka=KafkaSettings(
                bootstrap_servers=self._broker.bootstrap_servers, group_id=f"run{self._runs}", session_timeout_seconds=2
            ),
            ingest=IngestSettings(batch_events=batch_events),
            privacy=privacy,
            store=self._last,
        )


def _cluster(stack: ExitStack, folder: Path) -> tuple[Postgres, StoreSettings]:
    postgres, s3 = stack.enter_context(run_postgres()), stack.enter_context(run_s3(folder))
    os.environ.update(S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.port}"})
    httpx.put(f"http://127.0.0.1:{s3.port}/capacity").raise_for_status()
    return postgres, StoreSettings(kind="cluster", objects_url="s3://capacity/store")


def _produce(broker: Broker, count: int) -> tuple[float, float]:
    """Mean bytes of an event, as JSON and in the producer's batches (lz4)."""
    luck = random.Random(0)
    words = re.findall(r"\b[a-z]+\b", ORDINARY.read_text(encoding="utf-8"))
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, compression_type="lz4", linger_ms=20, batch_size=2**18
    )
    size = 0
    for number in range(count):
        made = event(number)
        made["timestamp"] = datetime.now(UTC).isoformat()
        made["messages"][1]["content"] = " ".join(luck.choices(words, k=40))
        made["response"] = " ".join(luck.choices(words, k=60))
        value = json.dumps(made).encode()
        size += len(value)
        producer.send("interactions", value)
    producer.flush()
    ratio = producer.metrics()["producer-metrics"]["compression-rate-avg"]
    producer.close()
    return size / count, size / count * ratio


def _alone(folder: Path, broker: Broker) -> float:
    """CPU microseconds of an event in a daemon without a cluster."""
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers=broker.bootstrap_servers, group_id="alone", session_timeout_seconds=2),
        privacy=PrivacySettings(user_key=KEY),
        warehouse=WarehouseSettings(path=folder / "alone.duckdb"),
    )
    with closing(open_warehouse(settings.warehouse)) as warehouse:
        source = KafkaSource(settings.kafka, lambda: stored_offsets(warehouse))
        loop = Ingest(source, warehouse, settings, Metrics(CollectorRegistry()))
        while not loop.events_seen:
            loop.step()
        first, cpu = loop.events_seen, time.process_time()
        while loop.events_seen < EVENTS:
            loop.step()
        spent = time.process_time() - cpu
        source.close()
    return 1e6 * spent / (EVENTS - first)


def _record(database: Database, partition: int, epoch: int, count: int, start: int = 0) -> None:
    """Segments of one partition, each of three files."""
    for number in range(start, start + count):
        move = Move(
            "interactions", partition, epoch, number * 10_000 if number else None, (number + 1) * 10_000, "c", "t"
        )
        files = [
            File(
                f"{table}/day=2026-11-24/interactions-{partition}-{epoch}-{number}-{'0' * 16}.parquet",
                table,
                10_000,
                3_000_000,
                "0" * 64,
            )
            for table in ("interactions", "feedback", "dead_letters")
        ]
        counted = {"messages": {"interactions": 10_000}, "passed_over": {}, "redactions": {"email": 9}, "duplicates": 0}
        database.record([move], files, datetime.now(UTC).replace(tzinfo=None), counted)


def _execute(url: str, *statements: str) -> Any:
    """The first value that the last statement returns, if any."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        found = cursor.fetchone() if cursor.description else None
        return found[0] if found else None


def _rows(url: str, statement: str) -> list[Any]:
    import psycopg

    with psycopg.connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


def _cpu_of(server: Broker) -> float:
    """CPU seconds of a server and its children, those that have ended too."""
    assert server.process is not None
    tick, root = os.sysconf("SC_CLK_TCK"), server.process.pid
    spent = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = file.read_text().rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        pid, parent = int(name.split(" ")[0]), int(fields[1])
        if pid == root:
            spent += sum(map(int, fields[11:15]))
        elif parent == root:
            spent += sum(map(int, fields[11:13]))
    return spent / tick


if __name__ == "__main__":
    json.dump(PARTS[sys.argv[1]](), sys.stdout, indent=2)
    print()
