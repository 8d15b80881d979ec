"""What log lines are about: fields that stand beside the message of each line logged within a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_fields: ContextVar[dict[str, str]] = ContextVar("fields")


@contextmanager
def about(**fields: str | None) -> Iterator[None]:
    """Lines of this thread within the block are about these: workload, run, version, job, actor. None: not known."""
    token = _fields.set(current() | {name: value for name, value in fields.items() if value is not None})
    try:
        yield
    finally:
        _fields.reset(token)


def current() -> dict[str, str]:
    """The fields of a line that is logged here."""
    return _fields.get({})
