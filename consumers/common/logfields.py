"""Fields that are added to each log line within a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_fields: ContextVar[dict[str, str]] = ContextVar("fields")


@contextmanager
def about(**fields: str | None) -> Iterator[None]:
    """Adds fields (workload, run, version, job, actor) to this thread's log lines within the block; None: unknown."""
    token = _fields.set(current() | {name: value for name, value in fields.items() if value is not None})
    try:
        yield
    finally:
        _fields.reset(token)


def current() -> dict[str, str]:
    """Returns the fields of a line logged now."""
    return _fields.get({})
