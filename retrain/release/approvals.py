"""Approvals: where a person has to approve it, a version that the gate passed waits before it comes into service.

A row is one request, and is settled once: by a person (approved, refused), by its time (expired), or by what happened
meanwhile (superseded). `release.approve` makes and settles them; a change of champion settles them in its transaction.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import duckdb

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.versions import model_name

QUERIES = named_queries("retuned.retrain.release", "approvals.sql")

State = Literal["waiting", "approved", "refused", "expired", "superseded"]

LISTED = 100
"""So many requests are listed, those that wait first."""


@dataclass(frozen=True)
class Verdict:
    """What a person decided on a request, and why."""

    approval_id: str
    state: Literal["approved", "refused"]
    actor: str
    reason: str


@dataclass(frozen=True)
class Approval:
    """A request for approval.

    Attributes:
        version: what the gate passed.
        champion: what it was compared with; None: the base model.
        requested_at, expires_at, decided_at: naive UTC; decided_at is None while it waits.
        actor: who approved or refused it; None: nobody did.
        reason: why it was approved, refused or superseded.
        announced: the message of its state is published, and the card of its version has what was decided.
    """

    id: str
    workload: str
    version: str
    champion: str | None
    run_id: str
    requested_at: datetime
    expires_at: datetime
    state: State
    decided_at: datetime | None
    actor: str | None
    reason: str | None
    announced: bool

    @property
    def name(self) -> str:
        """The name under which the version would be served."""
        return model_name(self.workload, self.version)

    @property
    def state_since(self) -> datetime:
        """When it was requested, or settled."""
        return self.decided_at or self.requested_at

    def __str__(self) -> str:
        """Where it stands, in a sentence without a full stop."""
        if self.state == "waiting":
            return f"{self.name} waits for approval until {self.expires_at:%Y-%m-%d %H:%M} UTC"
        by = f" by {self.actor}" if self.actor else ""
        why = f": {self.reason}" if self.reason else ""
        return f"approval of {self.name}: {self.state}{by} at {self.decided_at:%Y-%m-%d %H:%M} UTC{why}"


def find(warehouse: Warehouse, id: str) -> Approval | None:
    """A request by its id, or None."""
    return _one(warehouse, "find", id=id)


def of_run(warehouse: Warehouse, run_id: str) -> Approval | None:
    """The request that a run made, or None."""
    return _one(warehouse, "of_run", run_id=run_id)


def refused(warehouse: Warehouse, workload: str, version: str) -> Approval | None:
    """The request in which a person refused this version last, or None."""
    return _one(warehouse, "refused", workload=workload, version=version)


def waiting(warehouse: Warehouse, workload: str) -> Approval | None:
    """The request of a workload that waits, or None."""
    return _one(warehouse, "waiting", workload=workload)


def overdue(warehouse: Warehouse, now: datetime) -> list[Approval]:
    """The requests that wait and whose time is over."""
    return [Approval(**row) for row in warehouse.rows(QUERIES["overdue"], {"now": now})]


def unannounced(warehouse: Warehouse, workload: str) -> list[Approval]:
    """The requests of a workload whose state is still to be announced; what superseded one announces itself."""
    return [Approval(**row) for row in warehouse.rows(QUERIES["unannounced"], {"workload": workload})]


def settle(cursor: duckdb.DuckDBPyConnection, verdict: Verdict, now: datetime) -> None:
    """Write what a person decided."""
    given = {"id": verdict.approval_id, "state": verdict.state, "actor": verdict.actor, "reason": verdict.reason}
    cursor.execute(QUERIES["settle"], given | {"now": now})


def supersede(cursor: duckdb.DuckDBPyConnection, workload: str, reason: str, now: datetime) -> None:
    """End the request of a workload that waits, if there is one."""
    cursor.execute(QUERIES["supersede"], {"workload": workload, "reason": reason, "now": now})


def listed(
    warehouse: Warehouse,
    workload: str | None = None,
    id: str | None = None,
    most: int | None = LISTED,
    each: int | None = None,
) -> list[dict[str, Any]]:
    """Requests of one workload or of all, those that wait first, with the gate's reasons and figures, for people.

    At most `most`, and of each workload `each`.

    Each has the fields of an `Approval` but for `announced`; `gate_reasons`; `scores`, the mean score on the holdout by
    base, champion, candidate and logged (None until the run has ended); and `gain` of the candidate over what it was
    compared with, `gain_low` to `gain_high`.
    """
    rows = warehouse.rows(QUERIES["listed"], {"workload": workload, "id": id, "most": most, "each": each})
    return [row | {name: json.loads(row[name] or "null") for name in ("gate_reasons", "scores")} for row in rows]


def _one(warehouse: Warehouse, query: str, **given: Any) -> Approval | None:
    row = warehouse.row(QUERIES[query], given)
    return Approval(**row) if row else None
