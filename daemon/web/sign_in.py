"""Pages on which a browser signs in and out: by a token, or at an OpenID Connect provider."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import urlsplit

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from retuned.daemon.http_settings import HttpSettings
from retuned.daemon.web import oidc, sessions
from retuned.daemon.web.access import Gate
from retuned.daemon.web.api import Api
from retuned.daemon.web.rendering import HEADERS, Rendering, form_of

AT_ONCE = 4
"""Sign-ins that wait for the provider; a provider that hangs must not take the threads of others."""

T = TypeVar("T")


class SignIn(Rendering):
    """The handlers of these pages."""

    def __init__(self, api: Api, gate: Gate, settings: HttpSettings) -> None:
        """Raises ConfigurationError as `oidc.Provider`."""
        super().__init__(api)
        self._gate, self._seconds = gate, settings.session_seconds
        self._provider = oidc.Provider(settings.oidc, gate.sessions.key) if settings.oidc else None
        self._at = urlsplit(settings.oidc.issuer).netloc if settings.oidc else None
        self._waiting = anyio.CapacityLimiter(AT_ONCE)

    async def show(self, request: Request) -> Response:
        where = _path(request.query_params.get("next"))
        if not self._gate.required:
            return RedirectResponse(where, 303)
        return self._form(where, signed_out="signed_out" in request.query_params)

    async def by_token(self, request: Request) -> Response:
        form = await form_of(request, "no route: a program sends its token with each request")
        where = _path(form.get("next"))
        try:
            cookie = self._gate.begin_session(request, form.get("token", "").strip())
        except HTTPException as error:
            return self._form(where, error.detail, error.status_code)
        answer = RedirectResponse(where, 303, HEADERS)
        _set_cookie(request, answer, sessions.COOKIE, cookie, self._seconds, is_strict=True)
        return answer

    async def at_provider(self, request: Request) -> Response:
        """Leads to the provider."""
        where, provider = _path(request.query_params.get("next")), self._known_provider()
        back = _url(request, "/sign-in/oidc/callback")
        try:
            url, cookie = await self._in_thread(lambda: provider.begin(back, where, datetime.now(UTC)))
        except HTTPException as error:
            return self._form(where, error.detail, error.status_code)
        answer = RedirectResponse(url, 303, HEADERS)
        _set_cookie(request, answer, oidc.COOKIE, cookie, oidc.SECONDS, is_strict=False)
        return answer

    async def from_provider(self, request: Request) -> Response:
        """Begins the session of who comes back from the provider."""
        provider, query = self._known_provider(), dict(request.query_params)
        begun, back = request.cookies.get(oidc.COOKIE, ""), _url(request, "/sign-in/oidc/callback")
        try:
            person, where = await self._in_thread(lambda: provider.complete(back, query, begun, datetime.now(UTC)))
        except HTTPException as error:
            answer = self._form("/", error.detail, error.status_code)
        else:
            request.state.principal = person.name
            # A page, not a redirect: a browser that comes from another site sends no strict cookie along redirects.
            answer = self._bare("continue.html", 200, next=_path(where))
            cookie = self._gate.begin_session_of(person)
            _set_cookie(request, answer, sessions.COOKIE, cookie, self._seconds, is_strict=True)
        answer.delete_cookie(oidc.COOKIE, httponly=True, samesite="lax")
        return answer

    async def end(self, request: Request) -> Response:
        by_provider = request.cookies.get(sessions.COOKIE, "").startswith(sessions.PERSON)
        self._gate.end_session(request)
        answer = RedirectResponse("/sign-in?signed_out=1" if by_provider else "/sign-in", 303, HEADERS)
        answer.delete_cookie(sessions.COOKIE, httponly=True, samesite="strict")
        return answer

    async def end_at_provider(self, request: Request) -> Response:
        """Leads to the page on which the provider ends its own session."""
        provider, back = self._known_provider(), _url(request, "/sign-in")
        try:
            url = await self._in_thread(lambda: provider.sign_out_url(back))
        except HTTPException as error:
            return self._form("/", error.detail, error.status_code)
        return RedirectResponse(url or "/sign-in", 303, HEADERS)

    def _form(self, where: str, problem: str | None = None, code: int = 200, signed_out: bool = False) -> Response:
        return self._bare(
            "sign_in.html", code, next=where, problem=problem, provider=self._at, signed_out=signed_out,
            hours=round(self._seconds / 3600, 1),
        )  # fmt: skip

    def _known_provider(self) -> oidc.Provider:
        if self._provider is None:
            raise HTTPException(404, "no OpenID Connect provider is configured (http.oidc)")
        return self._provider

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(function, limiter=self._waiting)


def _set_cookie(request: Request, answer: Response, name: str, value: str, seconds: int, *, is_strict: bool) -> None:
    is_secure = request.url.scheme == "https"
    answer.set_cookie(name, value, seconds, secure=is_secure, httponly=True, samesite="strict" if is_strict else "lax")


def _url(request: Request, path: str) -> str:
    """A page of this server as the browser reaches it; the provider accepts only those that it knows."""
    return f"{request.url.scheme}://{request.headers.get('host', '')}{path}"


def _path(text: str | None) -> str:
    """A path on this server to go to; a browser takes `//host` and `/\\host` for another one."""
    return text if text and re.match(r"/(?![/\\])", text) and text.isprintable() else "/"
