"""The lock on what serves."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class _Lock:
    """A reentrant lock that knows whether the calling thread holds it."""

    def __init__(self) -> None:
        self._lock, self._holder, self._depth = threading.RLock(), 0, 0  # no thread's identifier is 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._holder, self._depth = threading.get_ident(), self._depth + 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._holder = 0
        self._lock.release()

    @property
    def is_held(self) -> bool:
        """Whether the calling thread holds it. No other thread can make that true or false."""
        return self._holder == threading.get_ident()


lock = _Lock()


def one_at_a_time(work: Callable[P, R]) -> Callable[P, R]:
    """Runs a function under the lock on aliases, deployments and links, which several threads change.

    Functions that read the champion before they change it need the lock, too, so that it is still the champion then.
    """

    @wraps(work)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with lock:
            return work(*args, **kwargs)

    return alone


def without_the_lock(work: Callable[P, R]) -> Callable[P, R]:
    """Marks a function that takes another lock before this one, or waits for other hosts.

    Under the lock it could wait forever for a thread that has the other lock and waits for this one, and meanwhile
    nothing could be taken back. It raises instead, each time, so that any test of such a call fails.
    """

    @wraps(work)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if lock.is_held:
            raise RuntimeError(f"{work.__qualname__} is called under the lock on what serves")
        return work(*args, **kwargs)

    return checked
