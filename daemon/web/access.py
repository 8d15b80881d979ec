"""Who may have a request answered: tokens, roles, pages of other sites; and a line in the log for each request."""

import base64
import logging
import time
from collections.abc import Callable
from datetime import datetime
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from retuned.daemon.web.attempts import FailedAttempts
from retuned.daemon.web.principals import Principals, Role, may

access_log = logging.getLogger("retuned.access")

UNLOGGED = ("/healthz", "/readyz", "/metrics", "/api/v1/routes")
"""Asked every few seconds by machines: logged only where the caller is refused."""
LONGEST_PATH = 256
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Of every answer that does not set them itself."""


class Gate:
    """Admits a request if its token is that of a principal whose role suffices. Used by the event loop's thread."""

    def __init__(
        self, principals: Principals, now: Callable[[], datetime], attempts: FailedAttempts | None = None
    ) -> None:
        self._principals, self._now, self._attempts = principals, now, attempts or FailedAttempts()

    def admit(self, request: Request, least: Role) -> None:
        """Return if the request may be answered; `request.state.principal` is who asks.

        Raises:
            HTTPException: 401 without a valid token, 403 with one that does not suffice, 429 where too many wrong
                ones came from there.
        """
        if not self._principals.required:
            return
        token = _given_token(request.headers.get("authorization", ""))
        if not token:
            raise _unauthorized("a token is required: as a bearer token, or as the password")
        address = request.client.host if request.client else ""
        principal = self._principals.find(token, self._now())  # first: many may share an address
        if principal is None:
            if wait := self._attempts.wait_seconds(address):
                raise HTTPException(
                    429, f"too many wrong tokens from {address}; try again in {wait} s", {"Retry-After": str(wait)}
                )
            self._attempts.add(address, token)
            raise _unauthorized("the token is unknown, or has expired")
        request.state.principal = principal.name
        if not may(principal.role, least):
            raise HTTPException(403, f"this is for the role {least}; {principal.name} has the role {principal.role}")


def _unauthorized(why: str) -> HTTPException:
    return HTTPException(401, why, {"WWW-Authenticate": 'Basic realm="retuned: the token is the password"'})


def _given_token(authorization: str) -> str:
    """The token of a program (Bearer), or of a browser, which asks its user for a name and a password (Basic).

    Empty: none was given.
    """
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return value.strip()
    try:
        return base64.b64decode(value).decode().partition(":")[2]
    except ValueError:
        return ""


class AccessLog:
    """One line for each request: who, from where, what, with which status, in how many seconds.

    The query is left out: it may hold content.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            if scope["path"] not in UNLOGGED or 400 <= status < 500:
                access_log.info(
                    "%s %s %s %s %d %.3f s",
                    scope.get("state", {}).get("principal", "-"),
                    scope["client"][0] if scope.get("client") else "-",
                    scope["method"],
                    _printable(scope),
                    status,
                    time.monotonic() - began,
                )


def _printable(scope: Scope) -> str:
    """The path as it was sent: percent-encoded, so that a line stays one."""
    path: str = (scope.get("raw_path") or b"-").decode("ascii", "replace").partition("?")[0]
    path = "".join(character if "!" <= character <= "~" else "?" for character in path)
    return path if len(path) <= LONGEST_PATH else path[:LONGEST_PATH] + "..."


class SameOrigin:
    """Refuses what a page of another site makes its visitor's browser send, unless it only reads.

    Browsers send Sec-Fetch-Site or Origin with such requests; programs send neither.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE_METHODS and _from_elsewhere(Headers(scope=scope)):
            refused = JSONResponse({"error": "a page of another site sent this; it is refused"}, 403)
            await refused(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _from_elsewhere(headers: Headers) -> bool:
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()


class SafeHeaders:
    """Tells browsers not to guess types, not to show answers inside of other pages, and not to keep them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, sent)
