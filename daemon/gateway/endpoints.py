"""The gateway's endpoints, by method and path."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable

from aiohttp import web
from multidict import CIMultiDict
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from retuned.daemon.gateway.connections import read
from retuned.daemon.gateway.errors import Refused, error_response
from retuned.daemon.gateway.events import record
from retuned.daemon.gateway.events.buffer import Buffer, Full
from retuned.daemon.gateway.events.feedback import PREFLIGHT, Feedback
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.proxy import PASSED_ON, Proxy
from retuned.daemon.gateway.routes import Routes
from retuned.daemon.gateway.servers.upstreams import Upstreams
from retuned.daemon.gateway.target import WORKLOAD_HEADER

log = logging.getLogger(__name__)

MOST_FEEDBACK_BYTES = 64 * 2**10

_OF_WORKLOAD = re.compile("/workloads/([^/]+)(/v1/.+)")
"""An app whose base URL is /workloads/WORKLOAD/v1 need not name the workload as its model."""

Endpoint = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Endpoints:
    """Handles all requests.

    Attributes:
        draining: whether the gateway is about to stop.
    """

    def __init__(
        self,
        proxy: Proxy,
        routes: Routes,
        upstreams: Upstreams,
        buffer: Buffer,
        feedback: Feedback | None,
        metrics: Metrics,
    ) -> None:
        self._proxy, self._routes, self._upstreams = proxy, routes, upstreams
        self._buffer, self._feedback, self._metrics = buffer, feedback, metrics
        self.draining = False
        self._endpoints: dict[tuple[str, str], Endpoint] = {
            **{("POST", path): proxy.answer for path in PASSED_ON},
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/feedback"): self._take_feedback,
            ("OPTIONS", "/v1/feedback"): self._preflight,
            ("GET", "/healthz"): self._health,
            ("GET", "/readyz"): self._readiness,
            ("GET", "/metrics"): self._scrape,
        }
        self._paths = {path for _, path in self._endpoints}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Returns the answer to a request; errors have the form of its API."""
        self._metrics.in_flight.inc()
        try:
            if of_workload := _OF_WORKLOAD.match(request.rel_url.raw_path):
                headers = CIMultiDict(request.headers)
                headers[WORKLOAD_HEADER] = of_workload[1]
                rest = request.rel_url.with_path(of_workload[2], encoded=True, keep_query=True)
                request = request.clone(rel_url=rest, headers=headers)
            endpoint = self._endpoints.get((request.method, request.path))
            if endpoint is None:
                if request.path in self._paths:
                    raise Refused(405, "method_not_allowed", f"{request.path} does not take {request.method}")
                raise Refused(404, "unknown_url", f"{request.path}: POST goes to {', '.join(PASSED_ON)}, /v1/feedback")
            if request.headers.get("Expect", "").lower() == "100-continue":
                await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.writer.output_size = 0  # the answer has not begun
            return await endpoint(request)
        except Refused as refused:
            return self._refusal(request, refused)
        except (asyncio.CancelledError, ConnectionResetError):  # the app disconnected
            raise
        except Exception:
            log.exception("a request failed")
            return self._refusal(request, Refused(500, "internal_error", "the gateway failed; its log has the reason"))
        finally:
            self._metrics.in_flight.dec()

    def _refusal(self, request: web.BaseRequest, refused: Refused) -> web.Response:
        self._metrics.refused.labels(refused.code).inc()
        response = error_response(refused, request.path)
        if self._feedback and request.path == "/v1/feedback":
            response.headers.update(self._feedback.allowed(request.headers))
        return response

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        self._proxy.admit(request)
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "retuned"} for name in self._routes.workloads()
        ]
        return web.json_response({"object": "list", "data": listed})

    async def _take_feedback(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._feedback is None:
            raise Refused(404, "no_feedback", "this gateway accepts no feedback: set gateway.feedback_keys_file")
        event = self._feedback.event(await read(request, MOST_FEEDBACK_BYTES), request.headers)
        try:
            self._buffer.append(record.encode(record.Vote(event["interaction_id"], event)))
        except Full as error:
            self._metrics.dropped.labels("feedback", error.reason).inc()
            raise Refused(
                503, "buffer_full", "feedback cannot be stored now; try again later", {"Retry-After": "30"}
            ) from error
        self._metrics.feedback.inc()
        return web.json_response({"id": event["id"]}, status=202, headers=self._feedback.allowed(request.headers))

    async def _preflight(self, request: web.BaseRequest) -> web.StreamResponse:
        allowed = self._feedback.allowed(request.headers) if self._feedback else {}
        return web.Response(status=204, headers=allowed and {**allowed, **PREFLIGHT})

    async def _health(self, _: web.BaseRequest) -> web.StreamResponse:
        return web.Response(text="ok\n")

    async def _readiness(self, _: web.BaseRequest) -> web.StreamResponse:
        problems = ["the gateway is stopping"] if self.draining else self._upstreams.problems()
        return web.Response(text="\n".join(problems or ["ok"]) + "\n", status=503 if problems else 200)

    async def _scrape(self, request: web.BaseRequest) -> web.StreamResponse:
        self._proxy.admit(request)
        return web.Response(body=generate_latest(self._metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
