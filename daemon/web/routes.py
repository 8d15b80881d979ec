"""The routes of the HTTP server: health, metrics, status, reports, and the commands of an operator."""

import base64
import hmac
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import wraps
from importlib.resources import files
from typing import Any, Literal, Protocol

import yaml
from jinja2 import Environment, PackageLoader
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from retuned.consumers.errors import RetunedError
from retuned.consumers.formats.files import TOPIC
from retuned.daemon.jsontext import as_json, plain
from retuned.daemon.service import COMMANDS, LocalService
from retuned.daemon.settings import Settings
from retuned.daemon.transfer.exports import Export
from retuned.daemon.transfer.imports import from_bytes, most_bytes

MOST_BODY_BYTES = 64 * 2**10
"""Of a JSON body: names and reasons."""

Role = Literal["viewer", "operator"]


class Process(Protocol):
    """What the server shows of the process that it runs in."""

    registry: CollectorRegistry

    def health(self) -> list[str]:
        """What is broken for good; empty when the process is sound."""

    def readiness(self) -> list[str]:
        """What is not there yet, or not there now; empty when events flow."""


def application(service: LocalService, process: Process, settings: Settings) -> Starlette:
    """The routes. All but the health checks ask for a token when tokens are configured.

    Raises:
        ConfigurationError: see `HttpSettings.tokens`.
    """
    do, tokens = _Endpoints(service, process, settings), settings.http.tokens()

    def viewer(path: str, endpoint: Callable[[Request], Any]) -> Route:
        return Route(path, _guarded(endpoint, "viewer", tokens))

    def operator(path: str, endpoint: Callable[[Request], Any]) -> Route:
        return Route(path, _guarded(endpoint, "operator", tokens), methods=["POST"])

    # A name that resolves to this machine must not let a page of another site read the status.
    hosts = ["localhost", "127.0.0.1", "[::1]"] if settings.http.loopback else ["*"]
    return Starlette(
        routes=[
            Route("/healthz", do.healthz),
            Route("/readyz", do.readyz),
            viewer("/metrics", do.metrics),
            viewer("/", do.index),
            viewer("/reports/{id}", do.report),
            viewer("/api/v1/openapi.json", do.openapi),
            viewer("/api/v1/status", do.status),
            viewer("/api/v1/labels", do.labels),
            viewer("/api/v1/dead-letters", do.letters),
            viewer("/api/v1/ingestion", do.ingestion),
            operator("/api/v1/dead-letters/replay", do.replay),
            viewer("/api/v1/imports/{id}", do.position),
            operator("/api/v1/imports/{id}", do.take),
            viewer("/api/v1/exports/{what}", do.export),
            viewer("/api/v1/lineage/{id:path}", do.lineage),
            operator("/api/v1/workloads/{workload}/{command}", do.command),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={HTTPException: _problem},
    )


class _Endpoints:
    """What each route answers. Plain functions run in Starlette's thread pool, so that the event loop stays free."""

    def __init__(self, service: LocalService, process: Process, settings: Settings) -> None:
        self._service, self._process, self._settings = service, process, settings
        templates = Environment(loader=PackageLoader("retuned.daemon.web", "."), autoescape=True)
        self._page = templates.get_template("status.html")

    def healthz(self, _: Request) -> Response:
        return _verdict(self._process.health())

    def readyz(self, _: Request) -> Response:
        return _verdict(self._process.health() or self._process.readiness())

    def metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._process.registry), media_type=CONTENT_TYPE_LATEST)

    def status(self, _: Request) -> Response:
        return _json(self._service.status())

    def index(self, _: Request) -> Response:
        return HTMLResponse(self._page.render(status=plain(self._service.status())))

    def report(self, request: Request) -> Response:
        name = request.path_params["id"]
        file = self._service.reports / f"{name}.html"
        if not re.fullmatch(r"[\w-]+", name) or not file.is_file():
            raise HTTPException(404, "no such report; it may have been deleted (drift.keep_reports)")
        return FileResponse(file, media_type="text/html")

    def openapi(self, _: Request) -> Response:
        return _json(yaml.safe_load((files("retuned.daemon.web") / "openapi.yaml").read_text(encoding="utf-8")))

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

    def replay(self, request: Request) -> Response:
        _ask_for_json(request)
        try:
            return _json(self._service.replay())
        except RetunedError as error:
            raise HTTPException(409, str(error)) from error

    def position(self, request: Request) -> Response:
        return _json({"position": self._service.position(_topic(request))})

    async def take(self, request: Request) -> Response:
        if request.headers.get("content-type") != "application/msgpack":  # as for JSON: no page can send it unasked
            raise HTTPException(415, "this is for `retuned import`, content type application/msgpack")
        name = _topic(request)
        body = await _body(request, most_bytes(self._settings), "a batch", "ingest.max_event_bytes")
        try:
            batch = from_bytes(name, body)
        except ValueError as error:
            raise HTTPException(400, f"no batch of rows: {error}") from error
        try:
            return _json(asdict(await run_in_threadpool(self._service.take, batch)))
        except RetunedError as error:
            raise HTTPException(409, str(error)) from error

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
        media = "application/jsonl" if wanted.format == "jsonl" else "application/vnd.apache.parquet"
        return StreamingResponse(pieces, media_type=media)

    def lineage(self, request: Request) -> Response:
        try:
            found = self._service.lineage(request.path_params["id"])
        except RetunedError as error:
            raise HTTPException(404, str(error)) from error
        return _json(found)

    async def command(self, request: Request) -> Response:
        name = request.path_params["command"]
        if name not in COMMANDS:
            raise HTTPException(404, f"commands are {', '.join(COMMANDS)}")
        _ask_for_json(request)
        body = await _body(request, MOST_BODY_BYTES, "a body", "commands are short")
        try:
            arguments = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise HTTPException(400, "send a JSON object")
        try:
            done = await run_in_threadpool(self._service.command, name, request.path_params["workload"], arguments)
        except RetunedError as error:
            raise HTTPException(409, str(error)) from error
        return _json(done)


def _guarded(endpoint: Callable[[Request], Any], role: Role, tokens: Mapping[str, str]) -> Callable[[Request], Any]:
    """The endpoint for who has a token of the role, or an operator's; for everybody where there are no tokens."""

    def check(request: Request) -> None:
        if not tokens:
            return
        given = _given_token(request.headers.get("authorization", "")).encode()
        # All are compared, so that the time tells nothing.
        held = [role for token, role in tokens.items() if hmac.compare_digest(token.encode(), given)]
        if not given or not held:
            asks = {"WWW-Authenticate": 'Basic realm="retuned: the token is the password"'}
            raise HTTPException(401, "a token is required: as a bearer token, or as the password", headers=asks)
        if role == "operator" and "operator" not in held:
            raise HTTPException(403, "an operator's token is required")

    if inspect.iscoroutinefunction(endpoint):

        @wraps(endpoint)
        async def guarded(request: Request) -> Any:
            check(request)
            return await endpoint(request)

        return guarded

    @wraps(endpoint)
    def guarded_in_thread(request: Request) -> Any:
        check(request)
        return endpoint(request)

    return guarded_in_thread


def _ask_for_json(request: Request) -> None:
    if not request.headers.get("content-type", "").startswith("application/json"):
        # A page in a browser cannot send this type across origins without asking first.
        raise HTTPException(415, "send a JSON object, content type application/json")


def _topic(request: Request) -> str:
    name: str = request.path_params["id"]
    if not re.fullmatch("[0-9a-f]{16}", name):
        raise HTTPException(404, "a file is named by 16 hexadecimal digits; this is for `retuned import`")
    return TOPIC + name


def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json({"error": error.detail}, error.status_code, error.headers)


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(as_json(content), status, headers, "application/json")


def _json_array(items: list[Any]) -> Iterator[str]:
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


def _verdict(problems: list[str]) -> Response:
    return PlainTextResponse("\n".join(problems) + "\n" if problems else "ok\n", 503 if problems else 200)
