"""A function in a process of its own that is killed (SIGKILL) when it is about to change the disk for the nth time."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from forks import forking

from retuned.consumers.warehouse.connection import open_existing
from retuned.daemon.backup import create, restore
from retuned.daemon.settings import Settings

CHANGES = {"os.rename", "os.mkdir", "os.link", "os.symlink", "os.remove", "os.rmdir"}
_left: float = float("inf")


def killed_at(change: int, work: Callable[..., None], *arguments: Any) -> bool:
    """Whether it was killed: False when it was done with fewer changes."""
    process = forking().Process(target=_run, args=(change, work, arguments))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def backing_up(settings: Settings, folder: Path, keep: int, now: datetime) -> None:
    warehouse = open_existing(settings.warehouse)
    create.back_up(warehouse, settings, folder, keep, now, threading.Event())


def restoring(settings: Settings, generation: Path, now: datetime) -> None:
    restore.restore(settings, generation, replace=True, now=now)


def _run(change: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    global _left
    _left = change
    os.fsync = lambda _: None  # what a kill leaves does not hang on it
    sys.addaudithook(_count)
    work(*arguments)
    _left = float("inf")


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    global _left
    writes = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
    if writes or event in CHANGES:
        if _left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        _left -= 1
