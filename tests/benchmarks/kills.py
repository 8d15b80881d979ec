"""Kill -9, a number of times in turn: the daemon, the broker, a trainer, a daemon in a promotion, one in a backup.

Events flow all the while. After it: what was sent and what is stored, whether every change of champion is whole,
whether every backup is, and what is stored after the newest one was restored elsewhere.
"""

import itertools
import json
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import httpx
from kafka import KafkaConsumer

from fixtures.daemon.daemons import App, Daemon, settings_for
from fixtures.faults.faults import _producer, event
from fixtures.feedback.teaching import GOODS, questions
from fixtures.kafka.brokers import Broker
from fixtures.models.tiny import tiny_llama
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.backup import manifest
from retuned.daemon.backup.restore import choose, restore
from retuned.daemon.settings import load
from retuned.retrain.release.registry import register

RATE = 200.0  # events a second
KINDS = ("daemon", "promotion", "backup", "trainer", "broker")
STILL_SECONDS = 60.0
TRAINED, PROMOTED = "support", "sales"


class Sender(threading.Thread):
    """Sends numbered events until it is stopped; the broker may be away for a while."""

    def __init__(self, broker: Broker, topic: str) -> None:
        super().__init__(daemon=True)
        self._broker, self._topic = broker, topic
        self._stop_sending = threading.Event()
        self.sent, self.failed = 0, 0

    def run(self) -> None:
        producer = _producer(self._broker)
        while not self._stop_sending.wait(1 / RATE):
            producer.send(self._topic, event(self.sent)).add_errback(self._count_failure)
            self.sent += 1
        producer.flush(timeout=180)
        producer.close()

    def stop(self) -> None:
        self._stop_sending.set()
        self.join()
        assert not self.failed, f"{self.failed} events never came to the broker"

    def _count_failure(self, _: BaseException) -> None:
        self.failed += 1


class Rounds:
    """A daemon that is killed again and again, and what it is killed in."""

    def __init__(self, broker: Broker, folder: Path, kinds: tuple[str, ...], seed: int) -> None:
        self.broker, self.folder, self._random = broker, folder, random.Random(seed)
        self._kinds = itertools.cycle(kinds)
        self.backups = folder / "backups"
        self.kills: Counter[str] = Counter()
        self.half_promoted = self.damaged = 0
        self._taught = 0
        base = tiny_llama(folder / "base")
        sections: dict[str, Any] = {
            "models": {"base": str(base), "directory": str(folder / "models")},
            "train": {"threads": 1, "epochs": 400, "dtype": "float32"},
            "policy": {"enabled": False},
            "ingest": {"batch_events": 500, "batch_seconds": 0.1},
        }
        (folder / "daemon").mkdir()
        self.settings = settings_for(broker, folder / "daemon", **sections)
        self.settings["kafka"]["session_timeout_seconds"] = 1.0
        kafka = self.settings["kafka"]
        broker.create_topics(*(kafka[name] for name in kafka if name.endswith("_topic")))
        self.versions = self._register(base)
        self.daemon = Daemon(folder / "daemon", self.settings)

    def through(self, kills: int, tell: Callable[[str], None]) -> dict[str, int]:
        """The row of the table."""
        sender = Sender(self.broker, self.settings["kafka"]["interactions_topic"])
        try:
            self.daemon.start()
            app = self._teach()
            sender.start()
            began = time.monotonic()
            while self.kills.total() < kills:
                kind = next(self._kinds)
                getattr(self, f"_kill_{kind}")()
                self.kills[kind] += 1
                if self.kills.total() % 25 == 0:
                    tell(f"{self.kills.total()} kills in {time.monotonic() - began:.0f} s, {sender.sent} events sent")
            sender.stop()
            app.close()
            lost, doubled = self._settled(self.daemon, sender.sent)
            self._look_at_announcements()
            restored = self._restored()
            restored.start()
            again = self._settled(restored, sender.sent)
        finally:
            for daemon in (self.daemon, *([restored] if "restored" in locals() else [])):
                daemon.end()
        return {
            **{f"{kind}_kills": self.kills[kind] for kind in KINDS},
            "sent": sender.sent,
            "stored": sender.sent - lost + doubled,
            "lost": lost,
            "doubled": doubled,
            "half_promoted": self.half_promoted,
            "damaged_backups": self.damaged,
            "restored_lost": again[0],
            "restored_doubled": again[1],
        }

    # What is killed

    def _kill_daemon(self) -> None:
        """Ready, starting, or in the midst of what it does then."""
        if self._random.random() < 0.5:
            self.daemon.until(self._stores, "an event that is stored")
        self._wait(0.3)
        self.daemon.stop(signal.SIGKILL)
        self.daemon.launch()
        if self._random.random() < 0.3 and not self._on_tansu():
            self._wait(1.5)
            self.daemon.stop(signal.SIGKILL)
            self.kills["daemon"] += 1
            self.daemon.launch()
        self._ready()

    def _kill_promotion(self) -> None:
        serving = self.daemon.workload(PROMOTED).get("champion")
        version = self.versions[0] if serving == self.versions[1] else self.versions[1]
        with self._asking(f"/api/v1/workloads/{PROMOTED}/promote", version=version):
            self._wait(0.03)
            self.daemon.stop(signal.SIGKILL)
        self._restart()
        self._look_at_champion()

    def _kill_backup(self) -> None:
        """Each tenth one is complete before."""
        if self.kills["backup"] % 10 == 0:
            self._ask("/api/v1/backup", folder=str(self.backups), keep=3)
        with self._asking("/api/v1/backup", folder=str(self.backups), keep=3):
            self._wait(0.6)
            self.daemon.stop(signal.SIGKILL)
        self._restart()
        for generation in manifest.generations(self.backups):
            self.damaged += bool(list(manifest.verify(generation)))

    def _kill_trainer(self) -> None:
        """The child process of a training: the run fails, and the daemon goes on."""
        self._ask(f"/api/v1/workloads/{TRAINED}/retrain")
        child = self.daemon.until(self._child, "a trainer", 60)
        self._wait(10.0 if self._random.random() < 0.1 else 1.0)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        self.daemon.until(lambda: self.daemon.workload(TRAINED)["runs"][0]["state"] != "running", "the end of the run")

    def _kill_broker(self) -> None:
        self._wait(0.5)
        self.broker.stop(signal.SIGKILL)
        self.broker.start()
        self._ready()

    # What is looked at

    def _look_at_champion(self) -> None:
        """Alias, link and the last change agree: the change happened, or it did not."""
        workload = self.daemon.workload(PROMOTED)
        link = self.folder / "models" / PROMOTED / "champion"
        linked = link.readlink().name if link.is_symlink() else None
        changes = workload["promotions"]
        last = changes[0]["version"] if changes else None
        self.half_promoted += not workload["champion"] == linked == last

    def _look_at_announcements(self) -> None:
        """Each change was announced, and nothing else was."""
        with duckdb.connect(str(self.daemon.warehouse)) as connection:
            changes = {id for (id,) in connection.execute("SELECT id FROM promotions").fetchall()}
        consumer = KafkaConsumer(
            self.settings["kafka"]["model_events_topic"],
            bootstrap_servers=self.broker.bootstrap_servers,
            auto_offset_reset="earliest",
            consumer_timeout_ms=5_000,
            group_id=None,
        )
        announced = {json.loads(message.value)["id"] for message in consumer}
        consumer.close()
        self.half_promoted += len(changes ^ announced)

    def _settled(self, daemon: Daemon, sent: int) -> tuple[int, int]:
        """Events that are lost and doubled, once all are read or nothing more comes. The daemon is stopped."""
        best, since = -1, time.monotonic()
        while time.monotonic() - since < STILL_SECONDS:
            stored = daemon.status()["ingestion"]["interactions"]
            if stored > best:
                best, since = stored, time.monotonic()
            if stored >= sent + self._taught and daemon.status()["ingestion"]["lag_events"] == 0:
                break
            time.sleep(0.5)
        time.sleep(2)
        assert daemon.stop(timeout_seconds=30) == 0
        with duckdb.connect(str(daemon.warehouse)) as connection:
            row = connection.execute(
                "SELECT count(*), count(DISTINCT id) FROM interactions WHERE regexp_full_match(id, 'e[0-9]+')"
            ).fetchone()
        assert row is not None
        return sent - row[1], row[0] - row[1]

    def _restored(self) -> Daemon:
        """A daemon elsewhere, on the newest backup."""
        folder = self.folder / "restored"
        folder.mkdir()
        places = {"warehouse": {"path": str(folder / "data" / "retuned.duckdb")}}
        models = self.settings["models"] | {"directory": str(folder / "models")}
        daemon = Daemon(folder, {**self.settings, **places, "models": models})
        restore(load(daemon.config), choose(self.backups, None), replace=False, now=datetime(2026, 11, 24))
        return daemon

    # How

    def _register(self, base: Path) -> list[str]:
        """Two versions of a workload, which nobody trained."""
        adapter = self.folder / "adapter"
        adapter.mkdir()
        warehouse = open_warehouse(WarehouseSettings(**self.settings["warehouse"]))
        found = []
        for number in range(2):
            (adapter / "adapter_config.json").write_text("{}")
            (adapter / "adapter_model.safetensors").write_bytes(os.urandom(1_000_000 + number))
            about: dict[str, Any] = {"parent_version": None, "dataset_version": "none", "run_id": "none", "details": {}}
            directory, now = Path(self.settings["models"]["directory"]), datetime(2026, 11, 24)
            made = register(warehouse, directory, PROMOTED, adapter, base_model=base, now=now, **about)
            found.append(made.version)
        warehouse.close()
        shutil.rmtree(adapter)
        return found

    def _teach(self) -> App:
        """What a training needs, and an event of the workload whose versions change."""
        app = App(self.settings)
        for question, right in questions(GOODS):
            app.said(app.answered(question, "I cannot say."), "correction", right, "expert")
        app.answered("What is new?", "A tent.", workload=PROMOTED)
        app.flush()
        self._taught = app.sent["interactions"]
        self.daemon.until(lambda: self.daemon.status()["ingestion"]["feedback"] == app.sent["feedback"], "corrections")
        self.daemon.until(lambda: {TRAINED, PROMOTED} <= self.daemon.status()["workloads"].keys(), "workloads")
        return app

    def _ask(self, path: str, **body: Any) -> None:
        answer = self.daemon.post(path, **body)
        assert answer.status_code == 200, answer.text

    @contextmanager
    def _asking(self, path: str, **body: Any) -> Iterator[None]:
        """A request that the daemon does not live to answer, or does."""

        def ask() -> None:
            with suppress(httpx.HTTPError):
                self.daemon.post(path, **body)

        thread = threading.Thread(target=ask)
        thread.start()
        yield
        thread.join()

    def _restart(self) -> None:
        self.daemon.launch()
        self._ready()

    def _ready(self) -> None:
        self.daemon.until(lambda: self.daemon.answers("/readyz"), "ready")
        if self._on_tansu():
            self.daemon.until(self._stores, "an event that is stored")

    def _on_tansu(self) -> bool:
        """It never gives a group away whose only member was killed while it joined."""
        return "tansu_cluster" in self.daemon.log.read_text(errors="replace")

    def _stores(self) -> bool:
        return bool(self.daemon.metric("retuned_events_total", topic=self.settings["kafka"]["interactions_topic"]))

    def _child(self) -> int | None:
        assert self.daemon.process is not None
        threads = Path(f"/proc/{self.daemon.process.pid}/task")
        children = (child for thread in threads.iterdir() for child in (thread / "children").read_text().split())
        return next((int(child) for child in children if self._trains(child)), None)

    @staticmethod
    def _trains(child: str) -> bool:
        """A drift check has a child, too."""
        with suppress(OSError):
            return b"retuned.retrain." in Path(f"/proc/{child}/cmdline").read_bytes()
        return False

    def _wait(self, longest: float) -> None:
        time.sleep(self._random.uniform(0, longest))
