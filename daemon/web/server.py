"""The HTTP server: uvicorn in a thread."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from retuned.consumers.errors import ConfigurationError
from retuned.daemon.settings import HttpSettings
from retuned.daemon.web.connections import BACKLOG, HEADER_BYTES, Connection


class Server:
    """Uvicorn in a thread of its own, so that the main thread keeps the signals."""

    def __init__(self, application: Starlette, settings: HttpSettings) -> None:
        """Binds the address; raises as `bind` does."""
        self._socket = bind(settings)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            application,
            http=Connection,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
            lifespan="off",
            backlog=BACKLOG,
            h11_max_incomplete_event_size=HEADER_BYTES,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the requests under way, at most 2 s, and stop; safe to repeat."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout=4)
        self._socket.close()


def bind(settings: HttpSettings) -> socket.socket:
    """A socket bound to the configured address.

    Raises:
        ConfigurationError: the address is taken or not this machine's.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise ConfigurationError(
            f"http.port: cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
            "is another retuned running?"
        ) from error
    return bound


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
