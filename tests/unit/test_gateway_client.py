"""How often the client for model servers sends a request: again only where no server can have begun with it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

from retuned.daemon.gateway.servers.client import Client, Sends

ANSWER = b"HTTP/1.1 %d Status\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def listening(
    status: int = 200,
    *,
    closes: bool = False,
    seconds: float = 0.0,
    begins: bytes = b"",
    got: list[bytes] | None = None,
) -> AsyncIterator[str]:
    """A server of one connection after the other; its address.

    Args:
        closes: it answers one request of each connection, and closes the connection when the next one arrives.
        seconds: how long it works on that one before.
        begins: what it has answered to it by then.
        got: collects the requests.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answered = 0
        try:
            while request := await reader.readuntil(b"\r\n\r\nhello"):
                if got is not None:
                    got.append(request)
                if closes and answered:
                    writer.write(begins)
                    await asyncio.sleep(seconds)
                    break
                writer.write(ANSWER % status)
                answered += 1
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@asynccontextmanager
async def connecting() -> AsyncIterator[Client]:
    client = Client()
    try:
        yield client
    finally:
        await client.close()


async def posted(client: Client, url: str, sends: Sends, *, once: bool = False) -> int:
    async with await client.post(url, b"hello", CIMultiDict(), sends, 5.0, once=once) as answer:
        await answer.read()
        return answer.status


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_an_answered_request_leaves_the_next_server_its_second_send(answered: int) -> None:
    """A server that answers with an error is no reason why a stale connection to the next one fails the request."""

    async def run() -> None:
        sends = Sends()
        async with listening(500) as failing, listening(closes=True) as stale, connecting() as client:
            assert await posted(client, stale, Sends()) == 200  # its connection is kept
            for _ in range(answered):
                assert await posted(client, failing, sends) == 500
            assert await posted(client, stale, sends) == 200

    asyncio.run(run())


def test_a_request_is_sent_without_an_answer_twice_at_most() -> None:
    """Over all servers."""

    async def run() -> None:
        sends = Sends()
        async with listening(closes=True) as first, listening(closes=True) as second, connecting() as client:
            for url in (first, second):
                assert await posted(client, url, Sends()) == 200
            assert await posted(client, first, sends) == 200  # on a new connection
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await posted(client, second, sends)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("closing", "once"),
    [
        ({"seconds": 0.3}, False),
        ({"begins": b"HTTP/1.1 200 Status\r\nContent-Le"}, False),
        ({}, True),  # an incumbent, at once
        ({"seconds": 0.3}, True),
    ],
    ids=["after a while", "in its answer", "what is paid for", "what is paid for after a while"],
)
def test_a_server_that_may_have_begun_gets_nothing_again_on_a_kept_connection(
    closing: dict[str, Any], once: bool
) -> None:
    async def run() -> None:
        got: list[bytes] = []
        async with listening(closes=True, got=got, **closing) as server, connecting() as client:
            assert await posted(client, server, Sends(), once=once) == 200
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await posted(client, server, Sends(), once=once)
            assert len(got) == 2

    asyncio.run(run())


def test_a_late_look_at_the_clock_sends_nothing_more() -> None:
    """A gateway that is busy notices the end of a connection late: then it is not known when the server closed it."""

    async def run() -> None:
        got: list[bytes] = []
        async with listening(closes=True, got=got) as server, connecting() as client:
            assert await posted(client, server, Sends()) == 200
            asking = asyncio.create_task(posted(client, server, Sends()))
            while len(got) < 2:
                await asyncio.sleep(0)
            time.sleep(0.3)
            with pytest.raises(aiohttp.ServerDisconnectedError):
                await asking
            assert len(got) == 2

    asyncio.run(run())
