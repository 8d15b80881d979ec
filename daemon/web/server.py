"""The daemon's HTTP server: health, metrics, status, reports, and the commands of an operator."""

import base64
import contextlib
import hmac
import json
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any, Protocol

import uvicorn
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

from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.formats.files import TOPIC
from retuned.daemon.jsontext import as_json, plain
from retuned.daemon.service import COMMANDS, LocalService
from retuned.daemon.settings import HttpSettings, Settings
from retuned.daemon.transfer.exports import Export
from retuned.daemon.transfer.imports import from_bytes, most_bytes
from retuned.daemon.web.connections import BACKLOG, HEADER_BYTES, Connection


class Process(Protocol):
    """What the server shows of the process that it runs in."""

    registry: CollectorRegistry

    def health(self) -> list[str]:
        """What is broken for good; empty when the process is sound."""

    def readiness(self) -> list[str]:
        """What is not there yet, or not there now; empty when events flow."""


MOST_BODY_BYTES = 64 * 2**10
"""Of a JSON body: names and reasons."""


def application(service: LocalService, process: Process, settings: Settings) -> Starlette:
    """The routes. All but the health checks ask for a token when tokens are configured.

    Raises:
        ConfigurationError: see `HttpSettings.tokens`.
    """
    tokens = settings.http.tokens()
    page = Environment(loader=PackageLoader("retuned.daemon.web", "."), autoescape=True).get_template("status.html")

    def require(request: Request, role: str) -> None:
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

    def ask_for_json(request: Request) -> None:
        if not request.headers.get("content-type", "").startswith("application/json"):
            # A page in a browser cannot send this type across origins without asking first.
            raise HTTPException(415, "send a JSON object, content type application/json")

    def healthz(_: Request) -> Response:
        return _verdict(process.health())

    def readyz(_: Request) -> Response:
        return _verdict(process.health() or process.readiness())

    # Plain functions run in Starlette's thread pool: the event loop stays free while metrics are rendered.
    def metrics(request: Request) -> Response:
        require(request, "viewer")
        return Response(generate_latest(process.registry), media_type=CONTENT_TYPE_LATEST)

    def status(request: Request) -> Response:
        require(request, "viewer")
        return _json(service.status())

    def index(request: Request) -> Response:
        require(request, "viewer")
        return HTMLResponse(page.render(status=plain(service.status())))

    def report(request: Request) -> Response:
        require(request, "viewer")
        name = request.path_params["id"]
        file = service.reports / f"{name}.html"
        if not re.fullmatch(r"[\w-]+", name) or not file.is_file():
            raise HTTPException(404, "no such report; it may have been pruned (drift.keep_reports)")
        return FileResponse(file, media_type="text/html")

    def openapi(request: Request) -> Response:
        require(request, "viewer")
        return _json(yaml.safe_load((files("retuned.daemon.web") / "openapi.yaml").read_text(encoding="utf-8")))

    def letters(request: Request) -> Response:
        require(request, "viewer")
        limit = request.query_params.get("limit", "20")
        if not re.fullmatch(r"[1-9][0-9]{0,4}", limit):
            raise HTTPException(400, f"limit: expected a number from 1 to 99999, got {limit!r}")
        found = service.dead_letters(int(limit), request.query_params.get("reason"))
        return StreamingResponse(_json_array(found), media_type="application/json")

    def ingestion(request: Request) -> Response:
        require(request, "viewer")
        return Response(as_json(service.ingestion()), media_type="application/json")

    def labels(request: Request) -> Response:
        require(request, "viewer")
        return _json(service.labels(request.query_params.get("workload")))

    def replay(request: Request) -> Response:
        require(request, "operator")
        ask_for_json(request)
        try:
            return _json(service.replay())
        except RetunedError as error:
            raise HTTPException(409, str(error)) from error

    def topic(request: Request) -> str:
        name: str = request.path_params["id"]
        if not re.fullmatch("[0-9a-f]{16}", name):
            raise HTTPException(404, "a file is named by 16 hexadecimal digits; this is for `retuned import`")
        return TOPIC + name

    def position(request: Request) -> Response:
        require(request, "viewer")
        return _json({"position": service.position(topic(request))})

    async def take(request: Request) -> Response:
        require(request, "operator")
        if request.headers.get("content-type") != "application/msgpack":  # as for JSON: no page can send it unasked
            raise HTTPException(415, "this is for `retuned import`, content type application/msgpack")
        name = topic(request)
        body = await _body(request, most_bytes(settings), "a batch", "ingest.max_event_bytes")
        try:
            batch = from_bytes(name, body)
        except ValueError as error:
            raise HTTPException(400, f"no batch of rows: {error}") from error
        try:
            return _json(asdict(await run_in_threadpool(service.take, batch)))
        except RetunedError as error:
            raise HTTPException(409, str(error)) from error

    def export(request: Request) -> Response:
        require(request, "viewer")
        known = {key: request.query_params.get(key) for key in ("format", "workload", "since", "until")}
        if unknown := request.query_params.keys() - known.keys():
            raise HTTPException(400, f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
        wanted = Export(
            request.path_params["what"], **{key: value for key, value in known.items() if value is not None}
        )
        try:
            pieces = service.export(wanted)
        except RetunedError as error:
            raise HTTPException(400, str(error)) from error
        media = "application/jsonl" if wanted.format == "jsonl" else "application/vnd.apache.parquet"
        return StreamingResponse(pieces, media_type=media)

    def lineage(request: Request) -> Response:
        require(request, "viewer")
        try:
            found = service.lineage(request.path_params["id"])
        except RetunedError as error:
            raise HTTPException(404, str(error)) from error
        return _json(found)

    async def command(request: Request) -> Response:
        require(request, "operator")
        name = request.path_params["command"]
        if name not in COMMANDS:
            raise HTTPException(404, f"commands are {', '.join(COMMANDS)}")
        ask_for_json(request)
        body = await _body(request, MOST_BODY_BYTES, "a body", "commands are short")
        try:
            arguments = json.loads(body or b"{}")
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"the body is not JSON: {error}") from error
        if not isinstance(arguments, dict):
            raise HTTPException(400, "send a JSON object")
        try:
            done = await run_in_threadpool(service.command, name, request.path_params["workload"], arguments)
        except RetunedError as error:
            raise HTTPException(409, str(error)) from error
        return _json(done)

    def problem(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _json({"error": error.detail}, error.status_code, error.headers)

    # A name that resolves to this machine must not let a page of another site read the status.
    hosts = ["localhost", "127.0.0.1", "[::1]"] if settings.http.loopback else ["*"]
    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/", index),
            Route("/reports/{id}", report),
            Route("/api/v1/openapi.json", openapi),
            Route("/api/v1/status", status),
            Route("/api/v1/labels", labels),
            Route("/api/v1/dead-letters", letters),
            Route("/api/v1/ingestion", ingestion),
            Route("/api/v1/dead-letters/replay", replay, methods=["POST"]),
            Route("/api/v1/imports/{id}", position),
            Route("/api/v1/imports/{id}", take, methods=["POST"]),
            Route("/api/v1/exports/{what}", export),
            Route("/api/v1/lineage/{id:path}", lineage),
            Route("/api/v1/workloads/{workload}/{command}", command, methods=["POST"]),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts)],
        exception_handlers={HTTPException: problem},
    )


class Server:
    """Uvicorn in a thread of its own, so that the main thread keeps the signals."""

    def __init__(self, application: Starlette, settings: HttpSettings) -> None:
        """Binds the address; raises as `bind` does."""
        self._socket = bind(settings)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            application,
            http=Connection,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
            lifespan="off",
            backlog=BACKLOG,
            h11_max_incomplete_event_size=HEADER_BYTES,
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the requests under way, at most 2 s, and stop; safe to repeat."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout=4)
        self._socket.close()


def bind(settings: HttpSettings) -> socket.socket:
    """A socket bound to the configured address.

    Raises:
        ConfigurationError: the address is taken or not this machine's.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise ConfigurationError(
            f"http.port: cannot listen on {settings.host}:{settings.port} ({error.strerror}); "
            "is another retuned running?"
        ) from error
    return bound


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


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
