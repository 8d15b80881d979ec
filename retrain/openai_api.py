"""A client of servers with OpenAI's routes. It retries temporary errors, and raises errors with the server's reason.

The standard library's HTTP client suffices for a few JSON routes. OpenAI's client would add an event
loop, an HTTP stack and types for many routes to every installation.
"""

import http.client
import json
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
"""Header of requests from the leader of a cluster. A receiver that has seen a higher epoch should refuse them."""
_LONGEST_PAUSE = 120.0
_SHOWN = 300


class Refused(RetunedError):
    """The server answered a request with an error.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in WORTH_ANOTHER_TRY


class NoAnswer(RetunedError):
    """The server did not answer. It may or may not have carried out the request."""


@dataclass(frozen=True)
class Client:
    """A server.

    Attributes:
        url: the URL including `/v1`.
        key: the configuration key of the URL, for error messages.
        if_away: advice if the server does not answer.
        advice: advice about errors, by status.
        pauses: seconds before each retry of a failed request.
        wait: waits for a number of seconds; may raise to give up.
        lead: checked before each request except GET.
    """

    url: str
    key: str
    token: str | None
    timeout_seconds: float
    if_away: str
    advice: Mapping[int, str] = field(default_factory=dict)
    pauses: Sequence[float] = (1.0, 2.0, 4.0)
    wait: Callable[[float], None] = time.sleep
    lead: Lead = alone

    def get(self, route: str) -> Any:
        """Returns the response of a route."""
        return self.request(route)[0]

    def request(
        self,
        route: str,
        body: Mapping[str, Any] | bytes | None = None,
        *,
        headers: Mapping[str, str] = {},
        repeat: bool = True,
    ) -> tuple[Any, float]:
        """Sends a request. Returns the response, parsed if it is JSON, and the seconds that it took.

        Args:
            body: sent as JSON, or unchanged if it is bytes.
            headers: further headers.
            repeat: retry temporary errors. Set it to False if a second request would repeat an effect.

        Raises:
            Refused: the server answered with an error.
            NoAnswer: the server did not answer completely.
            StandsBy: another daemon of the cluster leads, or may lead; nothing was sent.
        """
        all_headers = {"Content-Type": "application/json", **headers}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        for pause in (*(self.pauses if repeat else ()), None):
            url = f"{self.url}/{route}" if route else self.url
            request = urllib.request.Request(url, data, all_headers)
            if self.token:  # do not send it to another server after a redirect
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
            except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
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

    @contextmanager
    def expected(self, route: str) -> Iterator[None]:
        """Converts errors of parsing a response, in the body of a `with` statement.

        Raises:
            RetunedError: the response does not have the form of OpenAI's API.
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
        reason = content.get("error", content) if isinstance(content, dict) else content
        if isinstance(reason, dict):  # SGLang uses error_message
            reason = reason.get("message") or reason.get("detail") or reason.get("error_message")
        text = f"{self.key}: {self.url}/{route} answers with status {error.code}: {str(reason)[:_SHOWN].strip()}"
        advice = self.advice.get(error.code)
        return Refused(f"{text}; {advice}" if advice else text, error.code)


class _Led(urllib.request.HTTPHandler):
    """Checks that this daemon leads after connecting, which may take long, right before the request is sent."""

    def __init__(self, lead: Lead) -> None:
        super().__init__()
        self._lead = lead

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(_checked(http.client.HTTPConnection, self._lead), req)


class _LedOverTls(urllib.request.HTTPSHandler):
    """`_Led` for HTTPS."""

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
    """Returns the seconds of the header Retry-After; 0 without one."""
    try:
        return min(max(float(error.headers.get("Retry-After", "")), 0.0), _LONGEST_PAUSE)
    except ValueError:  # missing, or a date
        return 0.0


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")
