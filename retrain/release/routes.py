"""Which version answers which share of a workload's conversations."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.versions import QUERIES

State = Literal["canary", "holdback", "done", "rolled_back", "replaced"]


@dataclass(frozen=True)
class Experiment:
    """A rollout: two versions share the traffic of a workload until it has ended. Times are naive UTC.

    Attributes:
        id: what conversations are assigned by, the salt of their hash.
        version, previous_version: what goes into service, and what answers the rest; None: the base model.
        share: of the conversations, that `version` answers, since `step_since`; 0: it is asked in shadow.
        state: `canary` while the champion is `previous_version`, `holdback` once it is `version`; how it ended, after.
        ended_at: None while it is under way.
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
    """Who answers the conversations of a workload.

    Attributes:
        experiment: the salt of the assignment; None: there is one arm.
        arms: in the order of the buckets from the first to the last; their shares sum to 1.
    """

    workload: str
    experiment: str | None
    arms: tuple[Arm, ...]


def in_part(share: float) -> str:
    """What a version does that is being rolled out, by its share of the conversations."""
    if share == 0:
        return "is asked in shadow, and answers none of the conversations"
    return f"answers {share:.4g} of the conversations"


def under_way(warehouse: Warehouse, workload: str) -> Experiment | None:
    """The rollout of a workload that has not ended; there is one at most."""
    row = warehouse.row(QUERIES["rollouts"], {"workload": workload})
    return None if row is None else Experiment(**row)


def all_under_way(warehouse: Warehouse) -> dict[str, Experiment]:
    """The rollouts that have not ended, by workload."""
    return {row["workload"]: Experiment(**row) for row in warehouse.rows(QUERIES["rollouts"], {"workload": None})}


def routes(warehouse: Warehouse) -> list[Route]:
    """The routes of all workloads whose champion was ever changed or that have a canary, by name.

    The new version has the first buckets and whatever is before it the last ones, in every step and in the holdback.
    So its buckets only grow until it is the champion of all but the holdback: a conversation changes sides once.
    """
    found = []
    for row in warehouse.rows(QUERIES["routes"]):
        arms = [Arm(row["champion"], 1.0)]
        if row["experiment"] is not None:
            rest = round(1 - row["share"], 4)  # buckets are ten thousandths
            arms = [Arm(row["version"], row["share"]), Arm(row["previous_version"], rest)]
        found.append(Route(row["workload"], row["experiment"], tuple(arms)))
    return found
