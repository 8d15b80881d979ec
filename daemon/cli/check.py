"""`retuned check`: try everything that a run would need, and say what is wrong before the night does."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from retuned.consumers.common.extras import needing
from retuned.consumers.common.memory import available_bytes, gibibytes
from retuned.consumers.common.times import shown
from retuned.consumers.errors import ConfigurationError, RetunedError
from retuned.consumers.kafka.connection import WITHOUT_END, check_broker
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.sections import authority
from retuned.consumers.warehouse import schema
from retuned.consumers.warehouse.opening import attach
from retuned.daemon import overrides
from retuned.daemon.app import preconditions
from retuned.daemon.cli.known import known_workloads, replaced_arguments, running
from retuned.daemon.client import AskedIngester
from retuned.daemon.gateway.check import check_incumbent, check_keys, check_upstream
from retuned.daemon.jobs.holds import lacking_memory
from retuned.daemon.operations.diagnosis import ARGUMENTS
from retuned.daemon.settings import Settings
from retuned.daemon.web.principals import Principals
from retuned.daemon.web.server import bind
from retuned.daemon.web.tls import server_tls
from retuned.monitors.drift import vectors
from retuned.monitors.hallucination import opinions
from retuned.retrain.decision import judge
from retuned.retrain.generation import server
from retuned.retrain.memory import embed
from retuned.retrain.release.targets import build
from retuned.retrain.runners import build as runners
from retuned.retrain.training import coverage

Try = tuple[str, Callable[[], str | None]]
"""What is tried, and how; None where the configuration leaves nothing to try."""
Mark = Literal["ok", "warn", "FAIL"]

ENOUGH_DISK = 2 * 1024**3
PROBLEMS = (RetunedError, OSError, ValueError)
"""Errors of one try, after which the next one follows: also what the system refuses, and unreadable content."""


class _Notice(Exception):
    """Nothing is broken, and a person should look."""


def check(settings: Settings) -> Iterator[tuple[Mark, str, str]]:
    """(how it is, what was tried, what was found or is wrong), one after the other.

    Where the daemon of this configuration runs, it has the warehouse and the port, which is as it should be; so has
    an ingester the port.
    """
    daemon: Mapping[str, Any] | None = None
    stranger: Exception | None = None
    try:
        daemon = running(settings)
    except PROBLEMS as error:
        stranger = error
    tries: list[Try] = [
        ("configuration", lambda: "valid"),
        *preconditions(settings),
        ("broker", lambda: _broker(settings)),
        ("store", lambda: _store(settings)),
        ("warehouse", lambda: _warehouse(settings, daemon)),
        *([("workloads", lambda: _workloads(settings))] if settings.workloads else []),
        ("privacy", lambda: _privacy(settings)),
        (ARGUMENTS, lambda: _arguments(settings)),
        *_for_each("adapter", settings, {"base", "train"}, coverage.check),
        *_for_each("runner", settings, {"runner"}, runners.check),
        *_for_each("memory", settings, {"base", "train"}, _memory),
        *_for_each("evaluation", settings, {"evaluate"}, lambda own: server.check(own.evaluate)),
        *_targets(settings),
        *_for_each("metric", settings, {"metric", "evaluate"}, _needs_judge),
        *_for_each("judge", settings, {"evaluate"}, lambda own: judge.check(own.evaluate)),
        ("opinions", lambda: opinions.check(settings.quality)),
        *_for_each("drift", settings, {"drift"}, lambda own: vectors.check(own.drift)),
        *_for_each("corrections", settings, {"memory"}, _corrections),
        ("models", lambda: _writable("models.directory", settings.models.directory)),
        ("disk", lambda: _disk(settings.warehouse.path)),
        ("http", lambda: _http(settings, daemon, stranger)),
        *_gateway(settings),
    ]
    failed = set[str]()
    for name, attempt in tries:
        if name in failed:  # a start ends there
            continue
        try:
            if (found := attempt()) is not None:
                yield "ok", name, found
        except _Notice as notice:
            yield "warn", name, str(notice)
        except PROBLEMS as error:
            failed.add(name)
            yield "FAIL", name, str(error)


def _for_each(what: str, settings: Settings, keys: set[str], attempt: Callable[[Settings], str | None]) -> list[Try]:
    """Try the settings of all workloads, and those of each entry of `workloads` that sets one of these keys."""
    return [
        (f"{what} of {name}" if name else what, partial(attempt, own)) for name, own in settings.variants(keys).items()
    ]


def _warehouse(settings: Settings, daemon: Mapping[str, Any] | None) -> str:
    """Opens it as it is: what is only tried is neither created nor migrated."""
    path = settings.warehouse.path
    if daemon is not None:
        return f"{path} is open in the daemon that runs"
    if not path.exists():
        return f"{path} is not there yet: the daemon creates it; {_writable('warehouse.path', path.parent)}"
    with closing(attach(settings.warehouse, create=False)) as warehouse:
        if schema.pending(warehouse):
            return f"{path} opens; {schema.outdated(warehouse)}"
    return f"{path} opens"


def _broker(settings: Settings) -> str:
    found = check_broker(settings.kafka)
    if "(does not exist yet)" in found or WITHOUT_END in found:
        raise _Notice(found)
    return found


def _needs_judge(settings: Settings) -> None:
    name = settings.metric.name
    if settings.base is not None and name in ("auto", "facts") and settings.evaluate.judge_url is None:
        raise _Notice(
            f"{name}: without a judge the metric abstains on answers in prose whose values do not settle what they "
            "mean, and candidates whose rows it cannot judge are not promoted; set evaluate.judge_url to a language "
            "model that judges, or metric.name to the metric that fits, such as label, json or exact"
        )


def _store(settings: Settings) -> str | None:
    if settings.store.kind == "file" and settings.store.postgres() is None:
        return None
    with needing("cluster", "store"):
        from retuned.consumers.cluster.leadership import members
        from retuned.consumers.cluster.objects import Objects
        from retuned.consumers.cluster.postgres import Postgres
    with closing(Postgres(settings.store, migrate=False)) as postgres:  # what is only tried is not made
        if postgres.rows("known") == [(True,)]:
            daemons = ", ".join(map(str, members(postgres))) or "no daemon runs"
            found = f"{len(postgres.rows('partitions'))} partitions are read; {daemons}"
        else:
            found = "its schema is made by the first process of the cluster"
    objects = Objects(settings.store, make=False)
    next(objects.list("interactions/"), None)
    return f"the database answers ({found}), and so does {objects.url}"


def _workloads(settings: Settings) -> str:
    known = known_workloads(settings)
    if notices := overrides.notices(settings.workloads, known or []):
        raise _Notice("; ".join(notices))
    if not known:
        return "no event has told yet which workloads there are"
    return f"each entry is of a workload that is known ({len(known)})"


def _privacy(settings: Settings) -> str:
    privacy = settings.privacy
    Redactor(privacy)
    if privacy.user_key or privacy.user_key_file:
        load_user_keys(privacy, settings.warehouse.path)
    if not privacy.redact:
        return "privacy.redact is off: what events hold is stored as it is"
    return "redacts what patterns find" + (", and names of people" if privacy.names else "")


def _arguments(settings: Settings) -> None:
    if (found := replaced_arguments(settings)) is not None:
        raise _Notice(f"{found['found']}; {found['remedy']}")


def _targets(settings: Settings) -> Iterator[Try]:
    """Each replica in the settings of all workloads, and in those of each entry that sets what matters to one."""
    for name, own in settings.variants({"serving", "train", "base"}).items():
        of = f" of {name}" if name else ""
        if not own.serving.targets:
            yield f"targets{of}", lambda: "none: nothing is told what to serve"
        for place in chain.from_iterable(build.places_in(own)):
            yield f"target {place.settings.kind} {place.replica}{of}", partial(_asked, build.check, place, own)


def _asked(attempt: Callable[..., tuple[str, str] | None], *given: Any) -> str | None:
    """What was found of a server, unless a person should look at something."""
    if (result := attempt(*given)) is None:
        return None
    found, notice = result
    if notice:
        raise _Notice(f"{found}; {notice}")
    return found


def _gateway(settings: Settings) -> list[Try]:
    """Nothing where there is none."""
    own = settings.gateway
    incumbents = _for_each("incumbent", settings, {"incumbent"}, lambda one: _asked(check_incumbent, one.incumbent))
    if not own.upstreams and not any(one.incumbent.url for one in settings.variants({"incumbent"}).values()):
        return []
    return [
        ("gateway", lambda: f"{check_keys(own)}; {_writable('gateway.buffer', own.buffer)}"),
        *((f"upstream {one.url}", partial(_asked, check_upstream, one)) for one in own.upstreams),
        *incumbents,
    ]


def _corrections(own: Settings) -> str | None:
    """Returns which questions the memory helps; None: it is off."""
    if own.memory.mode == "off":
        return None
    if not own.memory.similar:
        return f"{own.memory.mode}; the same question"
    if embed.load() is None:
        raise _Notice(
            f"{own.memory.mode}; the same question only: for related ones, pip install 'retuned[memory]' on daemons "
            "and gateways, or set memory.similar to false"
        )
    return f"{own.memory.mode}; the same question, and related ones with evidence"


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


def _http(settings: Settings, daemon: Mapping[str, Any] | None, stranger: Exception | None) -> str:
    principals = Principals(settings.http)
    tls = server_tls(settings.http)
    found = f"{authority(settings.http.host, settings.http.port)} "
    if isinstance(stranger, AskedIngester):
        found += "is the ingester's that runs"
    elif stranger is not None:
        raise stranger
    elif daemon is None:
        bind(settings.http).close()
        found += "is free"
    else:
        found += f"is the daemon's that runs (version {daemon['version']}, since {shown(daemon['started_at'])})"
    found += "" if principals.required else "; no token is asked for"
    if tls is not None:
        found += f"; {tls.warning(datetime.now(UTC)) or f'the certificate is valid until {shown(tls.expires_at)}'}"
    if settings.store.kind == "cluster" and principals.required and settings.http.key_of_sessions() is None:
        raise _Notice(
            f"{found}; without http.session_key each daemon signs sessions by a key of its own: a browser is signed "
            "out where another daemon answers, and a daemon that stands by accepts no form. Set http.session_key_file, "
            "the same for all daemons"
        )
    return found
