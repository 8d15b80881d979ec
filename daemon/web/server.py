"""The HTTP server: uvicorn in a thread."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import uvicorn
from starlette.applications import Starlette

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.sections import authority
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.web import connections
from retuned.daemon.web.connections import BACKLOG, HEADER_BYTES, HEADER_SECONDS, Connection
from retuned.daemon.web.principals import Principals
from retuned.daemon.web.tls import ServerTls, server_tls

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
"""After a connection could not be accepted: no more files may be opened, for example."""


class Server:
    """Uvicorn in a thread of its own, so that the main thread keeps the signals."""

    def __init__(self, application: Starlette, settings: HttpSettings, bound: socket.socket | None = None) -> None:
        """Reads the certificate and, unless a socket is passed in, binds the address; raises as `bind` and `server_tls`
        do."""
        self._tls = server_tls(settings)
        self._principals: Principals = application.state.principals
        self._socket = bound or bind(settings)
        port = self._socket.getsockname()[1]
        self.url = f"{'https' if self._tls else 'http'}://{authority(settings.host, port)}"
        config = uvicorn.Config(
            application,
            http=Connection,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
            lifespan="off",
            h11_max_incomplete_event_size=HEADER_BYTES,
            forwarded_allow_ips=list(settings.trusted_proxies),
        )
        self._server = _Server(config, self._socket, self._tls)
        self._thread = threading.Thread(target=self._server.run, name="http", daemon=True)

    def start(self) -> None:
        """Serve from now on."""
        self._socket.listen(BACKLOG)
        self._thread.start()

    def warnings(self) -> list[str]:
        """What needs attention and stops nothing: a file that cannot be read again, a certificate that has expired."""
        found = [self._principals.problem, self._tls.warning(datetime.now(UTC)) if self._tls else None]
        return [warning for warning in found if warning]

    def stop(self) -> None:
        """Finish the requests under way, at most 2 s, and stop; safe to repeat."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout=4)
        self._socket.close()


def bind(settings: HttpSettings) -> socket.socket:
    """A socket bound to the configured address; `::` takes connections of IPv4, too.

    Raises:
        ConfigurationError: the address is taken or not this machine's.
    """
    host, family = settings.host, socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    if host == "::" and not socket.has_dualstack_ipv6():
        host, family = "0.0.0.0", socket.AF_INET
    bound: socket.socket | None = None
    try:
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind((host, settings.port))
    except OSError as error:
        if bound is not None:
            bound.close()
        raise ConfigurationError(
            f"http.port: cannot listen on {authority(host, settings.port)} ({error.strerror}); "
            "is another retuned running?"
        ) from error
    return bound


class _Server(uvicorn.Server):
    """uvicorn's server, which accepts its connections itself.

    A connection counts for uvicorn only once its TLS handshake is over, and a handshake may take a minute. Here
    handshakes have a limit of time and of number, as `Connection` has them for what comes afterwards; and a renewed
    certificate serves from the next connection on.
    """

    def __init__(self, config: uvicorn.Config, listening: socket.socket, tls: ServerTls | None) -> None:
        super().__init__(config)
        self._listening, self._tls = listening, tls
        self._handshakes: dict[asyncio.Task[None], None] = {}  # in order of their beginning

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002  (uvicorn's names)
        self._listening.setblocking(False)
        self.servers = []
        self._accepting = asyncio.create_task(self._accept())
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in (self._accepting, *self._handshakes):
            task.cancel()
        await super().shutdown(sockets)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                log.warning("no connection can be accepted: %s", error)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if len(self._handshakes) >= connections.most_connections():
                next(iter(self._handshakes)).cancel()  # the oldest makes room
            task = asyncio.create_task(self._connect(accepted))
            self._handshakes[task] = None
            task.add_done_callback(lambda done: self._handshakes.pop(done, None))
            await asyncio.sleep(0)  # a task that is cancelled before it begins would leave its socket open

    async def _connect(self, accepted: socket.socket) -> None:
        if self._tls:
            self._tls.refresh()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(
                    config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=None
                ),
                accepted,
                ssl=self._tls.context if self._tls else None,
                ssl_handshake_timeout=HEADER_SECONDS if self._tls else None,
            )
        except OSError as error:  # no TLS, an unknown authority, too slow, gone; the transport closed it
            log.debug("no connection: %s", error)
