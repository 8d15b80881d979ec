"""Monitors with too few rows to report anything, and how many rows they lack.

The silence of a blind monitor is not good news, so users see it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.monitors", "blindness.sql")
Monitor = Literal["quality", "policy", "drift", "hallucination", "confidence", "estimate"]
MONITORS: tuple[Monitor, ...] = ("quality", "policy", "drift", "hallucination", "confidence", "estimate")


@dataclass(frozen=True)
class Blindness:
    """A monitor with too few rows.

    Attributes:
        found, needed: the number of rows there are, and the number the monitor needs.
        what: what is counted and which settings control it, for a person.
        since: when the monitor first had too few rows (UTC).
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
    """Stores whether a monitor has enough rows."""
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
    """Returns the monitors of the workloads that have too few rows."""
    return [Blindness(**row) for row in warehouse.rows(QUERIES["of_workloads"], {"workloads": list(workloads)})]
