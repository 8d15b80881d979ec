"""Processes forked from one server that has imported what they need: imports take seconds of each process's time.

`Popen` stands in for `subprocess.Popen`. A command `python -m MODULE …` of ours becomes a process forked from the
server: the same work, files, environment, signals and exit status. Every other command starts as ever. Processes that
are forked fork their own the same way, so a daemon's children cost no imports either.
"""

import atexit
import ctypes
import gc
import inspect
import json
import os
import pkgutil
import random
import resource
import runpy
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from retuned.consumers.common.languages import identifier
from retuned.consumers.common.process import HUGE_PAGES, THREADS_WAIT_BRIEFLY
from retuned.consumers.common.values.tables import tables

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # as pytest has it

from runner import empty_warehouse

SERVER = "RETUNED_FORK_SERVER"
"""In the environment: the server's socket. Without it, all processes start as ever."""
PACKAGES = ("retuned.consumers", "retuned.monitors", "retuned.retrain", "retuned.daemon")
IMPORTED = (
    "evidently.legacy.calculations.stattests.registry",
    "evidently.metrics",
    "moto.server",
    "peft",
    "plotly.offline",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.cluster",
    "sklearn.decomposition",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "sklearn.model_selection",
    "transformers.models.llama.modeling_llama",
    "trl.trainer.sft_trainer",
)
OWN = ("retuned.", "moto.", "fixtures.")
LANGUAGES = "en", "de"
"""Of which most tests' texts are: their tables take 0.3 seconds each."""
LIMITS = sorted(getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_"))
_NEW_MOUNTS, _SET_NAME = 0x20000, 15
# As `run_child` has them: what libraries read once, when they are loaded.
ENVIRONMENT = HUGE_PAGES | THREADS_WAIT_BRIEFLY | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

_Popen: Any = subprocess.Popen
PARAMETERS = list(inspect.signature(_Popen._execute_child).parameters)[1:]


class Server:
    """Forks for this process and all that it starts. It ends with this process."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="retuned-forks-"))
        self.process: subprocess.Popen[bytes] | None = None
        os.environ[SERVER] = str(self.folder / "socket")

    def start(self) -> None:
        """Nobody need call this: the first process that is to be forked does."""
        if self.process is None:
            with (self.folder / "log").open("wb") as log:
                self.process = _Popen(
                    [sys.executable, __file__, str(self.folder / "socket"), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | ENVIRONMENT,
                    start_new_session=True,
                )

    def has_ended(self) -> bool:
        """Also where another process started it: workers are forked from one that may have."""
        if self.process is None:
            return False
        state = _text(Path(f"/proc/{self.process.pid}/stat")).rpartition(") ")[2]
        return not state or state.startswith("Z")

    def close(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        shutil.rmtree(self.folder)
        del os.environ[SERVER]


server: Server | None = None


class Popen(_Popen):  # type: ignore[misc]
    """`subprocess.Popen`, of which two steps differ: how the process starts, and where its exit status comes from."""

    _server: socket.socket | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *more: Any) -> None:
        given = dict(zip(PARAMETERS[3:], more, strict=True))
        environment = os.environ if given["env"] is None else given["env"]
        path = environment.get(SERVER)
        plain = not (preexec_fn or given["pass_fds"] or executable or given["shell"] or isinstance(args, str | bytes))
        command = list(map(os.fspath, args)) if plain else []
        if not path or command[:2] != [sys.executable, "-m"] or not command[2].startswith(OWN):
            super()._execute_child(args, executable, preexec_fn, *more)
            return
        request = {
            "argv": command[2:],
            "environment": dict(environment),
            "folder": os.fspath(given["cwd"] or Path.cwd()),
            "umask": _umask() if given["umask"] < 0 else given["umask"],
            "limits": {number: resource.getrlimit(number) for number in LIMITS},
            "session": given["start_new_session"],
        }
        pipes = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        files = [number if pipe == -1 else pipe for number, pipe in enumerate(pipes)]
        content = json.dumps(request).encode()
        if server is not None:
            server.start()
        self._server = _connected(path)
        socket.send_fds(self._server, [len(content).to_bytes(4)], files)
        self._server.sendall(content)
        self.pid = int.from_bytes(_received(self._server, 4))
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in PARAMETERS if name.endswith(("read", "write"))))

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._server is None:
            found: tuple[int, int] = super()._try_wait(wait_flags)
            return found
        if not select.select([self._server], [], [], 0 if wait_flags else None)[0]:
            return 0, 0
        status = int.from_bytes(_received(self._server, 4))
        self._server.close()
        return self.pid, status

    def _internal_poll(self, *arguments: Any, **more: Any) -> int | None:
        if self._server is None:
            found: int | None = super()._internal_poll(*arguments, **more)
            return found
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG) if self.returncode is None else (0, 0)
                if pid:
                    self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def children(pid: int) -> list[int]:
    """The processes that a process started, forked or not, and those that they did."""
    between = (int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if _text(path) == _between(pid))
    found = [child for parent in (pid, *between) for child in _started(parent)]
    return [*found, *(further for child in found for further in children(child))]


def _started(pid: int) -> list[int]:
    return [int(child) for child in _text(Path(f"/proc/{pid}/task/{pid}/children")).split()]


def _text(file: Path) -> str:
    """Of a file in /proc; empty where the process has ended."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _between(pid: int) -> str:
    """The name of the process between the server and what it forks for a process."""
    return f"for {pid}"


def _umask() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("Umask:")[2].split()[0], 8)


def _connected(path: str) -> socket.socket:
    deadline = time.monotonic() + 240  # it imports for long while other things run
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(path)
        except OSError as error:
            connection.close()
            if (server is not None and server.has_ended()) or time.monotonic() > deadline:
                log = Path(path).with_name("log").read_text(errors="replace")
                raise RuntimeError(f"the fork server does not answer: {error}: {log[-2000:]}") from error
            time.sleep(0.05)
        else:
            return connection


def _received(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise RuntimeError("the fork server ended")
        found += part
    return found


def _serve(path: str, parent: int) -> dict[str, Any]:
    """Fork a process for each request, until `parent` ends; returns the request in each of them."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    ours = (m.name for p in PACKAGES for m in pkgutil.walk_packages(import_module(p).__path__, p + "."))
    for name in (*ours, *IMPORTED):
        with suppress(ImportError):  # of an extra that is not installed: what needs it fails by itself, or is skipped
            import_module(name)
        if os.getppid() != parent:
            os._exit(0)
    empty_warehouse.use()
    identifier()
    for language in LANGUAGES:
        tables(language)
    gc.collect()
    gc.freeze()
    listener.listen(64)
    Path(path + ".new").rename(path)
    listener.settimeout(1)
    while os.getppid() == parent:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            return _begun(connection)
        connection.close()
    os._exit(0)


def _begun(connection: socket.socket) -> dict[str, Any]:
    """Start what is asked for, in a process between it and the server: that one waits for it, and ends with who asked.
    Returns in the process that was asked for."""
    connection.setblocking(True)
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    request: dict[str, Any] = json.loads(_received(connection, int.from_bytes(size)))
    asks, *_ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    _enter(Path(f"/proc/{asks}/ns/mnt"))
    child = os.fork()
    if child == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        return request
    ctypes.CDLL(None).prctl(_SET_NAME, _between(asks).encode())
    for number in (*files, 0, 1, 2):
        os.close(number)
    connection.sendall(child.to_bytes(4))
    select.select([os.pidfd_open(child), connection], [], [])
    ended, status, used = os.wait4(child, os.WNOHANG)
    if ended:
        from runner import core_seconds  # a plugin, which pytest is to import first

        environment = request["environment"]
        test = environment.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        core_seconds.record(test, used.ru_utime + used.ru_stime, environment)
        connection.sendall(status.to_bytes(4))
    os._exit(0)


def _enter(namespace: Path) -> None:
    """Have the disks that who asks has: tests give daemons of one machine disks of their own."""
    if namespace.readlink() != Path("/proc/self/ns/mnt").readlink():
        with namespace.open() as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NEW_MOUNTS):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _become(request: dict[str, Any]) -> None:
    """Make this process what was asked for, all but its imports."""
    if request["session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.umask(request["umask"])
    for number, limits in request["limits"].items():
        resource.setrlimit(int(number), limits)
    os.environ.clear()
    os.environ.update(request["environment"])
    if "RETUNED_PARENT" in os.environ:
        os.environ["RETUNED_PARENT"] = str(os.getppid())
    random.seed()
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = request["argv"]


def _run(module: str) -> int:
    """The exit status of `python -m module`."""
    sys.modules.pop(module, None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        if isinstance(error.code, int | None):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        return 1
    return 0


def _end(status: int) -> None:
    """As the interpreter ends, but for what takes it a second: freeing all that was imported."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    subprocess.Popen = Popen  # type: ignore[misc]
    if sys.argv[1] == "-m":  # a process that was started all the same, of which those that it starts are forked
        sys.argv = sys.argv[2:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        _become(_serve(sys.argv[1], int(sys.argv[2])))
        _end(_run(sys.argv[0]))
