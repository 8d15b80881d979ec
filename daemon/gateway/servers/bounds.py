"""The bounds of one answer of a server: in bytes, in bytes without a line end, and in time."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Literal, Protocol, TypeVar

Bound = Literal["max_answer_bytes", "max_line_bytes", "max_answer_seconds"]
"""The keys of the bounds in `gateway`."""

T = TypeVar("T")


class Content(Protocol):
    """The body of an answer; see `aiohttp.StreamReader`."""

    async def readany(self) -> bytes:
        """Returns what has arrived, at least one byte; empty at the end."""


class Passed(Exception):
    """An answer passes a bound.

    Attributes:
        bound: the key of the bound.
    """

    def __init__(self, bound: Bound, text: str) -> None:
        super().__init__(f"the model server's {text} (gateway.{bound})")
        self.bound = bound


class Allowance:
    """What is left of the bounds of one answer, over all attempts to get it from one server.

    All methods raise Passed, and what the connection raises. Work and memory grow with the bytes, not faster.
    """

    def __init__(self, answer_bytes: int, line_bytes: int, seconds: float) -> None:
        """
        Args:
            answer_bytes: of the answer.
            line_bytes: of a line of a stream.
            seconds: of waiting for the server. The time in which the app reads what has arrived does not count.
        """
        self._most_bytes, self._most_line, self._most_seconds = answer_bytes, line_bytes, seconds
        self._bytes, self._seconds = answer_bytes, seconds

    async def wait(self, work: Awaitable[T]) -> T:
        """Returns the result of waiting for the server."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds) as limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            text = f"answer was not complete after {self._most_seconds:g} s"
            raise Passed("max_answer_seconds", text) from None
        finally:
            self._seconds -= time.perf_counter() - began

    async def whole(self, content: Content) -> bytes:
        """Returns a body."""
        return b"".join([piece async for piece in self._pieces(content)])

    async def lines(self, content: Content) -> AsyncIterator[bytes]:
        """Yields whole lines of a body, as many as have arrived; at its end, the rest without a line end."""
        rest: list[bytes] = []
        size = 0
        async for piece in self._pieces(content):
            lines, newline, tail = piece.rpartition(b"\n")
            size += piece.find(b"\n") if newline else len(piece)
            if size > self._most_line:
                raise Passed("max_line_bytes", f"stream has no line end in {self._most_line:,} bytes")
            if newline:
                yield b"".join((*rest, lines, newline))
                rest, size = [], len(tail)
            rest.append(tail)
        if size:
            yield b"".join(rest)

    async def _pieces(self, content: Content) -> AsyncIterator[bytes]:
        while piece := await self.wait(content.readany()):
            self._bytes -= len(piece)
            if self._bytes < 0:
                raise Passed("max_answer_bytes", f"answer is longer than {self._most_bytes:,} bytes")
            yield piece
