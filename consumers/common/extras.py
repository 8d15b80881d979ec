"""Optional dependencies (the package's `extras`)."""

from collections.abc import Iterator
from contextlib import contextmanager

from retuned.consumers.errors import ConfigurationError


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Wraps imports of packages that an extra installs.

    Args:
        what: the setting or the command that needs it.

    Raises:
        ConfigurationError: the extra is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{what}: {error.name} is missing: pip install 'retuned[{extra}]'") from error
