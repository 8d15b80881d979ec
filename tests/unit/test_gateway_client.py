"""How often the client for model servers sends a request: again only where no server can have begun with it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

from retuned.daemon.gateway.servers.bounds import Allowance, Passed
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


class Dripping:
    """The body of an answer that arrives in pieces, after so many seconds each."""

    def __init__(self, pieces: Iterable[bytes], seconds: float = 0.0) -> None:
        self._pieces, self._seconds = iter(pieces), seconds

    async def readany(self) -> bytes:
        if self._seconds:
            await asyncio.sleep(self._seconds)
        return next(self._pieces, b"")


def lines_of(content: Dripping, line_bytes: int = 100, answer_bytes: int = 1_000, seconds: float = 10.0) -> list[bytes]:
    async def run() -> list[bytes]:
        return [lines async for lines in Allowance(answer_bytes, line_bytes, seconds).lines(content)]

    return asyncio.run(run())


def test_lines_arrive_whole_whatever_the_pieces() -> None:
    body = b"data: 1\n\ndata: 22\r\n\n: a comment\ndata: without an end"
    for size in (1, 2, 3, 7, len(body)):
        pieces = lines_of(Dripping(body[place : place + size] for place in range(0, len(body), size)))
        assert b"".join(pieces) == body
        assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    assert lines_of(Dripping([])) == []


@pytest.mark.parametrize(
    ("pieces", "bound"),
    [
        ([b"x" * 60, b"x" * 40], None),
        ([b"x" * 60, b"x" * 40 + b"\n" + b"x" * 100], None),
        ([b"x" * 60, b"x" * 41], "max_line_bytes"),
        ([b"x" * 60, b"x" * 41 + b"\n"], "max_line_bytes"),
        ([b"\n" + b"x" * 60, b"x" * 41], "max_line_bytes"),
        ([b"x\n" * 50] * 10, None),
        ([b"x\n" * 50] * 10 + [b"x"], "max_answer_bytes"),
    ],
)
def test_a_stream_ends_where_it_passes_a_bound(pieces: list[bytes], bound: str | None) -> None:
    if bound is None:
        assert b"".join(lines_of(Dripping(pieces))) == b"".join(pieces)
        return
    with pytest.raises(Passed, match=rf"\(gateway\.{bound}\)") as passed:
        lines_of(Dripping(pieces))
    assert passed.value.bound == bound


def test_all_waiting_for_one_answer_counts_together_and_the_apps_reading_does_not() -> None:
    async def run() -> None:
        allowance = Allowance(1_000, 100, 0.3)
        assert await allowance.wait(asyncio.sleep(0.1, "headers")) == "headers"
        lines = allowance.lines(Dripping([b"x\n"] * 100, 0.02))
        await anext(lines)
        await asyncio.sleep(0.5)  # the app reads
        await anext(lines)
        with pytest.raises(Passed, match=r"not complete after 0\.3 s \(gateway\.max_answer_seconds\)"):
            async for _ in lines:
                pass

    asyncio.run(run())


def test_a_timeout_of_the_connection_is_no_bound_of_the_answer() -> None:
    async def times_out() -> None:
        raise TimeoutError("the connection")

    with pytest.raises(TimeoutError, match="the connection"):
        asyncio.run(Allowance(1, 1, 10.0).wait(times_out()))


def test_a_long_line_costs_its_bytes_and_not_their_square() -> None:
    piece, began = b"x" * 2**16, time.process_time()
    (line,) = lines_of(Dripping([piece] * 1_500), 2**30, 2**30)
    assert len(line) == 1_500 * 2**16
    assert time.process_time() - began < 3  # copied with each piece, it takes 10 s and more
