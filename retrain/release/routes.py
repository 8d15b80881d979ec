"""Routes: the shares of a workload's conversations that versions answer."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.versions import QUERIES

State = Literal["canary", "holdback", "done", "rolled_back", "replaced"]


@dataclass(frozen=True)
class Experiment:
    """A rollout: two versions share the traffic of a workload until it ends. Times are naive UTC.

    Attributes:
        id: the salt of the hash that assigns conversations.
        version, previous_version: the new version, and the one that answers the rest; None for the base model.
        share: the share of conversations that `version` answers since `step_since`; 0 in shadow.
        state: `canary` while `previous_version` is the champion, `holdback` once `version` is; then how it ended.
        ended_at: None while it is in progress.
    """

    id: str
    workload: str
    version: str
    previous_version: str | None
    created_at: datetime
    share: float
    step_since: datetime
    state: State
    ended_at: datetime | None = None


@dataclass(frozen=True)
class Arm:
    """A version, None for the base model, and its share of the conversations."""

    version: str | None
    share: float


@dataclass(frozen=True)
class Route:
    """The versions that answer the conversations of a workload.

    Attributes:
        experiment: the salt of the assignment; None if there is one arm.
        arms: the arms in the order of their buckets. Their shares sum to 1.
    """

    workload: str
    experiment: str | None
    arms: tuple[Arm, ...]


def in_part(share: float) -> str:
    """Describes what a version in rollout does, by its share of the conversations."""
    if share == 0:
        return "is asked in shadow, and answers none of the conversations"
    return f"answers {share:.4g} of the conversations"


def under_way(warehouse: Warehouse, workload: str) -> Experiment | None:
    """Returns the rollout in progress of a workload, if any. There is at most one."""
    row = warehouse.row(QUERIES["rollouts"], {"workload": workload})
    return None if row is None else Experiment(**row)


def all_under_way(warehouse: Warehouse) -> dict[str, Experiment]:
    """Returns the rollouts in progress, by workload."""
    return {row["workload"]: Experiment(**row) for row in warehouse.rows(QUERIES["rollouts"], {"workload": None})}


def routes(warehouse: Warehouse) -> list[Route]:
    """Returns the routes of all workloads whose champion ever changed or that have a canary, by name.

    The new version has the first buckets and the previous one the last, in every step and in the holdback. So its
    buckets only grow, and a conversation changes versions once.
    """
    result = []
    for row in warehouse.rows(QUERIES["routes"]):
        arms = [Arm(row["champion"], 1.0)]
        if row["experiment"] is not None:
            rest = round(1 - row["share"], 4)  # buckets are ten thousandths
            arms = [Arm(row["version"], row["share"]), Arm(row["previous_version"], rest)]
        result.append(Route(row["workload"], row["experiment"], tuple(arms)))
    return result
