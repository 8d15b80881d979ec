"""Why a queued run may not start: a pause, a dataset under review, a rollout, the training hours, too little memory."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from retuned.consumers.common.memory import available_bytes, gibibytes
from retuned.consumers.common.times import shown
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.settings import Settings
from retuned.retrain import versions
from retuned.retrain.release import approvals
from retuned.retrain.release.approvals import Approval
from retuned.retrain.release.rollout import in_words
from retuned.retrain.release.routes import Experiment, all_under_way
from retuned.retrain.training.memory import needed_bytes
from retuned.retrain.versions import Version

QUERIES = named_queries("retuned.daemon.jobs", "runs.sql")

Kind = Literal["turn", "paused", "review", "rollout", "hours", "memory"]
KINDS: tuple[Kind, ...] = ("turn", "paused", "review", "rollout", "hours", "memory")


@dataclass(frozen=True)
class Hold:
    """Why a run waits: the kind, and a reason for people."""

    kind: Kind
    reason: str


@dataclass(frozen=True)
class Standing:
    """The state of all workloads that decides whether runs may start, read at once.

    Attributes:
        pauses: those in force; see `pauses`.
        rollouts: those under way, by workload.
        champions: by workload.
        reviews: datasets that wait for approval, by workload.
    """

    pauses: list[dict[str, Any]]
    rollouts: Mapping[str, Experiment]
    champions: Mapping[str, Version]
    reviews: Mapping[str, Approval] = field(default_factory=dict)


def standing(warehouse: Warehouse) -> Standing:
    """Returns the present state."""
    reviews = {review.workload: review for review in approvals.waiting(warehouse, None) if review.kind == "dataset"}
    return Standing(pauses(warehouse), all_under_way(warehouse), versions.champions(warehouse), reviews)


def hold(found: Standing, settings: Settings, run: dict[str, Any], now: datetime) -> Hold | None:
    """Returns why a run may not start, given its row and the settings of its workload; None: it may start."""
    if (reason := paused(found.pauses, run["workload"])) is not None:
        return Hold("paused", reason)
    review = found.reviews.get(run["workload"]) if settings.dataset.review == "required" else None
    if review is not None and not run["passed"]:
        return Hold("review", f"{review} (`retuned approve`)")
    if (running := found.rollouts.get(run["workload"])) is not None and running.version != run["version"]:
        if run["passed"]:
            name = versions.model_name(run["workload"], run["version"])
            return Hold(
                "rollout", f"{name} passed the gate, and comes into service once this has ended: {in_words(running)}"
            )
        if running.state == "canary":  # the next training may start from it
            return Hold("rollout", f"it waits for the end of a rollout: {in_words(running)}")
    if run["passed"]:
        return None  # nothing is left to compute
    hours = None if run["at_any_hour"] else settings.schedule.hours
    if hours is not None and not hours.hold(now):
        return Hold("hours", f"it waits for schedule.training_hours: {shown(hours.next_begin(now))}")
    if (reason := lacking_memory(settings, _base(found.champions, settings, run))) is not None:
        return Hold("memory", reason)
    return None


def _base(champions: Mapping[str, Version], settings: Settings, run: dict[str, Any]) -> str | None:
    """Returns the base model that a run trains on: its own for a rebase, else that of an earlier rebase; None: the
    configured one."""
    if run["base_model"]:
        return str(run["base_model"])
    champion = champions.get(run["workload"])
    if champion is None or not champion.manifest.get("rebased_from"):  # `base_of` reads weights: avoid it
        return None
    try:
        return str(versions.base_of(champion, settings.base))
    except RetunedError:  # the run reports it when it starts
        return None


def pauses(warehouse: Warehouse) -> list[dict[str, Any]]:
    """Returns the pauses in force: workload (None: all), created_at, actor, reason."""
    return warehouse.rows(QUERIES["pauses"])


def paused(pauses: Iterable[Mapping[str, Any]], workload: str) -> str | None:
    """Returns who paused a workload, since when, and how to end the pause; None: it is not paused."""
    for pause in pauses:
        if pause["workload"] in (None, workload):
            command = "retuned resume" if pause["workload"] is None else f"retuned resume {workload}"
            return (
                f"retraining is paused by {pause['actor']} since {shown(pause['created_at'])}: "
                f"{pause['reason']} (`{command}` ends it)"
            )
    return None


def lacking_memory(settings: Settings, name: str | None = None) -> str | None:
    """Returns why a training would run out of memory, on the base model in the folder `name` or on `models.base`; None:
    the memory suffices, or its need is unknown."""
    base = Path(name) if name else settings.base
    if base is None or settings.runner.kind == "ray":  # Ray loads the weights elsewhere
        return None
    needed, left = needed_bytes(base, settings.train), available_bytes()
    if needed is None or left is None or left >= needed:
        return None
    return (
        f"a training takes at least {gibibytes(needed)} of memory and {gibibytes(left)} are free: free more, lower "
        "train.rank, or use a smaller base model (train.memory_bytes sets how much must be free)"
    )
