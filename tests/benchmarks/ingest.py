"""Ingestion against the raw poll of kafka-python on the same topic, and against one INSERT per event; on Tansu."""

import contextlib
import json
import random
import re
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from prometheus_client import CollectorRegistry

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.kafka.brokers import Broker, run_tansu
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.memory import MemoryLog, MemorySource
from retuned.consumers.kafka.source import MOST_PARTITION_BYTES, KafkaSource
from retuned.consumers.metrics import Metrics
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.settings import IngestSettings, KafkaSettings, PrivacySettings, Settings, WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.writer import stored_offsets
from retuned.daemon.process import tune_interpreter

NOW = "2026-11-24 12:00:00"
GROWTH_BATCHES = 15
STALL_BATCHES = 250
ORDINARY = Path(__file__).parents[1] / "data" / "ordinary_texts.jsonl"
STORED = """
INSERT INTO interactions
SELECT
    'old' || (n + $from), $last::TIMESTAMP - to_milliseconds(n), 'support.refunds', 'base',
    '[{"role": "user", "content": "Where is my parcel, order ' || n || '?"}]', 'On its way.', NULL, 'c' || n, NULL,
    0.8, NULL, 132, 64, 0.0004, 'stop', NULL, 'old', 0, n, $last::TIMESTAMP, NULL
FROM range($rows) AS numbers(n)
"""
EVENTS, NAIVE_EVENTS, ROUNDS = 200_000, 1_500, 5
TOPIC = "interactions"


def event(number: int) -> dict[str, Any]:
    """About 1 KB, as a support assistant would publish it; ids never repeat, and nothing is to be redacted."""
    return {
        "id": f"{number:032x}",
        "timestamp": f"2026-11-24T09:{number // 60 % 60:02d}:{number % 60:02d}.123Z",
        "workload": "support.refunds",
        "model": "support.refunds@3f2a91c0",
        "messages": [
            {"role": "system", "content": "You are the assistant of a shop that sells jackets and shoes. Be brief."},
            {
                "role": "user",
                "content": f"I would like to return the blue jacket that I bought last week, order A-{number % 9000}. "
                "The zip broke after three days. Can I get a refund, and who pays for the parcel?",
            },
        ],
        "response": "You can return it within 30 days of delivery. We pay for the parcel when an item is faulty, and "
        "the money is back on your card in five working days. " * 2,
        "conversation_id": f"c{number // 3}",
        "user_id": f"u{number % 500}",
        "latency_seconds": 0.83,
        "input_tokens": 132,
        "output_tokens": 64,
        "cost": 0.0004,
        "finish_reason": "stop",
        "attributes": {"channel": "web"},
    }


def produce(broker: Broker) -> float:
    """Returns the mean size of an event in bytes."""
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, compression_type="lz4", linger_ms=20, batch_size=2**18
    )
    size = 0
    for number in range(EVENTS):
        value = json.dumps(event(number)).encode()
        size += len(value)
        producer.send(TOPIC, value)
    producer.flush()
    producer.close()
    return size / EVENTS


def raw_poll(broker: Broker) -> float:
    """Events per second of polling alone, with the fetch sizes that the source uses."""
    consumer = _consumer(broker)
    count, started = 0, time.perf_counter()
    while count < EVENTS:
        count += sum(len(records) for records in consumer.poll(500).values())
    rate = EVENTS / (time.perf_counter() - started)
    consumer.close()
    return rate


def ingest(broker: Broker, folder: Path, name: str) -> float:
    """Events per second of the whole way into a new warehouse, redaction and all, from the first batch on."""
    settings = Settings(
        kafka=KafkaSettings(bootstrap_servers=broker.bootstrap_servers, group_id=name, session_timeout_seconds=2),
        ingest=IngestSettings(batch_seconds=0.1),
        warehouse=WarehouseSettings(path=folder / f"{name}.duckdb"),
    )
    warehouse = open_warehouse(settings.warehouse)
    source = KafkaSource(settings.kafka, lambda: stored_offsets(warehouse))
    loop = Ingest(source, warehouse, settings, Metrics(CollectorRegistry()))
    while not loop.events_seen:  # joining the group is not what is measured
        loop.step()
    first, started = loop.events_seen, time.perf_counter()
    stop = threading.Event()
    thread = threading.Thread(target=loop.run, args=(stop,))
    thread.start()
    while loop.events_seen < EVENTS and thread.is_alive():
        time.sleep(0.01)  # waking up takes Python's lock from what is measured
    rate = (EVENTS - first) / (time.perf_counter() - started)
    stop.set()
    thread.join()
    stored = warehouse.row("SELECT count(DISTINCT id) AS n FROM interactions")
    assert stored == {"n": EVENTS}, stored
    source.close()
    warehouse.close()
    return rate


def naive(broker: Broker, folder: Path) -> float:
    """Events per second of a loop of one json.loads and one INSERT per event."""
    with duckdb.connect(str(folder / "naive.duckdb")) as connection:
        connection.execute("CREATE TABLE interactions (id VARCHAR, timestamp TIMESTAMP, workload VARCHAR, event JSON)")
        consumer = _consumer(broker)
        count, started = 0, time.perf_counter()
        while count < NAIVE_EVENTS:
            for records in consumer.poll(500, max_records=500).values():
                for record in records:
                    value = json.loads(record.value)
                    connection.execute(
                        "INSERT INTO interactions VALUES (?, ?, ?, ?)",
                        [value["id"], value["timestamp"].rstrip("Z"), value["workload"], json.dumps(value)],
                    )
                    count += 1
        rate = count / (time.perf_counter() - started)
        consumer.close()
    return rate


def redaction() -> float:
    """Texts per second, of about 300 characters, each with something to look at and nothing to find."""
    texts = [event(number)["response"] + f" See order A-{number}, 59.90 EUR, 24.12.2026." for number in range(5_000)]
    redactor = Redactor()
    started = time.perf_counter()
    for text in texts:
        redactor.text(text)
    return len(texts) / (time.perf_counter() - started)


def growth(folder: Path) -> dict[str, float]:
    """Seconds of a batch of 1,000 new events at 3 million stored rows over that at 100 thousand, from memory.

    A plain INSERT of the same rows into a table of the same size stands beside it, and `stalls` at the end. A month
    of events is stored, and then an hour of a thousand a second: what deduplication by a scan would have to look at.
    """
    log = MemoryLog()
    settings = Settings(
        ingest=IngestSettings(batch_events=1_000), warehouse=WarehouseSettings(path=folder / "g.duckdb")
    )
    with contextlib.closing(open_warehouse(settings.warehouse)) as warehouse:
        topics = settings.kafka.interactions_topic, settings.kafka.feedback_topic
        source = MemorySource(log, topics, lambda: stored_offsets(warehouse))
        template = event(0)
        seconds: dict[str, list[float]] = {}
        number = 0
        for rows in (100_000, 3_000_000):
            have = warehouse.row("SELECT count(*) AS n FROM interactions") or {}
            warehouse.execute(STORED, {"rows": rows - have["n"], "from": have["n"], "last": NOW})
            loop = Ingest(source, warehouse, settings, Metrics(CollectorRegistry()))
            for turn in range(GROWTH_BATCHES + 3):
                for _ in range(1_000):
                    number += 1
                    log.append(topics[0], json.dumps(template | {"id": f"n{number}", "timestamp": f"{NOW}Z"}).encode())
                began = time.perf_counter()
                loop.step()
                ours = time.perf_counter() - began
                with warehouse.cursor() as cursor:
                    newest = cursor.execute("FROM interactions WHERE id[1] = 'n' ORDER BY rowid DESC LIMIT 1000")
                    same = newest.to_arrow_table()
                began = time.perf_counter()
                with warehouse.transaction() as cursor:
                    cursor.register("same", same)
                    cursor.execute("INSERT INTO interactions SELECT * FROM same")
                if turn >= 3:  # the filter is loaded in the first
                    seconds.setdefault(f"batch {rows}", []).append(ours)
                    seconds.setdefault(f"plain {rows}", []).append(time.perf_counter() - began)
                warehouse.checkpoint()
        stalled = stalls(log, source, warehouse, settings)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "ingest_growth_3m_over_100k": median["batch 3000000"] / median["batch 100000"],
        "insert_growth_3m_over_100k": median["plain 3000000"] / median["plain 100000"],
        "ingest_batch_1k_seconds": median["batch 3000000"],
        **stalled,
    }


def stalls(log: MemoryLog, source: MemorySource, warehouse: Warehouse, settings: Settings) -> dict[str, float]:
    """Seconds of the longest of many batches of 1,000 events over the median, across several checkpoints.

    Texts are words of ordinary ones in any order, so that no two are alike for the compression; they are not redacted,
    which would take most of the time with such words.
    """
    unredacted = settings.model_copy(update={"privacy": PrivacySettings(redact=False)})
    loop = Ingest(source, warehouse, unredacted, Metrics(CollectorRegistry()))
    rng = random.Random(0)
    words = re.findall(r"\b[a-z]+\b", ORDINARY.read_text(encoding="utf-8"))
    template, seconds = event(0), []
    for batch in range(-3, STALL_BATCHES):
        for number in range(1_000):
            said = {"response": " ".join(rng.choices(words, k=80)), "id": f"s{batch}-{number}", "timestamp": f"{NOW}Z"}
            log.append(settings.kafka.interactions_topic, json.dumps(template | said).encode())
        began = time.perf_counter()
        loop.step()
        if batch >= 0:  # the filter is loaded in the first
            seconds.append(time.perf_counter() - began)
    return {
        "ingest_stall_ratio": max(seconds) / statistics.median(seconds),
        "ingest_longest_batch_seconds": max(seconds),
        "ingest_p99_batch_seconds": statistics.quantiles(seconds, n=100)[-1],
    }


def _consumer(broker: Broker) -> Any:
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap_servers,
        enable_auto_commit=False,
        max_poll_records=5_000,
        max_partition_fetch_bytes=MOST_PARTITION_BYTES,
    )
    partition = TopicPartition(TOPIC, 0)
    consumer.assign([partition])
    consumer.seek(partition, 0)
    return consumer


def main() -> dict[str, float]:
    """Rounds take turns and the best of each counts, so that a busy moment of the machine does not decide."""
    with tempfile.TemporaryDirectory() as name, run_tansu(Path(name)) as broker:
        folder = Path(name)
        broker.create_topics(TOPIC, "feedback")
        size = produce(broker)
        tune_interpreter()  # as the daemon does; it serves the raw poll as well
        raw, whole = [], []
        for number in range(ROUNDS):
            raw.append(raw_poll(broker))
            whole.append(ingest(broker, folder, f"ingest-{number}"))
        slow = naive(broker, folder)
        grown = growth(folder)
    return {
        "ingest_ratio_to_raw": max(whole) / max(raw),
        "ingest_ratio_to_naive": max(whole) / slow,
        "ingest_events_per_second": max(whole),
        "raw_poll_events_per_second": max(raw),
        "naive_events_per_second": slow,
        "ingest_event_bytes": size,
        "redaction_texts_per_second": redaction(),
        **grown,
    }


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
