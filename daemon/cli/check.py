"""`retuned check`: try everything that a run would need, and say what is wrong before the night does."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from retuned.consumers.common.memory import available_bytes, gibibytes
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.kafka.connection import check_broker
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.warehouse import schema
from retuned.consumers.warehouse.connection import attach
from retuned.daemon import tracing
from retuned.daemon.jobs.holds import lacking_memory
from retuned.daemon.settings import Settings
from retuned.daemon.web.principals import Principals
from retuned.daemon.web.server import bind
from retuned.daemon.web.tls import server_tls
from retuned.monitors.hallucination import opinions
from retuned.retrain.decision import judge
from retuned.retrain.generation import server
from retuned.retrain.scoring.metric import choose
from retuned.retrain.training import provider
from retuned.retrain.training.base_model import check_base_model

Try = tuple[str, Callable[[], str]]

ENOUGH_DISK = 2 * 1024**3


def check(settings: Settings) -> Iterator[tuple[str, str | None, str]]:
    """(what was tried, the problem if there is one, what was found), one after the other."""
    tries: list[Try] = [
        ("configuration", lambda: "valid"),
        ("broker", lambda: check_broker(settings.kafka)),
        ("warehouse", lambda: _warehouse(settings)),
        ("privacy", lambda: _privacy(settings)),
        *(
            ("base model" if key == "models.base" else f"base model of {key}", partial(check_base_model, base, key))
            for key, base in settings.bases().items()
        ),
        *_for_each("provider", settings, {"base", "train"}, provider.check),
        *_for_each("memory", settings, {"base", "train"}, _memory),
        *_for_each("evaluation", settings, {"train", "evaluate"}, _evaluation),
        *_for_each("metric", settings, {"metric", "evaluate"}, _metric),
        *_for_each("judge", settings, {"evaluate"}, lambda own: judge.check(own.evaluate)),
        ("opinions", lambda: opinions.check(settings.quality)),
        ("models", lambda: _writable("models.directory", settings.models.directory)),
        ("disk", lambda: _disk(settings.warehouse.path)),
        ("tracing", lambda: tracing.check(settings.tracing)),
        ("http", lambda: _http(settings)),
    ]
    for name, attempt in tries:
        try:
            yield name, None, attempt()
        except RetunedError as error:
            yield name, str(error), ""


def _for_each(what: str, settings: Settings, keys: set[str], attempt: Callable[[Settings], str]) -> list[Try]:
    """Try the settings of all workloads, and those of each entry of `workloads` that sets one of these keys."""
    own = {name: settings.for_workload(name) for name, entry in settings.workloads.items() if keys & entry.keys()}
    return [(what, partial(attempt, settings)), *((f"{what} of {name}", partial(attempt, own[name])) for name in own)]


def _warehouse(settings: Settings) -> str:
    """Opens it as it is: what is only tried is neither created nor migrated."""
    path = settings.warehouse.path
    if not path.exists():
        return f"{path} is not there yet: the daemon creates it; {_writable('warehouse.path', path.parent)}"
    with closing(attach(settings.warehouse, create=False)) as warehouse:
        if schema.pending(warehouse):
            return f"{path} opens; {schema.outdated(warehouse)}"
    return f"{path} opens"


def _privacy(settings: Settings) -> str:
    privacy = settings.privacy
    Redactor(privacy)
    if privacy.user_key or privacy.user_key_file:
        load_user_keys(privacy, settings.warehouse.path)
    if not privacy.redact:
        return "privacy.redact is off: what events hold is stored as it is"
    return "redacts what patterns find" + (", and names of people" if privacy.names else "")


def _evaluation(settings: Settings) -> str:
    return "at the provider (train.engine api)" if settings.train.engine == "api" else server.check(settings.evaluate)


def _metric(settings: Settings) -> str:
    if settings.metric.name == "auto":
        return "auto: chosen by the approved answers of each dataset"
    metric = choose(settings, []).metric
    return f"{metric.name}: {metric.meaning}"


def _writable(key: str, folder: Path) -> str:
    place = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    if not os.access(place, os.W_OK):
        raise ConfigurationError(f"{key}: {place} cannot be written by this user")
    return f"{folder} can be written"


def _disk(path: Path) -> str:
    place = next(parent for parent in path.resolve().parents if parent.exists())
    free = shutil.disk_usage(place).free
    if free < ENOUGH_DISK:
        raise ConfigurationError(
            f"warehouse.path: {free / 1024**3:.1f} GiB are free at {place}; have at least {ENOUGH_DISK / 1024**3:.0f}"
        )
    return f"{free / 1024**3:.0f} GiB free"


def _memory(settings: Settings) -> str:
    if problem := lacking_memory(settings):
        raise ConfigurationError(problem)
    left = available_bytes()
    return "how much is free is not known here" if left is None else f"{gibibytes(left)} free"


def _http(settings: Settings) -> str:
    principals = Principals(settings.http)
    tls = server_tls(settings.http)
    bind(settings.http).close()
    found = f"{settings.http.host}:{settings.http.port} is free"
    found += "" if principals.required else "; no token is asked for"
    if tls is None:
        return found
    return f"{found}; {tls.warning(datetime.now(UTC)) or f'the certificate is valid until {tls.expires_at:%Y-%m-%d}'}"
