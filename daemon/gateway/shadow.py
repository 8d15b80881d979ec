"""What a candidate would have answered: it is asked after the app has its answer, and nobody is shown what it says."""

import asyncio
import logging
import time
import uuid
from datetime import UTC, datetime

import aiohttp
from multidict import CIMultiDict

from retuned.daemon.gateway.conversations import Call
from retuned.daemon.gateway.events import record
from retuned.daemon.gateway.events.buffer import Buffer, Full
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.routes import Routes
from retuned.daemon.gateway.servers.upstreams import Replica, Upstreams, headers_for
from retuned.daemon.gateway_settings import GatewaySettings
from retuned.retrain.release.assignment import Served

log = logging.getLogger(__name__)

MOST_AT_ONCE = 16
"""Candidates' answers that are waited for; what comes beyond is not asked, so that a slow candidate takes no memory."""
MOST_OF_BUFFER = 0.5
"""Share of the buffer up to which such answers are kept: the rest is for what people were answered."""


class Shadow:
    """Asks candidates. Whatever happens to it, no app notices.

    Attributes:
        under_way: the requests that are waited for.
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

    def ask(self, candidate: Served, call: Call, path: str, headers: CIMultiDict[str], interaction: str) -> None:
        """Ask a candidate what was just answered; returns at once.

        Args:
            path: of the request, as the app sent it, with its query.
            headers: that servers get of it.
            interaction: id of the answer that the app got.
        """
        if len(self.under_way) >= MOST_AT_ONCE or self._is_full():
            self._metrics.shadow.labels("skipped").inc()
            return
        task = asyncio.create_task(self._ask(candidate, call, path, headers, interaction))
        self.under_way.add(task)
        task.add_done_callback(self.under_way.discard)

    async def stop(self) -> None:
        """Wait for nothing more."""
        for task in list(self.under_way):
            task.cancel()
        await asyncio.gather(*self.under_way, return_exceptions=True)

    async def _ask(self, candidate: Served, call: Call, path: str, headers: CIMultiDict[str], interaction: str) -> None:
        outcome = "failed"
        try:
            for replica, name in self._upstreams.having(candidate):
                if self._routes.withholds(replica.url, candidate.name):
                    continue
                with self._upstreams.asked(replica, candidate, name):
                    kept = await self._answer(replica, call.asking(name), path, headers, candidate, interaction)
                if kept is not None:
                    outcome = "skipped" if self._is_full() else "recorded"
                    if outcome == "recorded":
                        self._buffer.append(record.encode(kept))
                break
        except Full:
            outcome = "skipped"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("%s: no answer in shadow: %r", candidate.model, error)
        except Exception:
            log.exception("%s: asking in shadow", candidate.model)
        self._metrics.shadow.labels(outcome).inc()

    async def _answer(
        self, replica: Replica, body: bytes, path: str, headers: CIMultiDict[str], candidate: Served, interaction: str
    ) -> record.Shadow | None:
        """What a server answers; None: an error, or more than is recorded."""
        timestamp, began = datetime.now(UTC).isoformat(), time.perf_counter()
        async with self._session.post(
            f"{replica.url}{path.removeprefix('/v1')}",
            data=body,
            headers=headers_for(replica, headers),
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
