"""The HTTP client for model servers. It never repeats a request that a server may have started to process.

A chat completion is not idempotent: it costs money, and may act through tools. A client may send such a request again
only if it knows that the server did not process it (RFC 9110, section 9.2.2). One case is ambiguous: a server closes a
kept-alive connection just as the next request arrives. The client detects it by three signs: the connection was reused
(`_Connector` notes each new one), it closed before a byte of an answer arrived, and that was within `STALE_SECONDS` of
the call. The clock starts before the request is written, so a slow network or a busy gateway can only prevent a repeat.
"""

import errno
import time
from contextvars import ContextVar
from typing import Any

import aiohttp
from multidict import CIMultiDict

from retuned.daemon.gateway.connections import busy

CONNECT_SECONDS = 2.0
KEPT_OPEN_SECONDS = 4.0
"""Below the 5 s after which uvicorn, and so vLLM, closes an idle connection."""
MOST_SENDS = 2
STALE_SECONDS = 0.1
"""The longest time in which a server that has not read a request closes its connection; one that has works longer."""

_is_new: ContextVar[bool] = ContextVar("_is_new")


class Sends:
    """Counts the times that an app's request was sent without an answer, over all servers."""

    count = 0


class _Connector(aiohttp.TCPConnector):
    """Notes whether a request got a new connection."""

    async def _create_connection(self, *arguments: Any) -> Any:
        connection = await super()._create_connection(*arguments)
        _is_new.set(True)
        return connection


class Client:
    """Posts requests to model servers.

    Attributes:
        session: aiohttp's session with kept-alive connections.
    """

    def __init__(self) -> None:
        def session(**options: Any) -> aiohttp.ClientSession:
            connector = _Connector(limit=0, **options)
            return aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )

        self.session, self._fresh = session(keepalive_timeout=KEPT_OPEN_SECONDS), session(force_close=True)

    async def close(self) -> None:
        """Closes all connections."""
        await self.session.close()
        await self._fresh.close()

    async def post(
        self, url: str, body: bytes, headers: CIMultiDict[str], sends: Sends, seconds: float, *, once: bool
    ) -> aiohttp.ClientResponse:
        """Sends a request. If the server closed a kept-alive connection before it can have begun, sends it once more on
        a new connection.

        Args:
            seconds: longest wait for the next byte of the answer.
            once: sends it once whatever happens, because the answer is paid for.

        Raises:
            aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError: no connection was made; nothing was sent.
            aiohttp.ClientError, TimeoutError: there is no answer.
            Refused: the process is out of file descriptors.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=seconds)
        for session in (self.session, self._fresh):
            _is_new.set(False)
            began = time.perf_counter()
            try:
                return await session.post(url, data=body, headers=headers, allow_redirects=False, timeout=timeout)
            except aiohttp.ClientConnectorError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise busy("the gateway is out of file descriptors (`ulimit -n`)") from error
                raise
            except aiohttp.ConnectionTimeoutError:
                raise
            except (aiohttp.ClientError, TimeoutError) as error:
                sends.count += 1
                is_stale = (
                    _closed_unanswered(error) and not _is_new.get() and time.perf_counter() - began < STALE_SECONDS
                )
                if once or not is_stale or sends.count >= MOST_SENDS:
                    raise
        raise AssertionError("a new connection answers or raises")


def _closed_unanswered(error: Exception) -> bool:
    """Whether the server closed the connection before a byte of an answer."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # else it is the beginning of an answer
    return isinstance(error, aiohttp.ClientOSError)
