"""A function in a process of its own that is killed (SIGKILL) when it is about to change the disk for the nth time, or
to execute the nth statement."""

import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retuned.consumers.warehouse.opening import open_existing
from retuned.consumers.warehouse.turns import Turns
from retuned.daemon.backup import create, restore
from retuned.daemon.erasure.erasure import Erasures
from retuned.daemon.settings import Settings

CHANGES = {"os.rename", "os.mkdir", "os.link", "os.symlink", "os.remove", "os.rmdir"}
_left: float = float("inf")


def killed_at(change: int, work: Callable[..., None], *arguments: Any, statements: bool = False) -> bool:
    """Whether it was killed: False when it was done with fewer changes.

    Args:
        statements: whether each statement that it executes counts, too.
    """
    done = subprocess.run(
        [sys.executable, "-m", "killed"],
        input=pickle.dumps((_run, (change, work, arguments, statements))),
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.returncode
    return done.returncode != 0


def backing_up(settings: Settings, folder: Path, keep: int, now: datetime) -> None:
    warehouse = open_existing(settings.warehouse)
    create.back_up(warehouse, settings, folder, keep, now, threading.Event())


def restoring(settings: Settings, generation: Path, now: datetime) -> None:
    restore.restore(settings, generation, replace=True, now=now)


def erasing(settings: Settings) -> None:
    warehouse = open_existing(settings.warehouse)
    now = datetime.now(UTC).replace(tzinfo=None)
    Erasures(warehouse, settings, threading.Event(), lambda: now, lambda *_: None).run()


def _run(change: int, work: Callable[..., None], arguments: tuple[Any, ...], statements: bool) -> None:
    global _left
    _left = change
    os.fsync = lambda _: None  # what a kill leaves does not hang on it
    sys.addaudithook(_count)
    if statements:
        tracked: Any = Turns.tracked
        Turns.tracked = lambda self, make: _Counting(tracked(self, make))  # type: ignore[method-assign, assignment, return-value]
    work(*arguments)
    _left = float("inf")


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
    if writes or event in CHANGES:
        _change()


class _Counting:
    """A cursor whose statements and commits count."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def __getattr__(self, name: str) -> Any:
        if name in ("execute", "commit"):
            _change()
        return getattr(self._cursor, name)

    def __enter__(self) -> "_Counting":
        return self

    def __exit__(self, *_: object) -> None:
        self._cursor.close()


def _change() -> None:
    global _left
    if _left <= 0:
        os.kill(os.getpid(), signal.SIGKILL)
    _left -= 1


if __name__ == "__main__":
    run, given = pickle.load(sys.stdin.buffer)
    run(*given)
