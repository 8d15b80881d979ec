"""Failed attempts to authenticate, by client address."""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_FAILURES, WINDOW_SECONDS = 10, 60.0
"""After so many different wrong tokens within the window, further wrong ones of the address are turned away until the
first leaves it. A valid token never is: an ingress gives all its clients one address."""
MOST_ADDRESSES = 4_096
"""Beyond these, the address whose last failure is oldest is forgotten."""


class FailedAttempts:
    """Which addresses have sent wrong tokens lately. Used by one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tried: OrderedDict[str, dict[int, float]] = OrderedDict()  # by address: hash of a token, when it came

    def wait_seconds(self, address: str) -> int:
        """Whole seconds until a wrong token of the address is no longer one too many; 0: it is none now."""
        now = self._clock()
        recent = [since for since in self._tried.get(_client(address), {}).values() if now < since + WINDOW_SECONDS]
        return math.ceil(min(recent) + WINDOW_SECONDS - now) if len(recent) >= MOST_FAILURES else 0

    def add(self, address: str, token: str) -> None:
        """A wrong token came from there."""
        now, client = self._clock(), _client(address)
        before = self._tried.get(client, {})
        kept = {tried: since for tried, since in before.items() if now < since + WINDOW_SECONDS}
        self._tried[client] = {hash(token): now} | kept
        self._tried.move_to_end(client)
        if len(self._tried) > MOST_ADDRESSES:
            self._tried.popitem(last=False)


def _client(address: str) -> str:
    """Of IPv6, the network of 64 bits: one client has all of its addresses."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
    return address
