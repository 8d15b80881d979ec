"""A double of Ray's Jobs REST API that runs each job as processes of this machine; and Ray itself, in a network of its
own, where RETUNED_RAY names its command, for example /opt/ray/bin/ray.

Answers of the double are those of Ray 2.60."""

import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brokers import die_with_parent, until
from forks import children
from http_doubles import Quiet, listening

RAY = os.environ.get("RETUNED_RAY")
_PORT, _DASHBOARD = 6379, 8265
_NEW_NETWORK = 0x40000000


def no_ray() -> str | None:
    """Why there is no Ray to test with; None: there is one."""
    if RAY is None:
        return "RETUNED_RAY names no ray: make .venv-ray"
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True).returncode
    ):
        return "Ray listens on all addresses, and no network of its own can be made here (unshare)"
    return None


@dataclass
class RayDouble:
    """Jobs by their submission_id.

    Attributes:
        token: what requests must bear; None: nothing.
        away: it answers nothing.
        waits: jobs stay pending.
        bodies: what was submitted.
    """

    url: str = ""
    token: str | None = None
    away: bool = False
    waits: bool = False
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    _jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def answer(self, method: str, path: str, body: Any, token: str | None) -> tuple[int, Any]:
        if self.token is not None and token != f"Bearer {self.token}":
            return 401, "Unauthorized: Missing authentication token"
        match (method, path.strip("/").split("/")[1:]):
            case "GET", ["version"]:
                return 200, {"version": "4", "ray_version": "2.60.0"}
            case "POST", ["jobs"]:
                return self._submit(body)
            case method, ["jobs", name, *rest]:
                if name not in self._jobs:
                    return 404, f"Job {name} does not exist"
                if rest == ["stop"]:
                    threading.Thread(target=self._end, args=(name,)).start()
                    return 200, {"stopped": True}
                return 200, self.job(name)
        return 404, "404: Not Found"

    def job(self, name: str) -> dict[str, Any]:
        """A job as it is now."""
        job, process = self._jobs[name], self._processes.get(name)
        if process is not None and job["status"] == "RUNNING" and (status := process.poll()) is not None:
            job["driver_exit_code"] = status
            job["status"] = "SUCCEEDED" if status == 0 else "FAILED"
            if status:
                log = (Path(tempfile.gettempdir()) / f"{name}.err").read_text().strip()
                job["message"] = f"Job entrypoint command failed with exit code {status}, last available logs:\n{log}"
                job["error_type"] = "JOB_ENTRYPOINT_COMMAND_ERROR"
        return job

    @property
    def names(self) -> list[str]:
        """Submitted jobs, in their order."""
        return list(self.bodies)

    def lose_node(self, name: str, *, really: bool = True) -> None:
        """The node of a job is lost; not really: to Ray alone, and its processes go on."""
        if really:
            self._signal(name, signal.SIGKILL)
        self._jobs[name] |= {
            "status": "FAILED",
            "error_type": "JOB_SUPERVISOR_ACTOR_DIED",
            "message": "Job supervisor actor died: The actor died because its node has died.",
        }

    def forget(self) -> None:
        """The head is lost, and another one comes in its place: no job is known any more, and all go on."""
        self._jobs.clear()

    def give_up_waiting(self, name: str) -> None:
        self._jobs[name] |= {"status": "FAILED", "error_type": "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", "message": "900 s"}

    def close(self) -> None:
        for name, process in self._processes.items():
            self._signal(name, signal.SIGKILL)
            process.wait()
            (Path(tempfile.gettempdir()) / f"{name}.err").unlink(missing_ok=True)

    def process(self, name: str) -> "subprocess.Popen[bytes]":
        return self._processes[name]

    def _submit(self, body: dict[str, Any]) -> tuple[int, Any]:
        name = body["submission_id"]
        if name in self._jobs:
            return 500, f"Job with submission_id {name} already exists."
        self.bodies[name] = body
        self._jobs[name] = {"submission_id": name, "status": "PENDING", "error_type": None, "message": None}
        if not self.waits:
            with (Path(tempfile.gettempdir()) / f"{name}.err").open("wb") as log:
                command = shlex.split(body["entrypoint"].removeprefix("exec "))  # a shell's, which becomes it
                if not shutil.which(command[0]):
                    command = ["sh", "-c", body["entrypoint"]]  # which reports that
                self._processes[name] = subprocess.Popen(
                    command,
                    env=os.environ | body["runtime_env"]["env_vars"],
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self._jobs[name]["status"] = "RUNNING"
        return 200, {"submission_id": name, "job_id": name}

    def _end(self, name: str) -> None:
        if process := self._processes.get(name):
            self._signal(name, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(float(self.bodies[name]["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]))
            self._signal(name, signal.SIGKILL)
        self._jobs[name]["status"] = "STOPPED"

    def _signal(self, name: str, number: signal.Signals) -> None:
        """To a job and what it started, as Ray does it: not by the group, which the job's child has left."""
        process = self._processes[name]
        for pid in [process.pid, *children(process.pid)]:
            with suppress(ProcessLookupError):
                if process.poll() is None or pid != process.pid:
                    os.kill(pid, number)


@contextmanager
def ray_double() -> Iterator[RayDouble]:
    double = RayDouble()

    class Handler(Quiet):
        def do_GET(self) -> None:
            if double.away:
                self.close_connection = True
                return
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, found = double.answer(self.command, self.path, body, self.headers.get("Authorization"))
            text = found if isinstance(found, str) else json.dumps(found)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET

    with listening(Handler) as double.url:
        try:
            yield double
        finally:
            double.close()


class RayCluster:
    """A head without room for jobs, and nodes with one `trainer` each, in a network of their own.

    Each is a machine as far as its processes go: they see no others, and are killed together.

    Attributes:
        url: of its dashboard, from outside of that network.
    """

    def __init__(self, folder: Path) -> None:
        self.url, self._folder, self._relay = "", folder, socket.create_server(("127.0.0.1", 0))
        self._temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # paths of its sockets are to be short
        self._log = (folder / "ray.log").open("ab")
        self._machines: dict[str, subprocess.Popen[bytes]] = {}
        self._network = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && touch up && exec sleep infinity"],
            cwd=folder, stdout=self._log, stderr=self._log, preexec_fn=die_with_parent,
        )  # fmt: skip
        until((folder / "up").exists)
        threading.Thread(target=self._listen, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._relay.getsockname()[1]}"

    def start(self) -> None:
        """The head. It knows nothing of one before it."""
        self._start(
            "head", "--head", f"--port={_PORT}", "--dashboard-host=127.0.0.1", f"--dashboard-port={_DASHBOARD}",
            "--num-cpus=1", "--temp-dir", self._temporary, "--disable-usage-stats",
        )  # fmt: skip
        until(lambda: self._answers("/api/version"), 180)

    def add_node(self, name: str) -> None:
        self._start(name, f"--address=127.0.0.1:{_PORT}", "--num-cpus=1", "--resources", '{"trainer": 1}')

    def lose_node(self, name: str) -> None:
        """A node with all that it runs is killed."""
        machine = self._machines.pop(name)
        machine.kill()
        machine.wait()

    def lose_head(self) -> None:
        """What the cluster knows is lost, and the other nodes with their jobs go on."""
        self.lose_node("head")

    def close(self) -> None:
        for name in list(self._machines):
            self.lose_node(name)
        self._network.kill()
        self._network.wait()
        self._relay.close()
        self._log.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _start(self, name: str, *arguments: str) -> None:
        assert RAY is not None
        environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "200000"}
        self._machines[name] = subprocess.Popen(
            ["nsenter", "-t", str(self._network.pid), "--net",
             *["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"],
             RAY, "start", "--block", f"--node-name={name}", "--object-store-memory=100000000", *arguments],
            stdout=self._log, stderr=self._log, env=environment, cwd=self._folder, preexec_fn=die_with_parent,
        )  # fmt: skip

    def _answers(self, path: str) -> bool:
        with suppress(OSError):
            return bool(urllib.request.urlopen(self.url + path, timeout=5).status == 200)
        return False

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._relay.accept()
                threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def _carry(self, outside: socket.socket) -> None:
        """This thread enters the cluster's network, and connects there."""
        with suppress(OSError), outside, Path(f"/proc/{self._network.pid}/ns/net").open() as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _NEW_NETWORK):
                return
            with socket.create_connection(("127.0.0.1", _DASHBOARD)) as inside:
                back = threading.Thread(target=_copy, args=(inside, outside), daemon=True)
                back.start()
                _copy(outside, inside)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65_536):
            target.sendall(part)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextmanager
def ray_cluster(folder: Path) -> Iterator[RayCluster]:
    """Ray with one node for trainings."""
    cluster = RayCluster(folder)
    try:
        cluster.start()
        cluster.add_node("node-1")
        yield cluster
    finally:
        cluster.close()
