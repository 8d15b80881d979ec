"""Lets one thread use the warehouse alone: it waits until the others have closed their cursors."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, cast

import duckdb

from retuned.consumers.errors import Busy

ALONE_SECONDS = 15.0
LONG_SECONDS = 3.0
"""Whoever wants to be alone does not wait for queries that have run for longer: all others would wait, too."""


class _Cursor:
    """A cursor that reports when it is closed."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, closed: Callable[[], None]) -> None:
        self._cursor, self._closed = cursor, closed
        self._is_open = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            try:
                self._cursor.close()
            finally:
                self._closed()


class Turns:
    """Counts the open cursors of each thread. Thread-safe."""

    def __init__(self, name: str) -> None:
        """Creates a counter; errors begin with `name`."""
        self._name = name
        self._changed = threading.Condition(threading.RLock())  # reentrant: the garbage collector closes cursors, too
        self._open: Counter[int] = Counter()
        self._since: dict[int, float] = {}
        self._alone: int | None = None

    @property
    def is_alone(self) -> bool:
        """Whether a thread uses the warehouse alone, or waits until it can."""
        return self._alone is not None

    def tracked(self, make: Callable[[], duckdb.DuckDBPyConnection]) -> duckdb.DuckDBPyConnection:
        """Returns a new cursor, once no other thread uses the warehouse alone."""
        thread = threading.get_ident()
        with self._changed:
            # A thread with an open cursor continues, because `alone` waits until it has closed it.
            self._changed.wait_for(lambda: self._alone in (None, thread) or thread in self._open)
            cursor = _Cursor(make(), lambda: self._closed(thread))
            self._open[thread] += 1
            self._since.setdefault(thread, time.monotonic())
        return cast("duckdb.DuckDBPyConnection", cursor)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block, no other thread has a cursor: new ones wait.

        Raises:
            Busy: another thread has had a cursor for LONG_SECONDS, or keeps one for ALONE_SECONDS.
        """
        thread = threading.get_ident()
        with self._changed:
            now = time.monotonic()
            if any(now - since > LONG_SECONDS for other, since in self._since.items() if other != thread):
                raise Busy(f"{self._name}: a long query runs, such as a backup or an export; it is tried again")
            if not self._changed.wait_for(lambda: self._alone is None, ALONE_SECONDS):
                raise Busy(f"{self._name}: another thread uses it alone; it is tried again")
            self._alone = thread
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: not self._open.keys() - {thread}, ALONE_SECONDS):
                    raise Busy(f"{self._name}: a query runs for longer than {ALONE_SECONDS:g} s; it is tried again")
            yield
        finally:
            with self._changed:
                self._alone = None
                self._changed.notify_all()

    def _closed(self, thread: int) -> None:
        with self._changed:
            self._open[thread] -= 1
            if not self._open[thread]:
                del self._open[thread], self._since[thread]
            self._changed.notify_all()
