"""Handles apps' requests: authorises them, selects the model and tries its servers."""

import asyncio
import hashlib
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from aiohttp import web

from retuned.daemon.gateway.cascade import CHAT, instead_of
from retuned.daemon.gateway.connections import read
from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.errors import Refused
from retuned.daemon.gateway.events.buffer import Buffer
from retuned.daemon.gateway.events.feedback import Tokens
from retuned.daemon.gateway.exchange import (
    MODEL,
    Elsewhere,
    Exchange,
    Parts,
    Replaceable,
    Tries,
    recorded_headers,
)
from retuned.daemon.gateway.memory import answer as from_memory
from retuned.daemon.gateway.memory.lookup import READ, Memory
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.recording import Recording
from retuned.daemon.gateway.routes import Routes
from retuned.daemon.gateway.servers.client import Client
from retuned.daemon.gateway.servers.upstreams import Upstreams
from retuned.daemon.gateway.shadow import Shadow
from retuned.daemon.gateway.target import MESSAGES, RECORDED, Target, target_of
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.retrain.release.assignment import Served

PASSED_ON = (*RECORDED, f"{MESSAGES}/count_tokens", "/v1/embeddings")
FAILURES = ("upstream_failed", "upstream_timeout")
"""Codes of failures of a server that may have begun to process the request."""
REFRESH_SECONDS, LONGEST_REFRESH_SECONDS = 1.0, 1.0
"""The shortest interval between refreshes triggered by requests, and the longest wait for one."""


class Proxy:
    """Passes requests on to model servers."""

    def __init__(
        self,
        settings: GatewaySettings,
        client: Client,
        routes: Routes,
        upstreams: Upstreams,
        buffer: Buffer,
        tokens: Tokens | None,
        metrics: Metrics,
        shadow: Shadow,
        memory: Memory,
    ) -> None:
        self._settings, self._routes, self._upstreams, self._memory = settings, routes, upstreams, memory
        self._refreshing, self._refreshed_at = asyncio.Lock(), time.perf_counter()
        keys = settings.client_keys()
        self._keys = None if keys is None else frozenset(_hash(key) for key in keys)
        self._parts = Parts(settings, client, upstreams, buffer, tokens, metrics, shadow)

    def admit(self, request: web.BaseRequest) -> None:
        """Raises Refused if API keys are required and the request has no valid one."""
        if self._keys is None:
            return
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or _hash(key.strip()) not in self._keys:
            raise Refused(401, "invalid_api_key", "the API key is not one of this gateway's (gateway.client_keys_file)")

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Returns the answer of a model server to a request.

        Raises:
            Refused: the request is invalid, or no server answers it.
        """
        tries = Tries()
        self.admit(request)
        call = Call(await read(request, self._settings.max_body_bytes))
        target = target_of(call, request.path, request.headers, self._routes, self._upstreams)
        self._check_api(target.workload, request.path)
        if request.path == CHAT and target.unit and (mode := self._memory.mode(target.workload)):
            # Where nothing is named, the same question would have the same unit, and never or always be helped.
            unit = call.named_unit(target.conversation, target.unit) or uuid.uuid4().hex
            fields = {name: call.raw(name) for name in READ}
            call.help = await self._memory.find(fields, target.workload, unit, mode)
            if mode.mode == "answer" and from_memory.answers(call):
                return self._answer_from_memory(call, target, tries)
        try:
            answer = await self._ask(request, call, target, target.models[:1], tries)
            if answer is None and await self._refresh(tries.began):
                # Routes and lists may be older than a change of version: refresh them before another model answers.
                target, tries.reasons = (
                    target_of(call, request.path, request.headers, self._routes, self._upstreams),
                    [],
                )
                answer = await self._ask(request, call, target, target.models[:1], tries)
            if answer is None:
                answer = await self._ask(request, call, target, target.models[1:], tries)
        except Refused as refused:
            # A model that may have begun to process the request is not asked again.
            if target.fallback is None or tries.model == target.fallback.model or refused.code not in FAILURES:
                raise
            tries.problem = "failed"
            answer = await self._ask(request, call, target, [target.fallback], tries)
            if answer is None:
                raise
        if answer is not None:
            return answer
        names = ", nor ".join(served.name or f"the base model ({served.model})" for served in target.models)
        reasons = "; ".join([*tries.reasons, *self._upstreams.problems()])
        message = f"no model server has {names}" + (f" ({reasons})" if reasons else "")
        raise Refused(503, "no_model_server", message, {"Retry-After": "2"})

    def _check_api(self, workload: str, path: str) -> None:
        """Raises Refused if the incumbent of a workload speaks another API."""
        incumbent, is_anthropic = self._upstreams.incumbents.of(workload), path.startswith(MESSAGES)
        if incumbent is not None and is_anthropic != (incumbent.api == "anthropic"):
            spoken = MESSAGES if incumbent.api == "anthropic" else RECORDED[0]
            message = f"{path}: the incumbent of {workload} answers {spoken} (incumbent.api {incumbent.api})"
            raise Refused(400, "wrong_api", message)

    def _answer_from_memory(self, call: Call, target: Target, tries: Tries) -> web.StreamResponse:
        """Returns the approved answer in the name of the assigned model, recorded."""
        assert call.help
        call.help, served, parts = replace(call.help, mode="answer"), target.models[0], self._parts
        name = served.name or served.model
        limit = self._settings.max_body_bytes
        recording = Recording(parts.buffer, parts.metrics, limit, target, served, name, tries.began, None)
        body, is_stream = from_memory.completion(call, recording.id, name), bool(call.value("stream"))
        if is_stream:
            recording.note_first_token()
        recording.add(body)
        recording.save(call)
        headers = {MODEL: served.model} | recorded_headers(recording.id, call, parts.tokens)
        kind = "text/event-stream" if is_stream else "application/json"
        return web.Response(body=body, content_type=kind, headers=headers)

    async def _ask(
        self,
        request: web.BaseRequest,
        call: Call,
        target: Target,
        models: Sequence[Served],
        tries: Tries,
    ) -> web.StreamResponse | None:
        """Returns the answer of the first of these models that a server has; None: no server has any."""
        for served in models:
            for replica, name in self._upstreams.having(served):
                if self._routes.withholds(replica.url, served.name):
                    tries.reasons.append(f"{replica.url}: may answer with another model under the name {served.name}")
                    continue
                if replica in tries.failures:
                    continue
                exchange, tries.model = (
                    Exchange(self._parts, request, call, target, served, replica, name, tries),
                    served.model,
                )
                try:
                    return await exchange.run()
                except Elsewhere as reason:
                    tries.reasons.append(f"{replica.url}: {reason}")
                except Refused:
                    tries.failures.add(replica)
                    raise
                except Replaceable as answer:
                    return await self._replaced(request, call, target, served, answer, tries)
        return None

    async def _replaced(
        self, request: web.BaseRequest, call: Call, target: Target, version: Served, own: Replaceable, tries: Tries
    ) -> web.StreamResponse:
        """Returns the answer of the incumbent, else of the spare version, in place of one of a version; if it has none,
        that of the version."""
        other, problem = target.spare, tries.problem
        if other is None:
            target, other = replace(target, rule=own.rule), instead_of(version)
        with suppress(Refused):
            tries.problem = "gave an invalid answer"
            answer = await self._ask(request, call, target, [other], tries)
            if answer is not None and answer.status == 200:
                return answer
        tries.problem = problem
        return own.deliver()

    async def _refresh(self, began: float) -> bool:
        """Refreshes routes and lists of models, at most once a second. Returns whether they are newer than the
        request."""
        async with self._refreshing:
            now = time.perf_counter()
            if self._refreshed_at < began and now - self._refreshed_at >= REFRESH_SECONDS:
                refreshes = [asyncio.create_task(part.refresh()) for part in (self._upstreams, self._routes)]
                await asyncio.wait(refreshes, timeout=LONGEST_REFRESH_SECONDS)
                self._refreshed_at = time.perf_counter()
            return self._refreshed_at >= began


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
