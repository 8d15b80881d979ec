"""What a command asks of the running daemon, over HTTP."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.daemon.settings import Settings

TIMEOUT_SECONDS = 30.0
EXPORT_SECONDS = 600.0  # a training set is chosen before its first row is sent
CHUNK_BYTES = 2**20


def ask(settings: Settings, method: str, path: str, body: dict[str, Any] | bytes | None = None) -> Any:
    """The daemon's answer, from JSON; None when none is listening. A body is sent as JSON, bytes as they are.

    Raises:
        RetunedError: the daemon refused; the text is its own. Or it went away with the question.
    """
    answer = _open(settings, method, path, body, TIMEOUT_SECONDS)
    if answer is None:
        return None
    with answer:
        try:
            return json.load(answer)
        except (OSError, http.client.HTTPException) as error:
            raise _gone(error) from error


def download(settings: Settings, path: str) -> Iterator[bytes] | None:
    """The bytes that the daemon sends, as they come; None when none is listening. Raises as `ask` does."""
    answer = _open(settings, "GET", path, None, EXPORT_SECONDS)
    return None if answer is None else _chunks(answer)


def _chunks(answer: Any) -> Iterator[bytes]:
    with answer:
        try:
            while chunk := answer.read(CHUNK_BYTES):
                yield chunk
        except (OSError, http.client.HTTPException) as error:
            raise _gone(error) from error


def _gone(error: Exception) -> RetunedError:
    return RetunedError(f"the daemon went away in the middle ({error or type(error).__name__}); run the command again")


def _open(
    settings: Settings, method: str, path: str, body: dict[str, Any] | bytes | None, timeout_seconds: float
) -> Any:
    host = settings.http.host if settings.http.loopback else "127.0.0.1"
    packed = isinstance(body, bytes)
    request = urllib.request.Request(
        f"http://{host}:{settings.http.port}{path}",
        method=method,
        data=body if body is None or isinstance(body, bytes) else json.dumps(body).encode(),
        headers={"Content-Type": "application/msgpack" if packed else "application/json"},
    )
    token = next((token for token, role in settings.http.tokens().items() if role == "operator"), None)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never send a token to a proxy
    try:
        return opener.open(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        try:
            raise RetunedError(json.load(error)["error"]) from error
        except (ValueError, KeyError):
            raise ConfigurationError(
                f"http.port: what listens on {settings.http.port} answered {error.code} and is not retuned"
            ) from error
    except TimeoutError as error:
        raise _gone(error) from error
    except (urllib.error.URLError, ConnectionError):
        return None
