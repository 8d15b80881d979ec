"""Requests for a person's approval, of a version that the gate passed or of a dataset before it is trained on.

A row is one request. It is settled once: approved or refused by a person, expired, or superseded. `release.approve`
creates and settles requests; a change of champion settles them in its transaction.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import duckdb

from retuned.consumers.common.times import shown
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.versions import model_name

QUERIES = named_queries("retuned.retrain.release", "approvals.sql")

Kind = Literal["version", "dataset"]
State = Literal["waiting", "approved", "refused", "expired", "superseded"]

LISTED = 100
"""The maximum number of requests that are listed, waiting ones first."""


@dataclass(frozen=True)
class Verdict:
    """The decision of a person on a request, with the reason."""

    approval_id: str
    state: Literal["approved", "refused"]
    actor: str
    reason: str


@dataclass(frozen=True)
class Approval:
    """A request for approval.

    Attributes:
        version: the version that the gate passed, or the version of the dataset.
        champion: the version that it was compared with; None for the base model.
        requested_at, expires_at, decided_at: naive UTC; decided_at is None while the request waits.
        actor: the person who approved or refused it, if any.
        reason: the reason why it was approved, refused or superseded.
        announced: the message about its state is published, and the version's card contains the decision.
        kind: a version to put into service, or a dataset to train on.
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
    kind: Kind = "version"

    @property
    def name(self) -> str:
        """The name of the version on servers, or of the dataset."""
        if self.kind == "dataset":
            return f"dataset {self.version} of {self.workload}"
        return model_name(self.workload, self.version)

    @property
    def state_since(self) -> datetime:
        """The time when it was requested or settled."""
        return self.decided_at or self.requested_at

    def __str__(self) -> str:
        """Returns its state as a sentence without a full stop."""
        if self.state == "waiting":
            return f"{self.name} waits for approval until {shown(self.expires_at)}"
        by = f" by {self.actor}" if self.actor else ""
        why = f": {self.reason}" if self.reason else ""
        return f"approval of {self.name}: {self.state}{by} at {shown(self.state_since)}{why}"


def find(warehouse: Warehouse, id: str) -> Approval | None:
    """Returns a request by its id, or None."""
    return _one(warehouse, "find", id=id)


def of_run(warehouse: Warehouse, run_id: str, kind: Kind = "version") -> Approval | None:
    """Returns a run's latest request of a kind, or None."""
    return _one(warehouse, "of_run", run_id=run_id, kind=kind)


def refused(warehouse: Warehouse, workload: str, version: str) -> Approval | None:
    """Returns the latest request in which a person refused this version, or None."""
    return _one(warehouse, "refused", workload=workload, version=version)


def waiting(warehouse: Warehouse, workload: str | None) -> list[Approval]:
    """Returns the waiting requests of one workload or of all, the first to expire first. At most one of each kind."""
    return [Approval(**row) for row in warehouse.rows(QUERIES["waiting"], {"workload": workload})]


def overdue(warehouse: Warehouse, now: datetime) -> list[Approval]:
    """Returns the waiting requests whose time is over."""
    return [Approval(**row) for row in warehouse.rows(QUERIES["overdue"], {"now": now})]


def unannounced(warehouse: Warehouse, workload: str) -> list[Approval]:
    """Returns the requests of a workload whose state is not announced. Superseded ones need no message."""
    return [Approval(**row) for row in warehouse.rows(QUERIES["unannounced"], {"workload": workload})]


def settle(cursor: duckdb.DuckDBPyConnection, verdict: Verdict, now: datetime) -> None:
    """Stores the decision of a person."""
    given = {"id": verdict.approval_id, "state": verdict.state, "actor": verdict.actor, "reason": verdict.reason}
    cursor.execute(QUERIES["settle"], given | {"now": now})


def supersede(
    cursor: duckdb.DuckDBPyConnection, workload: str | None, reason: str, now: datetime, kind: Kind | None = None
) -> None:
    """Supersedes the waiting requests of one workload or of all, of one kind or of both."""
    cursor.execute(QUERIES["supersede"], {"workload": workload, "reason": reason, "now": now, "kind": kind})


def listed(
    warehouse: Warehouse,
    workload: str | None = None,
    id: str | None = None,
    most: int | None = LISTED,
    each: int | None = None,
) -> list[dict[str, Any]]:
    """Returns at most `most` requests of one workload or of all, waiting ones first, and at most `each` per workload.

    Each has the fields of an `Approval` except `announced`; `gate_reasons`; `scores`, the mean score on the holdout of
    base, champion, candidate and logged (None until the run has ended); `gain`, `gain_low` and `gain_high` of the
    candidate; and `counts` of a waiting dataset: `rows` by state and reason.
    """
    rows = warehouse.rows(QUERIES["listed"], {"workload": workload, "id": id, "most": most, "each": each})
    for row in rows:
        row |= {name: json.loads(row[name] or "null") for name in ("gate_reasons", "scores")}
        if row["counts"] is not None:
            counts: dict[str, dict[str, Any]] = {}
            for one in row["counts"]:
                counts.setdefault(one["state"], {})[one["reason"]] = {"rows": one["rows"]}
            row["counts"] = counts
    return rows


def _one(warehouse: Warehouse, query: str, **given: Any) -> Approval | None:
    row = warehouse.row(QUERIES[query], given)
    return Approval(**row) if row else None
