"""How often the client for model servers sends a request: again only where no server can have begun with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from multidict import CIMultiDict

from retuned.daemon.gateway.servers.client import Client, Sends

ANSWER = b"HTTP/1.1 %d Status\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def listening(status: int = 200, *, closes: bool = False) -> AsyncIterator[str]:
    """A server of one connection after the other; its address.

    Args:
        closes: it answers one request of each connection, and closes the connection when the next one arrives.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answered = 0
        try:
            while await reader.readuntil(b"\r\n\r\nhello"):
                if closes and answered:
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


async def posted(client: Client, url: str, sends: Sends) -> int:
    async with await client.post(url, b"hello", CIMultiDict(), sends, 5.0) as answer:
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
