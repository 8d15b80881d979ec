"""Optional parts, which need packages of their own (`extras` of the package)."""

from collections.abc import Iterator
from contextlib import contextmanager

from retuned.consumers.errors import ConfigurationError


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """For the imports of what an extra brings.

    Args:
        what: the setting or the command that needs it.

    Raises:
        ConfigurationError: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{what}: {error.name} is missing: pip install 'retuned[{extra}]'") from error
