"""Runs long work in a child process: the child's side. The parent's side is `consumers.common.process`."""

import ctypes
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from retuned.consumers import logs
from retuned.consumers.common.logfields import about
from retuned.consumers.common.memory import gibibytes
from retuned.consumers.common.process import CANCELLED, FIELDS, Emit
from retuned.consumers.errors import Cancelled, RetunedError

log = logging.getLogger(__name__)


def child_main(
    work: Callable[[dict[str, Any], Emit], dict[str, Any] | None],
    launcher: Callable[[dict[str, Any]], list[str] | None] = lambda _: None,
) -> None:
    """Reads the job, runs the work and writes the result or error. Exits the process.

    An error that a person can act on is reported in one line; any other also leaves its traceback in the log.

    Args:
        work: of several processes, one returns the result and the others None; each reports its errors.
        launcher: returns the command that replaces this process and starts several; None: this process works.
    """
    _die_with_parent()
    _die_before_parent()
    logs.configure_child()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # keeps output of libraries apart from the JSON lines

    def emit(line: dict[str, Any]) -> None:
        answer.write(json.dumps(line) + "\n")
        answer.flush()

    with about(**json.loads(os.environ.get(FIELDS, "{}"))):
        try:
            job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
            if command := launcher(job):
                os.dup2(answer.fileno(), 1)
                os.execv(command[0], command)
            if (result := work(job, emit)) is not None:
                emit({"result": result})
        except Cancelled:
            sys.exit(CANCELLED)
        except RetunedError as error:
            emit({"error": str(error)})
            sys.exit(1)
        except Exception as error:
            emit(_failed(error))
            log.exception("%s", type(error).__name__)
            sys.exit(1)


def _failed(error: Exception) -> dict[str, Any]:
    """Returns the last line for an error; failed allocations of Python or torch, on CPU or GPU, are marked."""
    names = {kind.__name__ for kind in type(error).__mro__}
    text = f"{type(error).__name__}: {error}"
    if "OutOfMemoryError" in names:  # torch's, of a GPU
        text = f"{text.split('. GPU ')[0]}{_gpu_memory()}"
        return {"error": text, "out_of_memory": True, "on_gpu": True}
    return {"error": text, "out_of_memory": "MemoryError" in names or "can't allocate memory" in text}


def _gpu_memory() -> str:
    """Describes the memory of this process's GPU."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_available():
        return ""
    free, total = cuda.mem_get_info()
    allocated, reserved = cuda.memory_allocated(), cuda.memory_reserved()
    return (
        f" (GPU {cuda.current_device()} has {gibibytes(total)}: this process holds {gibibytes(reserved)}, "
        f"{gibibytes(allocated)} of it in use, and {gibibytes(free)} are free)"
    )


def _die_with_parent() -> None:
    """Ends this process when the daemon is killed (Linux; elsewhere it runs to its end)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.environ.get("RETUNED_PARENT", str(os.getppid())) != str(os.getppid()):
            sys.exit(1)  # the parent died before the line above


def _die_before_parent() -> None:
    """Makes the kernel kill this process rather than the daemon when memory runs out (Linux)."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800")
