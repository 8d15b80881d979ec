"""Two daemons of a cluster, of which the leader is killed, frozen or cut off from PostgreSQL again and again while
versions are promoted.

Each daemon has a disk of its own, as on another machine: what the other one made comes by PostgreSQL and by object
storage. Promotions are asked for at one daemon or the other, the leader or not, one after the other. Those that were
acknowledged are to be there once, in PostgreSQL and in both warehouses; one whose answer was lost may be there, once.
Each is announced with one id.

What daemons do outside is recorded where it arrives, with the epoch of who does it: calls of a webhook, and messages.
None of an epoch may arrive once one of a later epoch has.
"""

import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import yaml
from brokers import Broker, Proxy, until
from clusters import Postgres
from daemons import Daemon, settings_for
from ingestion import interaction
from kafka import KafkaConsumer, KafkaProducer
from served import WORKLOAD, Adapters, Served, receiving

from retuned.consumers.cluster.control import Control
from retuned.consumers.cluster.postgres import Postgres as PostgresConnection
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.daemon.cli.backup import hand_over
from retuned.daemon.settings import load

ZERO = ("lost", "promoted twice", "announced never", "disagreed", "versions missing", "acts of two leaders")
"""Columns of a row that are to be zero."""
ALL_ROWS = "SELECT table_name, key, row FROM retuned.control WHERE row IS NOT NULL"
SECRET = b"a secret of many characters"
_numbers = itertools.count()


def no_disks() -> str | None:
    """Why daemons cannot have disks of their own here; None: they can."""
    if shutil.which("unshare") and subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0:
        return None
    return "disks of daemons are mounts, which may not be made here (unshare)"


class Daemons:
    """Two daemons, an ingester, a database, and the segments."""

    def __init__(
        self, folder: Path, broker: Broker, postgres: Postgres, adapters: Adapters, **sections: dict[str, Any]
    ) -> None:
        name = f"leaders-{next(_numbers)}"
        self.folder = folder / name
        self.folder.mkdir()
        self.broker, self.url, self.port = broker, postgres.create(name), postgres.port
        store = {"kind": "cluster", "postgres_url": self.url, "objects_url": (self.folder / "objects").as_uri()}
        self.settings = settings_for(
            broker,
            self.folder,
            policy={"enabled": False},
            store={**store, "segment_seconds": 0.2},
            privacy={"user_key": "a key of at least sixteen characters"},
            **sections,
        )
        node = self.folder / "node"
        node.mkdir()
        self.settings["warehouse"]["path"] = str(node / "retuned.duckdb")
        self.settings["models"] = {"directory": str(node / "models"), "base": str(adapters.base)}
        self.kafka = self.settings["kafka"]
        broker.create_topics(*(self.kafka[key] for key in self.kafka if key.endswith("_topic")))
        self.proxies: dict[str, Proxy] = {}
        self.daemons = [self._daemon(name) for name in ("one", "two")]
        self.versions = self._hand_over(adapters)
        self.ingester: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Both daemons, and an ingester with an event: a workload without one is unknown."""
        config = self.folder / "ingester.yaml"
        config.write_text(yaml.safe_dump({**self.settings, "http": {"port": 0}}))
        with (self.folder / "ingester.log").open("ab") as log:
            self.ingester = subprocess.Popen(
                [sys.executable, "-m", "retuned.daemon.cli.main", "ingest", "--config", str(config)],
                stdout=log,
                stderr=log,
            )
        producer = KafkaProducer(bootstrap_servers=self.broker.bootstrap_servers)
        producer.send(self.kafka["interactions_topic"], json.dumps(interaction("i", workload=WORKLOAD)).encode())
        producer.close()
        for daemon in self.daemons:
            daemon.launch()
        for daemon in self.daemons:
            daemon.until(lambda daemon=daemon: daemon.answers("/readyz") and WORKLOAD in known(daemon), "the event")

    def end(self) -> None:
        """However they are."""
        if self.ingester is not None:
            self.ingester.kill()
            self.ingester.wait()
        for daemon in self.daemons:
            daemon.end()
        for proxy in self.proxies.values():
            proxy.passes.set()
            proxy.close()

    def way(self, daemon: Daemon) -> Proxy:
        """Of a daemon to PostgreSQL."""
        return self.proxies[daemon.folder.name]

    def leader(self) -> Daemon | None:
        """As the daemons themselves know it."""
        return next((daemon for daemon in self.daemons if leads(daemon)), None)

    def leader_and_standby(self) -> tuple[Daemon, Daemon]:
        """The leader, and the daemon that stands by, once that one knows the leader: before, it refuses commands."""
        until(self.leader, 60)
        leader = self.leader()
        assert leader is not None
        (other,) = (daemon for daemon in self.daemons if daemon is not leader)
        other.until(lambda: other.answers("/api/v1/routes"), "what the leader answers", 60)
        return leader, other

    def promote(self, version: str, reason: str, at: Iterable[Daemon]) -> None:
        """Ask until it is done: an answer may be lost, and be that of a change that was made."""
        for daemon in at:
            with suppress(httpx.HTTPError):
                path = f"/api/v1/workloads/{WORKLOAD}/promote"
                body = {"version": version, "reason": reason}
                answer = httpx.post(daemon.url + path, json=body, headers=daemon.bearer(), timeout=5)
                if answer.status_code == 200 or "is the champion already" in answer.text:
                    return
                assert answer.status_code in (409, 503), answer.text
            time.sleep(0.1)

    def query(self, sql: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(sql.encode()).fetchall()

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Of a control table, as PostgreSQL has them."""
        found = self.query(f"SELECT row FROM retuned.control WHERE table_name = '{table}' AND row IS NOT NULL")
        return [json.loads(row) for (row,) in found]

    def announced(self, ids: set[str]) -> set[str]:
        """The ids of the messages about changes, once these have come, or after a while."""
        consumer = KafkaConsumer(
            self.kafka["model_events_topic"],
            bootstrap_servers=self.broker.bootstrap_servers,
            auto_offset_reset="earliest",
            group_id=None,
        )
        found, deadline = set[str](), time.monotonic() + 60
        while not ids <= found and time.monotonic() < deadline:
            for records in consumer.poll(timeout_ms=200).values():
                found |= {json.loads(record.value)["id"] for record in records}
        consumer.close()
        return found

    def disk(self, daemon: Daemon) -> Path:
        """Its own, which it has in the place of `node`."""
        return daemon.folder / "disk"

    def _daemon(self, name: str) -> Daemon:
        """As on a machine of its own: both have the same paths, and each a disk of its own there."""
        folder = self.folder / name
        (folder / "disk").mkdir(parents=True)
        self.proxies[name] = Proxy(self.port)
        url = self.url.replace(f":{self.port}/", f":{self.proxies[name].port}/")
        made = Daemon(folder, self.settings | {"store": self.settings["store"] | {"postgres_url": url}})
        mount = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
        made.under = ("unshare", "--mount", "sh", "-c", mount, "sh", str(self.disk(made)), str(self.folder / "node"))
        return made

    def _hand_over(self, adapters: Adapters) -> list[str]:
        """A warehouse of one daemon becomes that of the cluster; the other daemon begins with an empty one."""
        settings, node = load(self.daemons[0].config), self.folder / "node"
        warehouse = open_warehouse(settings.warehouse)
        made = Served(node, warehouse, adapters)
        hand_over(warehouse, settings)
        warehouse.close()
        shutil.copytree(node, self.disk(self.daemons[0]), dirs_exist_ok=True)
        shutil.rmtree(node)
        node.mkdir()
        return [made.old.version, made.new.version]


def leads(daemon: Daemon) -> bool:
    """Whether a daemon says so."""
    with suppress(httpx.HTTPError):
        return (
            httpx.get(daemon.url + "/metrics", headers=daemon.bearer(), timeout=2).text.find("\nretuned_leader 1.0") > 0
        )
    return False


def known(daemon: Daemon) -> set[str]:
    """The workloads of which it has events."""
    with suppress(httpx.HTTPError):
        return set(daemon.status()["workloads"])
    return set()


# What happens to the daemon that leads, or to the other one; each returns the seconds until one leads again


def killed(_: Daemons, leader: Daemon, other: Daemon) -> float:
    leader.stop(signal.SIGKILL)
    began = time.monotonic()
    until(lambda: leads(other), 60)
    seconds = time.monotonic() - began
    leader.launch()
    return seconds


def frozen(_: Daemons, leader: Daemon, other: Daemon) -> float:
    """For as long as it takes until the other one leads; then it wakes up, sees that, and ends."""
    assert leader.process is not None
    leader.process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    until(lambda: leads(other), 60)
    seconds = time.monotonic() - began
    leader.process.send_signal(signal.SIGCONT)
    began_anew(leader)
    return seconds


def cut_off(cluster: Daemons, leader: Daemon, other: Daemon) -> float:
    """Its connections to PostgreSQL end, and new ones are refused, until the other one leads."""
    way = cluster.way(leader)
    way.refuses = True
    way.cut()
    began = time.monotonic()
    until(lambda: leads(other), 60)
    seconds = time.monotonic() - began
    way.refuses = False
    began_anew(leader)
    return seconds


def unheard(cluster: Daemons, leader: Daemon, other: Daemon) -> float:
    """Nothing comes through between it and PostgreSQL, until the other one leads; then all of it does."""
    way = cluster.way(leader)
    way.passes.clear()
    began = time.monotonic()
    until(lambda: leads(other), 60)
    seconds = time.monotonic() - began
    way.passes.set()
    began_anew(leader)
    return seconds


def began_anew(daemon: Daemon) -> None:
    """One that led sees that another one does, and ends; then it is started again."""
    assert daemon.process is not None
    assert daemon.process.wait(60) == 1, daemon.log.read_text()[-2000:]
    assert "another daemon leads the cluster" in daemon.log.read_text()[-2000:]
    daemon.launch()


def other_killed(_: Daemons, leader: Daemon, other: Daemon) -> float:
    other.stop(signal.SIGKILL)
    other.launch()
    assert leads(leader)
    return 0.0


FAULTS: dict[str, Callable[[Daemons, Daemon, Daemon], float]] = {
    "leader killed": killed,
    "leader frozen": frozen,
    "leader cut off": cut_off,
    "leader unheard": unheard,
    "standby killed": other_killed,
}


class Acts:
    """What daemons did outside, as it arrives: when, and under which epoch."""

    def __init__(self, cluster: Daemons, got: list[tuple[float, int]]) -> None:
        """`got` is filled by the receiver of webhooks."""
        self.seen, self._stop = got, threading.Event()
        self._consumer = KafkaConsumer(
            cluster.kafka["model_events_topic"], bootstrap_servers=cluster.broker.bootstrap_servers, group_id=None
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.is_set():
            for records in self._consumer.poll(timeout_ms=100).values():
                self.seen += [(time.monotonic(), json.loads(record.value)["epoch"]) for record in records]
        self._consumer.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def late(self) -> list[float]:
        """Of each act that arrived once one of a later epoch had: so many seconds after that."""
        found, newest = [], (0, 0.0)
        for at, epoch in sorted(self.seen):
            if epoch > newest[0]:
                newest = (epoch, at)
            elif epoch < newest[0]:
                found.append(at - newest[1])
        return found


class Reads:
    """Asks all daemons all the time for what each answers itself, and counts the seconds in which none does."""

    def __init__(self, daemons: Sequence[Daemon]) -> None:
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._answered_at = time.monotonic()
        self.longest = self.without = 0.0
        self._threads = [threading.Thread(target=self._ask, args=[daemon], daemon=True) for daemon in daemons]
        for thread in self._threads:
            thread.start()

    def _ask(self, daemon: Daemon) -> None:
        while not self._stop.wait(0.1):
            with suppress(httpx.HTTPError):
                if httpx.get(daemon.url + "/api/v1/approvals", timeout=5).status_code == 200:
                    self._note()

    def _note(self) -> None:
        with self._lock:
            before, self._answered_at = self._answered_at, time.monotonic()
            if (silent := self._answered_at - before) > 1.0:
                self.without += silent
                self.longest = max(self.longest, silent)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Promoting:
    """Promotes the two versions in turn, one promotion after the other, until it is stopped."""

    def __init__(self, cluster: Daemons, turn: int, at: Sequence[Daemon]) -> None:
        self.reasons: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(cluster, turn, at), daemon=True)
        self._thread.start()

    def _run(self, cluster: Daemons, turn: int, at: Sequence[Daemon]) -> None:
        places = itertools.cycle(at)
        while not self._stop.is_set() or len(self.reasons) % 2:
            reason = f"turn {turn}, promotion {len(self.reasons)}"
            cluster.promote(cluster.versions[len(self.reasons) % 2], f"{reason}.", places)
            self.reasons.append(reason)

    def stop(self) -> list[str]:
        """The reasons of those that were made."""
        self._stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive(), f"not promoted after {self.reasons[-1:]}"
        return self.reasons


def survive(
    faults: Sequence[str],
    broker: Broker,
    postgres: Postgres,
    adapters: Adapters,
    folder: Path,
    times: int,
    seconds: dict[str, list[float]] | None = None,
    note: Callable[[dict[str, int]], None] = lambda _: None,
) -> dict[str, int]:
    """Let faults happen, one after the other, while versions are promoted; a row of figures, those of `ZERO` are to be
    zero.

    Args:
        seconds: gets, by fault, how long it took each time until a daemon led again.
        note: gets what is known of the row after each fault.
    """
    chance, happened, asked = random.Random(0), Counter[str](), list[str]()
    (folder / "secret").write_bytes(SECRET)
    got: list[tuple[float, int]] = []
    with ExitStack() as stack:
        receiver = stack.enter_context(receiving(SECRET))
        receiver.arrived = lambda headers: got.append((time.monotonic(), int(headers["retuned-epoch"])))
        target = {"kind": "webhook", "url": receiver.url, "secret_file": str(folder / "secret")}
        cluster = Daemons(folder, broker, postgres, adapters, serving={"targets": [target]})
        stack.callback(cluster.end)
        cluster.start()
        acts, reads = Acts(cluster, got), Reads(cluster.daemons)
        stack.callback(acts.close)
        stack.callback(reads.close)

        def measured() -> dict[str, int]:
            late = acts.late()
            return {
                **happened,
                "acts": len(acts.seen),
                "acts of two leaders": len(late),
                "overlap ms": round(1000 * max(late, default=0.0)),
                "without an API ms": round(1000 * reads.without),
                "longest without an API ms": round(1000 * reads.longest),
            }

        for turn in range(times):
            leader, other = cluster.leader_and_standby()
            other.until(lambda other=other: other.answers("/readyz"), "the other one")
            name = faults[turn % len(faults)]
            promoting = Promoting(cluster, turn, cluster.daemons if chance.random() < 0.5 else cluster.daemons[::-1])
            until(lambda promoting=promoting: promoting.reasons, 120)
            time.sleep(chance.uniform(0, 1.0))
            took = FAULTS[name](cluster, leader, other)
            print(f"turn {turn}: {name}: a daemon leads after {took:.1f} s", flush=True)
            if seconds is not None:
                seconds.setdefault(name, []).append(took)
            asked += promoting.stop()
            happened[name] += 1
            note(measured())
        for daemon in cluster.daemons:
            daemon.until(lambda daemon=daemon: daemon.answers("/readyz"), "both")
        made = cluster.rows("promotions")
        announced = cluster.announced({one["id"] for one in made})
        until(lambda: all(one["announced"] for one in cluster.rows("promotions")), 60)
        ((number,),) = cluster.query("SELECT number FROM retuned.last_change")
        time.sleep(3)  # the jobs of the leader go on, and the other one follows
        row = measured()
        for daemon in cluster.daemons:
            assert daemon.stop() == 0, daemon.log.read_text()[-2000:]
        of_turns = Counter(one["reason"].partition(".")[0] for one in made if one["reason"].startswith("turn"))
        return row | {
            "asked": len(asked),
            "changes": number,
            "lost": len(set(asked) - of_turns.keys()),
            "promoted twice": of_turns.total() - len(of_turns),
            "announced never": len({one["id"] for one in made} - announced),
            "disagreed": disagreed(cluster),
            "versions missing": sum(
                not (cluster.disk(daemon) / "models" / WORKLOAD / version / "adapter_model.safetensors").is_file()
                for daemon in cluster.daemons
                for version in cluster.versions
            ),
        }


def disagreed(cluster: Daemons) -> int:
    """Rows of control tables that one warehouse has and PostgreSQL has not, or the other way round, once each daemon
    has followed to the end."""
    counted = 0
    for daemon in cluster.daemons:
        with (
            closing(open_warehouse(WarehouseSettings(path=cluster.disk(daemon) / "retuned.duckdb"))) as warehouse,
            closing(PostgresConnection(load(daemon.config).store)) as postgres,
        ):
            control = Control(postgres, warehouse)
            control.follow()
            here = set(control.all_rows())
        there = {(table, key, row) for table, key, row in cluster.query(ALL_ROWS)}
        counted += len(here ^ there)
    return counted
