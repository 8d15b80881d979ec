"""One model server: its models and its health."""

import logging
from collections import defaultdict
from collections.abc import Sequence

from retuned.daemon.gateway.servers.models import Model, base_of
from retuned.daemon.gateway.servers.outliers import Health
from retuned.retrain.release.assignment import Served

log = logging.getLogger(__name__)


class Replica:
    """A model server.

    Attributes:
        url: the base URL, without a trailing slash.
        key: the API key; None: the app's key is passed on.
        models: the listed names, with the name of each in a request; empty while the server does not answer.
        base: the server's name of the base model; None: it lists none.
        in_flight: the number of this gateway's open requests.
        problem: the reason why the server receives no requests; None: it answers.
        health: the health by name of the model, because a model that always fails must not affect others.
    """

    def __init__(self, url: str, key: str | None, base_model: str | None = None) -> None:
        """
        Args:
            base_model: the server's name of the base model; None: the first that it lists without a parent.
        """
        self.url, self.key = url.rstrip("/"), key
        self._base = base_model
        self.models: dict[str, str] = {}
        self.base: str | None = None
        self.in_flight = 0
        self.problem: str | None = "not requested yet"
        self.health: defaultdict[str, Health] = defaultdict(Health)

    def name_of(self, served: Served) -> str | None:
        """Returns the server's name of a model; None if it does not have the model."""
        if served.name is not None:
            return self.models.get(served.name)
        return served.model if served.model in self.models else self.base

    def ejected(self, now: float) -> int:
        """Returns the number of models for which the server is ejected."""
        return sum(health.is_out(now) for health in self.health.values())

    def listed(self, models: Sequence[Model]) -> None:
        """Stores the server's list of models."""
        self.models = {model.id: model.asked_as for model in models}
        for gone in self.health.keys() - self.models.values():
            del self.health[gone]
        self.base = base_of(models, self._base)
        if self.problem is not None:
            log.info("%s: answers, with %s", self.url, ", ".join(sorted(self.models)) or "no model")
        self.problem = None

    def failed(self, problem: str) -> None:
        """Notes that the server does not answer: it receives no requests until it lists its models again."""
        if self.problem is None:
            log.warning("%s: %s", self.url, problem)
        self.problem, self.models, self.base = problem, {}, None
