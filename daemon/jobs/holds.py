"""What keeps a run that is in line from starting, or from going on: a pause, a rollout, the hour, too little memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from retuned.consumers.common.memory import available_bytes, gibibytes
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.settings import Settings
from retuned.retrain import versions
from retuned.retrain.release.rollout import in_words
from retuned.retrain.release.routes import Experiment, all_under_way
from retuned.retrain.training.memory import needed_bytes
from retuned.retrain.versions import Version

QUERIES = named_queries("retuned.daemon.jobs", "runs.sql")

Kind = Literal["turn", "paused", "rollout", "hours", "memory"]
KINDS: tuple[Kind, ...] = ("turn", "paused", "rollout", "hours", "memory")


@dataclass(frozen=True)
class Hold:
    """Why a run waits, by kind and in words."""

    kind: Kind
    reason: str


@dataclass(frozen=True)
class Standing:
    """What decides whether runs may start, of all workloads, read at once.

    Attributes:
        pauses: see `pauses`.
        rollouts: those under way, by workload.
        champions: the versions that serve, by workload.
    """

    pauses: list[dict[str, Any]]
    rollouts: Mapping[str, Experiment]
    champions: Mapping[str, Version]


def standing(warehouse: Warehouse) -> Standing:
    """As of now."""
    return Standing(pauses(warehouse), all_under_way(warehouse), versions.champions(warehouse))


def hold(found: Standing, settings: Settings, run: dict[str, Any], now: datetime) -> Hold | None:
    """What a run, by its row, waits for, under the settings of its workload; None: it may start."""
    if (reason := paused(found.pauses, run["workload"])) is not None:
        return Hold("paused", reason)
    if (running := found.rollouts.get(run["workload"])) is not None and running.version != run["version"]:
        if run["passed"]:
            name = versions.model_name(run["workload"], run["version"])
            return Hold(
                "rollout", f"{name} passed the gate, and comes into service once this has ended: {in_words(running)}"
            )
        if running.state == "canary":  # which may be what the next training goes on from
            return Hold("rollout", f"it waits for the end of a rollout: {in_words(running)}")
    if run["passed"]:
        return None  # nothing is left to compute
    hours = None if run["at_any_hour"] else settings.schedule.hours
    if hours is not None and not hours.hold(now):
        return Hold("hours", f"it waits for schedule.training_hours: {hours.next_begin(now):%Y-%m-%d %H:%M} UTC")
    if (reason := lacking_memory(settings, _base(found.champions, settings, run))) is not None:
        return Hold("memory", reason)
    return None


def _base(champions: Mapping[str, Version], settings: Settings, run: dict[str, Any]) -> str | None:
    """The base model that a run trains on, by name: of a rebase its own, or where a rebase moved the workload that one;
    None: the configured one."""
    if run["base_model"]:
        return str(run["base_model"])
    champion = champions.get(run["workload"])
    if champion is None or not champion.manifest.get("rebased_from"):  # else weights would be read each time
        return None
    try:
        return str(versions.base_of(champion, settings.base))
    except RetunedError:  # the run says so when it begins
        return None


def pauses(warehouse: Warehouse) -> list[dict[str, Any]]:
    """Those in force: workload (None: all), created_at, actor, reason."""
    return warehouse.rows(QUERIES["pauses"])


def paused(pauses: Iterable[Mapping[str, Any]], workload: str) -> str | None:
    """Why no run of a workload may start: who paused it, since when, and how to end that; None: it is not paused."""
    for pause in pauses:
        if pause["workload"] in (None, workload):
            command = "retuned resume" if pause["workload"] is None else f"retuned resume {workload}"
            return (
                f"retraining is paused by {pause['actor']} since {pause['created_at']:%Y-%m-%d %H:%M:%S}: "
                f"{pause['reason']} (`{command}` ends it)"
            )
    return None


def lacking_memory(settings: Settings, name: str | None = None) -> str | None:
    """Why a training, on the base model of this name or on `models.base`, would run out of memory; None: it would not,
    or that is not known."""
    base = settings.base_named(name) if name else settings.base
    if not isinstance(base, Path) or settings.runner.kind == "ray":  # none, or its weights are not loaded here
        return None
    needed, left = needed_bytes(base, settings.train), available_bytes()
    if needed is None or left is None or left >= needed:
        return None
    return (
        f"a training takes at least {gibibytes(needed)} of memory and {gibibytes(left)} are free: give it more, lower "
        "train.rank, or take a smaller base model (train.memory_bytes sets how much has to be free)"
    )
