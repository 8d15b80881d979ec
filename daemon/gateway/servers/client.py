"""Sends requests to model servers, and none again that a server may have started to process."""

import errno
from contextvars import ContextVar
from typing import Any

import aiohttp
from multidict import CIMultiDict

from retuned.daemon.gateway.connections import busy

CONNECT_SECONDS = 2.0
KEPT_OPEN_SECONDS = 4.0
"""Below the 5 s after which uvicorn, and so vLLM, closes a connection that is not used."""
MOST_SENDS = 2

_is_new: ContextVar[bool] = ContextVar("_is_new")


class Sends:
    """How often an app's request was sent without an answer, to all servers together."""

    count = 0


class _Connector(aiohttp.TCPConnector):
    """Notes whether a request got a new connection."""

    async def _create_connection(self, *arguments: Any) -> Any:
        made = await super()._create_connection(*arguments)
        _is_new.set(True)
        return made


class Client:
    """aiohttp's client.

    Attributes:
        session: with kept-alive connections.
    """

    def __init__(self, timeout_seconds: float) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=timeout_seconds)

        def session(**options: Any) -> aiohttp.ClientSession:
            connector = _Connector(limit=0, **options)
            return aiohttp.ClientSession(
                connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
            )

        self.session, self._fresh = session(keepalive_timeout=KEPT_OPEN_SECONDS), session(force_close=True)

    async def close(self) -> None:
        """Close all connections."""
        await self.session.close()
        await self._fresh.close()

    async def post(self, url: str, body: bytes, headers: CIMultiDict[str], sends: Sends) -> aiohttp.ClientResponse:
        """Send a request; once more, on a new connection, if the server closed a kept-alive one: probably before the
        request arrived.

        Raises:
            aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError: there is no connection; nothing was sent.
            aiohttp.ClientError, TimeoutError: there is no answer.
            Refused: the process is out of file descriptors.
        """
        for session in (self.session, self._fresh):
            _is_new.set(False)
            sends.count += 1
            try:
                return await session.post(url, data=body, headers=headers, allow_redirects=False)
            except aiohttp.ClientConnectorError as error:
                sends.count -= 1
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise busy("the gateway is out of file descriptors (`ulimit -n`)") from error
                raise
            except aiohttp.ConnectionTimeoutError:
                sends.count -= 1
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if _is_new.get() or sends.count >= MOST_SENDS:
                    raise
        raise AssertionError("a new connection answers or raises")
