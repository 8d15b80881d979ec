"""Follows the daemon's feed of the memory, and keeps it on disk in case the daemon is unreachable."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import RetunedError
from retuned.daemon.gateway.memory.lookup import Memory
from retuned.daemon.gateway.memory.pages import ACTIVE, Change, Mode, Page, decode, encode

log = logging.getLogger(__name__)

FILE = "memory.jsonl"
PAGE = 500
"""The most changes of a page: decoding one keeps the event loop waiting for about a millisecond."""
COMPACT_SECONDS = 60.0
"""The longest time for which the text of a removed entry stays on disk."""


class Feed:
    """Copies the daemon's feed into the memory of this gateway.

    Attributes:
        problem: the reason why the last request to the daemon failed; None: it succeeded, or none is needed.
    """

    def __init__(
        self,
        folder: Path,
        memory: Memory,
        is_used: Callable[[], bool],
        fetch: Callable[[int, int], Awaitable[bytes]],
    ) -> None:
        """
        Args:
            folder: keeps the last state.
            is_used: whether any workload uses the memory.
            fetch: returns a page of the daemon's feed: the changes after a sequence, at most so many.
        """
        self._file, self._memory, self._is_used, self._fetch = folder / FILE, memory, is_used, fetch
        self._epoch, self._sequence = "", 0
        self._modes: dict[str, Mode] = {}
        self._active: dict[str, Change] = {}
        self._outdated_since: float | None = None
        self._is_whole = True
        self.problem: str | None = None

    async def load(self) -> None:
        """Loads the state of an earlier process. 100,000 entries take ten seconds; each is in force at once."""
        self._outdated_since = 0.0
        try:
            pages = _pages(self._file)
            while page := await asyncio.to_thread(next, pages, None):
                await self._take(page)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, RetunedError) as error:
            self._is_whole = False
            log.warning("%s: the rest cannot be used until the daemon returns its memory: %s", self._file, error)

    async def follow(self, seconds: float) -> None:
        """Loads the last state, then refreshes the memory at this interval, until cancelled."""
        await self.load()
        while True:
            await self.refresh()
            await asyncio.sleep(seconds)

    async def refresh(self) -> None:
        """Fetches what has changed, if any workload uses the memory. If that fails, all entries stay in force."""
        problem = None
        try:
            if not self._is_used():
                await self._clear()
                self.problem = None
                return
            while (await self._next()).more:
                pass
            if not self._is_whole or self._is_outdated():
                await self._rewrite()
        except msgspec.DecodeError as error:
            problem = f"the memory cannot be decoded ({error}); does the daemon have another version?"
        except OSError as error:
            problem = f"{self._file} cannot be written ({error.strerror})"
        except RetunedError as error:
            problem = str(error)
        except Exception as error:  # otherwise the task would end, and the memory would never be refreshed
            log.exception("memory")
            problem = f"{type(error).__name__}: {error}"
        if problem and problem != self.problem:
            log.warning("memory: the last entries stay in force: %s", problem)
        self.problem = problem

    async def _next(self) -> Page:
        page = decode(await self._fetch(self._sequence, PAGE))
        if page.epoch != self._epoch and self._sequence:
            log.info("memory: the daemon has another warehouse, so all entries are fetched again")
            await self._clear()
            return msgspec.structs.replace(page, more=True)
        is_new = page.entries or (page.epoch, page.modes) != (self._epoch, self._modes)
        await self._take(page)
        if is_new and self._is_whole:
            self._is_whole = False  # until all of the page is written
            await asyncio.to_thread(_append, self._file, page)
            self._is_whole = True
        return page

    async def _take(self, page: Page) -> None:
        await self._memory.apply(page.entries)
        for change in page.entries:
            if self._active.pop(change.id, None) and self._outdated_since is None:
                self._outdated_since = time.monotonic()
            if change.state == ACTIVE:
                self._active[change.id] = change
        self._memory.set_modes(page.modes)
        self._epoch, self._sequence, self._modes = page.epoch, page.sequence, page.modes

    async def _clear(self) -> None:
        """Forgets all; safe to repeat."""
        self._memory.set_modes({})
        if self._epoch:
            await self._memory.clear()
            await asyncio.to_thread(self._file.unlink, missing_ok=True)
        self._epoch, self._sequence, self._modes, self._active, self._outdated_since = "", 0, {}, {}, None
        self._is_whole = True

    def _is_outdated(self) -> bool:
        return self._outdated_since is not None and time.monotonic() - self._outdated_since >= COMPACT_SECONDS

    async def _rewrite(self) -> None:
        """Writes the file anew with the entries in force: without removed ones, and whole after a failed write."""
        active = list(self._active.values())
        pages = (
            Page(self._epoch, active[start : start + PAGE], self._sequence, False, self._modes)
            for start in range(0, len(active) or 1, PAGE)
        )
        await asyncio.to_thread(_write, self._file, pages)
        self._is_whole, self._outdated_since = True, None


def _pages(file: Path) -> Iterator[Page]:
    with file.open("rb") as opened:
        for line in opened:
            yield decode(line)


def _append(file: Path, page: Page) -> None:
    with open(file, "ab", opener=partial(os.open, mode=0o600)) as opened:
        opened.write(encode(page) + b"\n")


def _write(file: Path, pages: Iterator[Page]) -> None:
    with replaced(file) as aside:
        for page in pages:
            _append(aside, page)
