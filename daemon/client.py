"""Operations by way of a running daemon, over HTTP. Imports little, so that a command answers at once."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.sections import is_loopback
from retuned.daemon.operations.operation import API, Operation, Q, R, fields_of

if TYPE_CHECKING:
    import httpx

    from retuned.daemon.http_settings import HttpSettings
    from retuned.daemon.settings import Settings

CONNECT_SECONDS = 2.0
END_OF_CERTIFICATE = "-----END CERTIFICATE-----"


class AskedIngester(RetunedError):
    """An ingester listens on `http.port`, which has no API."""


class Client:
    """See `Service`; what the daemon refuses is raised as a RetunedError with its own text."""

    def __init__(self, settings: "Settings") -> None:
        self._settings = settings.http

    def is_up(self) -> bool:
        """Whether anything listens on the daemon's port.

        Raises:
            RetunedError: nothing does, and the daemon is on another machine: no warehouse of this one is in its place.
        """
        host, port = self._settings.address, self._settings.port
        try:
            socket.create_connection((host, port), CONNECT_SECONDS).close()
        except OSError as error:
            if _is_here(host):
                return False
            raise RetunedError(
                f"http.host {host}: no connection to the daemon on port {port} ({error.strerror or error}), which has "
                "the warehouse on another machine"
            ) from error
        return True

    def ask(self, operation: Operation[Q, R], request: Q) -> R:
        """The daemon's answer. One that is a stream of bytes is asked for once its first piece is wanted."""
        is_bytes = operation.streams == "bytes"
        return cast("R", self._pieces(operation, request) if is_bytes else self._json(operation, request))

    def _pieces(self, operation: Operation[Q, R], request: Q) -> Iterator[bytes]:
        with self._opened(operation, request) as response:
            yield from response.iter_bytes()  # as it arrives: some streams report progress

    def _json(self, operation: Operation[Q, R], request: Q) -> Any:
        with self._opened(operation, request) as response:
            response.read()
            try:
                answer = response.json()
            except ValueError as error:
                raise self._not_retuned("no JSON") from error
        is_list = operation.streams == "items" or getattr(operation.result, "__origin__", None) is list
        if not isinstance(answer, list if is_list else dict):
            raise self._not_retuned("something else")
        return answer

    @contextmanager
    def _opened(self, operation: Operation[Q, R], request: Q) -> "Iterator[httpx.Response]":
        import httpx

        settings, tls = self._settings, tls_of(self._settings)
        token = settings.token_to_send()
        with httpx.Client(
            base_url=settings.own_url,
            verify=tls or False,  # without a certificate of its own the daemon speaks plain HTTP
            trust_env=False,  # never send a token to a proxy
            timeout=operation.seconds,
            headers={"Authorization": f"Bearer {token}"} if token else {},
        ) as client:
            try:
                response = client.send(_http_request(client, operation, request), stream=True)
                if response.is_error:
                    response.read()
                    raise self._refused(response)
                yield response
            except httpx.HTTPError as error:
                raise self._unanswered(error) from error

    def _refused(self, response: "httpx.Response") -> RetunedError:
        remedy = "; set http.client_token to one that suffices" if response.status_code in (401, 403) else ""
        try:
            answer = response.json()
            kind = AskedIngester if answer.get("process") == "ingest" else RetunedError
            return kind(answer["error"] + remedy)
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._not_retuned(str(response.status_code))

    def _unanswered(self, error: BaseException) -> RetunedError:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                key = "tls_ca_file" if self._settings.tls_ca_file else "tls_certificate_file"
                return ConfigurationError(
                    f"http.{key}: the certificate of what listens on {self._settings.port} is not trusted "
                    f"({cause.verify_message})"
                )
            cause = cause.__cause__ or cause.__context__
        text = str(error) or type(error).__name__
        return RetunedError(f"the daemon went away in the middle ({text}); run the command again")

    def _not_retuned(self, answered: str) -> ConfigurationError:
        port = self._settings.port
        return ConfigurationError(f"http.port: what listens on {port} answered {answered} and is not retuned")


def _is_here(host: str) -> bool:
    """Whether an address or a name is this machine's: one on which it can listen."""
    if is_loopback(host):
        return True
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind) as probe:
                probe.bind(address)
    except OSError:
        return False
    return True


def _http_request(client: "httpx.Client", operation: Operation[Q, R], request: Q) -> "httpx.Request":
    packed = operation.packed
    given = request.model_dump(
        mode="json", exclude_none=True, exclude_unset=True, exclude={packed.field} if packed else None
    )
    path = next(path for path in operation.paths if set(fields_of(path)) <= given.keys())
    address = API + path.format(**{name: quote(given.pop(name), safe="") for name in fields_of(path)})
    if operation.method == "GET":
        return client.build_request("GET", address, params=given)
    if packed:
        headers = {"Content-Type": packed.media_type}
        return client.build_request("POST", address, content=packed.pack(request), headers=headers)
    return client.build_request("POST", address, json=given)


def tls_of_this_certificate(settings: "HttpSettings") -> ssl.SSLContext | None:
    """How another daemon with the same certificate is verified, wherever it is; None: it speaks plain HTTP."""
    return tls_of(settings.model_copy(update={"tls_ca_file": None}))


def tls_of(settings: "HttpSettings") -> ssl.SSLContext | None:
    """How the daemon's certificate is verified; None: it speaks plain HTTP.

    Raises:
        ConfigurationError: the file to verify by cannot be used.
    """
    file = settings.tls_ca_file or settings.tls_certificate_file
    if file is None:
        return None
    try:
        if settings.tls_ca_file:
            return ssl.create_default_context(cafile=file)
        first = file.read_text(encoding="ascii").partition(END_OF_CERTIFICATE)[0] + END_OF_CERTIFICATE
        context = ssl.create_default_context(cadata=ssl.PEM_cert_to_DER_cert(first[first.index("-----BEGIN CERT") :]))
    except (OSError, ValueError) as error:
        name = "tls_ca_file" if settings.tls_ca_file else "tls_certificate_file"
        raise ConfigurationError(f"http.{name} {file}: cannot be used ({error})") from error
    # That very certificate is trusted, whatever names are in it, and no other that its authority signed.
    context.check_hostname = False
    context.verify_flags = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    return context
