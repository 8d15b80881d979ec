"""Sends one request of an app to one model server, relays the answer and records it."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

from retuned.daemon.gateway.cascade import is_invalid, is_single, read_confidence
from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.errors import Refused, error_body, why
from retuned.daemon.gateway.events.buffer import Buffer
from retuned.daemon.gateway.events.feedback import Tokens
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.recording import Recording
from retuned.daemon.gateway.servers.bounds import Allowance, Passed
from retuned.daemon.gateway.servers.client import Client, Sends
from retuned.daemon.gateway.servers.incumbents import Incumbent
from retuned.daemon.gateway.servers.outgoing import HOP, Outgoing
from retuned.daemon.gateway.servers.outliers import Outcome, outcome_of
from retuned.daemon.gateway.servers.replica import Replica
from retuned.daemon.gateway.servers.upstreams import Attempt, Upstreams
from retuned.daemon.gateway.shadow import Shadow
from retuned.daemon.gateway.streams import ends, error_in, errors_in_stream, has_begun
from retuned.daemon.gateway.target import MESSAGES, RECORDED, Target
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.retrain.release.assignment import Served

INTERACTION, MODEL, FALLBACK, CASCADED, TOKEN, MEMORY = (
    f"X-Retuned-{name}" for name in ("Interaction", "Model", "Fallback", "Cascade", "Feedback-Token", "Memory")
)
CLIENT_GONE = 499
_UNACCEPTABLE = (400, 413, 422)
_KEY_IS_REFUSED = (401, 403)
_FAILURES = (TimeoutError, aiohttp.ClientError, Passed)
_NOT_DOWN = {*HOP, "content-length", "date", "server", "set-cookie"}


@dataclass(frozen=True)
class Parts:
    """The parts that all exchanges share."""

    settings: GatewaySettings
    client: Client
    upstreams: Upstreams
    buffer: Buffer
    tokens: Tokens | None
    metrics: Metrics
    shadow: Shadow


class Elsewhere(Exception):
    """The server did not answer, but another one may."""


class Replaceable(Exception):
    """The incumbent, or the version before it, should answer instead of a version.

    Attributes:
        rule: `invalid`, or `confidence`: the version is less sure of its answer than `Target.confident`.
        deliver: records the version's answer and returns it, if the other one has none.
    """

    def __init__(self, rule: str, deliver: Callable[[], web.StreamResponse]) -> None:
        super().__init__(rule)
        self.rule, self.deliver = rule, deliver


class Tries:
    """The attempts to get an answer to one request.

    Attributes:
        began: when the request arrived, by `time.perf_counter`.
        sends: the number of times it was sent without an answer.
        reasons: why servers did not answer it.
        problem: why the assigned model does not answer.
        model: the model that was asked last.
        failures: the servers that got it and failed; none gets it again.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.sends = Sends()
        self.reasons: list[str] = []
        self.problem = "is on no server"
        self.model = ""
        self.failures: set[Replica] = set()


class Exchange:
    """One request to one server."""

    def __init__(
        self,
        parts: Parts,
        request: web.BaseRequest,
        call: Call,
        target: Target,
        served: Served,
        replica: Replica,
        name: str,
        tries: Tries,
    ) -> None:
        """
        Args:
            served: the model of the target that is requested.
            name: the server's name of that model.
        """
        self._parts, self._request, self._call, self._target = parts, request, call, target
        self._served, self._replica, self._name, self._tries = served, replica, name, tries
        incumbent = replica if isinstance(replica, Incumbent) else None
        self._seconds = incumbent.timeout_seconds if incumbent else parts.settings.timeout_seconds
        self._is_last = target.fallback is None or served.model == target.fallback.model
        has_incumbent = parts.upstreams.incumbents.of(target.workload) is not None
        own = parts.settings
        self._allowance = Allowance(own.max_answer_bytes, own.max_line_bytes, own.max_answer_seconds)
        self._outgoing = Outgoing(request, parts.settings.client_keys_file is not None, has_incumbent)
        self._recording = Recording(
            parts.buffer, parts.metrics, parts.settings.max_body_bytes, target, served, name, tries.began, incumbent
        )
        self._recording.is_on &= request.path in RECORDED
        self._is_cascaded = incumbent is not None and target.rule is not None
        can_replace = target.has_incumbent or target.spare not in (None, served)
        self._is_checked = incumbent is None and can_replace and is_single(call, request.path)
        self._asks_confidence = self._is_checked and target.asks_confidence
        self._status = 200
        self._saw_done = False

    async def run(self) -> web.StreamResponse:
        """Returns the answer of the server, once it is ready to be sent or the app has received it.

        Raises:
            Elsewhere: the server does not have the model, or cannot be reached.
            Replaceable: the server answered, and the incumbent should answer instead.
            Refused: the server did not answer in time, or broke off; or it answered with an error, and the fallback is
                asked instead.
        """
        with self._parts.upstreams.asked(self._replica, self._served, self._name) as attempt:
            answer = await self._post(attempt)
            while answer.status in _UNACCEPTABLE and self._takes_back():
                answer.close()
                answer = await self._post(attempt)
            self._status = answer.status
            self._recording.is_on &= answer.status == 200
            async with answer:
                if answer.headers.get("Content-Type", "").startswith("text/event-stream"):
                    return await self._stream(answer, attempt)
                return await self._whole(answer, attempt)

    def _takes_back(self) -> bool:
        """Takes back one of the gateway's additions to the request, which the server may have refused for it.

        Returns whether there was one: log-probabilities, which not all servers have, or the memory's message, with
        which the prompt may be too long, or its roles may not suit the chat template.
        """
        if self._asks_confidence:
            self._asks_confidence = False
        elif self._call.help and self._call.help.message:
            self._call.help = None
            self._parts.metrics.memory_lookups.labels(self._target.workload, "refused").inc()
        else:
            return False
        return True

    async def _post(self, attempt: Attempt) -> aiohttp.ClientResponse:
        """Sends the request; returns when the headers of the answer have arrived."""
        url, headers = self._outgoing.url(self._replica), self._outgoing.headers(self._replica)
        body = self._call.asking(
            self._call.model if self._target.is_unchanged else self._name,
            **{"logprobs": True} if self._asks_confidence else {},
        )
        try:
            is_paid, client = isinstance(self._replica, Incumbent), self._parts.client
            posting = client.post(url, body, headers, self._tries.sends, self._seconds, once=is_paid)
            return await self._allowance.wait(posting)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            attempt.outcome = Outcome.FAILS
            self._replica.failed(f"cannot be reached ({why(error)})")
            raise Elsewhere("cannot be reached") from error
        except asyncio.CancelledError:
            self._count(CLIENT_GONE)
            raise
        except _FAILURES as error:
            times = "once" if self._tries.sends.count == 1 else "twice"
            message = (
                "the model server closed the connection without an answer; it may have processed the request, which "
                f"was sent {times} and is not sent again"
            )
            raise self._server_failed(attempt, error, message) from error

    async def _whole(self, answer: aiohttp.ClientResponse, attempt: Attempt) -> web.StreamResponse:
        """Returns an answer that is not a stream, recorded before the app gets it."""
        try:
            body = await self._allowance.whole(answer.content)
        except asyncio.CancelledError:
            self._count(CLIENT_GONE)
            raise
        except _FAILURES as error:
            raise self._server_failed(attempt, error) from error
        is_read = answer.status == 200 and len(body) <= self._parts.settings.max_body_bytes
        if is_read and (status := error_in(body)):
            self._status, self._recording.is_on = status, False
        attempt.outcome = self._outcome()
        if answer.status == 404 and not self._target.is_unchanged and _names(body, self._name):
            raise Elsewhere(f"does not have {self._name}")
        self._leave_to_fallback(attempt)
        is_read &= self._status == 200
        if is_read and self._asks_confidence:
            body, self._recording.confidence = read_confidence(body, keep=bool(self._call.value("logprobs")))
        if is_read and self._is_checked and (rule := self._rule_against(body)):
            raise Replaceable(rule, partial(self._deliver, answer, body))
        return self._deliver(answer, body)

    def _outcome(self) -> Outcome:
        """Returns the outcome of an answer. A server that refuses a key that is not the app's has failed."""
        is_of_the_gateway = self._status in _KEY_IS_REFUSED and not self._outgoing.gives_key(self._replica)
        return Outcome.FAILS if is_of_the_gateway else outcome_of(self._status)

    def _leave_to_fallback(self, attempt: Attempt) -> None:
        """Raises Refused if the server failed and the fallback may answer."""
        outcome = self._outcome()
        if outcome in (Outcome.FAILS, Outcome.BUSY) and not self._is_last:
            attempt.outcome = outcome
            raise Refused(502, "upstream_failed", f"the model server answered {self._status}")

    def _rule_against(self, body: bytes) -> str | None:
        """Returns the rule by which the incumbent replaces an answer of a version; None: there is none."""
        target = self._target
        may_replace = not (target.has_incumbent and self._is_last)
        if may_replace and is_invalid(self._call, body, target.labels.get(self._served.model, ())):
            return "invalid"
        least, confidence = self._target.confident.get(self._served.model), self._recording.confidence
        return "confidence" if least is not None and confidence is not None and confidence < least else None

    def _deliver(self, answer: aiohttp.ClientResponse, body: bytes) -> web.StreamResponse:
        headers = self._response_headers(answer)
        self._recording.add(body)
        self._save()
        self._count(self._status)
        return web.Response(body=body, status=answer.status, headers=headers)

    async def _stream(self, answer: aiohttp.ClientResponse, attempt: Attempt) -> web.StreamResponse:
        """Relays a stream line by line. Before any kind of end, the received part is recorded."""
        self._leave_to_fallback(attempt)
        response = web.StreamResponse(status=answer.status, headers=self._response_headers(answer))
        failure: Refused | None = None
        try:
            await self._relay(answer, response, attempt)
        except (asyncio.CancelledError, ConnectionResetError):
            self._save(cut="client")
            self._count(self._status if self._saw_done else CLIENT_GONE)
            raise
        except _FAILURES as error:
            self._save(cut="upstream")
            failure = self._server_failed(attempt, error)
            if not response.prepared:
                raise failure from error
        if failure is None:
            attempt.outcome = self._outcome()
            self._save()
            self._count(self._status)
        else:
            event = b"event: error\n" if self._request.path == MESSAGES else b""
            error_event = error_body(failure.status, failure.code, str(failure), self._request.path)
            await response.write(b"\n" + event + b"data: " + error_event + b"\n\n")
        await response.write_eof()
        return response

    async def _relay(self, answer: aiohttp.ClientResponse, response: web.StreamResponse, attempt: Attempt) -> None:
        """Relays whole lines. Until the first event has arrived, the fallback could answer instead."""
        waiting: list[bytes] = []
        if self._is_last:
            await response.prepare(self._request)
        async for lines in self._allowance.lines(answer.content):
            waiting.append(lines)
            if response.prepared or has_begun(lines):
                await self._send(response, b"".join(waiting), attempt)
                waiting.clear()
        await self._send(response, b"".join(waiting), attempt)

    async def _send(self, response: web.StreamResponse, lines: bytes, attempt: Attempt) -> None:
        is_first = self._recording.first_token_seconds is None
        if any(errors := errors_in_stream(lines)):
            self._status = next(filter(None, errors))
            self._recording.is_on &= not (is_first and all(errors))
            if not response.prepared:
                self._leave_to_fallback(attempt)
        if not response.prepared:
            await response.prepare(self._request)
        if is_first and has_begun(lines):
            self._recording.note_first_token()
        if not lines:
            return
        self._recording.add(lines)
        if ends(lines):  # clients close the connection here
            self._saw_done = True
            self._save()
        await response.write(lines)

    def _save(self, cut: str | None = None) -> None:
        """Records the exchange, once, and sends the request to the shadow candidate if the assigned model answered."""
        is_saved, candidate = self._recording.save(self._call, cut), self._target.shadow
        is_assigned = self._served.model == self._target.models[0].model
        if is_saved and cut is None and is_assigned and candidate is not None:
            self._parts.shadow.ask(candidate, self._call, self._outgoing, self._recording.id)

    def _response_headers(self, answer: aiohttp.ClientResponse) -> CIMultiDict[str]:
        """Returns the headers of a server's answer that are passed on to the app, plus the gateway's own."""
        parts = self._parts
        headers = CIMultiDict((key, value) for key, value in answer.headers.items() if key.lower() not in _NOT_DOWN)
        headers[MODEL] = self._served.model
        assigned = self._target.models[0]
        if self._is_cascaded:
            headers[CASCADED] = str(self._target.rule)
        elif self._served.model != assigned.model:
            headers[FALLBACK] = f"{assigned.model} {self._tries.problem}"
            parts.metrics.fell_back(self._target.workload, self._served.model)
        if self._recording.is_on:
            headers.update(recorded_headers(self._recording.id, self._call, parts.tokens))
        return headers

    def _count(self, code: int) -> None:
        seconds, first_token = time.perf_counter() - self._tries.began, self._recording.first_token_seconds
        self._parts.metrics.answered(self._target.workload, self._served.model, code, seconds, first_token)

    def _server_failed(
        self,
        attempt: Attempt,
        error: Exception,
        message: str = "the model server broke off in the middle of its answer",
    ) -> Refused:
        """Counts a failure of the server. Returns the error for the app: a bound that it passed, or this message."""
        is_late = isinstance(error, TimeoutError)
        if isinstance(error, Passed):
            message, is_late = str(error), error.bound == "max_answer_seconds"
            self._parts.metrics.cut.labels(self._replica.url, error.bound).inc()
        elif is_late:
            section = "incumbent" if isinstance(self._replica, Incumbent) else "gateway"
            message = f"the model server sent nothing for {self._seconds:g} s ({section}.timeout_seconds)"
        refused = Refused(*((504, "upstream_timeout") if is_late else (502, "upstream_failed")), message)
        attempt.outcome = Outcome.FAILS
        if self._is_last or self._recording.first_token_seconds is not None:
            self._count(refused.status)
        return refused


def recorded_headers(interaction: str, call: Call, tokens: Tokens | None) -> dict[str, str]:
    """Returns the headers of a recorded answer: its id, the token for feedback, and the entries that helped it."""
    headers = {INTERACTION: interaction}
    if tokens:
        headers[TOKEN] = tokens.of(interaction)
    if call.help and call.help.entries:
        headers[MEMORY] = ", ".join(call.help.entries)
    return headers


def _names(body: bytes, model: str) -> bool:
    """Whether an error is about this model, rather than the path."""
    return json.dumps(model)[1:-1].encode() in body or model.encode() in body
