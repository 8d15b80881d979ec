"""The lock on what serves."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

lock = threading.RLock()


def one_at_a_time(work: Callable[P, R]) -> Callable[P, R]:
    """Runs a function under the lock on aliases, deployments and links, which several threads change.

    Functions that read the champion before they change it need the lock, too, so that it is still the champion then.
    """

    @wraps(work)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with lock:
            return work(*args, **kwargs)

    return alone
