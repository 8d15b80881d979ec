"""Errors as OpenAI's API has them, so that its clients raise what apps expect."""

import json

import aiohttp
from aiohttp import web

KINDS = {403: "permission_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that gets an error of the gateway's own.

    Attributes:
        status: of the answer.
        code: for programs, as in OpenAI's errors.
        headers: of the answer.
        closes: whether the connection is closed after the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None, *, closes: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers, self.closes = status, code, headers, closes


def why(error: Exception) -> str:
    """Why a server cannot be reached, for a person."""
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.strerror:
        return error.os_error.strerror
    return str(error) or type(error).__name__


def error_body(status: int, code: str, message: str) -> bytes:
    """An error object of OpenAI's API."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


def error_response(refused: Refused) -> web.Response:
    """The answer to a request that was refused."""
    body = error_body(refused.status, refused.code, str(refused))
    response = web.Response(body=body, status=refused.status, content_type="application/json", headers=refused.headers)
    if refused.closes:
        response.force_close()
    return response
