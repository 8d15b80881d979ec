"""A daemon that is killed (SIGKILL) again and again while it releases versions to model servers, and what is found
afterwards, while apps talk through a gateway.

Each release begins as the gate decides it. Then the daemon is killed at the first request to load the version, at the
first to probe it, while it shifts the traffic (every second canary is taken back, the others are promoted), while the
version without traffic is kept, and at the first request to unload that. A proxy before each model server kills it at a
request: before the server gets it, or when it has done what was asked for.
"""

import json
import random
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import httpx
import yaml
from conversations import GOES_ON, TAKEN_BACK, Conversations
from kafka import KafkaConsumer

from fixtures.daemon.daemons import Daemon, settings_for
from fixtures.daemon.gateways import Gateway
from fixtures.kafka.brokers import Broker
from fixtures.models.served import WORKLOAD, Adapters, Served
from fixtures.servers.http import Quiet, listening
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.settings import RolloutSettings, WarehouseSettings
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.versions import model_name, workload_folder

STEPS = ("load", "probe", "shift", "drain", "unload")
ZERO = ("lost", "doubled", "failed", "mixed", "disagreed", "misannounced")
"""Columns of a row that are to be zero."""
CANARY = 0.25
KEPT, NOT_KEPT = 86_400.0, 0.1
"""Seconds for which a version without traffic is kept: until a kill is set up for when it is unloaded."""
AGREE_SECONDS = 300.0


@dataclass
class Proxy:
    """Before a model server.

    Attributes:
        reached: is told each step that a request is, and whether the server has done it.
    """

    server: str
    reached: Callable[[str, bool], bool]
    url: str = ""

    @contextmanager
    def listening(self) -> Iterator["Proxy"]:
        proxy = self

        class Handler(Quiet):
            def do_GET(self) -> None:
                self._pass_on(None)

            def do_POST(self) -> None:
                self._pass_on(self.rfile.read(int(self.headers["Content-Length"])))

            def _pass_on(self, body: bytes | None) -> None:
                step = _step(self.path, body)
                if step and proxy.reached(step, False):
                    return  # the server never gets it
                status, content = proxy._answer(self.path, body)
                if step and proxy.reached(step, True):
                    return
                with suppress(OSError):  # whoever asked was killed
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.end_headers()
                    self.wfile.write(content)

        with listening(Handler) as address:
            self.url = f"{address}/v1"
            yield self

    def _answer(self, path: str, body: bytes | None) -> tuple[int, bytes]:
        request = urllib.request.Request(self.server.removesuffix("/v1") + path, body)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def listed(self) -> set[str]:
        """The adapters that the server has."""
        _, content = self._answer("/v1/models", None)
        return {model["id"] for model in json.loads(content)["data"] if model.get("parent")}


def _step(path: str, body: bytes | None) -> str | None:
    if path.endswith("/load_lora_adapter"):
        return "load"
    if path.endswith("/unload_lora_adapter"):
        return "unload"
    return "probe" if path.endswith("/completions") and body and b"token_ids" in body else None


class Releases:
    """Releases of two versions in turn, and a daemon that does not live through any of them."""

    def __init__(
        self, stack: ExitStack, broker: Broker, folder: Path, servers: Sequence[str], adapters: Adapters, seed: int = 0
    ) -> None:
        """
        Args:
            servers: addresses of model servers with the adapters' base model, with `/v1`.
        """
        self._random, self._broker, self._folder = random.Random(seed), broker, folder
        self._aim: tuple[str, bool] | None = None
        self._lock, self._killed = threading.Lock(), threading.Event()
        self.kills: Counter[str] = Counter()
        self.disagreed: list[str] = []
        self._decided = 0
        self.servers = [stack.enter_context(Proxy(server, self._reached).listening()) for server in servers]
        urls = [server.url for server in self.servers]
        targets = [{"kind": "folder"}, {"kind": "vllm", "urls": urls, "timeout_seconds": 30.0}]
        steps = {"steps": [CANARY, 1.0], "minimum_seconds": 86_400.0}
        settings = settings_for(
            broker,
            folder,
            serving={"targets": targets, "keep_seconds": KEPT, "drain_seconds": 0.5},
            rollout=steps,
            policy={"enabled": False},
        )
        settings["models"]["base"] = str(adapters.base)
        kafka = settings["kafka"]
        kafka["session_timeout_seconds"] = 10.0
        broker.create_topics(*(kafka[name] for name in kafka if name.endswith("_topic")))
        self.daemon = Daemon(folder, settings)
        stack.callback(self.daemon.end)
        warehouse = open_warehouse(WarehouseSettings(path=self.daemon.warehouse))
        made = Served(folder, warehouse, adapters)
        self._settings = made.settings.model_copy(update={"rollout": RolloutSettings.model_validate(steps)})
        self._serving, self._candidate = made.old.version, made.new.version
        self._previous: dict[str, str] = {}  # the alias, once anything was promoted
        Rollout(warehouse, self._settings, MemoryPublisher(), "").set_champion(
            WORKLOAD, self._serving, "operator", "the first", utc_now()
        )
        self._decided += 1
        warehouse.close()
        gateway = Gateway(
            folder,
            broker.bootstrap_servers,
            urls,
            kafka=kafka,
            http={"port": self.daemon.port},
            gateway={"poll_seconds": 0.5, "workloads": [WORKLOAD]},
        )
        self._conversations = Conversations(gateway, WORKLOAD)
        stack.callback(gateway.end)

    def through(self, kills: int, tell: Callable[[str], None] = lambda _: None) -> dict[str, int]:
        """A row of figures after at least so many kills; those of `ZERO` are to be zero."""
        self.daemon.launch()
        self._agree({self._serving: 1.0}, {"champion": self._serving})
        conversations = self._conversations
        conversations.gateway.start()
        name = model_name(WORKLOAD, self._serving)
        self.daemon.until(lambda: conversations.ask("before") == name, f"an answer of {name}")
        self.daemon.until(lambda: self.daemon.workload(WORKLOAD).get("quality") is not None, "an event")
        with conversations.going_on(clients=2):
            number = 0
            while self.kills.total() < kills:
                self._release((GOES_ON, TAKEN_BACK)[number % 2])
                number += 1
                tell(
                    f"{self.kills.total()} kills, {len(conversations.answered)} answers, {len(conversations.failed)} "
                    f"failed, {len(conversations.mixed)} mixed, {len(self.disagreed)} disagreed"
                )
        return self._row()

    def _release(self, kind: str) -> None:
        serving, candidate = self._serving, self._candidate
        self._conversations.begin()
        self._decide(candidate)
        canary = {candidate: CANARY, serving: 1 - CANARY}
        aliases = {"champion": serving, "canary": candidate, **self._previous}
        for step in ("load", "probe"):
            self._killed_at(step)
        self.daemon.launch()
        self._agree(canary, aliases)
        self._until_answered_by(candidate)

        won, lost = (candidate, serving) if kind == GOES_ON else (serving, candidate)
        shares = {won: 1.0, lost: 0.0}
        if kind == GOES_ON:
            self._previous = {"previous": lost}
        after = {"champion": won, **self._previous}
        if not self._shift_and_kill(kind, candidate):
            self._agree(canary, aliases)
            answer = self._shift(kind, candidate)
            assert answer.status_code == 200, answer.text
        self._decided += 1
        self._agree(shares, after)

        time.sleep(self._random.uniform(0, 1))
        self._kill("drain")
        self._keep_for(NOT_KEPT)
        self._killed_at("unload")
        self.daemon.launch()
        self._agree({won: 1.0}, after)
        self._conversations.end(model_name(WORKLOAD, candidate), kind)
        self._serving, self._candidate = won, lost

    # Kills

    def _reached(self, step: str, done: bool) -> bool:
        """Called at each request of the daemon; whether it was killed."""
        with self._lock:
            if self._aim != (step, done):
                return False
            self._aim = None
            assert self.daemon.process is not None
            self.daemon.process.kill()
            self._killed.set()
            return True

    def _killed_at(self, step: str) -> None:
        """Start the daemon, and have it killed at a step."""
        self._killed.clear()
        self._aim = step, self._random.random() < 0.5
        self.daemon.launch()
        assert self._killed.wait(AGREE_SECONDS), f"it never came to {step}: {self.daemon.log.read_text()[-3_000:]}"
        self._kill(step)

    def _kill(self, step: str) -> None:
        self.daemon.stop(signal.SIGKILL)
        self.kills[step] += 1

    def _decide(self, candidate: str) -> None:
        """As the gate does, in a daemon that is killed before it has done anything about it."""
        self.daemon.stop(signal.SIGKILL)
        self._keep_for(KEPT)
        warehouse = open_warehouse(WarehouseSettings(path=self.daemon.warehouse))
        Rollout(warehouse, self._settings, MemoryPublisher(), "").begin(
            WORKLOAD, candidate, "gate", "better", utc_now()
        )
        warehouse.close()
        self._decided += 1

    def _keep_for(self, seconds: float) -> None:
        """From the next start."""
        settings = yaml.safe_load(self.daemon.config.read_text())
        settings["serving"]["keep_seconds"] = seconds
        self.daemon.config.write_text(yaml.safe_dump(settings))

    def _shift_and_kill(self, kind: str, candidate: str) -> bool:
        """Ask for it, and kill the daemon meanwhile; whether it happened, as it has it after a start."""
        answers: list[int] = []

        def ask() -> None:
            with suppress(httpx.HTTPError):
                answers.append(self._shift(kind, candidate).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(self._random.uniform(0, 0.1))
        self._kill("shift")
        thread.join()
        self.daemon.launch()
        self.daemon.until(lambda: self.daemon.answers("/healthz"), "a daemon that answers")
        happened = self.daemon.workload(WORKLOAD)["promotions"][0]["event"] != "canary"
        if answers and not happened:
            self.disagreed.append(f"{kind} of {candidate}: it was answered, and did not happen")
        return bool(happened)

    def _shift(self, kind: str, candidate: str) -> httpx.Response:
        more = {"version": candidate} if kind == GOES_ON else {}
        return self.daemon.post(f"/api/v1/workloads/{WORKLOAD}/{kind}", **more)

    # What is looked at

    def _agree(self, shares: dict[str, float], aliases: dict[str, str]) -> None:
        """Wait until whatever has the state of the release has this one; what never has is noted."""
        names = {model_name(WORKLOAD, version): share for version, share in shares.items()}
        arms = {model: share for model, share in names.items() if share}
        expected = {"deployments": names, "aliases": aliases, "links": aliases, "routes": arms, "withheld": {}} | {
            server.url: set(names) for server in self.servers
        }
        found: dict[str, Any] = {}
        deadline = time.monotonic() + AGREE_SECONDS
        while found != expected and time.monotonic() < deadline:
            assert self.daemon.runs(), self.daemon.log.read_text(errors="replace")[-3_000:]
            with suppress(httpx.HTTPError):
                found = self._found()
            time.sleep(0.3)
        if found != expected:
            self.disagreed.append(f"expected {expected}, found {found}")

    def _found(self) -> dict[str, Any]:
        workload, routes = self.daemon.workload(WORKLOAD), self.daemon.get("/api/v1/routes").json()
        deployed = workload.get("serving", {"deployments": []})["deployments"]
        folder = workload_folder(self._folder / "models", WORKLOAD)
        arms = routes["workloads"].get(WORKLOAD, {"arms": []})["arms"]
        return {
            "deployments": {one["model"]: one["share"] for one in deployed},
            "aliases": {alias: _version(one["model"]) for one in deployed for alias in one["aliases"]}
            | {alias: workload[alias] for alias in ("champion", "previous") if workload.get(alias)},
            "links": {link.name: link.readlink().name for link in folder.iterdir() if link.is_symlink()},
            "routes": {arm["model"]: arm["share"] for arm in arms},
            "withheld": routes["withheld"],
        } | {server.url: server.listed() for server in self.servers}

    def _until_answered_by(self, version: str) -> None:
        """A conversation of the canary comes to its own model."""
        name = model_name(WORKLOAD, version)
        self.daemon.until(lambda: name in self._conversations.first_asked, f"an answer of {name}")

    def _row(self) -> dict[str, int]:
        conversations = self._conversations
        self.daemon.until(lambda: conversations.gateway.waiting() == 0, "what waits for Kafka")

        def stored() -> int:
            return int(self.daemon.status()["ingestion"]["interactions"])

        deadline = time.monotonic() + AGREE_SECONDS
        while stored() < len(conversations.answered) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.daemon.stop(timeout_seconds=60)
        with duckdb.connect(str(self.daemon.warehouse)) as connection:
            rows = [id for (id,) in connection.execute("SELECT id FROM interactions").fetchall()]
            changes = [id for (id,) in connection.execute("SELECT id FROM promotions").fetchall()]
        kept = set(rows) & set(conversations.answered)
        for text in (*self.disagreed, *conversations.mixed, *conversations.failed):
            print(text, file=sys.stderr)
        return {
            "times": self.kills.total(),
            **{f"{step}_kills": self.kills[step] for step in STEPS},
            "sent": len(conversations.answered),
            "stored": len(kept),
            "told": 0,
            "lost": len(conversations.answered) - len(kept),
            "doubled": len(rows) - len(set(rows)),
            "failed": len(conversations.failed),
            "mixed": len(conversations.mixed),
            "disagreed": len(self.disagreed),
            "misannounced": self._misannounced(changes) + abs(len(changes) - self._decided),
        }

    def _misannounced(self, changes: list[str]) -> int:
        """Changes that are not on the topic, that are there and did not happen, and that are there in two ways."""
        consumer = KafkaConsumer(
            self.daemon.settings["kafka"]["model_events_topic"],
            bootstrap_servers=self._broker.bootstrap_servers,
            auto_offset_reset="earliest",
            consumer_timeout_ms=5_000,
            group_id=None,
        )
        told: dict[str, set[str]] = {}
        for message in consumer:
            change = json.loads(message.value)
            told.setdefault(change["id"], set()).add(json.dumps(change, sort_keys=True))
        consumer.close()
        return len(set(changes) ^ told.keys()) + sum(len(ways) > 1 for ways in told.values())


def _version(name: str) -> str:
    return name.rpartition("@")[2]
