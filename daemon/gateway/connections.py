"""Limits apps' connections: their number, and the time for a request and for reading its answer.

Beyond the limit, the connection that has waited longest for a complete request is closed. So clients that open many
connections, or send slowly, displace one another, but never an answer in progress.
"""

import asyncio
import logging
import resource
import socket
import time
from typing import Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from retuned.consumers.errors import ConfigurationError
from retuned.daemon.gateway.errors import Refused
from retuned.daemon.gateway_settings import GatewaySettings

log = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
"""The longest time for the headers of a request, from its first byte; at most `gateway.client_seconds`."""
CHECK_SECONDS = 0.5
LEAST_BYTES = 16 * 2**10
"""Bytes of a waiting answer that a client must read within `gateway.client_seconds`."""
SMALL_BYTES, MOST_LONG_BYTES = 64 * 2**10, 256 * 2**20
"""Requests longer than the first limit share the second while they are read."""
OTHER_FILES = 64
"""File descriptors for the buffer, Kafka, the daemon and lists of models."""
FILES_PER_CONNECTION = 3
"""File descriptors per connection: the app's, the server's, and an idle one to another server."""
SPARE = 16
"""Connections reserved beyond the answers in progress, to answer probes and to refuse new requests."""


def raise_file_limit() -> int:
    """Raises the limit of open files to the hard limit; returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # "unlimited" may be more than the kernel allows
        return soft
    return hard


def most_connections(settings: GatewaySettings, files: int) -> int:
    """Returns the limit of connections.

    Args:
        files: the limit of open files; RLIM_INFINITY: none.

    Raises:
        ConfigurationError: the limit of open files is too low.
    """
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    possible = (files - OTHER_FILES) // FILES_PER_CONNECTION
    if possible <= SPARE:
        least = OTHER_FILES + FILES_PER_CONNECTION * (SPARE + 1)
        raise ConfigurationError(f"the limit of open files is {files}; the gateway needs {least}: raise `ulimit -n`")
    if possible < settings.max_connections:
        log.warning(
            "at most %d connections instead of gateway.max_connections %d: the limit of open files is %d",
            possible, settings.max_connections, files,
        )  # fmt: skip
    return min(settings.max_connections, possible)


def bind(settings: GatewaySettings) -> socket.socket:
    """Returns a bound socket, whose port several gateways may share. `::` accepts IPv4, too.

    Raises:
        ConfigurationError: the address is in use, or not an address of this machine.
    """
    host, port = settings.host, settings.port
    if host == "::" and not socket.has_dualstack_ipv6():
        host = "0.0.0.0"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigurationError(f"gateway.host {host}: cannot be used ({error.strerror})") from error
    try:
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            bound.setsockopt(socket.SOL_SOCKET, option, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigurationError(f"gateway.port {port}: cannot be used ({error.strerror})") from error
    return bound


class Connection(RequestHandler):
    """aiohttp's connection, with limits of time for headers and for reading the answer."""

    def __init__(self, server: "Server", **options: Any) -> None:
        super().__init__(server, **options)
        self.server = server
        self.wire: asyncio.Transport | None = None  # aiohttp drops its reference before all bytes are sent
        self.long_bytes = 0
        self._answered = 0
        self._headers_since: float | None = None
        self._stalled_since: float | None = None
        self._unsent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.wire = cast(asyncio.Transport, transport)
        self.wire.set_write_buffer_limits(high=0)  # pauses writing until the kernel has all bytes
        super().connection_made(transport)
        self.server.opened(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self.server.closed(self)

    def data_received(self, data: bytes) -> None:
        if self._headers_since is None and self.between_requests:
            self._headers_since = time.monotonic()
        super().data_received(data)
        if not self.between_requests:
            self._headers_since = None

    @property
    def between_requests(self) -> bool:
        """Whether there is no request, or the headers of the next one are incomplete."""
        return self._request_count == self._answered

    async def finish_response(self, *arguments: Any) -> tuple[web.StreamResponse, bool]:
        try:
            return await super().finish_response(*arguments)
        finally:
            self._answered += 1
            self.server.waits(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._note_unsent()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled_since = None

    def close_if_late(self, now: float, seconds: float) -> None:
        """Closes the connection if its headers take too long, or its client has read too little for `seconds`."""
        late = self._headers_since is not None and now - self._headers_since > min(HEADER_SECONDS, seconds)
        if self._stalled_since is not None and now - self._stalled_since > seconds:
            before = self._unsent
            self._note_unsent()
            late |= before - self._unsent < LEAST_BYTES
        if late:
            self.abort()

    def abort(self) -> None:
        """Closes the connection at once, without sending the rest."""
        if self.wire is not None:
            self.wire.abort()

    def _note_unsent(self) -> None:
        self._stalled_since = time.monotonic()
        self._unsent = self.wire.get_write_buffer_size() if self.wire else 0


class Server(web.Server):
    """aiohttp's server, with limits on connections and answers in progress."""

    def __init__(self, handler: Any, settings: GatewaySettings, most: int) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=settings.idle_seconds,
        )
        self._settings, self._most = settings, most
        self._open: dict[Connection, None] = {}
        self._waiting: dict[Connection, None] = {}  # waiting for a complete request, longest wait first
        self._long_bytes = 0

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    @property
    def count(self) -> int:
        """Number of open connections."""
        return len(self._open)

    def opened(self, connection: Connection) -> None:
        """Registers a connection; beyond the limit, closes the one that has waited longest."""
        self._open[connection] = self._waiting[connection] = None
        if len(self._open) > self._most:
            oldest = next(iter(self._waiting))
            self.closed(oldest)
            oldest.abort()

    def closed(self, connection: Connection) -> None:
        """Removes a connection; safe to repeat."""
        self._open.pop(connection, None)
        self._waiting.pop(connection, None)

    def waits(self, connection: Connection) -> None:
        """Notes the end of an answer: the connection waits for the next request."""
        if connection in self._open:
            self._waiting.pop(connection, None)
            self._waiting[connection] = None

    async def read(self, connection: Connection, request: web.BaseRequest, most: int) -> bytes:
        """Returns the body of a request. From then on its answer counts as in progress.

        Raises:
            Refused: the body is too long or takes too long, or too many answers are in progress.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(None if request.content.is_eof() else self._settings.client_seconds):
                async for piece in request.content.iter_any():
                    body += piece
                    if len(body) > most:
                        raise Refused(413, "too_large", f"{request.path}: the request is longer than {most} bytes")
                    if len(body) > SMALL_BYTES:
                        self._make_room(connection, len(piece))
        except TimeoutError:
            limit = f"{self._settings.client_seconds:g} s (gateway.client_seconds)"
            raise Refused(408, "request_timeout", f"the request was not complete after {limit}", closes=True) from None
        finally:
            self._long_bytes -= connection.long_bytes
            connection.long_bytes = 0
        if len(self._open) - len(self._waiting) >= self._most - SPARE:
            raise busy("all connections of the gateway have requests in progress")
        self._waiting.pop(connection, None)
        return bytes(body)

    def _make_room(self, connection: Connection, more: int) -> None:
        if self._long_bytes + more > MOST_LONG_BYTES:
            raise busy("the gateway is reading too many long requests")
        connection.long_bytes += more
        self._long_bytes += more

    async def close_late(self) -> None:
        """Closes connections that take too long, until cancelled."""
        while True:
            now = time.monotonic()
            for connection in list(self._open):
                connection.close_if_late(now, self._settings.client_seconds)
            await asyncio.sleep(CHECK_SECONDS)


def busy(why: str) -> Refused:
    """Returns the error for a request that was not sent to a model server."""
    return Refused(503, "busy", f"{why}; try again later", {"Retry-After": "1"}, closes=True)


async def read(request: web.BaseRequest, most: int) -> bytes:
    """Returns the body of a request; see `Server.read`."""
    connection = cast(Connection, request.protocol)
    return await connection.server.read(connection, request, most)
