"""The principals that may give feedback as experts."""

from retuned.consumers.errors import ConfigurationError
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.web.principals import Principals


def experts(settings: GatewaySettings) -> Principals | None:
    """Returns the principals of `gateway.principals_file`; None: there are no experts.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    if settings.principals_file is None:
        return None
    try:
        return Principals(HttpSettings(principals_file=settings.principals_file))
    except ConfigurationError as error:
        raise ConfigurationError(f"gateway.principals_file: {error}") from error
