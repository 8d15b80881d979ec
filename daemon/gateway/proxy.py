"""The requests of apps: routed by conversation, passed on as they are, recorded, and answered."""

import asyncio
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from retuned.daemon.gateway import record
from retuned.daemon.gateway.buffer import Buffer, Full
from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.errors import Refused, error_body, why
from retuned.daemon.gateway.feedback import Tokens
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.routes import Routes
from retuned.daemon.gateway.shadow import Shadow
from retuned.daemon.gateway.upstreams import Replica, Upstreams, headers_for
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.retrain.release.assignment import Served

log = logging.getLogger(__name__)

RECORDED = ("/v1/chat/completions", "/v1/completions")
PASSED_ON = (*RECORDED, "/v1/embeddings")
INTERACTION, MODEL, FALLBACK, TOKEN = (
    f"X-Retuned-{name}" for name in ("Interaction", "Model", "Fallback", "Feedback-Token")
)
LOOK_AGAIN_SECONDS, LONGEST_LOOK_SECONDS = 1.0, 1.0
"""How often, and for how long, the daemon and the servers are asked out of turn."""
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


class Proxy:
    """Passes requests on."""

    def __init__(
        self,
        settings: GatewaySettings,
        session: aiohttp.ClientSession,
        routes: Routes,
        upstreams: Upstreams,
        buffer: Buffer,
        tokens: Tokens | None,
        metrics: Metrics,
        shadow: Shadow,
    ) -> None:
        self.shadow = shadow
        self.settings, self.session, self.metrics, self.buffer, self.tokens = settings, session, metrics, buffer, tokens
        self._routes, self._upstreams = routes, upstreams
        self._looking, self._looked_at = asyncio.Lock(), time.perf_counter()
        keys = settings.client_keys()
        self.keys = None if keys is None else frozenset(_hash(key) for key in keys)

    def admit(self, request: web.BaseRequest) -> None:
        """Raises Refused when keys are required and the request has none of them."""
        if self.keys is None:
            return
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or _hash(key.strip()) not in self.keys:
            raise Refused(401, "invalid_api_key", "the API key is not one of this gateway's (gateway.client_keys_file)")

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass a request on, and its answer back.

        Raises:
            Refused: it cannot be passed on, or there is no answer.
        """
        began = time.perf_counter()
        self.admit(request)
        call = Call(await request.read())
        target, tried = self._target(call, request), list[str]()
        answer = await self._ask(request, call, target, target.models[:1], began, tried)
        if answer is None and await self._look_again(began):
            # What is known may be of before a version was exchanged: another one answers nobody until that is sure.
            target, tried = self._target(call, request), []
            answer = await self._ask(request, call, target, target.models[:1], began, tried)
        if answer is None:
            answer = await self._ask(request, call, target, target.models[1:], began, tried)
        if answer is not None:
            return answer
        names = ", nor ".join(one.name or f"the base model ({one.model})" for one in target.models)
        reasons = "; ".join([*tried, *self._upstreams.problems()])
        message = f"no model server has {names}" + (f" ({reasons})" if reasons else "")
        raise Refused(503, "no_model_server", message, {"Retry-After": "2"})

    async def _ask(
        self,
        request: web.BaseRequest,
        call: Call,
        target: Target,
        models: Sequence[Served],
        began: float,
        tried: list[str],
    ) -> web.StreamResponse | None:
        """The answer of the first of these models that a server has; None: none has one, for the reasons in `tried`."""
        for served in models:
            for replica, name in self._upstreams.having(served):
                if self._routes.withholds(replica.url, served.name):
                    tried.append(f"{replica.url}: answers with something else in the place of {served.name}, or may")
                    continue
                exchange = _Exchange(self, request, call, target, served, name, began)
                try:
                    return await exchange.with_replica(replica)
                except _Elsewhere as reason:
                    tried.append(f"{replica.url}: {reason}")
        return None

    async def _look_again(self, began: float) -> bool:
        """Ask the daemon what serves, and the servers what they have, once in a while. Whether that was done since a
        request came."""
        async with self._looking:
            now = time.perf_counter()
            if self._looked_at < began and now - self._looked_at >= LOOK_AGAIN_SECONDS:
                looks = [asyncio.create_task(one.refresh()) for one in (self._upstreams, self._routes)]
                await asyncio.wait(looks, timeout=LONGEST_LOOK_SECONDS)
                self._looked_at = time.perf_counter()
            return self._looked_at >= began

    def _target(self, call: Call, request: web.BaseRequest) -> Target:
        """What may answer: a workload's model, or the one that is named. Raises Refused when there is neither."""
        conversation = call.conversation(request.headers)
        workload, _, version = call.model.rpartition("@")
        if route := self._routes.of(call.model):
            if route.experiment is None:
                return Target(call.model, [route.arms[0], *route.instead(route.arms[0])], conversation)
            unit = call.unit(conversation)
            arm = route.arm(unit)
            assignment, shadow = (route.experiment, arm.arm), route.shadowed_by(unit)
            return Target(call.model, [arm, *route.instead(arm)], conversation, assignment, shadow)
        if (route := self._routes.of(workload)) and version == "base":
            return Target(workload, [route.base], conversation)
        if self._upstreams.listing(call.model):
            return Target(workload if route else "", [Served(call.model, call.model)], conversation)
        known = ", ".join(self._routes.workloads()) or "none yet"
        raise Refused(
            404,
            "model_not_found",
            f"model {call.model!r}: neither a workload nor the name of a model on a server; workloads are {known}. "
            "A new one is named in gateway.workloads",
        )


class _Elsewhere(Exception):
    """This server did not answer, and another one may."""


class _Exchange:
    """One request, sent to one server."""

    def __init__(
        self,
        proxy: Proxy,
        request: web.BaseRequest,
        call: Call,
        target: Target,
        served: Served,
        name: str,
        began: float,
    ) -> None:
        self._proxy, self._request, self._call, self._target = proxy, request, call, target
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

    async def with_replica(self, replica: Replica) -> web.StreamResponse:
        """The answer of a server.

        Raises:
            _Elsewhere: it has not got the model, or cannot be reached.
            Refused: it did not answer in time, or broke off.
        """
        url = f"{replica.url}{self._path.removeprefix('/v1')}"
        body = self._call.asking(self._name)
        with replica.asked():
            try:
                answer = await self._post(url, body, replica)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
                replica.failed(f"cannot be reached ({why(error)})")
                raise _Elsewhere("cannot be reached") from error
            except asyncio.CancelledError:
                self._count(CLIENT_GONE)
                raise
            except TimeoutError as error:
                self._count(504)
                raise self._too_slow() from error
            except aiohttp.ClientError as error:
                raise _Elsewhere(f"ended the connection without an answer ({type(error).__name__})") from error
            self._is_recorded &= answer.status == 200
            async with answer:
                if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                    return await self._stream(answer)
                return await self._whole(answer)

    async def _post(self, url: str, body: bytes, replica: Replica) -> aiohttp.ClientResponse:
        headers = headers_for(replica, self._passed_on())
        for last in (False, True):
            try:
                return await self._proxy.session.post(url, data=body, headers=headers, allow_redirects=False)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                # A connection that was kept open may be closed by the server just when it is used again.
                if last or isinstance(error, aiohttp.ClientConnectorError):
                    raise
        raise AssertionError("the second attempt returns or raises")

    async def _whole(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        try:
            body = await answer.read()
        except asyncio.CancelledError:
            self._count(CLIENT_GONE)
            raise
        except TimeoutError as error:
            self._count(504)
            raise self._too_slow() from error
        except aiohttp.ClientError as error:
            self._count(502)
            raise Refused(502, "upstream_failed", "the model server broke off in the middle of its answer") from error
        if answer.status == 404 and _names(body, self._name):
            raise _Elsewhere(f"has not got {self._name}")
        headers = self._headers(answer)
        self._received, self._size = [body], len(body)
        self._record()
        self._count(answer.status)
        return web.Response(body=body, status=answer.status, headers=headers)

    async def _stream(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
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
            problem = Refused(502, "upstream_failed", "the model server broke off in the middle of its answer")
        if problem is None:
            self._record()
            self._count(answer.status)
        else:
            self._record(cut="upstream")
            self._count(problem.status)
            error = error_body(problem.status, problem.code, str(problem))
            await response.write(b"\ndata: " + error + b"\n\n")
        await response.write_eof()
        return response

    async def _send(self, response: web.StreamResponse, lines: bytes) -> None:
        """Send some more of a stream; what is recorded is as much of it as may be."""
        self._size += len(lines)
        if self._received is not None:
            self._received.append(lines)
            if self._size > self._proxy.settings.max_body_bytes:
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
        metrics = self._proxy.metrics
        received = self._received
        if received is None or self._size > self._proxy.settings.max_body_bytes:
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
            self._proxy.buffer.append(record.encode(kept))
        except Full as error:
            metrics.dropped.labels("interactions", error.reason).inc()
            return
        candidate = self._target.shadow
        if candidate is not None and cut is None and self._served.model == self._target.models[0].model:
            self._proxy.shadow.ask(candidate, self._call, self._path, self._passed_on(), self._id)

    def _passed_on(self) -> CIMultiDict[str]:
        """The headers of the app's request that a server gets."""
        keyless = self._proxy.keys is None
        return CIMultiDict(
            (key, value)
            for key, value in self._request.headers.items()
            if ((lower := key.lower()) not in _NOT_UP or (keyless and lower == "authorization"))
            and not lower.startswith("x-retuned-")
        )

    def _headers(self, answer: aiohttp.ClientResponse) -> CIMultiDict[str]:
        proxy = self._proxy
        headers = CIMultiDict((key, value) for key, value in answer.headers.items() if key.lower() not in _NOT_DOWN)
        headers[MODEL] = self._served.model
        first = self._target.models[0]
        if self._served.model != first.model:
            headers[FALLBACK] = f"{first.model} is on no server"
            proxy.metrics.fell_back(self._target.workload, self._served.model)
        if self._is_recorded:
            headers[INTERACTION] = self._id
            if proxy.tokens:
                headers[TOKEN] = proxy.tokens.of(self._id)
        return headers

    def _count(self, code: int) -> None:
        seconds = time.perf_counter() - self._began
        self._proxy.metrics.answered(self._target.workload, self._served.model, code, seconds, self._first_token)

    def _too_slow(self) -> Refused:
        limit = self._proxy.settings.timeout_seconds
        return Refused(
            504, "upstream_timeout", f"the model server sent nothing for {limit:g} s (gateway.timeout_seconds)"
        )


def _names(body: bytes, model: str) -> bool:
    """Whether an error is about this model, and not about the path."""
    return json.dumps(model)[1:-1].encode() in body or model.encode() in body


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
