"""The model servers behind the gateway: their models, their health, and the choice of a server."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import get_args

import aiohttp
import msgspec

from retuned.daemon.gateway.errors import why
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.servers.bounds import Allowance, Bound, Passed
from retuned.daemon.gateway.servers.incumbents import Incumbent, Incumbents
from retuned.daemon.gateway.servers.models import LIST_BYTES, LIST_SECONDS, MODELS
from retuned.daemon.gateway.servers.outliers import Outcome
from retuned.daemon.gateway.servers.replica import Replica
from retuned.daemon.gateway_settings import Upstream
from retuned.retrain.release.assignment import Served

log = logging.getLogger(__name__)


class Attempt:
    """A request to a server.

    Attributes:
        outcome: the result, as evidence of the server's health.
    """

    outcome = Outcome.UNKNOWN


class Upstreams:
    """All model servers."""

    def __init__(
        self,
        settings: Sequence[Upstream],
        incumbents: Incumbents,
        session: aiohttp.ClientSession,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises a ConfigurationError if a key cannot be read."""
        self.replicas = [Replica(upstream.url, upstream.key(), upstream.base_model) for upstream in settings]
        self.incumbents = incumbents
        self._session, self._metrics, self._clock = session, metrics, clock
        self._turn = 0
        for replica in self.replicas:
            metrics.upstream_ejected.labels(replica.url).set_function(partial(self._ejected, replica))
            metrics.ejections.labels(replica.url)
            for bound in get_args(Bound):
                metrics.cut.labels(replica.url, bound)

    def having(self, served: Served) -> list[tuple[Replica, str]]:
        """Returns the servers that have a model, with its name on each, in the order of trial: by health, then by open
        requests, then in turn."""
        having = self._having(served)
        if len(having) < 2:
            return having
        self._turn += 1
        turn, now = self._turn % len(having), self._clock()
        in_turn = having[turn:] + having[:turn]
        return sorted(in_turn, key=lambda pair: (pair[0].health[pair[1]].rank(now), pair[0].in_flight))

    @contextmanager
    def asked(self, replica: Replica, served: Served, name: str) -> Iterator[Attempt]:
        """Tracks a request to a server for a model, which has this name there."""
        attempt, health = Attempt(), replica.health[name]
        trial = health.begin(self._clock())
        replica.in_flight += 1
        try:
            yield attempt
        finally:
            replica.in_flight -= 1
            others = [other.health[its_name] for other, its_name in self._having(served) if other is not replica]
            was_ejected, now = health.ejected_until is not None, self._clock()
            if health.end(attempt.outcome, now, others, trial=trial):
                seconds = (health.ejected_until or now) - now
                log.warning("%s: keeps failing with %s; it is ejected for %.0f s", replica.url, name, seconds)
                self._metrics.ejections.labels(replica.url).inc()
            elif was_ejected and health.ejected_until is None:
                log.info("%s: answers with %s again", replica.url, name)
            if isinstance(replica, Incumbent):
                self._note(replica, attempt.outcome)

    def _note(self, incumbent: Incumbent, outcome: Outcome) -> None:
        """Notes whether an incumbent works; model servers show that by their lists of models."""
        if outcome is Outcome.FAILS:
            incumbent.failed("fails")
        elif outcome is Outcome.WORKS:
            incumbent.works()
        self._metrics.upstream_up.labels(incumbent.url).set(incumbent.problem is None)

    def _ejected(self, replica: Replica) -> int:
        return replica.ejected(self._clock())

    def _having(self, served: Served) -> list[tuple[Replica, str]]:
        if served.name is None and (incumbent := self.incumbents.of(served.model.rpartition("@")[0])):
            return [(incumbent, incumbent.model)]
        return [(replica, name) for replica in self.replicas if (name := replica.name_of(served)) is not None]

    def listing(self, name: str) -> bool:
        """Whether any server lists a name."""
        return any(name in replica.models for replica in self.replicas)

    def problems(self) -> list[str]:
        """Returns why each server does not answer; empty if at least one does, or there is an incumbent."""
        if self.incumbents or any(replica.problem is None for replica in self.replicas):
            return []
        return [f"gateway.upstreams {replica.url}: {replica.problem}" for replica in self.replicas]

    async def follow(self, seconds: float) -> None:
        """Refreshes the servers' lists of models at this interval, until cancelled; a slow one delays no other."""
        await asyncio.gather(*(self._follow(replica, seconds) for replica in self.replicas))

    async def refresh(self) -> None:
        """Refreshes each server's list of models once."""
        await asyncio.gather(*(self._list(replica) for replica in self.replicas))

    async def _follow(self, replica: Replica, seconds: float) -> None:
        while True:
            await self._list(replica)
            await asyncio.sleep(seconds)

    async def _list(self, replica: Replica) -> None:
        headers = {"Authorization": f"Bearer {replica.key}"} if replica.key else {}
        try:
            timeout = aiohttp.ClientTimeout(LIST_SECONDS)
            async with self._session.get(f"{replica.url}/models", headers=headers, timeout=timeout) as answer:
                body = await Allowance(LIST_BYTES, LIST_BYTES, LIST_SECONDS).whole(answer.content)
            if answer.status != 200:
                replica.failed(f"the request for its models got {answer.status}")
            else:
                replica.listed(MODELS.decode(body).data)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            replica.failed(f"does not answer ({why(error)})")
        except Passed:
            replica.failed(
                f"its list of models is longer than {LIST_BYTES:,} bytes, or takes more than {LIST_SECONDS:g} s"
            )
        except msgspec.DecodeError as error:
            replica.failed(f"its list of models is not in OpenAI's form ({error})")
        except Exception:  # otherwise the task would end, and the list would never be refreshed
            log.exception("%s: its list of models", replica.url)
            replica.failed("its list of models cannot be read")
        self._metrics.upstream_up.labels(replica.url).set(replica.problem is None)
