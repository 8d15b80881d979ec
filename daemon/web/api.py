"""The routes below /api/v1: what an operation is asked over HTTP, and its answer."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from retuned.consumers.errors import BrokerRefused, BrokerUnavailable, RetunedError, StandsBy, StoreUnavailable
from retuned.daemon.jsontext import as_json
from retuned.daemon.operations.catalog import OPERATIONS
from retuned.daemon.operations.operation import Caller, Forbidden, InvalidRequest, NotFound, Operation, Q, R
from retuned.daemon.settings import Settings
from retuned.daemon.web.recent import Recent

MOST_BODY_BYTES = 64 * 2**10
"""Of a JSON body: names and reasons."""
SHORT = "commands are short"


class Performer(Protocol):
    """Performs operations: `retuned.daemon.operations.local.Local`."""

    def perform(self, operation: Operation[Q, R], request: Q, caller: Caller) -> R:
        """See `Local.perform`."""


class Api:
    """Answers requests by operations. A performed command outdates answers that are kept for a while."""

    def __init__(self, service: Performer, settings: Settings) -> None:
        self._service, self._settings = service, settings
        self._recent = {one.name: self._kept(one) for one in OPERATIONS if one.recent_seconds}

    async def answer(self, request: Request, operation: Operation[Any, Any]) -> Response:
        """The response to a request that may be answered.

        Raises:
            HTTPException: with the status of what is wrong.
        """
        try:
            asked = await self._asked(operation, request)
        except InvalidRequest as error:
            raise HTTPException(400, str(error)) from error
        if operation.name in self._recent and caller_of(request).workloads is None:
            return json_response(await self.recent(operation))
        result = await self.perform(operation, asked, request)
        if not operation.streams:
            return json_response(result)
        pieces = result if operation.streams == "bytes" else _json_array(result)
        return StreamingResponse(pieces, media_type=operation.media(asked))

    async def perform(self, operation: Operation[Q, R], asked: Q, request: Request) -> R:
        """The result of an operation, asked by whoever sends the HTTP request; raises as `answer`."""
        return await run_in_threadpool(self.perform_here, operation, asked, caller_of(request))

    def perform_here(self, operation: Operation[Q, R], asked: Q, caller: Caller) -> R:
        """The result, in this thread. A stream has begun: what fails until its first piece has a status of its own."""
        try:
            result: Any = self._service.perform(operation, asked, caller)
            if operation.streams:
                pieces = iter(result)
                result = chain(list(_first(pieces)), pieces)
            return result  # type: ignore[no-any-return]
        except RetunedError as error:
            raise HTTPException(_status(error, operation), str(error)) from error
        finally:
            if operation.method == "POST" and operation.outdates:
                for recent in self._recent.values():
                    recent.outdate()

    async def recent(self, operation: Operation[Any, Any]) -> Any:
        """The result of an operation without fields that is asked for often."""
        return await self._recent[operation.name].get()

    def _kept(self, operation: Operation[Any, Any]) -> Recent:
        return Recent(lambda: self.perform_here(operation, operation.parse({}), Caller()), operation.recent_seconds)

    async def _asked(self, operation: Operation[Q, R], request: Request) -> Q:
        path = request.path_params
        if operation.packed:
            return await self._unpacked(operation, request)
        is_text = operation.method == "GET"
        limit = longest_body(operation.prompts, self._settings)
        given = dict(request.query_params) if is_text else await json_object(request, *limit)
        if both := sorted(given.keys() & operation.path_fields):
            raise InvalidRequest(f"{both[0]}: unknown; it is part of the path")
        return operation.parse(path | given, is_text=is_text)

    async def _unpacked(self, operation: Operation[Q, R], request: Request) -> Q:
        packed, path = operation.packed, request.path_params
        assert packed is not None
        if request.headers.get("content-type") != packed.media_type:  # as for JSON: no page can send it unasked
            raise HTTPException(415, f"this is for `retuned import`, content type {packed.media_type}")
        body = await body_of(request, packed.most_bytes(self._settings), "a batch", "ingest.max_event_bytes")
        try:
            return operation.parse(path | {packed.field: packed.unpack(path, body)})
        except ValueError as error:
            raise HTTPException(400, f"no batch of rows: {error}") from error
        except NotFound as error:
            raise HTTPException(404, str(error)) from error


def caller_of(request: Request) -> Caller:
    """Who sends an HTTP request that was admitted. A page asks for several operations by one request."""
    state = request.state
    if not hasattr(state, "caller"):
        state.caller = Caller(
            getattr(state, "principal", None),
            workloads=getattr(state, "workloads", None),
            conversations=getattr(state, "conversations", True),
            role=getattr(state, "role", None),
        )
    caller: Caller = state.caller
    return caller


def _status(error: RetunedError, operation: Operation[Any, Any]) -> int:
    if isinstance(error, InvalidRequest):
        return 400
    if isinstance(error, Forbidden):
        return 403
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, BrokerRefused | BrokerUnavailable | StandsBy | StoreUnavailable):
        return 503
    return operation.refused


def _first(pieces: Iterator[Any]) -> Iterator[Any]:
    for piece in pieces:
        yield piece
        return


def json_response(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(as_json(content), status, headers, "application/json")


def _json_array(items: Iterable[Any]) -> Iterator[str]:
    """Piece by piece: a long answer is not held a second time as text."""
    yield "["
    for place, item in enumerate(items):
        yield f"{', ' if place else ''}{as_json(item)}"
    yield "]"


def longest_body(prompts: bool, settings: Settings) -> tuple[int, str]:
    """The limit of a body in bytes, and why; of one that holds a prompt, or not."""
    return (settings.gateway.max_body_bytes, "gateway.max_body_bytes") if prompts else (MOST_BODY_BYTES, SHORT)


async def json_object(request: Request, most: int, why: str) -> dict[str, Any]:
    """The JSON object in the body, of at most so many bytes."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        # A page in a browser cannot send this type across origins without asking first.
        raise HTTPException(415, "send a JSON object, content type application/json")
    body = await body_of(request, most, "a body", why)
    try:
        found = json.loads(body or b"{}")
        json.dumps(found, ensure_ascii=False).encode()  # an escape may stand for half of a character
    except UnicodeError as error:
        raise HTTPException(400, f"the body is not UTF-8, or holds half of a surrogate pair: {error}") from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"the body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise HTTPException(400, "send a JSON object")
    return found


async def body_of(request: Request, most: int, what: str, why: str) -> bytes:
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
