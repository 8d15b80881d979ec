"""Spans for tracing; nothing is recorded until a recorder is set."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

Value = str | bool | int | float


class Span(Protocol):
    """An open span."""

    def set(self, **attributes: Value | None) -> None:
        """Adds attributes; None: unknown."""


class _Unrecorded:
    def set(self, **attributes: Value | None) -> None:
        """Does nothing."""


Recorder = Callable[[str], AbstractContextManager[Span]]
_recorder: Recorder | None = None


def record(recorder: Recorder | None) -> None:
    """Sets the recorder of all further spans; None: no recording."""
    global _recorder
    _recorder = recorder


@contextmanager
def span(name: str, **attributes: Value | None) -> Iterator[Span]:
    """Opens a span around a block; a span within another one in the same thread is its child.

    Attributes must not contain users' texts.
    """
    opened: AbstractContextManager[Span] = nullcontext(_Unrecorded()) if _recorder is None else _recorder(name)
    with opened as active:
        active.set(**attributes)
        yield active
