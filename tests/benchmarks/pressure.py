"""Ingestion under pressure: memory when much waits on the broker, and lag while a training run has the same cores."""

import contextlib
import json
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Producer

sys.path.insert(0, str(Path(__file__).parents[1]))

from ingest import event
from train import BASE, SETTINGS, rows

from fixtures.daemon.daemons import Daemon, running, settings_for
from fixtures.kafka.brokers import Broker, run_tansu
from retuned.consumers.common.process import run_child
from retuned.consumers.errors import Cancelled
from retuned.daemon.demo.model import base_model

FEW, MANY = 10_000, 1_000_000  # events
BURST, RATE = 100_000, 1_000  # events, events per second
STEADY_SECONDS = 15.0


class Feeder:
    """Publishes events of about 1 KB."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self.sent = 0
        self._topic = topic
        self._before, self._after = json.dumps(event(0)).split(f"{0:032x}")
        self._producer = Producer(
            {"bootstrap.servers": broker.bootstrap_servers, "compression.type": "lz4", "linger.ms": 20}
        )

    def send(self, events: int) -> None:
        """Returns when the broker has them."""
        for _ in range(events):
            self._producer.produce(self._topic, f"{self._before}{self.sent:032x}{self._after}".encode())
            self.sent += 1
            while len(self._producer) > 50_000:
                self._producer.poll(0.05)
        self._producer.flush()


class Stream(threading.Thread):
    """A steady stream of events, and the largest lag of the daemon behind it, in seconds."""

    def __init__(self, feeder: Feeder, daemon: Daemon, topic: str) -> None:
        super().__init__()
        self._feeder, self._daemon, self._topic = feeder, daemon, topic
        self._end = threading.Event()
        self.lag_seconds = 0.0

    def run(self) -> None:
        step = 0.1
        due = time.monotonic()
        while not self._end.is_set():
            self._feeder.send(int(RATE * step))
            behind = self._feeder.sent - stored(self._daemon, self._topic)
            self.lag_seconds = max(self.lag_seconds, behind / RATE)
            due += step
            time.sleep(max(0.0, due - time.monotonic()))

    def stop(self) -> None:
        self._end.set()
        self.join()


def stored(daemon: Daemon, topic: str) -> int:
    return int(daemon.metric("retuned_events_total", topic=topic) or 0)


def peak_mib(daemon: Daemon) -> float:
    """The most memory that the daemon's process ever held."""
    assert daemon.process is not None
    lines = Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def memory(broker: Broker, folder: Path, events: int) -> float:
    """Peak memory, in MiB, of a daemon that finds so many events waiting and takes them in.

    With the default schedule: what its other jobs hold is not what is measured.
    """
    folder.mkdir()
    settings = settings_for(broker, folder, schedule={})
    topic = settings["kafka"]["interactions_topic"]
    broker.create_topics(topic, settings["kafka"]["feedback_topic"])
    Feeder(broker, topic).send(events)
    with running(folder, settings) as daemon:
        daemon.until(lambda: stored(daemon, topic) == events, f"{events} events", 600)
        return peak_mib(daemon)


def lag(broker: Broker, folder: Path) -> dict[str, float]:
    """How far a daemon falls behind a steady stream, and how soon it has taken in a burst beside it.

    Each without and with a training run in a child process, as the daemon starts it, on the same cores.
    """
    folder.mkdir()
    settings = settings_for(broker, folder, schedule={})
    topic = settings["kafka"]["interactions_topic"]
    broker.create_topics(topic, settings["kafka"]["feedback_topic"])
    figures: dict[str, float] = {}
    with running(folder, settings) as daemon, ThreadPoolExecutor(1) as pool:
        feeder = Feeder(broker, topic)
        feeder.send(1)
        daemon.until(lambda: stored(daemon, topic) == 1, "the first event")
        for name in ("idle", "training"):
            stop, steps = threading.Event(), threading.Event()
            training = pool.submit(train, folder / "train", stop, steps) if name == "training" else None
            if training:
                steps.wait(120)  # loading is over
            stream = Stream(feeder, daemon, topic)
            stream.start()
            time.sleep(STEADY_SECONDS)
            stream.stop()
            daemon.until(lambda: stored(daemon, topic) == feeder.sent, "all of the stream")
            began = time.monotonic()
            feeder.send(BURST)
            daemon.until(lambda: stored(daemon, topic) == feeder.sent, "all of the burst")
            figures[f"lag_recovery_{name}_seconds"] = time.monotonic() - began
            figures[f"lag_{name}_seconds"] = stream.lag_seconds
            if training:
                early = training.done()
                stop.set()
                training.result()  # what it failed with, if it did
                assert not early, "the training run ended too early to be measured beside"
    return {"lag_recovery_seconds": figures.pop("lag_recovery_training_seconds"), **figures}


def train(folder: Path, stop: threading.Event, stepping: threading.Event) -> None:
    """A run that is longer than what is measured beside it, as the daemon would start it."""
    base_model(BASE)
    folder.mkdir()
    table = pa.Table.from_pylist(rows(prefix=True))
    pq.write_table(table, folder / "train.parquet")
    job = {
        "base": str(BASE),
        "parent": None,
        "dataset": str(folder),
        "folder": str(folder / "run"),
        "settings": SETTINGS.model_copy(update={"epochs": 1_000}).model_dump(mode="json"),
    }
    with contextlib.suppress(Cancelled):
        run_child(
            "retuned.retrain.training.train", job, folder / "run", timeout_seconds=600, stop=stop,
            on_progress=lambda _: stepping.set(),
        )  # fmt: skip


def main() -> dict[str, float]:
    """Takes about two minutes on two cores."""
    with tempfile.TemporaryDirectory() as name, run_tansu(Path(name)) as broker:
        few = memory(broker, Path(name) / "few", FEW)
        many = memory(broker, Path(name) / "many", MANY)
        behind = lag(broker, Path(name) / "lag")
    return {"ingest_memory_growth": many / few, "ingest_memory_mib": many, **behind}


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
