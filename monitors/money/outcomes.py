"""What became of conversations, and what one that was resolved cost."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from retuned.consumers.warehouse.connection import Warehouse, named_queries

OUTCOMES = ("resolved", "unresolved", "escalated", "unknown")
QUERIES = named_queries("retuned.monitors.money", "outcomes.sql")


@dataclass(frozen=True)
class Outcomes:
    """Conversations of some days by what became of them, and all that was booked as a cost of these days.

    A conversation is as in the ledger: what goes on on another day (UTC) is another one.

    Attributes:
        since: the first of the days; not before one of whose conversations it is known whether they were resolved.
        resolved, unresolved: what was said of it last, and it was not escalated.
        escalated: handed to a person, whatever else was said of it.
        unknown: nothing was said.
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
        """All costs, over the conversations that were resolved; None: no cost is booked, or none was resolved."""
        return self.costs / self.resolved if self.costs is not None and self.resolved else None

    def counts(self) -> dict[str, int]:
        """How many conversations, by outcome."""
        return {name: getattr(self, name) for name in OUTCOMES}


def outcomes(
    warehouse: Warehouse, workload: str, start: date | None = None, end: date | None = None
) -> Outcomes | None:
    """Those of a workload, of the days from `start` to before `end`, or of all.

    None: nothing is known until then of whether any conversation was resolved.
    """
    return outcomes_of(warehouse, [workload], start, end).get(workload)


def outcomes_of(
    warehouse: Warehouse, workloads: Iterable[str], start: date | None = None, end: date | None = None
) -> dict[str, Outcomes]:
    """Those of each workload of which anything is known."""
    rows = warehouse.rows(QUERIES["outcomes"], {"workloads": list(workloads), "start": start, "end": end})
    return {row.pop("workload"): Outcomes(**row) for row in rows}
