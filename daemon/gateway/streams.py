"""What the gateway reads in a stream, or in a whole answer, while it passes it on."""

from typing import Any

import msgspec

from retuned.consumers.formats import openai
from retuned.consumers.formats.messages import object_of

DONE = b"[DONE]"
LAST_EVENT = b"event: message_stop"
"""The end of a stream of Anthropic's API."""
_ERROR = b'"error"'
_OF_THE_APP = ("invalid_request", "badrequest", "not_found", "request_too_large", "content_filter", "content_policy")
"""In types and codes of errors that a request may have caused, of OpenAI's, Azure's and Anthropic's API and of vLLM."""


def ends(lines: bytes) -> bool:
    """Whether lines of a stream hold its end."""
    if DONE in lines[-32:]:
        return lines.split()[-1] in (DONE, b"data:" + DONE)
    return LAST_EVENT in lines[-128:] and LAST_EVENT in lines.splitlines()


def has_begun(lines: bytes) -> bool:
    """Whether lines of a stream hold an event. Servers may send comments before."""
    return any(line.startswith(b"data:") for line in lines.splitlines())


def errors_in_stream(lines: bytes) -> list[int | None]:
    """Returns for each event of lines of a stream the status of the error that it reports, or None; an empty list if
    none reports one."""
    if _ERROR not in lines:
        return []
    events = (line[5:].strip() for line in lines.splitlines() if line.startswith(b"data:"))
    return [error_in(event) for event in events if event not in (b"", DONE)]


def error_in(body: bytes) -> int | None:
    """Returns the status of an error that a server reports in an answer whose own status is 200; None: it is no error.

    An error without a status and without a type of its own is one of the server.
    """
    if _ERROR not in body:
        return None
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(answer, dict) or not openai.failed(answer):
        return None
    error = object_of(answer["error"])
    if (status := _status(error.get("code"))) is not None:
        return status
    kind = f"{error.get('type')} {error.get('code')}".lower()
    return 400 if any(one in kind for one in _OF_THE_APP) else 500


def _status(code: Any) -> int | None:
    number = int(code) if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3 else code
    return number if isinstance(number, int) and 400 <= number < 600 else None
