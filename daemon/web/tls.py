"""TLS of the server: its certificate and key, read again when they were renewed."""

import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from retuned.consumers.errors import ConfigurationError
from retuned.daemon.http_settings import HttpSettings

log = logging.getLogger(__name__)


class ServerTls:
    """The server's side. Used by one thread, but for `warning`.

    Attributes:
        context: of connections that are accepted from now on.
        problem: why the files cannot be used as they are now, while those before are in force.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises a ConfigurationError when the files are no pair."""
        self._files = certificate, key
        self._seen = self._signature()
        self.context, self.expires_at = _load(certificate, key)
        self.problem: str | None = None
        if warning := self.warning(datetime.now(UTC)):
            log.warning("%s", warning)

    def refresh(self) -> None:
        """Read the files again if they changed. A pair that cannot be used changes nothing."""
        if (signature := self._signature()) == self._seen:
            return
        self._seen = signature
        try:
            self.context, self.expires_at = _load(*self._files)
        except ConfigurationError as error:
            self.problem = f"{error}; the certificate before it is in force"
            log.error("%s", self.problem)
        else:
            self.problem = None
            log.info("%s: read again, valid until %s", self._files[0], self.expires_at.isoformat())

    def warning(self, now: datetime) -> str | None:
        """What needs attention."""
        if self.problem:
            return self.problem
        if now < self.expires_at:
            return None
        return f"http.tls_certificate_file {self._files[0]}: expired on {self.expires_at:%Y-%m-%d}; renew it"

    def _signature(self) -> object:
        try:
            return [(found.st_ino, found.st_size, found.st_mtime_ns) for found in (file.stat() for file in self._files)]
        except OSError:
            return None


def server_tls(settings: HttpSettings) -> ServerTls | None:
    """The server's side as configured; None: plain HTTP.

    Raises:
        ConfigurationError: the certificate or its key cannot be used.
    """
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    return ServerTls(settings.tls_certificate_file, settings.tls_key_file)


def _load(certificate: Path, key: Path) -> tuple[ssl.SSLContext, datetime]:
    """A context of its own, so that a wrong pair leaves the one in force as it is, and when the certificate expires."""
    for name, file in (("tls_certificate_file", certificate), ("tls_key_file", key)):
        try:
            text = file.read_text(encoding="ascii")
        except OSError as error:
            raise ConfigurationError(f"http.{name} {file}: cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"http.{name} {file}: is not PEM") from error
        if "-----BEGIN " not in text:
            raise ConfigurationError(f"http.{name} {file}: is not PEM")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
        return context, x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except _Encrypted as error:
        raise ConfigurationError(f"http.tls_key_file {key}: is encrypted; give one without a password") from error
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"http.tls_certificate_file {certificate} and tls_key_file {key}: are no pair ({error})"
        ) from error


class _Encrypted(Exception):
    pass


def _no_password() -> str:
    raise _Encrypted
