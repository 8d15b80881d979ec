"""Shadow requests: sends a request to a candidate after the app has its answer, and records the candidate's answer."""

import asyncio
import logging
import time
import uuid
from datetime import UTC, datetime

import aiohttp

from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.events import record
from retuned.daemon.gateway.events.buffer import Buffer, Full
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.routes import Routes
from retuned.daemon.gateway.servers.outgoing import Outgoing
from retuned.daemon.gateway.servers.replica import Replica
from retuned.daemon.gateway.servers.upstreams import Upstreams
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.retrain.release.assignment import Served

log = logging.getLogger(__name__)

MOST_AT_ONCE = 16
"""The most open shadow requests; further ones are skipped, so that a slow candidate does not fill the memory."""
MOST_OF_BUFFER = 0.5
"""The share of the buffer that shadow answers may fill; the rest is for answers that users received."""


class Shadow:
    """Sends shadow requests. Their failures never affect an app.

    Attributes:
        under_way: the open requests.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        session: aiohttp.ClientSession,
        routes: Routes,
        upstreams: Upstreams,
        buffer: Buffer,
        metrics: Metrics,
    ) -> None:
        self._settings, self._session, self._routes, self._upstreams = settings, session, routes, upstreams
        self._buffer, self._metrics = buffer, metrics
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout_seconds)
        self.under_way: set[asyncio.Task[None]] = set()

    def ask(self, candidate: Served, call: Call, outgoing: Outgoing, interaction: str) -> None:
        """Sends a request that was just answered to a candidate; returns at once.

        Args:
            interaction: the id of the answer that the app received.
        """
        if len(self.under_way) >= MOST_AT_ONCE or self._is_full():
            self._metrics.shadow.labels("skipped").inc()
            return
        task = asyncio.create_task(self._ask(candidate, call, outgoing, interaction))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    async def stop(self) -> None:
        """Cancels the open requests."""
        for task in list(self.under_way):
            task.cancel()
        await asyncio.gather(*self.under_way, return_exceptions=True)

    async def _ask(self, candidate: Served, call: Call, outgoing: Outgoing, interaction: str) -> None:
        outcome = "failed"
        try:
            for replica, name in self._upstreams.having(candidate):
                if self._routes.withholds(replica.url, candidate.name):
                    continue
                with self._upstreams.asked(replica, candidate, name):
                    answer = await self._answer(replica, call.asking(name), outgoing, candidate, interaction)
                if answer is not None:
                    outcome = "skipped" if self._is_full() else "recorded"
                    if outcome == "recorded":
                        self._buffer.append(record.encode(answer))
                break
        except Full:
            outcome = "skipped"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("%s: no answer in shadow: %r", candidate.model, error)
        except Exception:
            log.exception("%s: a shadow request failed", candidate.model)
        self._metrics.shadow.labels(outcome).inc()

    async def _answer(
        self, replica: Replica, body: bytes, outgoing: Outgoing, candidate: Served, interaction: str
    ) -> record.Shadow | None:
        """Returns the answer of a server; None for an error or an answer beyond `gateway.max_body_bytes`."""
        timestamp, began = datetime.now(UTC).isoformat(), time.perf_counter()
        async with self._session.post(
            outgoing.url(replica),
            data=body,
            headers=outgoing.headers(replica),
            allow_redirects=False,
            timeout=self._timeout,
        ) as answer:
            received, size = [], 0
            async for piece in answer.content.iter_any():
                received.append(piece)
                size += len(piece)
                if size > self._settings.max_body_bytes:
                    return None
        if answer.status != 200:
            return None
        return record.Shadow(
            id=uuid.uuid4().hex,
            timestamp=timestamp,
            interaction_id=interaction,
            model=candidate.model,
            response=b"".join(received),
            streamed=answer.headers.get("Content-Type", "").startswith("text/event-stream"),
            latency_seconds=time.perf_counter() - began,
        )

    def _is_full(self) -> bool:
        return self._buffer.waiting_bytes > MOST_OF_BUFFER * self._settings.buffer_bytes
