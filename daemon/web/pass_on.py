"""Requests that one daemon of a cluster passes on to the one that leads."""

import http.client
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from retuned.consumers.errors import StandsBy
from retuned.daemon.client import tls_of_this_certificate
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.web.access import REQUEST_ID

CONNECT_SECONDS = 2.0
PASSED_ON = "X-Retuned-Passed-On"
_KEPT = ("authorization", "cookie", "content-type", "host", "origin", "accept")
# A page has styles, scripts and forms by its policies; without them the browser refuses all three.
_RETURNED = ("Content-Type", "Content-Security-Policy", "Referrer-Policy", "Location", "Retry-After", REQUEST_ID)


@dataclass(frozen=True)
class Answer:
    """Of the leader; `headers` are those in `_RETURNED`."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Passing:
    """The requests on their way to the leader. Threads share it."""

    def __init__(self, settings: HttpSettings) -> None:
        self._settings = settings
        self._open: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def pass_on(
        self, leader: str, method: str, path: str, headers: Mapping[str, str], body: bytes, seconds: float
    ) -> Answer:
        """Have the leader answer a request. It is shown what the client showed, and admits it or not.

        Args:
            leader: its URL.
            path: with its query.
            seconds: the limit of its answer.

        Raises:
            StandsBy: it does not answer in time, or leads no more.
        """
        if any(name.lower() == PASSED_ON.lower() for name in headers):
            raise StandsBy("this daemon stands by, and another one took it for the leader; try again in some seconds")
        sent = {name: value for name, value in headers.items() if name.lower() in _KEPT} | {PASSED_ON: "1"}
        data = body if method == "POST" else None
        connection = self._connection(leader)
        with self._lock:
            self._open.add(connection)
        try:
            connection.connect()
            connection.sock.settimeout(seconds)
            if connection not in self._open:
                raise ConnectionAbortedError
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            returned = {name: answer.headers[name] for name in _RETURNED if name in answer.headers}
            return Answer(answer.status, returned, answer.read())
        except (OSError, http.client.HTTPException) as error:
            raise self._no_answer(leader, method, connection, error) from error
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def drop(self) -> None:
        """There is another leader: nobody waits for the one before any more."""
        with self._lock:
            dropped, self._open = self._open, set()
        for connection in dropped:
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    # Inside

    def _connection(self, leader: str) -> http.client.HTTPConnection:
        parts = urlsplit(leader)
        host, tls = parts.hostname or "", tls_of_this_certificate(self._settings)
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, parts.port, timeout=CONNECT_SECONDS, context=tls)
        return http.client.HTTPConnection(host, parts.port, timeout=CONNECT_SECONDS)

    def _no_answer(
        self, leader: str, method: str, connection: http.client.HTTPConnection, error: Exception
    ) -> StandsBy:
        dropped = connection not in self._open
        why = "leads no more" if dropped else f"does not answer ({error or type(error).__name__})"
        what = "try again in some seconds"
        if method == "POST" and connection.sock is not None:
            what = "see in retuned status whether it was done, else try again in some seconds"
        return StandsBy(f"this daemon stands by, and the leader at {leader} {why}; {what}")
