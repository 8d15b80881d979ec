"""Failed attempts to authenticate, by client address, so that tokens cannot be tried one after the other."""

import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

MOST_FAILURES, WINDOW_SECONDS = 10, 60.0
"""After so many wrong tokens within the window no token of the address is looked at, until the first leaves it."""
MOST_ADDRESSES = 4_096
"""Beyond these, the address whose last failure is oldest is forgotten."""


class FailedAttempts:
    """Which addresses have sent wrong tokens lately. Used by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def wait_seconds(self, address: str) -> int:
        """Whole seconds until a token of the address is looked at again; 0: it is now."""
        times = self._times.get(_client(address))
        if times is None or len(times) < MOST_FAILURES:
            return 0
        return max(0, math.ceil(times[0] + WINDOW_SECONDS - self._clock()))

    def add(self, address: str) -> None:
        """A wrong token came from there."""
        client = _client(address)
        self._times.setdefault(client, deque(maxlen=MOST_FAILURES)).append(self._clock())
        self._times.move_to_end(client)
        if len(self._times) > MOST_ADDRESSES:
            self._times.popitem(last=False)


def _client(address: str) -> str:
    """Of IPv6, the network of 64 bits: one client has all of its addresses."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return address
