"""Kill -9 the daemon again and again while events flow, and compare what was sent with what is stored.

    kill.py [--kills 20] [--events 100000] [--apache-only | --tansu-only]

On Tansu, and on Apache Kafka where KAFKA_HOME names a distribution.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import duckdb
from kafka import KafkaProducer

sys.path.insert(0, str(Path(__file__).parents[1]))

from brokers import Broker, forget_killed, no_apache_kafka, run_apache_kafka, run_tansu
from faults import event

CONFIGURATION = """
kafka: {{bootstrap_servers: "{servers}", session_timeout_seconds: 2}}
ingest: {{batch_events: 1000, batch_seconds: 0.1}}
warehouse: {{path: "{folder}/retuned.duckdb"}}
models: {{directory: "{folder}/models"}}
http: {{port: 0}}
"""


class Sender(threading.Thread):
    """Sends at a steady rate, so that events flow all the while."""

    def __init__(self, broker: Broker, events: int, per_second: float) -> None:
        super().__init__()
        self.sent = 0
        self._broker, self._events, self._rate = broker, events, per_second

    def run(self) -> None:
        producer = KafkaProducer(bootstrap_servers=self._broker.bootstrap_servers, compression_type="lz4", linger_ms=5)
        started = time.monotonic()
        for number in range(self._events):
            producer.send("interactions", event(number))
            if number % 500 == 0:
                time.sleep(max(0.0, started + number / self._rate - time.monotonic()))
        producer.flush()
        producer.close()
        self.sent = self._events


def stored(path: Path) -> tuple[int, int, int]:
    """Rows, distinct ids, and where the offset of the one partition stands."""
    with duckdb.connect(str(path)) as connection:
        row = connection.execute(
            "SELECT count(*), count(DISTINCT id), "
            "(SELECT max(next_offset) FROM offsets WHERE topic = 'interactions') FROM interactions"
        ).fetchone()
    assert row is not None
    return row[0], row[1], row[2] or 0


def run(broker: Broker, folder: Path, kills: int, events: int) -> dict[str, int]:
    broker.create_topics("interactions", "feedback")
    configuration = folder / "retuned.yaml"
    configuration.write_text(CONFIGURATION.format(servers=broker.bootstrap_servers, folder=folder))
    warehouse = folder / "retuned.duckdb"
    log = (folder / "daemon.log").open("ab")
    command = [str(Path(sys.executable).with_name("retuned")), "run", "--config", str(configuration)]
    seconds_up = 6.0
    sender = Sender(broker, events, events / (kills * seconds_up))
    sender.start()
    moved = 0
    before = 0
    for number in range(kills):
        daemon = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
        # The moment differs from kill to kill: in a transaction, between two, while joining.
        time.sleep(seconds_up * (0.6 + 0.8 * (number * 0.618 % 1)))
        if daemon.poll() is not None:
            raise SystemExit(f"the daemon ended by itself:\n{(folder / 'daemon.log').read_text()[-3000:]}")
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()
        forget_killed(broker.bootstrap_servers, "retuned")
        with contextlib.suppress(duckdb.Error):
            rows = stored(warehouse)[0]
            moved += rows > before
            before = rows
    sender.join()
    daemon = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    rows = distinct = offset = 0
    for _ in range(10):  # the rest is read by a daemon that is stopped in peace
        time.sleep(seconds_up)
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(30)
        rows, distinct, offset = stored(warehouse)
        if offset >= events:
            break
        daemon = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    log.close()
    return {
        "kills": kills,
        "lives_that_stored_rows": moved,
        "sent": sender.sent,
        "stored": rows,
        "lost": sender.sent - distinct,
        "doubled": rows - distinct,
    }


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--events", type=int, default=100_000)
    only = arguments.add_mutually_exclusive_group()
    only.add_argument("--tansu-only", action="store_true")
    only.add_argument("--apache-only", action="store_true")
    options = arguments.parse_args()
    failed = False
    for name, start, wanted in (
        ("Tansu", run_tansu, not options.apache_only),
        ("Apache Kafka", run_apache_kafka, not options.tansu_only),
    ):
        if not wanted:
            continue
        if name == "Apache Kafka" and (reason := no_apache_kafka()):
            print(f"{name}: skipped, {reason}")
            continue
        with tempfile.TemporaryDirectory() as folder, start(Path(folder)) as broker:
            result = run(broker, Path(folder), options.kills, options.events)
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()), flush=True)
        failed |= bool(result["lost"] or result["doubled"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
