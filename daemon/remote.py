"""The service of a running daemon, asked over HTTP. Imports little, so that a command answers at once."""

import http.client
import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.settings import authority
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from retuned.consumers.file_import import Position, Taken
    from retuned.consumers.kafka.contract import Batch
    from retuned.daemon.transfer.exports import Export

T = TypeVar("T")

CONNECT_SECONDS = 2.0
TIMEOUT_SECONDS = 30.0
EXPORT_SECONDS = 600.0  # a training set is chosen before its first row is sent
CHECK_SECONDS = 3_600.0  # windows are compared before it is answered, behind the check under way
REPLAY_SECONDS = 3_600.0  # all letters are tried before it is answered
BACKUP_SECONDS = 21_600.0  # it is made before it is answered for
CHUNK_BYTES = 2**20
END_OF_CERTIFICATE = "-----END CERTIFICATE-----"


class AskedIngester(RetunedError):
    """An ingester listens on `http.port`, which has no API."""


class RemoteService:
    """See `retuned.daemon.service.Service`; what the daemon refuses is raised as a RetunedError with its own text."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._host = settings.http.address

    def is_up(self) -> bool:
        """Whether anything listens on the daemon's port."""
        try:
            socket.create_connection((self._host, self._settings.http.port), CONNECT_SECONDS).close()
        except OSError:
            return False
        return True

    def status(self) -> dict[str, Any]:
        return self._ask(dict, "GET", "status")

    def ingestion(self) -> dict[str, Any]:
        return self._ask(dict, "GET", "ingestion")

    def command(self, name: str, workload: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
        path = f"training/{name}" if workload is None else f"workloads/{quote(workload, safe='')}/{name}"
        seconds = CHECK_SECONDS if name == "check-drift" else TIMEOUT_SECONDS
        return self._ask(dict, "POST", path, arguments, seconds)

    def dead_letters(self, limit: int, reason: str | None) -> list[dict[str, Any]]:
        return self._ask(list, "GET", f"dead-letters?{urlencode(_given(limit=limit, reason=reason))}")

    def resume_ingestion(self) -> dict[str, str]:
        return self._ask(dict, "POST", "dead-letters/resume", {})

    def replay(self) -> dict[str, int]:
        return self._ask(dict, "POST", "dead-letters/replay", {}, REPLAY_SECONDS)

    def labels(self, workload: str | None) -> list[dict[str, Any]]:
        return self._ask(list, "GET", f"labels?{urlencode(_given(workload=workload))}")

    def approvals(self, workload: str | None) -> list[dict[str, Any]]:
        return self._ask(list, "GET", f"approvals?{urlencode(_given(workload=workload))}")

    def decide_approval(self, id: str, decision: str, reason: str, user: str | None) -> dict[str, Any]:
        body = {"decision": decision, "reason": reason, "user": user}
        return self._ask(dict, "POST", f"approvals/{quote(id, safe='')}", body)

    def lineage(self, id: str) -> dict[str, Any]:
        return self._ask(dict, "GET", f"lineage/{quote(id, safe='')}")

    def export(self, export: "Export") -> Iterator[bytes]:
        query = _given(format=export.format, workload=export.workload, since=export.since, until=export.until)
        answer = self._open("GET", f"exports/{export.what}?{urlencode(query)}", None, EXPORT_SECONDS)
        with answer:
            try:
                while chunk := answer.read(CHUNK_BYTES):
                    yield chunk
            except (OSError, http.client.HTTPException) as error:
                raise _gone(error) from error

    def backup(self, folder: "Path", keep: int, *, with_key: bool) -> dict[str, Any]:
        body = {"folder": str(folder), "keep": keep, "with_key": with_key}
        return self._ask(dict, "POST", "backup", body, BACKUP_SECONDS)

    def position(self, topic: str) -> "Position":
        import msgspec

        from retuned.consumers.file_import import Position

        return msgspec.convert(self._ask(dict, "GET", f"imports/{_file(topic)}"), Position)

    def take(self, batch: "Batch") -> "Taken":
        import msgspec

        from retuned.consumers.file_import import Taken
        from retuned.daemon.transfer.imports import to_bytes

        ((topic, _),) = batch.nexts
        return msgspec.convert(self._ask(dict, "POST", f"imports/{_file(topic)}", to_bytes(batch)), Taken)

    def _ask(
        self,
        kind: type[T],
        method: str,
        path: str,
        body: dict[str, Any] | bytes | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> T:
        """The daemon's answer, from JSON. A body is sent as JSON, bytes as they are."""
        with self._open(method, path, body, timeout_seconds) as opened:
            try:
                answer = json.load(opened)
            except (OSError, http.client.HTTPException) as error:
                raise _gone(error) from error
            except ValueError as error:
                raise self._not_retuned("no JSON") from error
        if not isinstance(answer, kind):
            raise self._not_retuned("something else")
        return answer

    def _open(self, method: str, path: str, body: dict[str, Any] | bytes | None, timeout_seconds: float) -> Any:
        settings = self._settings.http
        packed = isinstance(body, bytes)
        tls = _tls(settings)
        request = urllib.request.Request(
            f"{'https' if tls else 'http'}://{authority(self._host, settings.port)}/api/v1/{path}",
            method=method,
            data=body if body is None or isinstance(body, bytes) else json.dumps(body).encode(),
            headers={"Content-Type": "application/msgpack" if packed else "application/json"},
        )
        if token := settings.token_to_send():
            request.add_header("Authorization", f"Bearer {token}")
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),  # never send a token to a proxy
            *([urllib.request.HTTPSHandler(context=tls)] if tls else []),
        )
        try:
            return opener.open(request, timeout=timeout_seconds)
        except urllib.error.HTTPError as error:
            try:
                way_out = "; set http.client_token to one that suffices" if error.code in (401, 403) else ""
                answer = json.load(error)
                kind = AskedIngester if answer.get("process") == "ingest" else RetunedError
                raise kind(answer["error"] + way_out) from error
            except (ValueError, KeyError, TypeError, AttributeError):
                raise self._not_retuned(str(error.code)) from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None)
            if isinstance(reason, ssl.SSLCertVerificationError):
                key = "tls_ca_file" if settings.tls_ca_file else "tls_certificate_file"
                raise ConfigurationError(
                    f"http.{key}: the certificate of what listens on {settings.port} is not trusted "
                    f"({reason.verify_message})"
                ) from error
            raise _gone(error) from error

    def _not_retuned(self, answered: str) -> ConfigurationError:
        port = self._settings.http.port
        return ConfigurationError(f"http.port: what listens on {port} answered {answered} and is not retuned")


def tls_of_this_certificate(settings: HttpSettings) -> ssl.SSLContext | None:
    """How another daemon with the same certificate is verified, wherever it is; None: it speaks plain HTTP."""
    return _tls(settings.model_copy(update={"tls_ca_file": None}))


def _tls(settings: HttpSettings) -> ssl.SSLContext | None:
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


def _given(**query: Any) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}


def _file(topic: str) -> str:
    """A file as the daemon's routes name it: its topic is `import:` and 16 hexadecimal digits."""
    return topic.partition(":")[2]


def _gone(error: Exception) -> RetunedError:
    return RetunedError(f"the daemon went away in the middle ({error or type(error).__name__}); run the command again")
