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

from retuned.daemon.roles import Role, may
from retuned.daemon.web.attempts import FailedAttempts
from retuned.daemon.web.principals import Identity, Principal, Principals, SignedIn
from retuned.daemon.web.sessions import COOKIE, Sessions

access_log = logging.getLogger("retuned.access")

UNLOGGED = ("/healthz", "/readyz", "/metrics", "/api/v1/routes", "/api/v1/memory/feed")
"""Asked every few seconds by machines: logged only where the caller is refused."""
LONGEST_PATH = 256
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
REQUEST_ID = "X-Request-Id"
"""The header that names a request as the audit does."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer that does not set them itself."""


class Gate:
    """Admits a request if its token or its session is that of a principal whose role suffices. Used by the event loop's
    thread."""

    def __init__(self, principals: Principals, sessions: Sessions, now: Callable[[], datetime]) -> None:
        self.principals, self._sessions, self._now = principals, sessions, now
        self._attempts = FailedAttempts()

    @property
    def sessions(self) -> Sessions:
        """The sessions of browsers."""
        return self._sessions

    @property
    def required(self) -> bool:
        """Whether who asks must be known."""
        return self.principals.required

    def admit(self, request: Request, least: Role, whole: bool = False) -> None:
        """Return if the request may be answered; `request.state` has the name (`principal`), the `role` and the
        `workloads` of who asks.

        Args:
            whole: the answer is about all workloads.

        Raises:
            HTTPException: 401 without a valid token, 403 with one that does not suffice, 429 where too many wrong
                ones came from there.
        """
        if not self.principals.required:
            return
        token = _given_token(request.headers.get("authorization", ""))
        principal: Identity | None = self.holder(request, token) if token else self._signed_in(request)
        if principal is None:
            raise _unauthorized("a token is required: as a bearer token, or as the password")
        state = request.state
        state.principal, state.role, state.workloads = principal.name, principal.role, principal.workloads
        state.conversations = principal.conversations
        state.in_session = not token
        if not may(principal.role, least):
            raise HTTPException(403, f"this is for the role {least}; {principal.name} has the role {principal.role}")
        if whole and principal.workloads is not None:
            bound = ", ".join(principal.workloads)
            raise HTTPException(403, f"this is about all workloads; {principal.name} is bound to {bound}")

    def holder(self, request: Request, token: str) -> Principal:
        """Whose token it is; raises as `admit`."""
        address = request.client.host if request.client else ""
        principal = self.principals.find(token, self._now())  # first: many may share an address
        if principal is None:
            if wait := self._attempts.wait_seconds(address):
                raise HTTPException(
                    429, f"too many wrong tokens from {address}; try again in {wait} s", {"Retry-After": str(wait)}
                )
            self._attempts.add(address, token)
            raise _unauthorized("the token is unknown, or has expired")
        return principal

    def begin_session(self, request: Request, token: str) -> str:
        """The cookie of a new session; raises as `admit`."""
        return self._sessions.begin(self.holder(request, token), self._now())

    def begin_session_of(self, person: SignedIn) -> str:
        """The cookie of a new session of who signed in at a provider."""
        return self._sessions.begin(person, self._now())

    def end_session(self, request: Request) -> None:
        """End the session of a request, if it has one."""
        self._sessions.end(request.cookies.get(COOKIE, ""), self._now())

    def _signed_in(self, request: Request) -> Identity | None:
        principal = self._sessions.find(request.cookies.get(COOKIE, ""), self._now())
        # A browser sends the cookie by itself, so a change must prove that a page of this server asked for it. Every
        # browser sends Origin with a POST, and `SameOrigin` has compared it: that proves as much as a token in each
        # form would, and needs no state. SameSite=Strict keeps pages of other sites from sending the cookie at all.
        if principal and request.method not in SAFE_METHODS and "origin" not in request.headers:
            raise HTTPException(
                403, "in a session a change must come from a page of this server; programs send a token"
            )
        return principal


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
    """Tells browsers not to guess types, not to show answers inside of other pages, and not to keep them; and names the
    request as the audit does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if (caller := scope.get("state", {}).get("caller")) is not None:
                    headers.setdefault(REQUEST_ID, caller.request_id)
            await send(message)

        await self._app(scope, receive, sent)
