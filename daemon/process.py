"""Settings of the process: signals, Python's interpreter, the allocator, and open files."""

import ctypes
import gc
import getpass
import logging
import os
import resource
import signal
import sys
import threading
from types import FrameType

log = logging.getLogger(__name__)

MOST_FILES = 65_536
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def exit_on_signals(stopping: threading.Event | None = None) -> None:
    """Handle SIGINT and SIGTERM. Without a handler, the first process of a container ignores them.

    Args:
        stopping: the first signal sets it, the second one exits at once; None, during the start: the first one exits.
    """

    def on_signal(number: int, _: FrameType | None) -> None:
        if stopping is None or stopping.is_set():
            os._exit(128 + number)  # children end with this process, and what is stored is consistent at any moment
        log.info("%s: stopping; a run under way resumes at the next start", signal.Signals(number).name)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


def interrupt_on_signals() -> None:
    """Raise KeyboardInterrupt in the main thread on SIGINT and SIGTERM: work under way stops where it can go on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)


def tune_interpreter() -> None:
    """Tune for many short-lived objects, large buffers, and threads that mostly work outside of Python's lock."""
    # Events have no cycles: collecting less often is an eighth faster.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
    # DuckDB and Arrow take the lock many times a batch; waiting 5 ms each time is a quarter slower.
    sys.setswitchinterval(0.0001)
    # After freeing a large buffer, such as a fetch from Kafka, glibc keeps the next ones, and the holes between them.
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 8 << 20)


def user_of_machine() -> str:
    """Returns the user that this process runs as, by name; by number in a container without names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def raise_file_limit() -> None:
    """Raise the limit of open files, up to the hard limit: many shells and services start with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < MOST_FILES:
        most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
