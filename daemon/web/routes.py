"""The routes of the HTTP server: health, metrics, status, reports, and the commands of an operator."""

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import anyio
from jinja2 import Environment, PackageLoader
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from retuned.consumers.errors import RetunedError, StandsBy, StoreUnavailable
from retuned.consumers.formats.files import TOPIC
from retuned.daemon.backup.manifest import KEEP
from retuned.daemon.jsontext import as_json, plain
from retuned.daemon.service import COMMANDS, OF_ALL, VERDICTS, Decision, LocalService
from retuned.daemon.settings import Settings
from retuned.daemon.transfer.exports import Export
from retuned.daemon.transfer.imports import from_bytes, most_bytes
from retuned.daemon.web.access import AccessLog, Gate, SafeHeaders, SameOrigin
from retuned.daemon.web.openapi import document
from retuned.daemon.web.principals import Principals, Role
from retuned.daemon.web.recent import Recent

MOST_BODY_BYTES = 64 * 2**10
"""Of a JSON body: names and reasons."""

NAME_MAX = 255
"""Bytes in the name of a file."""
STATUS_SECONDS = 2.0
"""A status that is so young is shown again: each is many queries, and every open page asks every few seconds."""
LIGHT_THREADS = 4
"""For health and metrics alone, so that slow answers to others do not hold them up."""
PASSED_ON_AT_ONCE = 16
"""Requests that wait for the leader, in threads of their own: one that hangs must not hold up what is answered here."""
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; form-action 'none'"
FORM_POLICY = PAGE_POLICY.replace("form-action 'none'", "form-action 'self'")
REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; frame-ancestors 'none'; form-action 'none'"
)
"""Content-Security-Policy: reports bring their scripts with them, and may send nothing anywhere."""


class Process(Protocol):
    """What the server shows of the process that it runs in."""

    registry: CollectorRegistry

    def health(self) -> list[str]:
        """What is broken for good; empty when the process is sound."""

    def readiness(self) -> list[str]:
        """What is not there yet, or not there now; empty when events flow."""

    def warnings(self) -> list[str]:
        """What needs attention and stops nothing."""

    def leader(self) -> "Leader | None":
        """The daemon that leads the cluster; None: it is this one, or there is no cluster."""

    def daemons(self) -> "Sequence[Any]":
        """Those of the cluster, each a dataclass for the status; empty: there is no cluster."""


class Leader(Protocol):
    """Another daemon, which answers what it alone can."""

    def pass_on(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> "Answered":
        """Its answer; raises StandsBy where there is none."""


class Answered(Protocol):
    """Its answer."""

    @property
    def status(self) -> int:
        """Of HTTP."""

    @property
    def content_type(self) -> str:
        """As the header says."""

    @property
    def body(self) -> bytes:
        """Whole."""

    @property
    def location(self) -> str | None:
        """As the header says; None: there is none."""


@dataclass(frozen=True)
class Access:
    """A route, and who may use it.

    Attributes:
        least: the least role that may; None: anybody, without a token.
        light: answered by threads of its own.
        by_leader: of the daemons of a cluster the leader answers; others pass it on.
    """

    method: str
    path: str
    endpoint: "Callable[[Any, Request], Response | Awaitable[Response]]"
    least: Role | None
    light: bool = False
    by_leader: bool = False


def application(service: LocalService, process: Process, settings: Settings) -> Starlette:
    """The routes of `ROUTES`; its `state.principals` are those who may ask.

    Raises:
        ConfigurationError: see `Principals`.
    """
    return _application(_Endpoints(service, process, settings), ROUTES, settings)


def process_application(process: Process, settings: Settings) -> Starlette:
    """Of `ROUTES` those of health and metrics, for an ingester, which has no service; raises as `application`."""
    made = _application(_ProcessEndpoints(process), [one for one in ROUTES if one.light], settings)
    made.add_exception_handler(404, _asked_an_ingester)
    return made


def _application(do: "_ProcessEndpoints", routes: Iterable[Access], settings: Settings) -> Starlette:
    principals = Principals(settings.http)
    gate = Gate(principals, lambda: datetime.now(UTC))
    threads = anyio.CapacityLimiter(LIGHT_THREADS)
    # A name that resolves to this machine must not let a page of another site read the status.
    own = settings.http.address
    local = ["localhost", "127.0.0.1", "[::1]", f"[{own}]" if ":" in own else own]
    hosts = [*settings.http.hosts, *local] if settings.http.hosts or settings.http.loopback else ["*"]
    made = Starlette(
        routes=[
            Route(
                one.path,
                _guarded(
                    partial(one.endpoint, do),
                    one.least,
                    gate,
                    threads if one.light else None,
                    do.passed_on if one.by_leader else None,
                ),
                methods=[one.method],
            )
            for one in routes
        ],
        middleware=[
            Middleware(AccessLog),
            Middleware(SafeHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
            Middleware(SameOrigin),
        ],
        exception_handlers={HTTPException: _problem},
    )
    made.state.principals = principals
    return made


class _ProcessEndpoints:
    """What the routes of health and metrics answer."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._passing = anyio.CapacityLimiter(PASSED_ON_AT_ONCE)

    async def passed_on(self, request: Request) -> Response | None:
        """The answer of the daemon that leads the cluster; None: it is this one, or there is no cluster."""
        leader = self._process.leader()
        if leader is None:
            return None
        body = await _body(request, MOST_BODY_BYTES, "a body", "commands are short")
        query = f"?{request.url.query}" if request.url.query else ""
        path = request.scope["raw_path"].decode() + query
        if not self._passing.available_tokens:
            raise HTTPException(
                503, f"this daemon stands by, and {PASSED_ON_AT_ONCE} requests wait for the leader; try again"
            )
        try:
            answer = await anyio.to_thread.run_sync(
                leader.pass_on, request.method, path, dict(request.headers), body, limiter=self._passing
            )
        except StandsBy as error:
            raise HTTPException(503, str(error)) from error
        headers = {"Content-Type": answer.content_type} | ({"Location": answer.location} if answer.location else {})
        return Response(answer.body, answer.status, headers)

    def healthz(self, _: Request) -> Response:
        return _verdict(self._process.health())

    def readyz(self, _: Request) -> Response:
        return _verdict(self._process.health() or self._process.readiness())

    def metrics(self, request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._process.registry), media_type=media_type)


class _Endpoints(_ProcessEndpoints):
    """What each route answers."""

    def __init__(self, service: LocalService, process: Process, settings: Settings) -> None:
        super().__init__(process)
        self._service, self._settings = service, settings
        templates = Environment(loader=PackageLoader("retuned.daemon.web", "."), autoescape=True)
        self._page = templates.get_template("status.html")
        self._approval_page = templates.get_template("approval.html")
        self._interaction_page = templates.get_template("interaction.html")
        self._status = Recent(self._current_status, STATUS_SECONDS)

    async def status(self, _: Request) -> Response:
        return _json(await self._status.get())

    def _current_status(self) -> Any:
        return plain(self._service.status()) | {
            "warnings": self._process.warnings(),
            "daemons": [asdict(one) | {"said": str(one)} for one in self._process.daemons()],
        }

    async def index(self, _: Request) -> Response:
        page = await run_in_threadpool(self._page.render, status=await self._status.get())
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    def interaction(self, request: Request) -> Response:
        try:
            found = self._service.interaction(request.path_params["id"])
        except RetunedError as error:
            raise HTTPException(404, str(error)) from error
        page = self._interaction_page.render(interaction=plain(found))
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    def report(self, request: Request) -> Response:
        name = request.path_params["id"]
        file = self._service.reports / f"{name}.html"
        if not re.fullmatch(r"[\w-]+", name) or len(file.name.encode()) > NAME_MAX or not file.is_file():
            raise HTTPException(404, "no such report; it may have been deleted (drift.keep_reports)")
        return FileResponse(file, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    def openapi(self, _: Request) -> Response:
        return _json(document((one.method, one.path, one.least) for one in ROUTES))

    def letters(self, request: Request) -> Response:
        limit = request.query_params.get("limit", "20")
        if not re.fullmatch(r"[1-9][0-9]{0,4}", limit):
            raise HTTPException(400, f"limit: expected a number from 1 to 99999, got {limit!r}")
        found = self._service.dead_letters(int(limit), request.query_params.get("reason"))
        return StreamingResponse(_json_array(found), media_type="application/json")

    def ingestion(self, _: Request) -> Response:
        return Response(as_json(self._service.ingestion()), media_type="application/json")

    def labels(self, request: Request) -> Response:
        return _json(self._service.labels(request.query_params.get("workload")))

    def model_routes(self, _: Request) -> Response:
        return _json(self._service.routes())

    def model_route(self, request: Request) -> Response:
        workload, conversation = (request.query_params.get(name) for name in ("workload", "conversation"))
        if not workload or not conversation:
            raise HTTPException(400, "name workload and conversation, as in ?workload=support&conversation=c-1")
        try:
            return _json(self._service.route(workload, conversation))
        except RetunedError as error:
            raise HTTPException(404, str(error)) from error

    def approvals(self, request: Request) -> Response:
        return _json(self._service.approvals(request.query_params.get("workload")))

    async def decide(self, request: Request) -> Response:
        await self._approval(request)
        arguments = await _arguments(request)
        return _json(await self._done(self._service.decide_approval, *_decision(request, arguments)))

    async def approval_page(self, request: Request) -> Response:
        found = await self._approval(request)
        decision = request.query_params.get("decision")
        return self._show_approval(found, decision if decision in VERDICTS else None)

    async def decide_on_page(self, request: Request) -> Response:
        """As `decide`, from the form of the page; it leads back to the page, which shows what was decided."""
        await self._approval(request)
        if request.headers.get("content-type") != "application/x-www-form-urlencoded":
            raise HTTPException(415, "send the form of this page; programs send JSON to /api/v1/approvals/{id}")
        body = await _body(request, MOST_BODY_BYTES, "a body", "reasons are short")
        arguments = dict(parse_qsl(body.decode(errors="replace"), keep_blank_values=True))
        try:
            await self._done(self._service.decide_approval, *_decision(request, arguments))
        except HTTPException as error:
            found = await self._approval(request)
            return self._show_approval(found, arguments.get("decision"), error.detail, error.status_code)
        return RedirectResponse(request.url.path, 303)

    async def _approval(self, request: Request) -> Any:
        """The request for approval that the path names; HTTPException 404: there is none."""
        found = await run_in_threadpool(self._service.approval, request.path_params["id"])
        if found is None:
            raise HTTPException(404, "no such request for approval; GET /api/v1/approvals lists them")
        return plain(found)

    def _show_approval(
        self, approval: Any, decision: str | None, problem: str | None = None, status: int = 200
    ) -> Response:
        page = self._approval_page.render(approval=approval, decision=decision, problem=problem)
        # With no-referrer the form would be sent with the origin null, which is refused as that of another site.
        headers = {"Content-Security-Policy": FORM_POLICY, "Referrer-Policy": "same-origin"}
        return HTMLResponse(page, status, headers)

    async def replay(self, request: Request) -> Response:
        await _arguments(request)
        return _json(await self._done(self._service.replay))

    async def resume(self, request: Request) -> Response:
        await _arguments(request)
        return _json(await self._done(self._service.resume_ingestion))

    async def position(self, request: Request) -> Response:
        return _json(asdict(await self._done(self._service.position, _topic(request))))

    async def take(self, request: Request) -> Response:
        if request.headers.get("content-type") != "application/msgpack":  # as for JSON: no page can send it unasked
            raise HTTPException(415, "this is for `retuned import`, content type application/msgpack")
        name = _topic(request)
        body = await _body(request, most_bytes(self._settings), "a batch", "ingest.max_event_bytes")
        try:
            batch = from_bytes(name, body)
        except ValueError as error:
            raise HTTPException(400, f"no batch of rows: {error}") from error
        return _json(asdict(await self._done(self._service.take, batch)))

    def export(self, request: Request) -> Response:
        known = {key: request.query_params.get(key) for key in ("format", "workload", "since", "until")}
        if unknown := request.query_params.keys() - known.keys():
            raise HTTPException(400, f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
        wanted = Export(
            request.path_params["what"], **{key: value for key, value in known.items() if value is not None}
        )
        try:
            pieces = self._service.export(wanted)
        except RetunedError as error:
            raise HTTPException(400, str(error)) from error
        media = {"jsonl": "application/jsonl", "parquet": "application/vnd.apache.parquet"}
        return StreamingResponse(pieces, media_type=media.get(wanted.format, "application/yaml"))

    def lineage(self, request: Request) -> Response:
        try:
            found = self._service.lineage(request.path_params["id"])
        except RetunedError as error:
            raise HTTPException(404, str(error)) from error
        return _json(found)

    async def backup(self, request: Request) -> Response:
        arguments = await _arguments(request)
        folder, keep, with_key = arguments.get("folder"), arguments.get("keep", KEEP), arguments.get("with_key", True)
        if not isinstance(folder, str) or type(keep) is not int or type(with_key) is not bool:
            raise HTTPException(
                400, "expected folder (a path), keep (a number of backups) and with_key (true or false)"
            )
        make = partial(self._service.backup, with_key=with_key)
        return _json(await self._done(make, Path(folder), keep))

    async def command(self, request: Request) -> Response:
        name, workload = request.path_params["command"], request.path_params.get("workload")
        if name not in (known := OF_ALL if workload is None else COMMANDS):
            raise HTTPException(404, f"commands are {', '.join(known)}")
        arguments = await _arguments(request) | {"asked_by": getattr(request.state, "principal", None)}
        return _json(await self._done(self._service.command, name, workload, arguments))

    async def _done(self, change: Callable[..., Any], *arguments: Any) -> Any:
        """What a change returned; HTTPException 409 when it was refused."""
        try:
            return await run_in_threadpool(change, *arguments)
        except (StandsBy, StoreUnavailable) as error:
            raise HTTPException(503, str(error)) from error
        except RetunedError as error:
            raise HTTPException(409, str(error)) from error
        finally:
            self._status.outdate()


ROUTES = (
    Access("GET", "/healthz", _Endpoints.healthz, None, light=True),
    Access("GET", "/readyz", _Endpoints.readyz, None, light=True),
    Access("GET", "/metrics", _Endpoints.metrics, "metrics", light=True),
    Access("GET", "/api/v1/routes", _Endpoints.model_routes, "metrics", by_leader=True),
    Access("GET", "/api/v1/route", _Endpoints.model_route, "metrics", by_leader=True),
    Access("GET", "/", _Endpoints.index, "viewer"),
    Access("GET", "/reports/{id}", _Endpoints.report, "viewer"),
    Access("GET", "/approvals/{id}", _Endpoints.approval_page, "viewer"),
    Access("POST", "/approvals/{id}", _Endpoints.decide_on_page, "operator", by_leader=True),
    Access("GET", "/api/v1/openapi.json", _Endpoints.openapi, "viewer"),
    Access("GET", "/api/v1/status", _Endpoints.status, "viewer"),
    Access("GET", "/api/v1/ingestion", _Endpoints.ingestion, "viewer"),
    Access("GET", "/api/v1/approvals", _Endpoints.approvals, "viewer"),
    Access("POST", "/api/v1/approvals/{id}", _Endpoints.decide, "operator", by_leader=True),
    Access("GET", "/interactions/{id:path}", _Endpoints.interaction, "operator"),
    Access("GET", "/api/v1/labels", _Endpoints.labels, "labeller"),
    Access("GET", "/api/v1/dead-letters", _Endpoints.letters, "operator"),
    Access("POST", "/api/v1/dead-letters/replay", _Endpoints.replay, "operator"),
    Access("POST", "/api/v1/dead-letters/resume", _Endpoints.resume, "operator"),
    Access("GET", "/api/v1/imports/{id}", _Endpoints.position, "operator"),
    Access("POST", "/api/v1/imports/{id}", _Endpoints.take, "operator"),
    Access("GET", "/api/v1/exports/{what}", _Endpoints.export, "operator"),
    Access("GET", "/api/v1/lineage/{id:path}", _Endpoints.lineage, "operator"),
    Access("POST", "/api/v1/backup", _Endpoints.backup, "admin"),
    Access("POST", "/api/v1/workloads/{workload:path}/{command}", _Endpoints.command, "operator", by_leader=True),
    Access("POST", "/api/v1/training/{command}", _Endpoints.command, "operator", by_leader=True),
)
"""Who may ask what: the server, the OpenAPI document and the documentation take it from here."""


def _guarded(
    endpoint: Callable[[Request], Any],
    least: Role | None,
    gate: Gate,
    threads: anyio.CapacityLimiter | None,
    passed_on: Callable[[Request], Awaitable[Response | None]] | None,
) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint for who has the role. A plain function runs in a thread, so that the event loop stays free.

    `passed_on` returns the answer of the daemon that leads, where that is another one.
    """

    async def guarded(request: Request) -> Response:
        if least is not None:
            gate.admit(request, least)
        if passed_on is not None and (elsewhere := await passed_on(request)) is not None:
            return elsewhere
        if inspect.iscoroutinefunction(endpoint):
            answer: Response = await endpoint(request)
            return answer
        return await anyio.to_thread.run_sync(endpoint, request, limiter=threads)

    return guarded


async def _arguments(request: Request) -> dict[str, Any]:
    """The JSON object in the body."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        # A page in a browser cannot send this type across origins without asking first.
        raise HTTPException(415, "send a JSON object, content type application/json")
    body = await _body(request, MOST_BODY_BYTES, "a body", "commands are short")
    try:
        arguments = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise HTTPException(400, "send a JSON object")
    for name in ("version", "base", "reason", "as_of"):
        if not isinstance(arguments.get(name), str | None):
            raise HTTPException(400, f"{name}: expected a text")
    if not isinstance(arguments.get("now", False), bool):
        raise HTTPException(400, "now: expected true or false")
    return arguments


def _decision(request: Request, arguments: Mapping[str, Any]) -> tuple[str, Decision, str, str | None]:
    """The id of a request for approval, what is decided on it, why, and by whom; HTTPException 400: that is malformed.

    The name in the body is what somebody claims, and counts where nobody has to show who they are.
    """
    decision, reason, user = (arguments.get(name) for name in ("decision", "reason", "user"))
    if decision not in tuple(VERDICTS):
        raise HTTPException(400, f"decision: expected {' or '.join(VERDICTS)}")
    if not isinstance(reason, str) or not reason.strip():
        raise HTTPException(400, "reason: expected a text; it is kept with the decision")
    if not isinstance(user, str | None):
        raise HTTPException(400, "user: expected a text")
    claimed = f"{user} (without a token)" if user else None
    who = getattr(request.state, "principal", None) or claimed
    return request.path_params["id"], decision, reason.strip(), who


def _topic(request: Request) -> str:
    name: str = request.path_params["id"]
    if not re.fullmatch("[0-9a-f]{16}", name):
        raise HTTPException(404, "a file is named by 16 hexadecimal digits; this is for `retuned import`")
    return TOPIC + name


def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code, error.headers)


def _asked_an_ingester(_: Request, __: Exception) -> Response:
    text = "an ingester answers here: it has /healthz, /readyz and /metrics; ask a daemon of the cluster"
    return _json({"error": text, "process": "ingest"}, 404)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(as_json(content), status, headers, "application/json")


def _json_array(items: Iterable[Any]) -> Iterator[str]:
    """Piece by piece: a long answer is not held a second time as text."""
    yield "["
    for place, item in enumerate(items):
        yield f"{', ' if place else ''}{as_json(item)}"
    yield "]"


async def _body(request: Request, most: int, what: str, why: str) -> bytes:
    """The body of a request; HTTPException 413 when it is longer than so many bytes, or says that it will be."""
    too_long = HTTPException(413, f"{what} of more than {most} bytes ({why})")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > most:
        raise too_long
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise too_long
    return bytes(body)


def _verdict(problems: list[str]) -> Response:
    return PlainTextResponse("\n".join(problems) + "\n" if problems else "ok\n", 503 if problems else 200)
