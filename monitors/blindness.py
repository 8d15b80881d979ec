"""Which monitors have too few rows to report anything, and how many are missing: no alarm is then no good news."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.monitors", "blindness.sql")
Monitor = Literal["quality", "policy", "drift"]
MONITORS: tuple[Monitor, ...] = ("quality", "policy", "drift")


@dataclass(frozen=True)
class Blindness:
    """A monitor that has too few rows.

    Attributes:
        found, needed: so many of so many.
        what: what is counted and which keys set it, for a person.
        since: when it first had too few (UTC).
    """

    workload: str
    monitor: Monitor
    found: int
    needed: int
    what: str
    since: datetime

    def __str__(self) -> str:
        return f"blind: {self.found:,} of {self.needed:,} {self.what}"


def note(
    warehouse: Warehouse, workload: str, monitor: Monitor, found: int, needed: int, what: str, now: datetime
) -> None:
    """Store whether a monitor has enough rows."""
    key = {"workload": workload, "monitor": monitor}
    known = warehouse.row(QUERIES["of_monitor"], key)
    if found >= needed:
        if known is not None:
            warehouse.execute(QUERIES["has_enough"], key)
    elif known is None:
        warehouse.insert("blindness", **key, found=found, needed=needed, what=what, since=now)
    elif (known["found"], known["needed"], known["what"]) != (found, needed, what):
        warehouse.execute(QUERIES["still_too_few"], {**key, "found": found, "needed": needed, "what": what})


def blind(warehouse: Warehouse, *workloads: str) -> list[Blindness]:
    """The monitors of workloads that have too few rows."""
    return [Blindness(**row) for row in warehouse.rows(QUERIES["of_workloads"], {"workloads": list(workloads)})]
