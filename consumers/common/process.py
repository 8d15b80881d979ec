"""Long work runs in a child process that can be killed: the parent's side. The child's is `consumers.child`.

The parent writes a job as JSON, the child answers with JSON lines on its standard output: any number of progress
lines and one last line with a result or an error. What libraries print goes to a log file in the job's folder.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retuned.consumers.common.logfields import current
from retuned.consumers.common.memory import available_bytes, gibibytes, oom_kills
from retuned.consumers.errors import Cancelled, ChildFailed, OutOfMemory

Emit = Callable[[dict[str, Any]], None]

# OpenMP threads that wait spinning starve everything else on a small machine; threads that sleep at once must be woken
# thousands of times in a training step. libgomp, which torch uses on Linux, spins for some 50 microseconds instead.
THREADS_WAIT_BRIEFLY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
# A training step takes hundreds of MB and gives them back, which the kernel must clear each time: in pages of 2 MB that
# is done in a fraction of the time. The C library of Linux reads this; others do not.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

CANCELLED = 75
"""Exit status of a child that was stopped before it was done."""
FIELDS = "RETUNED_LOG_FIELDS"
"""In the environment of a child: what its log lines are about."""


class _OutOfGpuMemory(OutOfMemory):
    """Of which the memory of the machine says nothing."""


def run_child(
    module: str,
    job: dict[str, Any],
    folder: Path,
    *,
    timeout_seconds: float,
    stop: threading.Event | None = None,
    on_progress: Emit | None = None,
    grace_seconds: float = 8.0,
    environment: dict[str, str] | None = None,
    to_need_less: str = "",
) -> dict[str, Any]:
    """Run `python -m module` on a job and return its result.

    Args:
        job: what the child gets, JSON-serialisable; kept as `<module>.job.json` in the folder.
        folder: made when missing; the child's log is kept there as `<module>.log`.
        stop: when set, the child gets SIGTERM and, after the grace, SIGKILL.
        on_progress: called in this thread with each progress line.
        to_need_less: what a person may do when the child runs out of memory, beside giving it more.

    Raises:
        Cancelled: stop was set before the child had a result.
        OutOfMemory: it needed more memory than there was.
        ChildFailed: the child reported an error, died, or ran out of time; the text says which and names the log.
    """
    name = module.rsplit(".", 1)[-1]
    killed_before = oom_kills()
    folder.mkdir(parents=True, exist_ok=True)
    job_file, log_file = folder / f"{name}.job.json", folder / f"{name}.log"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    environ = (
        HUGE_PAGES
        | os.environ
        | {
            **THREADS_WAIT_BRIEFLY,
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "RETUNED_PARENT": str(os.getpid()),
            FIELDS: json.dumps(current()),
        }
    )
    with log_file.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(job_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environ | (environment or {}),
            start_new_session=True,  # a Ctrl-C in the terminal reaches the daemon alone, which then decides
        )
    try:
        return _follow(
            child,
            name,
            log_file,
            timeout_seconds,
            stop or threading.Event(),
            on_progress or (lambda _: None),
            grace_seconds,
            killed_before,
            to_need_less,
        )
    except _OutOfGpuMemory as error:
        raise OutOfMemory(
            f"{name}: out of memory on the GPU: {error}; free it of other processes, such as a model server, use a "
            "larger one" + (f", or {to_need_less}" if to_need_less else "") + f"; see {log_file}"
        ) from error
    except OutOfMemory as error:
        left = available_bytes()
        raise OutOfMemory(
            f"{name}: out of memory: {error}; give it more memory"
            + (f" ({gibibytes(left)} are free now)" if left is not None else "")
            + (f", or {to_need_less}" if to_need_less else "")
            + f"; see {log_file}"
        ) from error
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        assert child.stdout is not None
        child.stdout.close()


def _follow(
    child: subprocess.Popen[bytes],
    name: str,
    log_file: Path,
    timeout_seconds: float,
    stop: threading.Event,
    on_progress: Emit,
    grace_seconds: float,
    killed_before: int | None,
    to_need_less: str,
) -> dict[str, Any]:
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, name=f"{name}-output", daemon=True)
    reader.start()
    deadline = time.monotonic() + timeout_seconds
    asked_to_stop = False
    last: dict[str, Any] = {}
    while True:
        if stop.is_set() and not asked_to_stop:
            asked_to_stop, deadline = True, time.monotonic() + grace_seconds
            child.terminate()
        if time.monotonic() > deadline:
            child.kill()
            if not asked_to_stop:
                raise ChildFailed(f"{name}: took longer than {timeout_seconds:g} s and was ended; see {log_file}")
        try:
            line = lines.get(timeout=0.1)
        except queue.Empty:
            continue
        if line is None:
            break
        last = json.loads(line)
        if "result" not in last and "error" not in last:
            on_progress(last)
    status = child.wait()
    reader.join()
    if "result" in last:
        result: dict[str, Any] = last["result"]
        return result
    if asked_to_stop:
        raise Cancelled(f"{name}: stopped before it was done")
    if last.get("out_of_memory"):
        raise _OutOfGpuMemory(last["error"]) if last.get("on_gpu") else OutOfMemory(last["error"])
    if "error" in last:
        raise ChildFailed(f"{name}: {last['error']}")
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    if status == -signal.SIGKILL and (killed := oom_kills()) != killed_before:
        raise OutOfMemory(f"the kernel ended the child process ({how})")
    if status == -signal.SIGKILL and killed is None:
        how += ", most likely by the kernel, out of memory: give it more"
        how += f", or {to_need_less}" if to_need_less else ""
    raise ChildFailed(f"{name}: the child process ended without a result, {how}; see {log_file}")


def start_twin(module: str, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """From within a child, start another process on its job, which dies with it. Its log is this one's; what it answers
    is in its `stdout`."""
    return subprocess.Popen(
        [sys.executable, "-m", module, sys.argv[1]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=os.environ | environment | {"RETUNED_PARENT": str(os.getpid())},
    )
