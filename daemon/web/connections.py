"""What a client of the HTTP server may take: connections, and time and room for a request."""

import asyncio
import logging
import resource
import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 256
BACKLOG = 64
"""Connections that are accepted at once, before the first of them can be refused."""
HEADER_BYTES = 16 * 2**10
HEADER_SECONDS, REQUEST_SECONDS = 10.0, 60.0
"""From the beginning of a request (or of the connection) to the end of its headers, and of its body."""
WRITE_SECONDS = 60.0
"""How long a client may read nothing of an answer that waits for it."""
REST_SECONDS = 2.0
"""How long the rest of a request is read, and dropped, that was answered before its end: a client that is cut off while
it sends would not see the answer."""


def most_connections() -> int:
    """A quarter of the files that this process may open at most: the warehouse and the broker need theirs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else max(8, min(MOST_CONNECTIONS, soft // 4))


class Connection(H11Protocol):
    """uvicorn's connection, with limits of time that uvicorn does not have, and a limit of their number.

    uvicorn's `limit_concurrency` answers 503 once headers are complete; a connection on which nothing is sent stays
    open for ever.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._reading: str | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._since = 0.0  # not the loop's time: uvloop reads it once for all connections that it accepts together

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.client is not None:  # of a client of IPv4 on a socket of IPv6
            self.client = (self.client[0].removeprefix("::ffff:"), self.client[1])
        self._since = time.monotonic()
        self._limit_time()
        if len(self.connections) > most_connections():
            self._make_room()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._limit_time()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since = time.monotonic()
        self._limit_time()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()
        self._reads_again()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._since = time.monotonic()
        self._stalled = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reads_again()

    @property
    def stalled(self) -> bool:
        """Whether an answer waits for the client to read."""
        return self._stalled is not None

    @property
    def waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        """Close the connection that has waited for its client for longest; it may be this one."""
        idle = [one for one in self.connections if isinstance(one, Connection) and (one.waiting or one.stalled)]
        oldest = min(idle, key=lambda one: one._since, default=self)
        oldest.transport.abort()
        self.connections.discard(oldest)

    def _limit_time(self) -> None:
        """Start the timer of what is being read now, unless it runs already."""
        reading, seconds = self._state()
        if reading == self._reading:
            return
        self._stop_timer()
        self._reading = reading
        if reading is not None:
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _state(self) -> tuple[str | None, float]:
        name = self.conn.their_state.__name__
        if name == "IDLE":  # headers are not complete
            return ("headers", HEADER_SECONDS) if self.waiting else (None, 0.0)
        if name != "SEND_BODY":
            return None, 0.0
        return ("rest", REST_SECONDS) if self.waiting else ("body", REQUEST_SECONDS)

    def _reads_again(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        self._stalled = None

    def _stop_timer(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._reading = None
