"""Outcomes of conversations, and the cost of a resolved one."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from retuned.consumers.warehouse.connection import Warehouse, named_queries

OUTCOMES = ("resolved", "unresolved", "escalated", "unknown")
QUERIES = named_queries("retuned.monitors.money", "outcomes.sql")


@dataclass(frozen=True)
class Outcomes:
    """The conversations of a span of days by outcome, and all costs booked for these days.

    A conversation counts anew each day (UTC), as in the ledger.

    Attributes:
        since: the first day; not before the first day with a known outcome.
        resolved, unresolved: by the latest feedback, if not escalated.
        escalated: handed to a person, whatever other feedback reports.
        unknown: without feedback on the outcome.
        costs: in the currency of the settings; None: none is booked.
    """

    since: date
    resolved: int
    unresolved: int
    escalated: int
    unknown: int
    costs: float | None

    @property
    def cost_per_resolved(self) -> float | None:
        """All costs divided by the resolved conversations; None: no cost is booked, or none is resolved."""
        return self.costs / self.resolved if self.costs is not None and self.resolved else None

    def counts(self) -> dict[str, int]:
        """Returns the number of conversations by outcome."""
        return {name: getattr(self, name) for name in OUTCOMES}


def outcomes(
    warehouse: Warehouse, workload: str, start: date | None = None, end: date | None = None
) -> Outcomes | None:
    """Returns the outcomes of a workload on the days from `start` to before `end`, or on all days.

    None: no outcome is known.
    """
    return outcomes_of(warehouse, [workload], start, end).get(workload)


def outcomes_of(
    warehouse: Warehouse, workloads: Iterable[str], start: date | None = None, end: date | None = None
) -> dict[str, Outcomes]:
    """Returns the outcomes of each workload with known outcomes."""
    rows = warehouse.rows(QUERIES["outcomes"], {"workloads": list(workloads), "start": start, "end": end})
    return {row.pop("workload"): Outcomes(**row) for row in rows}
