"""The model servers behind the gateway: which models each has, and which one answers next."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import aiohttp
import msgspec
from multidict import CIMultiDict

from retuned.daemon.gateway.errors import why
from retuned.daemon.gateway.metrics import Metrics
from retuned.daemon.gateway.servers.models import LIST_SECONDS, MODELS, Model, base_of
from retuned.daemon.gateway.servers.outliers import Health, Outcome
from retuned.daemon.gateway_settings import Upstream
from retuned.retrain.release.assignment import Served

log = logging.getLogger(__name__)


class Replica:
    """A model server.

    Attributes:
        url: its base URL, without a slash at its end.
        key: what it is asked with; None: what the app sent.
        models: the names that it lists, and how each is asked for; empty while it does not answer.
        base: its name of the base model; None: it lists none.
        in_flight: how many requests it is answering for this gateway.
        problem: why it is not asked; None: it answers.
        health: of its answers, by the name of the model: a model that always fails must not keep others from being
            asked for there.
    """

    def __init__(self, settings: Upstream) -> None:
        """Raises a ConfigurationError when its key cannot be read."""
        self.url = settings.url.rstrip("/")
        self.key = settings.key()
        self._base = settings.base_model
        self.models: dict[str, str] = {}
        self.base: str | None = None
        self.in_flight = 0
        self.problem: str | None = "it was not asked yet"
        self.health: defaultdict[str, Health] = defaultdict(Health)

    def name_of(self, served: Served) -> str | None:
        """Its name of a model; None: it has not got it."""
        if served.name is not None:
            return self.models.get(served.name)
        return served.model if served.model in self.models else self.base

    def ejected(self, now: float) -> int:
        """For how many models it is passed over."""
        return sum(one.is_out(now) for one in self.health.values())

    def listed(self, models: Sequence[Model]) -> None:
        """It answered with this list."""
        self.models = {model.id: model.asked_as for model in models}
        for gone in self.health.keys() - self.models.values():
            del self.health[gone]
        self.base = base_of(models, self._base)
        if self.problem is not None:
            log.info("%s: answers, with %s", self.url, ", ".join(sorted(self.models)) or "no model")
        self.problem = None

    def failed(self, problem: str) -> None:
        """It does not answer: it is not asked again until it lists its models."""
        if self.problem is None:
            log.warning("%s: %s", self.url, problem)
        self.problem, self.models, self.base = problem, {}, None


class Attempt:
    """A request that is sent to a server.

    Attributes:
        outcome: what it shows about the server.
    """

    outcome = Outcome.UNKNOWN


def headers_for(replica: Replica, headers: CIMultiDict[str]) -> CIMultiDict[str]:
    """The headers of a request to a server: those of the app, with the server's own key where it has one."""
    made = CIMultiDict(headers)
    made["Accept-Encoding"] = "identity"  # what is recorded has to be read
    if replica.key:
        made["Authorization"] = f"Bearer {replica.key}"
    return made


class Upstreams:
    """All of them."""

    def __init__(
        self,
        settings: Sequence[Upstream],
        session: aiohttp.ClientSession,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises a ConfigurationError when a key cannot be read."""
        self.replicas = [Replica(one) for one in settings]
        self._session, self._metrics, self._clock = session, metrics, clock
        self._turn = 0
        for replica in self.replicas:
            metrics.upstream_ejected.labels(replica.url).set_function(partial(self._ejected, replica))
            metrics.ejections.labels(replica.url)

    def having(self, served: Served) -> list[tuple[Replica, str]]:
        """The servers that have a model, and their names of it, the one to ask first: of those that do not keep failing
        the least busy, in turn."""
        found = self._having(served)
        if len(found) > 1:
            self._turn += 1
            turn, now = self._turn % len(found), self._clock()
            found = sorted(
                found[turn:] + found[:turn], key=lambda one: (one[0].health[one[1]].rank(now), one[0].in_flight)
            )
        return found

    @contextmanager
    def asked(self, replica: Replica, served: Served, name: str) -> Iterator[Attempt]:
        """While a server answers a request for a model, which has this name there."""
        attempt, health = Attempt(), replica.health[name]
        trial = health.begin(self._clock())
        replica.in_flight += 1
        try:
            yield attempt
        finally:
            replica.in_flight -= 1
            others = [one.health[its_name] for one, its_name in self._having(served) if one is not replica]
            was_out, now = health.ejected_until is not None, self._clock()
            if health.end(attempt.outcome, now, others, trial=trial):
                seconds = (health.ejected_until or now) - now
                log.warning("%s: keeps failing with %s, and is not asked for it for %.0f s", replica.url, name, seconds)
                self._metrics.ejections.labels(replica.url).inc()
            elif was_out and health.ejected_until is None:
                log.info("%s: answers with %s again", replica.url, name)

    def _ejected(self, replica: Replica) -> int:
        return replica.ejected(self._clock())

    def _having(self, served: Served) -> list[tuple[Replica, str]]:
        return [(one, name) for one in self.replicas if (name := one.name_of(served)) is not None]

    def listing(self, name: str) -> bool:
        """Whether a server lists a name."""
        return any(name in one.models for one in self.replicas)

    def problems(self) -> list[str]:
        """Why none can be asked; empty when one can."""
        if any(one.problem is None for one in self.replicas):
            return []
        return [f"gateway.upstreams {one.url}: {one.problem}" for one in self.replicas]

    async def follow(self, seconds: float) -> None:
        """Ask each for its models, again and again; one that is slow holds up no other."""
        await asyncio.gather(*(self._follow(one, seconds) for one in self.replicas))

    async def refresh(self) -> None:
        """Ask each for its models once."""
        await asyncio.gather(*(self._list(one) for one in self.replicas))

    async def _follow(self, replica: Replica, seconds: float) -> None:
        while True:
            await self._list(replica)
            await asyncio.sleep(seconds)

    async def _list(self, replica: Replica) -> None:
        headers = {"Authorization": f"Bearer {replica.key}"} if replica.key else {}
        try:
            timeout = aiohttp.ClientTimeout(LIST_SECONDS)
            async with self._session.get(f"{replica.url}/models", headers=headers, timeout=timeout) as answer:
                body = await answer.read()
            if answer.status != 200:
                replica.failed(f"its list of models is answered with {answer.status}")
            else:
                replica.listed(MODELS.decode(body).data)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            replica.failed(f"does not answer ({why(error)})")
        except msgspec.DecodeError as error:
            replica.failed(f"its list of models is not as OpenAI's ({error})")
        except Exception:  # it would not be asked again
            log.exception("%s: its list of models", replica.url)
            replica.failed("its list of models cannot be read")
        self._metrics.upstream_up.labels(replica.url).set(replica.problem is None)
