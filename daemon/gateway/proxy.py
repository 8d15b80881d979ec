"""The requests of apps: who may ask, which model answers, and which servers are asked for it."""

import asyncio
import hashlib
import time
from collections.abc import Sequence

from aiohttp import web

from retuned.daemon.gateway.connections import read
from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.errors import Refused
from retuned.daemon.gateway.events.buffer import Buffer
from retuned.daemon.gateway.events.feedback import Tokens
from retuned.daemon.gateway.exchange import RECORDED, Elsewhere, Exchange, Parts, Target
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.routes import Routes
from retuned.daemon.gateway.servers.client import Client, Sends
from retuned.daemon.gateway.servers.upstreams import Upstreams
from retuned.daemon.gateway.shadow import Shadow
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.retrain.release.assignment import Served

PASSED_ON = (*RECORDED, "/v1/embeddings")
LOOK_AGAIN_SECONDS, LONGEST_LOOK_SECONDS = 1.0, 1.0
"""How often, and for how long, the daemon and the servers are asked out of turn."""


class Tried:
    """What came of the request of an app so far.

    Attributes:
        reasons: why servers did not answer it.
    """

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.sends = Sends()
        self.reasons: list[str] = []


class Proxy:
    """Passes requests on."""

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
    ) -> None:
        self._settings, self._routes, self._upstreams = settings, routes, upstreams
        self._looking, self._looked_at = asyncio.Lock(), time.perf_counter()
        keys = settings.client_keys()
        self._keys = None if keys is None else frozenset(_hash(key) for key in keys)
        self._parts = Parts(settings, client, upstreams, buffer, tokens, metrics, shadow)

    def admit(self, request: web.BaseRequest) -> None:
        """Raises Refused when keys are required and the request has none of them."""
        if self._keys is None:
            return
        kind, _, key = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or _hash(key.strip()) not in self._keys:
            raise Refused(401, "invalid_api_key", "the API key is not one of this gateway's (gateway.client_keys_file)")

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Pass a request on, and its answer back.

        Raises:
            Refused: it cannot be passed on, or there is no answer.
        """
        tried = Tried()
        self.admit(request)
        call = Call(await read(request, self._settings.max_body_bytes))
        target = self._target(call, request)
        answer = await self._ask(request, call, target, target.models[:1], tried)
        if answer is None and await self._look_again(tried.began):
            # What is known may be of before a version was exchanged: another one answers nobody until that is sure.
            target, tried.reasons = self._target(call, request), []
            answer = await self._ask(request, call, target, target.models[:1], tried)
        if answer is None:
            answer = await self._ask(request, call, target, target.models[1:], tried)
        if answer is not None:
            return answer
        names = ", nor ".join(one.name or f"the base model ({one.model})" for one in target.models)
        reasons = "; ".join([*tried.reasons, *self._upstreams.problems()])
        message = f"no model server has {names}" + (f" ({reasons})" if reasons else "")
        raise Refused(503, "no_model_server", message, {"Retry-After": "2"})

    async def _ask(
        self,
        request: web.BaseRequest,
        call: Call,
        target: Target,
        models: Sequence[Served],
        tried: Tried,
    ) -> web.StreamResponse | None:
        """The answer of the first of these models that a server has; None: none has one, for the reasons in `tried`."""
        for served in models:
            for replica, name in self._upstreams.having(served):
                if self._routes.withholds(replica.url, served.name):
                    tried.reasons.append(
                        f"{replica.url}: answers with something else in the place of {served.name}, or may"
                    )
                    continue
                exchange = Exchange(self._parts, request, call, target, served, name, tried.began)
                try:
                    return await exchange.with_replica(replica, tried.sends)
                except Elsewhere as reason:
                    tried.reasons.append(f"{replica.url}: {reason}")
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


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()
