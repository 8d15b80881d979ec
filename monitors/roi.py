"""Return on investment: a ledger of what the model gained and cost, and (gains - costs) / costs over it."""

import json
import uuid
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import duckdb

from retuned.consumers.warehouse import Warehouse, insert, named_queries
from retuned.monitors.settings import RoiSettings, Settings
from retuned.monitors.windows import SQL

QUERIES = named_queries(SQL, "roi.sql")
GAIN, COST = "gain", "cost"


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: amount = quantity × rate, in the currency of the settings, never negative."""

    workload: str
    kind: str
    item: str
    quantity: float
    unit: str
    rate: float
    reference: str

    @property
    def amount(self) -> float:
        """What it is worth or cost."""
        return self.quantity * self.rate


@dataclass(frozen=True)
class Item:
    """All entries of one item, summed."""

    kind: str
    item: str
    quantity: float
    unit: str
    amount: float


@dataclass(frozen=True)
class Roi:
    """Gains, costs and (gains - costs) / costs; the ratio is None while nothing was spent."""

    gains: float
    costs: float
    ratio: float | None
    items: list[Item]


def book(warehouse: Warehouse, settings: Settings, now: datetime) -> list[Entry]:
    """Enter into the ledger what happened since the last booking, and return the new entries.

    The entries and how far they reach are written in one transaction: however often and wherever the process ends,
    nothing is booked twice and nothing is left out. Events are told apart by their offsets, not by their times: an
    event that was stored late is in the next booking.

    - Gain `time_saved`: hours of `time_saved_seconds` feedback × hourly rate.
    - Gain `escalations_avoided`: (baseline rate × interactions − escalated) × cost of one, for workloads that report
      `escalated` at all. More escalations than the baseline are carried over and taken from the next gains.
    - Cost `training`: hours of training and evaluation of finished runs. Cost `inference`: what the events say they
      cost, or their tokens × token cost. Cost `fixed`: the daily cost by the time passed, shared out over
      the workloads.
    """
    roi = settings.roi
    with warehouse.transaction() as cursor:
        cursor.execute(QUERIES["window"])
        entries = (
            _time_saved(cursor, roi, now)
            + _escalations_avoided(cursor, roi, now)
            + _training(cursor, roi)
            + _inference(cursor, roi, now)
            + _fixed(cursor, roi, now)
        )
        for entry in entries:
            insert(cursor, "ledger", id=uuid.uuid4().hex, created_at=now, **asdict(entry), amount=entry.amount)
        cursor.execute(QUERIES["advance"], {"now": now})
    return entries


def summary(warehouse: Warehouse, workload: str | None = None) -> Roi:
    """The ledger of one workload, or of all, summed by item."""
    items = [Item(**row) for row in warehouse.rows(QUERIES["summary"], {"workload": workload})]
    gains = sum(item.amount for item in items if item.kind == GAIN)
    costs = sum(item.amount for item in items if item.kind == COST)
    return Roi(gains, costs, (gains - costs) / costs if costs > 0 else None, items)


def _time_saved(cursor: duckdb.DuckDBPyConnection, roi: RoiSettings, now: datetime) -> list[Entry]:
    return [
        Entry(
            row["workload"],
            GAIN,
            "time_saved",
            row["hours"],
            "hours",
            roi.hourly_rate,
            _until(now, answers=row["answers"]),
        )
        for row in _rows(cursor, "time_saved")
    ]


def _escalations_avoided(cursor: duckdb.DuckDBPyConnection, roi: RoiSettings, now: datetime) -> list[Entry]:
    carried = {row["workload"]: row["carried"] for row in _rows(cursor, "carried")}
    entries = []
    for row in _rows(cursor, "escalations"):
        expected = roi.baseline_escalation_rate * row["interactions"]
        avoided = expected - row["escalations"] + carried.get(row["workload"], 0.0)
        reference = _until(
            now, interactions=row["interactions"], escalated=row["escalations"], carried=min(avoided, 0.0)
        )
        entries.append(
            Entry(
                row["workload"],
                GAIN,
                "escalations_avoided",
                max(avoided, 0.0),
                "escalations",
                roi.escalation_cost,
                reference,
            )
        )
    return entries


def _training(cursor: duckdb.DuckDBPyConnection, roi: RoiSettings) -> list[Entry]:
    return [
        Entry(row["workload"], COST, "training", row["hours"], "hours", roi.training_hourly_rate, row["id"])
        for row in _rows(cursor, "training")
    ]


def _inference(cursor: duckdb.DuckDBPyConnection, roi: RoiSettings, now: datetime) -> list[Entry]:
    entries = []
    for row in _rows(cursor, "inference"):
        if row["cost"] > 0:
            reference = _until(now, answers=row["priced"])
            entries.append(Entry(row["workload"], COST, "inference", row["cost"], roi.currency, 1.0, reference))
        if row["tokens"] > 0:
            entries.append(
                Entry(row["workload"], COST, "inference", row["tokens"], "tokens", roi.token_cost, _until(now))
            )
    return entries


def _fixed(cursor: duckdb.DuckDBPyConnection, roi: RoiSettings, now: datetime) -> list[Entry]:
    since = _rows(cursor, "since")[0]["since"]
    workloads = [row["workload"] for row in _rows(cursor, "workloads")]
    if since is None or since >= now or not workloads or roi.fixed_daily_cost == 0:
        return []
    days = (now - since).total_seconds() / 86_400 / len(workloads)
    reference = _until(now, since=since.isoformat())
    return [Entry(workload, COST, "fixed", days, "days", roi.fixed_daily_cost, reference) for workload in workloads]


def _until(now: datetime, **counted: Any) -> str:
    return json.dumps({"until": now.isoformat(), **counted})


def _rows(cursor: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    cursor.execute(QUERIES[query])
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
