"""The incumbents of workloads: commercial APIs that take the place of the base model."""

import logging

from retuned.consumers.common.languages import identifier
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.sections import secret
from retuned.daemon.gateway.servers.replica import Replica
from retuned.daemon.overrides import GLOB
from retuned.daemon.settings import Settings
from retuned.retrain.settings import CascadeSettings, IncumbentSettings

log = logging.getLogger(__name__)


class Incumbent(Replica):
    """A commercial API with one model. It is not asked for its models, and always gets requests.

    Attributes:
        model: its name of the model.
        api: what it speaks.
        timeout_seconds: longest wait for the next byte of an answer.
        prices: of a million input and output tokens; None: its answers have no cost of their own.
        is_fallback: whether it answers what the model servers fail to answer, and they what it fails to answer.
        cascade: the requests that it answers whichever version is in service.
    """

    def __init__(self, settings: IncumbentSettings, cascade: CascadeSettings) -> None:
        """Raises a ConfigurationError if its key cannot be read."""
        super().__init__(str(settings.url), secret(None, settings.key_file, "incumbent.key_file"))
        self.model, self.api, self.problem = str(settings.model), settings.api, None
        self.timeout_seconds = settings.timeout_seconds
        self.prices = settings.prices
        self.is_fallback, self.cascade = settings.fallback, cascade
        if cascade.languages:
            _load_identifier()

    def failed(self, problem: str) -> None:
        """Notes that the incumbent does not answer. Requests go on, as only they show that it answers again."""
        if self.problem is None:
            log.warning("%s: the incumbent %s", self.url, problem)
        self.problem = problem

    def works(self) -> None:
        """Notes that the incumbent has answered."""
        if self.problem is not None:
            log.info("%s: the incumbent answers again", self.url)
        self.problem = None


def _load_identifier() -> None:
    """Loads the identifier of languages, which takes 0.4 s, before the first request."""
    try:
        identifier()
    except ImportError as error:
        raise ConfigurationError(
            "cascade.languages needs py3langid, which the gateway's image does not hold: pip install py3langid"
        ) from error


class Incumbents:
    """The incumbents, by workload."""

    def __init__(self, settings: Settings) -> None:
        """Raises a ConfigurationError if a key cannot be read."""
        self._settings = settings
        self._made: dict[tuple[IncumbentSettings, CascadeSettings], Incumbent] = {}
        self._by_workload: dict[str, Incumbent | None] = {}
        for own in settings.variants({"incumbent", "cascade"}).values():
            self._make(own)
        self.named = [name for name in settings.workloads if not GLOB & {*name} and self.of(name)]

    def __bool__(self) -> bool:
        return bool(self._made)

    def of(self, workload: str) -> Incumbent | None:
        """Returns the incumbent of a known workload; None: it has none."""
        if workload not in self._by_workload:
            self._by_workload[workload] = self._make(self._settings.for_workload(workload))
        return self._by_workload[workload]

    def _make(self, own: Settings) -> Incumbent | None:
        if own.incumbent.url is None:
            return None
        key = own.incumbent, own.cascade
        if key not in self._made:
            self._made[key] = Incumbent(*key)
        return self._made[key]
