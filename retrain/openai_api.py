"""Requests to servers and providers that have OpenAI's routes: what may pass is tried again, what is refused says why.

The standard library's HTTP is enough for a few routes of JSON and one upload. OpenAI's own client would bring an event
loop, an HTTP stack and a type for each of its many routes to every installation.
"""

import http.client
import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import RetunedError

WORTH_ANOTHER_TRY = frozenset({429, 500, 502, 503, 504})
EPOCH = "Retuned-Epoch"
"""Header of requests from the leader of a cluster; a receiver that has seen a higher epoch should refuse them."""
NO_CREDIT = "insufficient_quota"
"""OpenAI's code of a 429 that no waiting ends."""
_LONGEST_PAUSE = 120.0
_SHOWN = 300


class Refused(RetunedError):
    """The server answered a request with an error.

    Attributes:
        status: of HTTP.
        code: of the error, as the server named it; empty without one.
    """

    def __init__(self, text: str, status: int, code: str) -> None:
        super().__init__(text)
        self.status, self.code = status, code

    @property
    def may_pass(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status in WORTH_ANOTHER_TRY and self.code != NO_CREDIT


class NoAnswer(RetunedError):
    """The server did not answer: whether it did what was asked for is not known."""


@dataclass(frozen=True)
class Client:
    """A server.

    Attributes:
        url: up to `/v1`.
        key: the configuration's key of the URL, which errors name.
        if_away: what to do where it does not answer.
        advice: what to do about errors, by their status or their code.
        pauses: seconds before each further try of a request that failed.
        wait: passes so many seconds; may raise to give up.
        lead: checked before each request that is no GET.
    """

    url: str
    key: str
    token: str | None
    timeout_seconds: float
    if_away: str
    advice: Mapping[int | str, str] = field(default_factory=dict)
    pauses: Sequence[float] = (1.0, 2.0, 4.0)
    wait: Callable[[float], None] = time.sleep
    lead: Lead = alone

    def get(self, route: str) -> Any:
        """What a route has."""
        return self.request(route)[0]

    def request(
        self,
        route: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        method: str | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] = {},
        repeat: bool = True,
    ) -> tuple[Any, float]:
        """The answer, JSON where it is, and how many seconds it took.

        Args:
            body: sent as JSON, or as it is where it is bytes.
            method: default: GET without a body, POST with one.
            headers: beside the content type and the token.
            repeat: what may pass is tried again. Not so where a second request would do the same thing twice.

        Raises:
            Refused: it answered with an error.
            NoAnswer: it did not answer, or not to the end.
            StandsBy: another daemon of the cluster leads, or may; nothing was sent.
        """
        sent = {"Content-Type": content_type, **headers}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        for pause in (*(self.pauses if repeat else ()), None):
            url = f"{self.url}/{route}" if route else self.url
            request = urllib.request.Request(url, data, sent, method=method)
            if self.token:  # another server, to which this one leads, has no business with it
                request.add_unredirected_header("Authorization", f"Bearer {self.token}")
            lead = alone if request.get_method() == "GET" else self.lead
            if (epoch := lead()) is not None:
                request.add_header(EPOCH, str(epoch))
            opener = urllib.request.build_opener(_Led(lead), _LedOverTls(lead))
            started = time.perf_counter()
            try:
                with opener.open(request, timeout=self.timeout_seconds) as response:
                    content = response.read()
                return _decoded(content), time.perf_counter() - started
            except urllib.error.HTTPError as error:
                refused = self._refused(route, error)
                if pause is None or not refused.may_pass:
                    raise refused from error
                pause = max(pause, _retry_after(error))
            except (OSError, http.client.HTTPException) as error:  # a URLError and a timeout are an OSError
                if pause is None:
                    reason = getattr(error, "reason", error) or type(error).__name__
                    if isinstance(reason, TimeoutError):
                        raise NoAnswer(
                            f"{self.key}: {url} gave no answer within {self.timeout_seconds:g} s: it is overloaded, "
                            "or hangs"
                        ) from error
                    raise NoAnswer(f"{self.key}: {self.url} does not answer ({reason}); {self.if_away}") from error
            self.wait(pause)
        raise AssertionError("the last try returns or raises")

    def listed(self, route: str) -> Iterator[dict[str, Any]]:
        """The objects of a route that lists them, page after page."""
        after, sign = "", "&" if "?" in route else "?"
        while True:
            page = self.get(f"{route}{sign}after={after}" if after else route)
            with self.expected(route):
                found: list[dict[str, Any]] = page["data"]
                more = bool(page.get("has_more")) and bool(found)
                after = found[-1]["id"] if more else ""
            yield from found
            if not more:
                return

    def upload(self, route: str, fields: Mapping[str, str], name: str, content: bytes) -> Any:
        """Send a file as a form, as OpenAI's `files` takes it; never sent a second time.

        Raises as `request` does.
        """
        edge = f"retuned-{secrets.token_hex(16)}"
        parts = [
            f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
            for key, value in fields.items()
        ]
        head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        body = b"".join([*parts, f"{head}Content-Type: application/jsonl\r\n\r\n".encode(), content])
        body += f"\r\n--{edge}--\r\n".encode()
        return self.request(route, body, content_type=f"multipart/form-data; boundary={edge}", repeat=False)[0]

    @contextmanager
    def expected(self, route: str) -> Iterator[None]:
        """Around what reads an answer: whatever is not there as OpenAI's API has it becomes an error that says so.

        Raises:
            RetunedError: it is not.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise RetunedError(
                f"{self.key}: {self.url}/{route} does not answer as OpenAI's API does; expected the address of such a "
                "server, for example http://host:8000/v1"
            ) from error

    def _refused(self, route: str, error: urllib.error.HTTPError) -> Refused:
        with error:
            content = _decoded(error.read())
        said = content.get("error", content) if isinstance(content, dict) else content
        code = said.get("code") if isinstance(said, dict) else None
        if isinstance(said, dict):  # the last is SGLang's
            said = said.get("message") or said.get("detail") or said.get("error_message")
        text = f"{self.key}: {self.url}/{route} answers with status {error.code}: {str(said)[:_SHOWN].strip()}"
        code = code if isinstance(code, str) else ""
        advice = self.advice.get(code) or self.advice.get(error.code)
        return Refused(f"{text}; {advice}" if advice else text, error.code, code)


class _Led(urllib.request.HTTPHandler):
    """Checks that this daemon leads once it is connected, which may take long, and right before the request is sent."""

    def __init__(self, lead: Lead) -> None:
        super().__init__()
        self._lead = lead

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_checked(http.client.HTTPConnection, self._lead), req)


class _LedOverTls(urllib.request.HTTPSHandler):
    """As `_Led`."""

    def __init__(self, lead: Lead) -> None:
        super().__init__()
        self._lead = lead

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_checked(http.client.HTTPSConnection, self._lead), req)


def _checked(connection: type[http.client.HTTPConnection], lead: Lead) -> Any:
    class Checked(connection):  # type: ignore[valid-type, misc]
        def connect(self) -> None:
            super().connect()
            lead()

    return Checked


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait; 0 where it does not."""
    try:
        return min(max(float(error.headers.get("Retry-After", "")), 0.0), _LONGEST_PAUSE)
    except ValueError:  # none, or a date
        return 0.0


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
