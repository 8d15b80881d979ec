"""An answer that costs much and that many ask for: computed once for all of them."""

import math
import time
from collections.abc import Callable
from typing import Any

import anyio
from starlette.concurrency import run_in_threadpool


class Recent:
    """The latest result of a computation; those who ask while it is computed wait for it, and take no threads."""

    def __init__(self, compute: Callable[[], Any], seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """A result is given again for so many seconds."""
        self._compute, self._seconds, self._clock = compute, seconds, clock
        self._lock = anyio.Lock()
        self._good_until = -math.inf
        self._changes = 0
        self._value: Any = None

    async def get(self) -> Any:
        """The result; of the last computation, if that is recent."""
        async with self._lock:
            if self._clock() >= self._good_until:
                changes = self._changes
                self._value = await run_in_threadpool(self._compute)
                self._good_until = self._clock() + self._seconds if changes == self._changes else -math.inf
            return self._value

    def outdate(self) -> None:
        """What it is computed from has changed: whoever asks from now on gets a new one."""
        self._good_until = -math.inf
        self._changes += 1
