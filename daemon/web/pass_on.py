"""Requests that one daemon of a cluster passes on to the one that leads."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from retuned.consumers.errors import StandsBy
from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.remote import tls_of_this_certificate

ANSWER_SECONDS = 3_600.0
"""The leader's own bounds come first."""
PASSED_ON = "X-Retuned-Passed-On"
_KEPT = ("authorization", "content-type", "host", "origin", "accept")


@dataclass(frozen=True)
class Answer:
    """Of the leader."""

    status: int
    content_type: str
    body: bytes


def pass_on(
    leader: str, settings: HttpSettings, method: str, path: str, headers: Mapping[str, str], body: bytes
) -> Answer:
    """Have the leader answer a request. It is shown what the client showed, and admits it or not.

    Args:
        leader: its URL.
        path: with its query.

    Raises:
        StandsBy: it does not answer, or leads no more.
    """
    if any(name.lower() == PASSED_ON.lower() for name in headers):
        raise StandsBy("this daemon stands by, and another one took it for the leader; try again in some seconds")
    sent = {name: value for name, value in headers.items() if name.lower() in _KEPT} | {PASSED_ON: "1"}
    data = body if method == "POST" else None
    request = urllib.request.Request(f"{leader.rstrip('/')}{path}", method=method, data=data, headers=sent)
    tls = tls_of_this_certificate(settings)
    handlers = [urllib.request.HTTPSHandler(context=tls)] if tls else []
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as answer:
            return Answer(answer.status, answer.headers.get("Content-Type", ""), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers.get("Content-Type", ""), error.read())
    except (OSError, http.client.HTTPException) as error:
        raise StandsBy(
            f"this daemon stands by, and the leader at {leader} does not answer ({error}); try again in some seconds"
        ) from error
