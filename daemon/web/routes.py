"""The routes of the HTTP server: health, metrics, pages, and one for each path of an operation."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, unquote, urlsplit

import anyio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from retuned.consumers.errors import StandsBy
from retuned.daemon.operations.catalog import OPERATIONS
from retuned.daemon.operations.operation import API, Caller
from retuned.daemon.roles import Role
from retuned.daemon.settings import Settings
from retuned.daemon.web.access import AccessLog, Gate, SafeHeaders, SameOrigin
from retuned.daemon.web.api import Api, body_of, caller_of, json_response, longest_body
from retuned.daemon.web.pages import Pages
from retuned.daemon.web.principals import Principals
from retuned.daemon.web.rendering import is_browser
from retuned.daemon.web.sessions import Sessions
from retuned.daemon.web.sign_in import SignIn

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local

LIGHT_THREADS = 4
"""For health and metrics alone, so that slow answers to others do not hold them up."""
PASSED_ON_AT_ONCE = 16
"""Requests that wait for the leader, in threads of their own: one that hangs must not hold up what is answered here."""
LOOK_SECONDS = 5.0
"""For the leader's answer to a GET: gateways ask for routes every few seconds."""
CHANGE_SECONDS = 60.0
"""For its answer to a POST, unless the operation takes longer, which is waited for as long as LONG_SECONDS."""
LONG_SECONDS = 900.0


class Process(Protocol):
    """What the server shows of the process that it runs in."""

    registry: CollectorRegistry

    def health(self) -> list[str]:
        """What is broken for good; empty when the process is sound."""

    def readiness(self) -> list[str]:
        """What is not there yet, or not there now; empty when events flow."""

    def leader(self) -> "Leader | None":
        """The daemon that leads the cluster; None: it is this one, or there is no cluster."""


class Leader(Protocol):
    """Another daemon, which answers what it alone can."""

    def pass_on(self, method: str, path: str, headers: Mapping[str, str], body: bytes, seconds: float) -> "Answered":
        """Its answer; raises StandsBy where there is none within so many seconds."""


class Answered(Protocol):
    """Its answer."""

    @property
    def status(self) -> int:
        """Of HTTP."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Those that the client gets."""

    @property
    def body(self) -> bytes:
        """Whole."""


class Refusals(Protocol):
    """Records requests that the role of a principal does not allow: `retuned.daemon.operations.local.Local`."""

    def refused(self, caller: Caller, action: str, workload: str | None, problem: str) -> None:
        """Records one."""


class Health:
    """The handlers of health and metrics."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def healthz(self, _: Request) -> Response:
        return _verdict(self._process.health())

    def readyz(self, _: Request) -> Response:
        return _verdict(self._process.health() or self._process.readiness())

    def metrics(self, request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._process.registry), media_type=media_type)


Endpoint = Callable[[Any, Request], Response | Awaitable[Response]]


@dataclass(frozen=True)
class Access:
    """A route, and who may use it.

    Attributes:
        endpoint: a method of `Health`, `SignIn`, `Pages` or `Api`.
        least: the least role that may; None: anybody, without a token.
        light: answered by threads of its own.
        whole: the answer is about all workloads; refused to principals who are bound to some.
        name: of the operation; empty: it is none.
        by_leader: of the daemons of a cluster the leader answers; others pass it on, and wait for so many `seconds`.
        prompts: see `Operation`.
    """

    method: str
    path: str
    endpoint: Endpoint
    least: Role | None
    light: bool = False
    whole: bool = False
    name: str = ""
    by_leader: bool = False
    seconds: float = CHANGE_SECONDS
    prompts: bool = False


HEALTH = (
    Access("GET", "/healthz", Health.healthz, None, light=True),
    Access("GET", "/readyz", Health.readyz, None, light=True),
    Access("GET", "/metrics", Health.metrics, "metrics", light=True, whole=True),
)
SIGN_IN = (
    Access("GET", "/sign-in", SignIn.show, None),
    Access("POST", "/sign-in", SignIn.by_token, None),
    Access("GET", "/sign-in/oidc", SignIn.at_provider, None),
    Access("GET", "/sign-in/oidc/callback", SignIn.from_provider, None),
    Access("POST", "/sign-out", SignIn.end, None),
    Access("GET", "/sign-out/oidc", SignIn.end_at_provider, None),
)
PAGES = (
    Access("GET", "/", Pages.index, "viewer"),
    Access("GET", "/static/{name}", Pages.static, None),
    Access("GET", "/events", Pages.events, "viewer"),
    Access("GET", "/reports/{id}", Pages.report, "viewer", whole=True),
    Access("GET", "/approvals/{id}", Pages.approval, "viewer"),
    Access("POST", "/approvals/{id}", Pages.decide_approval, "operator", by_leader=True),
    Access("GET", "/system", Pages.system, "viewer", whole=True),
    Access("GET", "/erasures", Pages.erasures, "admin"),
    Access("POST", "/erasures", Pages.forget, "admin", by_leader=True, seconds=LONG_SECONDS),
    Access("GET", "/answers", Pages.answers, "operator"),
    Access("GET", "/interactions/{id}", Pages.interaction, "operator"),
    Access("GET", "/teach", Pages.teach, "labeller"),
    Access("GET", "/teach/mine", Pages.my_answers, "labeller"),
    Access("POST", "/workloads/{workload}/cancel", Pages.cancel, "operator", by_leader=True),
    Access("POST", "/workloads/{workload}/rollback", Pages.rollback, "operator", by_leader=True),
    Access("POST", "/workloads/{workload}/promote", Pages.promote, "operator", by_leader=True),
    Access("GET", "/workloads/{workload}/teach", Pages.teach, "labeller"),
    Access("GET", "/workloads/{workload}/versions/{version}", Pages.version, "operator"),
    Access("GET", "/workloads/{workload}/rows", Pages.rows, "operator"),
    Access("POST", "/workloads/{workload}/rows", Pages.decide_rows, "operator", by_leader=True),
    Access("GET", "/workloads/{workload}/datasets", Pages.datasets, "operator"),
    Access("GET", "/workloads/{workload}/drift-examples", Pages.drift_examples, "operator"),
    Access("GET", "/workloads/{workload}/memory", Pages.memory, "operator"),
    Access("POST", "/workloads/{workload}/memory", Pages.decide_memory, "operator", by_leader=True),
    Access("POST", "/labels/{id}", Pages.answer_label, "labeller", by_leader=True),
    Access("GET", "/workloads/{workload}", Pages.workload, "viewer"),
)
OPERATED = tuple(
    Access(
        one.method,
        API + path,
        partial(Api.answer, operation=one),
        one.least,
        name=one.name,
        by_leader=one.by_leader,
        prompts=one.prompts,
        seconds=LOOK_SECONDS if one.method == "GET" else min(max(one.seconds, CHANGE_SECONDS), LONG_SECONDS),
    )
    for one in OPERATIONS
    for path in one.paths
)
ROUTES = (*HEALTH, *SIGN_IN, *PAGES, *OPERATED)
"""Who may ask what."""


def application(service: "Local", process: Process, settings: Settings) -> Starlette:
    """All of `ROUTES`; its `state.principals` are those who may ask.

    Raises:
        ConfigurationError: see `Principals`.
    """
    api = Api(service, settings)
    gate = _gate(settings)
    pages = Pages(api, service, settings)
    sign_in = SignIn(api, gate, settings.http)
    owners = ((Health(process), HEALTH), (sign_in, SIGN_IN), (pages, PAGES), (api, OPERATED))
    endpoints = [(route, partial(route.endpoint, owner)) for owner, routes in owners for route in routes]
    made = _application(endpoints, process, settings, gate, service)
    made.state.pages = pages
    return made


def process_application(process: Process, settings: Settings) -> Starlette:
    """Health and metrics alone, for an ingester; raises as `application`."""
    health = Health(process)
    endpoints = [(route, partial(route.endpoint, health)) for route in HEALTH]
    made = _application(endpoints, process, settings, _gate(settings))
    made.add_exception_handler(404, _asked_an_ingester)
    return made


def _gate(settings: Settings) -> Gate:
    """Raises ConfigurationError as `Principals`."""
    principals = Principals(settings.http)
    return Gate(principals, Sessions(principals, settings.http), lambda: datetime.now(UTC))


def _application(
    endpoints: Iterable[tuple[Access, Callable[[Request], Any]]],
    process: Process,
    settings: Settings,
    gate: Gate,
    refusals: Refusals | None = None,
) -> Starlette:
    guard = _Guard(gate, process, settings, refusals)
    # A name that resolves to this machine must not let a page of another site read the status.
    own = settings.http.address
    local = ["localhost", "127.0.0.1", "[::1]", f"[{own}]" if ":" in own else own]
    hosts = [*settings.http.hosts, *local] if settings.http.hosts or settings.http.loopback else ["*"]
    answers = [(one, partial(guard.answer, one, endpoint)) for one, endpoint in endpoints]
    made = Starlette(
        # Workloads and ids may hold slashes. Where a client leaves them as they are, the first path that fits is meant.
        routes=[
            *(_Encoded(one.path, answer, methods=[one.method]) for one, answer in answers),
            *(Route(one.path.replace("}", ":path}"), answer, methods=[one.method]) for one, answer in answers),
        ],
        middleware=[
            Middleware(AccessLog),
            Middleware(SafeHeaders),
            Middleware(_Hosts, allowed_hosts=hosts),
            Middleware(SameOrigin),
        ],
        exception_handlers={HTTPException: _problem},
    )
    made.state.principals = gate.principals
    return made


class _Hosts(TrustedHostMiddleware):
    """Refuses requests for other names, but answers health and metrics under any address, too.

    Kubernetes and Prometheus ask by the address of a pod, which no configuration can list. That is safe: a page of
    another site reads what is here if its own name resolves to this machine, and the browser then sends this name and
    no address. A page from an address can only be this server's own.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        by_address = scope["type"] == "http" and scope["path"] in _BY_ADDRESS
        if by_address and _is_address(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send)
            return
        await super().__call__(scope, receive, send)


_BY_ADDRESS = frozenset(one.path for one in HEALTH)


def _is_address(host: str) -> bool:
    """Whether a Host header holds an address, with or without a port, and no name."""
    try:
        parts = urlsplit(f"//{host}")
        ip_address(parts.hostname or "")
        return parts.port != 0  # also raises where what follows the address is no port
    except ValueError:
        return False


class _Encoded(Route):
    """A route that splits the path before it decodes it, so that a name may hold any encoded character."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or (found := self.path_regex.match(scope["raw_path"].decode("latin-1"))) is None:
            return Match.NONE, {}
        names = {name: unquote(value) for name, value in found.groupdict().items()}
        fits = Match.FULL if self.methods and scope["method"] in self.methods else Match.PARTIAL
        return fits, {"endpoint": self.endpoint, "path_params": names}


class _Guard:
    """Admits requests, and passes on what the leader of a cluster answers."""

    def __init__(self, gate: Gate, process: Process, settings: Settings, refusals: Refusals | None) -> None:
        self._gate, self._process, self._settings, self._refusals = gate, process, settings, refusals
        self._light = anyio.CapacityLimiter(LIGHT_THREADS)
        self._passing = anyio.CapacityLimiter(PASSED_ON_AT_ONCE)

    async def answer(self, route: Access, endpoint: Callable[[Request], Any], request: Request) -> Response:
        """The endpoint's answer to who has the role. A plain function runs in a thread, so that the event loop stays
        free."""
        if route.least is not None:
            try:
                self._gate.admit(request, route.least, route.whole)
            except HTTPException as error:
                if error.status_code == 403 and self._refusals is not None:
                    about = route.name or route.path, request.path_params.get("workload"), error.detail
                    await run_in_threadpool(self._refusals.refused, caller_of(request), *about)
                raise
        if route.by_leader and (leader := self._process.leader()) is not None:
            return await self._passed_on(leader, request, route)
        if inspect.iscoroutinefunction(endpoint):
            answer: Response = await endpoint(request)
            return answer
        light: Any = await anyio.to_thread.run_sync(endpoint, request, limiter=self._light if route.light else None)
        return light  # type: ignore[no-any-return]

    async def _passed_on(self, leader: "Leader", request: Request, route: Access) -> Response:
        most, why = longest_body(route.prompts, self._settings)
        body = await body_of(request, most, "a body", why)
        query = f"?{request.url.query}" if request.url.query else ""
        path = request.scope["raw_path"].decode() + query
        if not self._passing.available_tokens:
            raise HTTPException(
                503, f"this daemon stands by, and {PASSED_ON_AT_ONCE} requests wait for the leader; try again"
            )
        try:
            answer = await anyio.to_thread.run_sync(
                leader.pass_on, request.method, path, dict(request.headers), body, route.seconds, limiter=self._passing
            )
        except StandsBy as error:
            raise HTTPException(503, str(error)) from error
        return Response(answer.body, answer.status, answer.headers)


def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    pages: Pages | None = getattr(request.app.state, "pages", None)
    browses = pages is not None and is_browser(request)
    if error.status_code == 401 and pages is not None and browses:
        where = request.scope["raw_path"].decode() + (f"?{request.url.query}" if request.url.query else "")
        where = where if request.method == "GET" else "/"
        if request.headers.get("sec-fetch-site") == "cross-site":
            return pages.asked_again(where)
        return RedirectResponse(f"/sign-in?next={quote(where, safe='')}", 303)
    is_unknown = error.detail == HTTPStatus.NOT_FOUND.phrase  # what Starlette raises where no route fits
    if pages is not None and browses:
        return pages.failed(request, "there is no such page" if is_unknown else error.detail, error.status_code)
    detail = f"no such route; GET {API}/openapi.json lists them" if is_unknown else error.detail
    return json_response({"error": detail}, error.status_code, error.headers)


def _asked_an_ingester(_: Request, __: Exception) -> Response:
    text = "an ingester answers here: it has /healthz, /readyz and /metrics; ask a daemon of the cluster"
    return json_response({"error": text, "process": "ingest"}, 404)


def _verdict(problems: list[str]) -> Response:
    return PlainTextResponse("\n".join(problems) + "\n" if problems else "ok\n", 503 if problems else 200)
