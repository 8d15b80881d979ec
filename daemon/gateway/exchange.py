"""One request of an app, sent to one server: passed on as it is, recorded, and answered."""

import asyncio
import json
import logging
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.errors import Refused, error_body, why
from retuned.daemon.gateway.events import record
from retuned.daemon.gateway.events.buffer import Buffer, Full
from retuned.daemon.gateway.events.feedback import Tokens
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.servers.client import Client, Sends
from retuned.daemon.gateway.servers.outliers import Outcome, outcome_of
from retuned.daemon.gateway.servers.upstreams import Attempt, Replica, Upstreams, headers_for
from retuned.daemon.gateway.shadow import Shadow
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.retrain.release.assignment import Served

log = logging.getLogger(__name__)

RECORDED = ("/v1/chat/completions", "/v1/completions")
INTERACTION, MODEL, FALLBACK, TOKEN = (
    f"X-Retuned-{name}" for name in ("Interaction", "Model", "Fallback", "Feedback-Token")
)
DONE = b"[DONE]"
CLIENT_GONE = 499
_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_NOT_UP = {*_HOP, "host", "content-length", "content-encoding", "accept-encoding", "authorization", "cookie", "expect"}
_NOT_DOWN = {*_HOP, "content-length", "date", "server", "set-cookie"}


@dataclass(frozen=True)
class Target:
    """What may answer a request.

    Attributes:
        workload: that it is of; "": of none, and it is not recorded.
        models: what answers, and what does in its place, in this order.
        assignment: experiment and arm; None: there is no experiment.
        shadow: what is asked as well, and shown to nobody.
    """

    workload: str
    models: list[Served]
    conversation: str | None = None
    assignment: tuple[str, str] | None = None
    shadow: Served | None = None


@dataclass(frozen=True)
class Parts:
    """What every exchange works with."""

    settings: GatewaySettings
    client: Client
    upstreams: Upstreams
    buffer: Buffer
    tokens: Tokens | None
    metrics: Metrics
    shadow: Shadow


class Elsewhere(Exception):
    """This server did not answer, and another one may."""


class Exchange:
    """One request, sent to one server."""

    def __init__(
        self,
        parts: Parts,
        request: web.BaseRequest,
        call: Call,
        target: Target,
        served: Served,
        name: str,
        began: float,
    ) -> None:
        self._parts, self._request, self._call, self._target = parts, request, call, target
        self._served, self._name, self._began = served, name, began
        query = request.rel_url.raw_query_string
        self._path = f"{request.path}?{query}" if query else request.path
        self._id = uuid.uuid4().hex
        self._timestamp = datetime.now(UTC).isoformat()
        self._is_recorded = bool(target.workload) and request.path in RECORDED
        self._first_token: float | None = None
        self._received: list[bytes] | None = []
        self._size = 0
        self._ended = self._done = False

    async def with_replica(self, replica: Replica, sends: Sends) -> web.StreamResponse:
        """The answer of a server.

        Raises:
            Elsewhere: it has not got the model, or cannot be reached.
            Refused: it did not answer in time, or broke off.
        """
        url = f"{replica.url}{self._path.removeprefix('/v1')}"
        headers = headers_for(replica, self._passed_on())
        with self._parts.upstreams.asked(replica, self._served, self._name) as attempt:
            try:
                answer = await self._parts.client.post(url, self._call.asking(self._name), headers, sends)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                attempt.outcome = Outcome.FAILS
                replica.failed(f"cannot be reached ({why(error)})")
                raise Elsewhere("cannot be reached") from error
            except asyncio.CancelledError:
                self._count(CLIENT_GONE)
                raise
            except TimeoutError as error:
                raise self._failed(attempt, self._too_slow()) from error
            except aiohttp.ClientError as error:
                message = (
                    "the model server closed the connection without an answer; it may have processed the request, "
                    "which is therefore not sent again"
                )
                raise self._failed(attempt, Refused(502, "upstream_failed", message)) from error
            self._is_recorded &= answer.status == 200
            async with answer:
                if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                    return await self._stream(answer, attempt)
                return await self._whole(answer, attempt)

    async def _whole(self, answer: aiohttp.ClientResponse, attempt: Attempt) -> web.StreamResponse:
        try:
            body = await answer.read()
        except asyncio.CancelledError:
            self._count(CLIENT_GONE)
            raise
        except TimeoutError as error:
            raise self._failed(attempt, self._too_slow()) from error
        except aiohttp.ClientError as error:
            raise self._failed(attempt, _broke_off()) from error
        attempt.outcome = outcome_of(answer.status)
        if answer.status == 404 and _names(body, self._name):
            raise Elsewhere(f"has not got {self._name}")
        headers = self._headers(answer)
        self._received, self._size = [body], len(body)
        self._record()
        self._count(answer.status)
        return web.Response(body=body, status=answer.status, headers=headers)

    async def _stream(self, answer: aiohttp.ClientResponse, attempt: Attempt) -> web.StreamResponse:
        """Each line as it comes. What the app has got is recorded before the stream ends, however it does."""
        response = web.StreamResponse(status=answer.status, headers=self._headers(answer))
        problem: Refused | None = None
        rest = b""
        try:
            await response.prepare(self._request)
            async for piece in answer.content.iter_any():
                if self._first_token is None:
                    self._first_token = time.perf_counter() - self._began
                lines, newline, rest = (rest + piece).rpartition(b"\n")
                if newline:
                    await self._send(response, lines + newline)
            if rest:
                await self._send(response, rest)
        except (asyncio.CancelledError, ConnectionResetError):
            self._record(cut="client")
            self._count(answer.status if self._ended else CLIENT_GONE)
            raise
        except TimeoutError:
            problem = self._too_slow()
        except aiohttp.ClientError:
            problem = _broke_off()
        if problem is None:
            attempt.outcome = outcome_of(answer.status)
            self._record()
            self._count(answer.status)
        else:
            self._record(cut="upstream")
            self._failed(attempt, problem)
            error = error_body(problem.status, problem.code, str(problem))
            await response.write(b"\ndata: " + error + b"\n\n")
        await response.write_eof()
        return response

    async def _send(self, response: web.StreamResponse, lines: bytes) -> None:
        """Send some more of a stream; what is recorded is as much of it as may be."""
        self._size += len(lines)
        if self._received is not None:
            self._received.append(lines)
            if self._size > self._parts.settings.max_body_bytes:
                self._received = None
        if DONE in lines[-32:] and lines.split()[-1] in (DONE, b"data:" + DONE):  # clients close the connection here
            self._ended = True
            self._record()
        await response.write(lines)

    def _record(self, cut: str | None = None) -> None:
        """Buffer the exchange, once. An answer of which nothing came is none."""
        if self._done or not self._is_recorded or not self._size:
            return
        self._done = True
        metrics = self._parts.metrics
        received = self._received
        if received is None or self._size > self._parts.settings.max_body_bytes:
            metrics.dropped.labels("interactions", "too_large").inc()
            log.warning("an answer of %d bytes is not recorded (gateway.max_body_bytes)", self._size)
            return
        kept = record.Exchange(
            id=self._id,
            timestamp=self._timestamp,
            workload=self._target.workload,
            model=self._served.model,
            name=self._name,
            conversation_id=self._target.conversation,
            assignment=self._target.assignment,
            request=self._call.body,
            response=b"".join(received),
            streamed=self._first_token is not None,
            cut=cut,
            latency_seconds=time.perf_counter() - self._began,
            first_token_seconds=self._first_token,
        )
        try:
            self._parts.buffer.append(record.encode(kept))
        except Full as error:
            metrics.dropped.labels("interactions", error.reason).inc()
            return
        candidate = self._target.shadow
        if candidate is not None and cut is None and self._served.model == self._target.models[0].model:
            self._parts.shadow.ask(candidate, self._call, self._path, self._passed_on(), self._id)

    def _passed_on(self) -> CIMultiDict[str]:
        """The headers of the app's request that a server gets."""
        keyless = self._parts.settings.client_keys_file is None
        return CIMultiDict(
            (key, value)
            for key, value in self._request.headers.items()
            if ((lower := key.lower()) not in _NOT_UP or (keyless and lower == "authorization"))
            and not lower.startswith("x-retuned-")
        )

    def _headers(self, answer: aiohttp.ClientResponse) -> CIMultiDict[str]:
        parts = self._parts
        headers = CIMultiDict((key, value) for key, value in answer.headers.items() if key.lower() not in _NOT_DOWN)
        headers[MODEL] = self._served.model
        first = self._target.models[0]
        if self._served.model != first.model:
            headers[FALLBACK] = f"{first.model} is on no server"
            parts.metrics.fell_back(self._target.workload, self._served.model)
        if self._is_recorded:
            headers[INTERACTION] = self._id
            if parts.tokens:
                headers[TOKEN] = parts.tokens.of(self._id)
        return headers

    def _count(self, code: int) -> None:
        seconds = time.perf_counter() - self._began
        self._parts.metrics.answered(self._target.workload, self._served.model, code, seconds, self._first_token)

    def _failed(self, attempt: Attempt, problem: Refused) -> Refused:
        """Count a failure of the server; returns the error for the app."""
        attempt.outcome = Outcome.FAILS
        self._count(problem.status)
        return problem

    def _too_slow(self) -> Refused:
        limit = self._parts.settings.timeout_seconds
        return Refused(
            504, "upstream_timeout", f"the model server sent nothing for {limit:g} s (gateway.timeout_seconds)"
        )


def _broke_off() -> Refused:
    return Refused(502, "upstream_failed", "the model server broke off in the middle of its answer")


def _names(body: bytes, model: str) -> bool:
    """Whether an error is about this model, and not about the path."""
    return json.dumps(model)[1:-1].encode() in body or model.encode() in body
