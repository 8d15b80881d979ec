"""The daemon as a process, as a user starts it, and an app that sends it events."""

import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import forks
import httpx
import yaml
from brokers import Broker, Json, forget_killed, free_port
from jsonschema import Draft202012Validator
from kafka import KafkaProducer
from kafka.errors import KafkaError

from retuned.consumers.errors import RetunedError


class Daemon:
    """`retuned run` in a process of its own."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings, self.port = folder, settings, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / "retuned.yaml"
        self.config.write_text(yaml.safe_dump({**settings, "http": {"port": self.port, **settings.get("http", {})}}))
        self.warehouse = Path(settings["warehouse"]["path"])
        self.log = folder / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.under: tuple[str, ...] = ()  # a command that runs it, and becomes it
        self.token: str | None = None  # of a principal, where some are configured

    def start(self) -> None:
        self.launch()
        self.until(lambda: self.answers("/readyz"), "ready")

    def launch(self) -> None:
        """Start it, and do not wait until it is ready."""
        # What starts under another command is not forked. What it starts itself is.
        python = [*self.under, sys.executable, forks.__file__] if self.under else [sys.executable]
        command = [*python, "-m", "retuned.daemon.cli.main", "run", "--config", str(self.config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout_seconds: float = 15.0) -> int:
        """Signal the daemon and return its exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        try:
            status = self.process.wait(timeout_seconds)
            if how == signal.SIGKILL:
                with suppress(KafkaError, RetunedError):  # the broker may be away, too
                    forget_killed(self.settings["kafka"]["bootstrap_servers"], self.settings["kafka"]["group_id"])
            return status
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self) -> None:
        """However it is; safe to repeat."""
        if self.process is not None and self.runs():
            self.process.kill()
            self.process.wait()

    def get(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.get(self.url + path, headers={**self.bearer(), **(headers or {})}, timeout=20)

    def described(self, path: str, operation: str) -> Any:
        """The JSON at a path, once it is as the document of the API says of the operation."""
        document = self.get("/api/v1/openapi.json").json()
        operations = [one for methods in document["paths"].values() for one in methods.values()]
        (found,) = (one for one in operations if one["operationId"] == operation)
        schema = found["responses"]["200"]["content"]["application/json"]["schema"]
        content = self.get(path).raise_for_status().json()
        Draft202012Validator({**schema, "components": document["components"]}).validate(content)
        return content

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=self.bearer(), timeout=20)

    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def answers(self, path: str) -> bool:
        try:
            return self.get(path).status_code == 200
        except httpx.HTTPError:
            return False

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("/api/v1/status").json()
        return found

    def workload(self, name: str = "support") -> dict[str, Any]:
        found: dict[str, Any] = self.status()["workloads"].get(name, {})
        return found

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of a series on /metrics."""
        for line in self.get("/metrics").text.splitlines():
            if re.match(rf"{name}[{{ ]", line) and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        return None

    def until(self, true: Callable[[], Any], what: str, timeout_seconds: float = 240.0) -> Any:
        """What `true` returns once it is true; fails with the daemon's log when it never is."""
        assert self.process is not None
        deadline = time.monotonic() + timeout_seconds
        while not (result := true()):
            tail = self.log.read_text(errors="replace")[-3000:]
            assert self.process.poll() is None, f"the daemon ended while waiting for {what}:\n{tail}"
            assert time.monotonic() < deadline, f"no {what} after {timeout_seconds} s:\n{tail}"
            time.sleep(0.1)
        return result


@contextmanager
def running(folder: Path, settings: dict[str, Any]) -> Iterator[Daemon]:
    """A daemon that is ended when the test is over, however it ends."""
    daemon = Daemon(folder, settings)
    daemon.start()
    try:
        yield daemon
    finally:
        daemon.end()


def settings_for(broker: Broker, folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A configuration with topics and a group of its own, and the short times of a test."""
    name = folder.name
    return {
        "kafka": {
            "bootstrap_servers": broker.bootstrap_servers,
            "group_id": name,
            "interactions_topic": f"{name}.interactions",
            "feedback_topic": f"{name}.feedback",
            "model_events_topic": f"{name}.model-events",
            "label_requests_topic": f"{name}.label-requests",
            "session_timeout_seconds": 2.0,
            **sections.pop("kafka", {}),
        },
        "warehouse": {"path": str(folder / "data" / "retuned.duckdb")},
        "models": {"directory": str(folder / "models")},
        "schedule": {"quality_seconds": 0.5, "drift_seconds": 3_600.0},
        **sections,
    }


class App:
    """A production app that publishes what its model answered, and what people thought of it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.kafka = settings["kafka"]
        self.producer = KafkaProducer(
            bootstrap_servers=self.kafka["bootstrap_servers"],
            acks="all",
            value_serializer=Json(),
        )
        self.sent = {"interactions": 0, "feedback": 0}

    def answered(self, question: str, response: str, **more: Any) -> str:
        """Publish an interaction; returns its id."""
        interaction = str(uuid.uuid4())
        messages = [{"role": "user", "content": question}]
        event = {"workload": "support", "model": "support@base", "messages": messages, "response": response}
        self._send("interactions", {"id": interaction, **event, "latency_seconds": 0.5, **more})
        return interaction

    def said(self, interaction: str, name: str, value: Any, source: str = "user") -> None:
        """Publish feedback."""
        self._send(
            "feedback",
            {"id": str(uuid.uuid4()), "interaction_id": interaction, "name": name, "value": value, "source": source},
        )

    def flush(self) -> None:
        self.producer.flush(20)

    def close(self) -> None:
        self.producer.close(5)

    def _send(self, kind: str, event: dict[str, Any]) -> None:
        event.setdefault("timestamp", datetime.now(UTC).isoformat())
        self.producer.send(self.kafka[f"{kind}_topic"], event)
        self.sent[kind] += 1
