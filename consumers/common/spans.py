"""Spans: what was done from when to when, for whoever traces it. Nothing is recorded until somebody asks for it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

Value = str | bool | int | float


class Span(Protocol):
    """A span that is open."""

    def set(self, **attributes: Value | None) -> None:
        """Add attributes; those that are None are not known."""


class _Nothing:
    def set(self, **attributes: Value | None) -> None:
        """Recorded nowhere."""


Recorder = Callable[[str], AbstractContextManager[Span]]
_recorder: Recorder | None = None


def record(recorder: Recorder | None) -> None:
    """Have spans recorded from now on, or no more."""
    global _recorder
    _recorder = recorder


@contextmanager
def span(name: str, **attributes: Value | None) -> Iterator[Span]:
    """A span around a block; a span inside of another one, in one thread, is its child.

    No attribute may hold what people wrote.
    """
    opened: AbstractContextManager[Span] = nullcontext(_Nothing()) if _recorder is None else _recorder(name)
    with opened as one:
        one.set(**attributes)
        yield one
