"""`make chaos`: what can go wrong while events flow, one fault after the other, and what is stored after each.

    chaos.py [--events 45000]

The daemon runs as a process of its own. Each row of build/chaos.json is a fault on a broker: how often it happened,
and events sent, stored, lost, doubled. On Tansu, and on Apache Kafka where KAFKA_HOME names a distribution. The exit
status is 1 when anything is lost or doubled.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewPartitions

sys.path.insert(0, str(Path(__file__).parents[1]))

from brokers import Broker, Proxy, no_apache_kafka, run_apache_kafka, run_tansu
from kill import CONFIGURATION, event

RESULT = Path(__file__).parents[2] / "build" / "chaos.json"
RATE = 3_000.0  # events per second
TOPIC = "interactions"
COLUMNS = ("times", "sent", "stored", "lost", "doubled")


class Daemon:
    """`retuned run`, which can be killed and started again."""

    def __init__(self, folder: Path, servers: str) -> None:
        self.folder, self.warehouse = folder, folder / "retuned.duckdb"
        self._log = folder / "daemon.log"
        configuration = folder / "retuned.yaml"
        configuration.write_text(CONFIGURATION.format(servers=servers, folder=folder))
        self._command = [str(Path(sys.executable).with_name("retuned")), "run", "--config", str(configuration)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """As an operator does; it must end by itself and say that all is well."""
        assert self._process is not None
        self._process.terminate()
        if self._process.wait(30):
            raise SystemExit(f"the daemon ended with an error:\n{self._log.read_text()[-3000:]}")


@dataclass
class World:
    """What a fault can get at."""

    broker: Broker
    proxy: Proxy
    daemon: Daemon
    flowing: Callable[[], bool]
    times: int = 0

    def every(self, seconds: float) -> Iterator[None]:
        """Again and again while events flow."""
        while self.flowing():
            time.sleep(seconds)
            self.times += 1
            yield


def daemon_killed(world: World) -> None:
    for turn, _ in enumerate(world.every(2.5)):
        world.daemon.kill()
        world.daemon.start()
        time.sleep(0.5 * (turn % 3))  # at another moment of its life each time


def broker_paused(world: World) -> None:
    """Longer than the session: the group forgets the daemon."""
    for _ in world.every(2.0):
        assert world.broker.process is not None
        world.broker.process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        world.broker.process.send_signal(signal.SIGCONT)


def connections_dropped(world: World) -> None:
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
    admin.create_partitions({TOPIC: NewPartitions(4)})
    admin.close()


def nothing(_: World) -> None:
    """The producer alone is the fault."""


# Name, what happens, whether the producer repeats and shuffles, whether Tansu can take part.
FAULTS = (
    ("daemon killed", daemon_killed, False, True),
    ("broker paused", broker_paused, False, True),
    ("connections dropped", connections_dropped, False, True),
    ("sent twice and shuffled", nothing, True, True),
    ("sent twice, daemon killed", daemon_killed, True, True),
    ("broker killed", broker_killed, False, False),  # Tansu loses its memory
    ("partitions added", partitions_added, False, False),
)


def send(broker: Broker, events: int, messy: bool) -> None:
    """Acknowledged by the broker. A messy producer sends out of order, and one in four again soon after."""
    numbers = list(range(events))
    if messy:
        rng = random.Random(0)
        places = [(number + rng.uniform(0, 500), number) for number in numbers]
        places += [(place + rng.uniform(0, 3_000), number) for place, number in places if rng.random() < 0.25]
        numbers = [number for _, number in sorted(places)]
    producer = KafkaProducer(
        bootstrap_servers=broker.bootstrap_servers, linger_ms=5, acks="all", delivery_timeout_ms=120_000,
        metadata_max_age_ms=1_000,
    )  # fmt: skip
    began = time.monotonic()
    for place, number in enumerate(numbers):
        producer.send(TOPIC, event(number))
        if place % 300 == 0:
            time.sleep(max(0.0, began + place / RATE - time.monotonic()))
    producer.flush(timeout=180)
    producer.close()


def stored(warehouse: Path) -> tuple[int, int]:
    """Rows, and distinct ids."""
    with duckdb.connect(str(warehouse)) as connection:
        row = connection.execute("SELECT count(*), count(DISTINCT id) FROM interactions").fetchone()
    assert row is not None
    return row


@contextmanager
def running(start: Callable[..., object], folder: Path) -> Iterator[tuple[Broker, Proxy]]:
    proxy = Proxy()
    with start(folder, behind=proxy) as broker:  # type: ignore[attr-defined]
        yield broker, proxy
    proxy.close()


def survive(
    start: Callable[..., object], fault: Callable[[World], None], messy: bool, events: int
) -> dict[str, int | float]:
    """One fault on a broker and a warehouse of its own."""
    with tempfile.TemporaryDirectory() as name, running(start, Path(name)) as (broker, proxy):
        broker.create_topics(TOPIC, "feedback")
        daemon = Daemon(Path(name), f"127.0.0.1:{proxy.port}")
        daemon.start()
        sending = threading.Thread(target=send, args=(broker, events, messy))
        sending.start()
        began = time.monotonic()
        world = World(broker, proxy, daemon, sending.is_alive)
        fault(world)
        sending.join()
        rows = distinct = 0
        while distinct < events and time.monotonic() - began < 180:
            time.sleep(4)
            daemon.stop()
            rows, distinct = stored(daemon.warehouse)
            daemon.start()
        daemon.kill()
    return {"times": world.times, "sent": events, "stored": rows, "lost": events - distinct, "doubled": rows - distinct}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--events", type=int, default=45_000)
    events = arguments.parse_args().events
    table: list[dict[str, str | int | float]] = []
    print(f"{'fault':28} {'broker':14} {' '.join(f'{key:>7}' for key in COLUMNS)}", flush=True)
    for name, fault, messy, tansu in FAULTS:
        for broker, start in (("Tansu", run_tansu), ("Apache Kafka", run_apache_kafka)):
            if (broker == "Tansu" and not tansu) or (broker != "Tansu" and no_apache_kafka()):
                continue
            row = survive(start, fault, messy, events)
            table.append({"fault": name, "broker": broker, **row})
            print(
                f"{name:28} {broker:14} {row['sent']:7} {row['stored']:7} {row['lost']:5} {row['doubled']:7}",
                flush=True,
            )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return int(any(row["lost"] or row["doubled"] for row in table))


if __name__ == "__main__":
    sys.exit(main())
