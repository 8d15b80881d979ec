"""Runs long work in a child process that can be killed: the parent's side. The child's side is `consumers.child`.

The parent writes the job as a JSON file. The child writes JSON lines to its standard output: any number of progress
lines, and a last line with the result or an error. Output of libraries goes to a log file in the job's folder.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from retuned.consumers.common.logfields import current
from retuned.consumers.common.memory import available_bytes, gibibytes, oom_kills
from retuned.consumers.errors import Cancelled, ChildFailed, OutOfMemory

Emit = Callable[[dict[str, Any]], None]

# Spinning OpenMP threads starve everything else on a small machine, and sleeping ones have to be woken thousands of
# times in a training step. So libgomp, which torch uses on Linux, spins for about 50 microseconds.
THREADS_WAIT_BRIEFLY = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
# A training step allocates and frees hundreds of MB, which the kernel clears each time; pages of 2 MB take a fraction
# of the time. Only glibc reads this.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

CANCELLED = 75
"""The exit status of a child that was stopped before it finished."""
FIELDS = "RETUNED_LOG_FIELDS"
"""The environment variable with the log fields of a child."""


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
    """Runs `python -m module` on a job and returns its result.

    Args:
        job: JSON-serialisable; kept as `<module>.job.json` in the folder.
        folder: created if missing; the child's log is kept there as `<module>.log`.
        stop: when set, the child gets SIGTERM and, after the grace, SIGKILL.
        on_progress: called in this thread with each progress line.
        to_need_less: advice for a person if the child runs out of memory, besides giving it more.

    Raises:
        Cancelled: `stop` was set before the child had a result.
        OutOfMemory: the child needed more memory than there was.
        ChildFailed: the child reported an error, died, or ran out of time; the text names the cause and the log.
    """
    name = module.rsplit(".", 1)[-1]
    killed_before = oom_kills()
    folder.mkdir(parents=True, exist_ok=True)
    job_file, log_file = folder / f"{name}.job.json", folder / f"{name}.log"
    job_file.write_text(json.dumps(job), encoding="utf-8")
    with log_file.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", module, str(job_file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=_environment() | (environment or {}),
            start_new_session=True,  # Ctrl-C in the terminal reaches only the daemon
        )
    assert child.stdout is not None
    stop = stop or threading.Event()
    deadline = _Deadline(child, stop, timeout_seconds, grace_seconds)
    try:
        last: dict[str, Any] = {}
        for line in _lines(child.stdout, name, deadline.check):
            if "error" in last:
                continue  # the first of several processes that fails knows the cause
            last = json.loads(line)
            if on_progress and "result" not in last and "error" not in last:
                on_progress(last)
        status = child.wait()
    except _TookTooLong:
        raise ChildFailed(f"{name}: took longer than {timeout_seconds:g} s and was killed; see {log_file}") from None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
        child.stdout.close()
    if "result" in last:
        result: dict[str, Any] = last["result"]
        return result
    if deadline.stopped:
        raise Cancelled(f"{name}: stopped before it was done")
    kind, cause = _failure(last, status, killed_before, to_need_less)
    raise kind(f"{name}: {cause}" + ("" if "error" in last and kind is ChildFailed else f"; see {log_file}"))


def _environment() -> dict[str, str]:
    return {
        **HUGE_PAGES,
        **os.environ,
        **THREADS_WAIT_BRIEFLY,
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RETUNED_PARENT": str(os.getpid()),
        FIELDS: json.dumps(current()),
    }


class _TookTooLong(Exception):
    pass


class _Deadline:
    """Ends a child when it is stopped or runs out of time.

    Attributes:
        stopped: whether the child was asked to stop.
    """

    def __init__(
        self, child: "subprocess.Popen[bytes]", stop: threading.Event, timeout_seconds: float, grace_seconds: float
    ) -> None:
        self._child, self._stop, self._grace_seconds = child, stop, grace_seconds
        self._end = time.monotonic() + timeout_seconds
        self.stopped = False

    def check(self) -> None:
        """Terminates a stopped child, and kills it after the grace.

        Raises:
            _TookTooLong: the child ran out of time.
        """
        if self._stop.is_set() and not self.stopped:
            self.stopped, self._end = True, time.monotonic() + self._grace_seconds
            self._child.terminate()
        if time.monotonic() > self._end:
            if not self.stopped:
                raise _TookTooLong
            self._child.kill()


def _lines(output: IO[bytes], name: str, check: Callable[[], None]) -> Iterator[bytes]:
    """Yields the lines of a child's output, and calls `check` at least every 0.1 s."""
    lines: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        for line in output:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, name=f"{name}-output", daemon=True)
    reader.start()
    while True:
        check()
        try:
            line = lines.get(timeout=0.1)
        except queue.Empty:
            continue
        if line is None:
            reader.join()
            return
        yield line


def _failure(
    last: dict[str, Any], status: int, killed_before: int | None, to_need_less: str
) -> tuple[type[ChildFailed], str]:
    """Returns the kind and the cause of a child's failure.

    Args:
        last: the child's last line.
        killed_before: `oom_kills` when the child started.
    """
    error, or_less = last.get("error"), f", or {to_need_less}" if to_need_less else ""
    if last.get("on_gpu"):
        advice = "free it of other processes, such as a model server, use a larger one"
        return OutOfMemory, f"out of memory on the GPU: {error}; {advice}{or_less}"
    if error is not None and not last.get("out_of_memory"):
        return ChildFailed, str(error)
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    killed = oom_kills()
    if error is None and status == -signal.SIGKILL and killed != killed_before:
        error = f"the kernel ended the child process ({how})"
    if error is not None:
        left = available_bytes()
        free = f" ({gibibytes(left)} are free now)" if left is not None else ""
        return OutOfMemory, f"out of memory: {error}; give it more memory{free}{or_less}"
    if status == -signal.SIGKILL and killed is None:
        how += f", most likely by the kernel, out of memory: give it more{or_less}"
    return ChildFailed, f"the child process ended without a result, {how}"
