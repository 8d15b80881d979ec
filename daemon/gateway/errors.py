"""Errors in the form of the requested API, OpenAI's or Anthropic's, so that its clients raise the usual exceptions."""

import json

import aiohttp
from aiohttp import web

KINDS = {403: "permission_error", 429: "rate_limit_error"}
ANTHROPIC = "/v1/messages"
"""The routes of Anthropic's API begin with this."""
ANTHROPIC_KINDS = KINDS | {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}


class Refused(Exception):
    """An error that the gateway itself returns for a request.

    Attributes:
        status: HTTP status of the answer.
        code: a machine-readable code, as in OpenAI's errors.
        headers: headers of the answer.
        closes: whether the connection is closed after the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None, *, closes: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers, self.closes = status, code, headers, closes


def why(error: Exception) -> str:
    """Returns the reason why a server cannot be reached, in words."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.strerror:
        return error.os_error.strerror
    return str(error) or type(error).__name__


def error_body(status: int, code: str, message: str, path: str) -> bytes:
    """Returns an error object of the API that has a path."""
    if path.startswith(ANTHROPIC):
        kind = ANTHROPIC_KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return json.dumps({"type": "error", "error": {"type": kind, "message": f"{message} ({code})"}}).encode()
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def error_response(refused: Refused, path: str = "") -> web.Response:
    """Returns the answer to a refused request."""
    body = error_body(refused.status, refused.code, str(refused), path)
    response = web.Response(body=body, status=refused.status, content_type="application/json", headers=refused.headers)
    if refused.closes:
        response.force_close()
    return response
