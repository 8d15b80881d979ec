"""What can go wrong while events flow, and what is stored after it. `make chaos` does all of it, the tests a part."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
from brokers import Broker, Proxy, break_batch, first_offsets
from daemons import Daemon
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewPartitions

from retuned.daemon.backup.restore import choose, restore
from retuned.daemon.settings import load

DISK_BYTES = 256 * 2**20
DISK_LEFT_BYTES = 64 * 2**10
ENDING_SECONDS = 5.0
LOST = "retuned_events_lost_total"


@dataclass
class World:
    """What a fault can get at.

    Attributes:
        told: events that the broker no longer held, as the daemon's metric told before it was stopped.
    """

    broker: Broker
    proxy: Proxy | None
    daemon: Daemon
    topic: str
    flowing: Callable[[], bool]
    times: int = 0
    told: int = 0

    def every(self, seconds: float) -> Iterator[None]:
        """Again and again while events flow."""
        while self.flowing():
            time.sleep(seconds)
            self.times += 1
            yield

    def every_backlog(self, seconds: float) -> Iterator[int]:
        """The same with the daemon stopped, while there is something that it has not read; yields its next offset."""
        for _ in self.every(seconds):
            self.stop()
            time.sleep(0.5)
            next_offset = stored(self.daemon.warehouse).next_offset
            if first_offsets(self.broker, self.topic)[-1] <= next_offset:
                self.times -= 1
                self.daemon.start()
                return
            yield next_offset

    def stop(self) -> None:
        """As an operator does; the daemon must end by itself and say that all is well."""
        self.told += self.lost()
        assert self.daemon.stop(timeout_seconds=30) == 0, self.daemon.log.read_text()[-3000:]

    def lost(self) -> int:
        return int(self.daemon.metric(LOST, topic=self.topic) or 0)


@dataclass(frozen=True)
class Fault:
    """What happens, who sends meanwhile, and what has to be so before.

    Attributes:
        tansu: whether Tansu can take part: it is all memory, and knows no transactions.
        place: makes the folder of the warehouse.
        kafka: more settings.
    """

    name: str
    happen: Callable[[World], None]
    send: Callable[[Broker, str, int, float], None]
    tansu: bool = True
    place: Callable[[Path], AbstractContextManager[object]] = nullcontext
    kafka: dict[str, Any] = field(default_factory=dict)


# What happens


def nothing(_: World) -> None:
    """The producer alone is the fault."""


def daemon_killed(world: World) -> None:
    for turn, _ in enumerate(world.every(2.5)):
        world.daemon.stop(signal.SIGKILL)
        world.daemon.launch()
        time.sleep(0.5 * (turn % 3))  # at another moment of its life each time


def restored(world: World) -> None:
    """From a backup, after a kill in the midst of the next one; events came in between."""
    daemon, backups = world.daemon, world.daemon.folder / "backups"
    for _ in world.every(1.5):
        daemon.post("/api/v1/backup", folder=str(backups)).raise_for_status()
        time.sleep(1.0)
        with ThreadPoolExecutor() as thread:
            cut_off = thread.submit(daemon.post, "/api/v1/backup", folder=str(backups))
            time.sleep(0.05)
            daemon.stop(signal.SIGKILL)
            cut_off.exception()
        now = datetime.now(UTC).replace(tzinfo=None)
        restore(load(daemon.config), choose(backups, None), replace=True, now=now)
        daemon.start()


def second_daemon(world: World) -> None:
    """Of the same group, on a warehouse of its own: it gives way, whether it comes later or at the same moment."""
    folder = world.daemon.folder / "second"
    folder.mkdir()
    warehouse = {"path": str(folder / "data" / "retuned.duckdb")}
    second = Daemon(folder, {**world.daemon.settings, "warehouse": warehouse})
    for turn, _ in enumerate(world.every(1.0)):
        if turn % 2:
            world.daemon.stop(signal.SIGKILL)
            world.daemon.launch()
        second.launch()
        ended = first_to_end(world.daemon, second, seconds=40)
        assert turn % 2 or ended is second, "the daemon gave way to one that came later"
        advice = "run one daemon for each group: stop the other one, or set another kafka.group_id"
        assert_ended(ended, advice, status=3)
        if ended is world.daemon:
            second.stop()
            world.daemon.launch()
    if (folder / "data" / "retuned.duckdb").exists():
        rows = stored(folder / "data" / "retuned.duckdb")
        assert rows.rows == rows.distinct, "the second daemon doubled events in its own warehouse"


def broker_paused(world: World) -> None:
    """Longer than the session: the group forgets the daemon."""
    for _ in world.every(2.0):
        assert world.broker.process is not None
        world.broker.process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        world.broker.process.send_signal(signal.SIGCONT)


def connections_dropped(world: World) -> None:
    assert world.proxy is not None
    for _ in world.every(1.0):
        world.proxy.cut()


def broker_killed(world: World) -> None:
    time.sleep(3)
    world.times = 1
    world.broker.stop(signal.SIGKILL)
    world.broker.start()


def partitions_added(world: World) -> None:
    time.sleep(3)
    world.times = 1
    admin = KafkaAdminClient(bootstrap_servers=world.broker.bootstrap_servers)
    admin.create_partitions({world.topic: NewPartitions(4)})
    admin.close()


def disk_full(world: World) -> None:
    """The daemon ends, and says why. Once there is space again, it goes on."""
    ballast = world.daemon.warehouse.parent / "ballast"
    for _ in world.every(1.0):
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(2**16))
        os.truncate(ballast, max(0, ballast.stat().st_size - DISK_LEFT_BYTES))
        while world.daemon.runs() and world.flowing():
            time.sleep(0.1)
        ballast.unlink()
        deadline = time.monotonic() + ENDING_SECONDS  # what it could not write may have been a moment ago
        while world.daemon.runs() and time.monotonic() < deadline:
            time.sleep(0.1)
        if world.daemon.runs():
            world.times -= 1  # nothing more had to be written
            return
        assert_ended(world.daemon, "free disk space and start again")
        world.daemon.start()


def retention(world: World) -> None:
    """The broker deletes what the daemon has not read, while it is stopped."""
    partition = TopicPartition(world.topic, 0)
    for next_offset in world.every_backlog(1.0):
        consumer = KafkaConsumer(bootstrap_servers=world.broker.bootstrap_servers)
        end = consumer.end_offsets([partition])[partition]
        consumer.close()
        admin = KafkaAdminClient(bootstrap_servers=world.broker.bootstrap_servers)
        admin.delete_records({partition: end})
        admin.close()
        world.daemon.start()
        world.daemon.until(world.lost, "count of what was deleted")
        assert world.lost() == end - next_offset


def batch_broken(world: World) -> None:
    """On the broker's disk, before the daemon has read it."""
    for next_offset in world.every_backlog(1.0):
        offsets = first_offsets(world.broker, world.topic)
        number = next(number for number, offset in enumerate(offsets) if offset >= next_offset)
        first, following = break_batch(world.broker, world.topic, number, "checksum")
        world.daemon.start()
        world.daemon.until(world.lost, "count of what is broken")
        assert world.lost() == following - first
        assert world.daemon.metric("retuned_dead_letters_total", reason="unreadable") == 1


def dead_letter_topic_missing(world: World) -> None:
    failures = "retuned_dead_letter_publish_failures_total"
    world.times = int(world.daemon.until(lambda: world.daemon.metric(failures), "failed copy of a dead letter"))


# Who sends


def steadily(broker: Broker, topic: str, events: int, rate: float) -> None:
    """Acknowledged by the broker."""
    _send(broker, topic, map(event, range(events)), rate)


def twice_and_shuffled(broker: Broker, topic: str, events: int, rate: float) -> None:
    """Out of order, and one in four again soon after."""
    rng = random.Random(0)
    places = [(number + rng.uniform(0, 500), number) for number in range(events)]
    places += [(place + rng.uniform(0, 3_000), number) for place, number in places if rng.random() < 0.25]
    _send(broker, topic, (event(number) for _, number in sorted(places)), rate)


def with_bad_ones(broker: Broker, topic: str, events: int, rate: float) -> None:
    """One in ten is no event."""
    _send(broker, topic, (event(number) if number % 10 else b"no event" for number in range(events)), rate)


def in_transactions(broker: Broker, topic: str, events: int, rate: float) -> None:
    """Of 100 events each, and after every third one that is aborted."""
    producer = _producer(broker, transactional_id=topic)
    producer.init_transactions()
    began = time.monotonic()
    for turn, first in enumerate(range(0, events, 100)):
        producer.begin_transaction()
        for number in range(first, min(first + 100, events)):
            producer.send(topic, event(number))
        producer.commit_transaction()
        if turn % 3 == 2:
            producer.begin_transaction()
            for number in range(100):
                producer.send(topic, event(events + first + number))
            producer.flush()
            producer.abort_transaction()
        time.sleep(max(0.0, began + first / rate - time.monotonic()))
    producer.close()


def _producer(broker: Broker, **options: Any) -> KafkaProducer:
    return KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=5, acks="all", delivery_timeout_ms=120_000,
        metadata_max_age_ms=1_000, **options,
    )  # fmt: skip


def _send(broker: Broker, topic: str, messages: Iterator[bytes], rate: float) -> None:
    producer = _producer(broker)
    began = time.monotonic()
    for place, message in enumerate(messages):
        producer.send(topic, message)
        if place % 100 == 0:
            time.sleep(max(0.0, began + place / rate - time.monotonic()))
    producer.flush(timeout=180)
    producer.close()


def event(number: int) -> bytes:
    return json.dumps(
        {
            "id": f"e{number}",
            "timestamp": "2026-11-24T09:30:00Z",
            "workload": "support.refunds",
            "model": "base",
            "messages": [{"role": "user", "content": f"Where is my parcel, order A-{number}?"}],
            "response": "On its way.",
            "user_id": f"u{number % 100}",
        }
    ).encode()


# What is stored


@dataclass(frozen=True)
class Stored:
    """Rows with distinct ids, dead letters for single messages, and where the offset of the first partition stands."""

    rows: int
    distinct: int
    letters: int
    next_offset: int


def stored(warehouse: Path, sent: int | None = None) -> Stored:
    """What a daemon that is stopped has stored; `distinct` are ids of the first so many events alone."""
    with duckdb.connect(str(warehouse)) as connection:
        row = connection.execute(
            """
            SELECT
                (SELECT count(*) FROM interactions),
                (SELECT count(DISTINCT id) FROM interactions WHERE id[2:]::BIGINT < coalesce(?, id[2:]::BIGINT + 1)),
                (SELECT count(DISTINCT ("partition", "offset")) FROM dead_letters WHERE reason <> 'unreadable'),
                (SELECT coalesce(max(next_offset), 0) FROM offsets WHERE "partition" = 0 AND topic IN
                    (SELECT topic FROM interactions))
            """,
            [sent],
        ).fetchone()
    assert row is not None
    return Stored(*row)


def first_to_end(*daemons: Daemon, seconds: float) -> Daemon:
    """The one that ends by itself."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for daemon in daemons:
            if not daemon.runs():
                return daemon
        time.sleep(0.1)
    raise AssertionError(f"no daemon ended by itself: {daemons[-1].log.read_text()[-3000:]}")


def assert_ended(daemon: Daemon, text: str, status: int = 1) -> None:
    """It ended with an error, and the last thing that it said is what to do."""
    assert daemon.process is not None
    last = daemon.log.read_text().strip().splitlines()[-1]
    assert daemon.process.returncode == status, last
    assert last.startswith("retuned: "), last
    assert text in last, last


def no_small_disk() -> str | None:
    """Why a small file system cannot be mounted here, or None."""
    if sys.platform != "linux":
        return "mounting a small disk needs Linux and root"
    done = subprocess.run(["mount", "--fake", "-t", "tmpfs", "none", "/mnt"], capture_output=True, text=True)
    return f"mounting a small disk needs root ({done.stderr.strip()})" if done.returncode else None


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("daemon killed", daemon_killed, steadily),
        Fault("killed in a backup and restored", restored, steadily),
        # A group of Tansu's may never come to an assignment when both members have left at once.
        Fault("second daemon in the group", second_daemon, steadily, tansu=False),
        Fault("broker paused", broker_paused, steadily),
        Fault("connections dropped", connections_dropped, steadily),
        Fault("sent twice and shuffled", nothing, twice_and_shuffled),
        Fault("sent twice, daemon killed", daemon_killed, twice_and_shuffled),
        Fault("disk full", disk_full, steadily, place=small_disk),
        Fault("broker killed", broker_killed, steadily, tansu=False),
        Fault("partitions added", partitions_added, steadily, tansu=False),
        Fault("deleted before it was read", retention, steadily, tansu=False),
        Fault("batch broken on the broker", batch_broken, steadily, tansu=False),
        Fault("transactions, some aborted", nothing, in_transactions, tansu=False),
        Fault("transactions, daemon killed", daemon_killed, in_transactions, tansu=False),
        Fault(
            "dead-letter topic missing", dead_letter_topic_missing, with_bad_ones, tansu=False,
            kafka={"dead_letter_topic": "missing"},
        ),
    )
}  # fmt: skip

_numbers = itertools.count()


def survive(
    fault: Fault, broker: Broker, folder: Path, events: int, seconds: float, proxy: Proxy | None = None
) -> dict[str, int]:
    """Let a fault happen while so many events come in so many seconds; its row of the table.

    `lost` is what is neither stored, nor a dead letter, nor told as no longer on the broker; `doubled` is what is
    stored too often, or though it was aborted.
    """
    name = f"chaos-{next(_numbers)}"
    topic = f"{name}.interactions"
    broker.create_topics(topic, f"{name}.feedback")
    data = folder / "data"
    data.mkdir()
    kafka = {
        "bootstrap_servers": f"127.0.0.1:{proxy.port}" if proxy else broker.bootstrap_servers,
        "group_id": name,
        "interactions_topic": topic,
        "feedback_topic": f"{name}.feedback",
        "session_timeout_seconds": 2.0,
    }
    settings = {
        "kafka": {**kafka, **fault.kafka},
        "ingest": {"batch_events": 1_000, "batch_seconds": 0.1},
        "warehouse": {"path": str(data / "retuned.duckdb")},
        "models": {"directory": str(folder / "models")},
    }
    with fault.place(data):
        daemon = Daemon(folder, settings)
        try:
            daemon.start()
            sending = threading.Thread(target=fault.send, args=(broker, topic, events, events / seconds))
            sending.start()
            world = World(broker, proxy, daemon, topic, sending.is_alive)
            try:
                fault.happen(world)
            finally:
                sending.join()
            settle(world, events)
            world.stop()
            found = stored(daemon.warehouse, events)
        finally:
            daemon.end()
    return {
        "times": world.times,
        "sent": events,
        "stored": found.rows + found.letters,
        "told": world.told,
        "lost": events - found.distinct - found.letters - world.told,
        "doubled": found.rows - found.distinct,
    }


def settle(world: World, events: int) -> None:
    """Until everything is there, and a little longer, or until nothing more comes."""
    world.daemon.until(lambda: world.daemon.answers("/readyz"), "ready")
    best, since = -1, time.monotonic()
    while best < events and time.monotonic() - since < 30:
        ingestion = world.daemon.status()["ingestion"]
        seen = ingestion["interactions"] + ingestion["dead_letters"] + world.told + world.lost()
        if seen > best:
            best, since = seen, time.monotonic()
        time.sleep(0.2)
    time.sleep(2)
