"""The ledger: gains and costs of the model, booked item by item."""

import json
import uuid
from calendar import monthrange
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any

import duckdb

from retuned.consumers.warehouse import answer_minutes
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries, rows_of
from retuned.monitors.money.dated import rate_on
from retuned.monitors.settings import RoiSettings, Settings

QUERIES = named_queries("retuned.monitors.money", "ledger.sql")
GAIN, COST = "gain", "cost"
DAY = timedelta(days=1)
Incumbent = Callable[[str], str | None]
"""Returns the model of a workload's incumbent (`incumbent.model`), if there is one."""

_RUN_ITEMS = {
    "training": ("hours", "training_hourly_rate"),
    "judging": ("tokens", "judge_token_cost"),
}
"""Items of finished runs: the unit, and the key of the rate."""
_SHADOW_ITEMS = {"shadow": "token_cost", "shadow_judging": "judge_token_cost"}
"""Items of answers in shadow, in tokens: the key of the rate."""
_FIXED_ITEMS = {"licences": ("months", "licence_monthly_cost"), "fixed": ("days", "fixed_daily_cost")}
"""Items of passed time: the unit, and the key of the rate."""


@dataclass(frozen=True)
class Entry:
    """An entry of the ledger: amount = quantity × rate, in the currency of the settings.

    Attributes:
        kind: gain or cost.
        version: the version it belongs to; None: the base model or a foreign model.
        promotion: the id of the change of champion in force; None: before the first, and for the costs of producing a
            version and of its shadow.
        period_start, period_end: the first and the last event counted (UTC). The rate is that of the day.
        quantity: negative if the entry corrects an earlier one, or if more was escalated than expected.
        reference: the run, or JSON with the time of booking and the number of answers counted.
    """

    workload: str
    version: str | None
    promotion: str | None
    period_start: datetime
    period_end: datetime
    kind: str
    item: str
    quantity: float
    unit: str
    rate: float
    reference: str

    @property
    def amount(self) -> float:
        """The worth of a gain, or the cost."""
        return self.quantity * self.rate


def book(warehouse: Warehouse, settings: Settings, now: datetime, incumbent: Incumbent = lambda _: None) -> list[Entry]:
    """Books everything since the last booking, and returns the new entries.

    The entries and the position are written in one transaction, so a crash at any point neither repeats nor loses
    entries. New events are identified by the transaction that stored them, not by their times or offsets, so late and
    replayed events are in the next booking. Later feedback on a booked answer makes another entry with the difference,
    at the rate of the answer's day.

    - Gain `time_saved`: hours of `time_saved_seconds` × hourly rate.
    - Gain `escalations_avoided`: (baseline rate × conversations − escalated ones) × cost of one, if a baseline is
      configured and the workload reports `escalated` at all.
    - Gain `tickets_avoided`: resolved conversations that were not escalated × worth of one.
    - Gain `third_party_replaced`: the attribute `third_party_cost` of the interactions, or the number of answers of
      versions and of the base model × the price of a call.
    - Cost `inference`: the cost reported by events, or their tokens × token cost.
    - Cost `data_work`: answers with feedback of an expert, once for each expert, × hours per answer × hourly rate.
    - Cost `training`: hours of training and evaluation of finished runs.
    - Cost `judging`: tokens of the language model that judged the answers of finished runs.
    - Cost `shadow`: tokens of candidates' answers in shadow × token cost; `shadow_judging`: tokens of the language
      model that judged them. Both belong to the candidate.
    - Costs `licences` and `fixed`: months and days passed × the cost of one, split evenly over the workloads that share
      the setting: those of the same entry of the configuration, or all without one of their own.

    Items without a rate, or with a rate of zero, are not booked. A number of an event beyond the limits of the settings
    counts as a mistake: it is counted in `ledger_left_out` instead. Outcomes of conversations are counted in
    `ledger_outcomes`, whatever they are worth.

    Args:
        incumbent: the configured one; its answers replace no call.
    """
    answer_minutes.follow(warehouse)
    with warehouse.transaction() as cursor:
        entries = [
            *_answers(cursor, settings, now, incumbent),
            *_runs(cursor, settings),
            *_shadow(cursor, settings, now),
            *_fixed(cursor, settings, now),
        ]
        for entry in entries:
            insert(cursor, "ledger", id=uuid.uuid4().hex, created_at=now, **asdict(entry), amount=entry.amount)
        cursor.execute(QUERIES["advance"], {"now": now})
    return entries


def _answers(cursor: duckdb.DuckDBPyConnection, settings: Settings, now: datetime, incumbent: Incumbent) -> list[Entry]:
    """Books interactions and feedback, and returns the entries.

    Workloads that report an escalation for the first time are booked again from their first day with rates, one day
    after the other: what was expected of earlier conversations is known to be avoided only now.
    """
    for step in ("new", "touched", "chosen", "escalating"):
        cursor.execute(QUERIES[step])
    roi = _by_workload(settings)
    _count(cursor, roi, incumbent, [day for (day,) in cursor.execute(QUERIES["touched_days"]).fetchall()])
    first = _first_escalations(cursor, roi)
    entries = _changes(cursor, settings, now)
    for workload in first:
        for row in _rows(cursor, "earlier_days", workload=workload):
            if not _rates_escalations(roi(workload), row["day"]):
                continue
            (chosen,) = cursor.execute(QUERIES["chosen_earlier"], {"workload": workload, **row}).fetchall()[0]
            if chosen:
                _count(cursor, roi, incumbent, [row["day"]])
                entries += _changes(cursor, settings, now)
    return entries


def _count(
    cursor: duckdb.DuckDBPyConnection,
    roi: Callable[[str], RoiSettings],
    incumbent: Incumbent,
    days: Iterable[date],
) -> None:
    """Reads the answers of the chosen conversations, with their rates and the feedback on them."""
    cursor.execute(f"CREATE OR REPLACE TEMP TABLE counted AS {QUERIES['counted']}", {"day": None})
    for day in days:
        cursor.execute(f"INSERT INTO counted {QUERIES['counted']}", {"day": day})
    cursor.execute(QUERIES["rates"])
    for workload, day in cursor.execute(QUERIES["days"]).fetchall():
        own = roi(workload)
        rates = (
            own.hourly_rate, own.escalation_cost, own.baseline_escalation_rate, own.ticket_cost,
            own.third_party_cost, own.token_cost, own.expert_hourly_rate,
        )  # fmt: skip
        limits = (own.maximum_time_saved_seconds, own.maximum_event_amount)
        on_day = [rate_on(rate, day) for rate in rates]
        row = [workload, day, *on_day, own.expert_minutes / 60, *limits, incumbent(workload)]
        cursor.execute(QUERIES["rate"], row)
    cursor.execute(QUERIES["reported"])


def _first_escalations(cursor: duckdb.DuckDBPyConnection, roi: Callable[[str], RoiSettings]) -> list[str]:
    """Notes which workloads report escalations. Returns those that never did so before, on a day with rates.

    Others may have reported some before there were rates for it: nothing is booked of that time.
    """
    first = []
    for row in _rows(cursor, "reporting"):
        before = _rows(cursor, "days_reported", **row)
        did = any(_rates_escalations(roi(row["workload"]), reported["day"]) for reported in before)
        cursor.execute(QUERIES["escalates"], row | {"did": did})
        if not did:
            first.append(row["workload"])
    return first


def _rates_escalations(roi: RoiSettings, day: date) -> bool:
    return bool(rate_on(roi.escalation_cost, day)) and rate_on(roi.baseline_escalation_rate, day) is not None


def _changes(cursor: duckdb.DuckDBPyConnection, settings: Settings, now: datetime) -> list[Entry]:
    """Books what has changed of the counted answers beside the ledger, and returns the entries."""
    cursor.execute(QUERIES["states"])
    cursor.execute(QUERIES["lines"], {"currency": settings.roi.currency})
    for step in ("moments", "add_moments", "outcomes"):
        cursor.execute(QUERIES[step])
    _leave_out(cursor, "left_out", now)
    rows = _rows(cursor, "entries")
    return [Entry(reference=_until(now, answers=row.pop("answers")), **row) for row in rows]


def _leave_out(cursor: duckdb.DuckDBPyConnection, query: str, now: datetime) -> None:
    """Counts the mistakes that a query finds."""
    for row in _rows(cursor, query):
        insert(cursor, "ledger_left_out", created_at=now, **row)


def _runs(cursor: duckdb.DuckDBPyConnection, settings: Settings) -> list[Entry]:
    entries, roi = [], _by_workload(settings)
    for item, (unit, key) in _RUN_ITEMS.items():
        for row in _rows(cursor, "runs", item=item):
            run, own = row.pop("id"), roi(row["workload"])
            rate = rate_on(getattr(own, key), row["period_end"].date())
            if rate:
                entries.append(Entry(**row, kind=COST, item=item, unit=unit, rate=rate, reference=run))
    return entries


def _shadow(cursor: duckdb.DuckDBPyConnection, settings: Settings, now: datetime) -> list[Entry]:
    for step in ("spent", "token_rates"):
        cursor.execute(QUERIES[step])
    roi = _by_workload(settings)
    for item, workload, day in cursor.execute(QUERIES["spent_days"]).fetchall():
        own = roi(workload)
        if rate := rate_on(getattr(own, _SHADOW_ITEMS[item]), day):
            cursor.execute(QUERIES["token_rate"], [item, workload, day, rate, own.maximum_event_amount])
    cursor.execute(QUERIES["worth"])
    _leave_out(cursor, "shadow_left_out", now)
    cursor.execute(QUERIES["shadow_booked"])
    return [
        Entry(reference=_until(now, answers=row.pop("answers")), promotion=None, kind=COST, unit="tokens", **row)
        for row in _rows(cursor, "shadow")
    ]


def _fixed(cursor: duckdb.DuckDBPyConnection, settings: Settings, now: datetime) -> list[Entry]:
    """Returns the costs of the time since the last booking, cut at midnights and changes of champion."""
    since = _rows(cursor, "since")[0]["since"] or _rows(cursor, "first_received")[0]["since"]
    workloads = [row["workload"] for row in _rows(cursor, "workloads")]
    if since is None or since >= now:
        return []
    entries, roi = [], _by_workload(settings)
    sharing = {
        key: Counter(settings.origin(workload, "roi", key) for workload in workloads)
        for _, key in _FIXED_ITEMS.values()
    }
    for workload in workloads:
        changes = _rows(cursor, "changes", workload=workload)
        for start, end in _cut(since, now, [change["created_at"] for change in changes]):
            served = next((change for change in reversed(changes) if change["created_at"] <= start), None)
            days = (end - start) / DAY
            passed = {"days": days, "months": days / monthrange(start.year, start.month)[1]}
            for item, (unit, key) in _FIXED_ITEMS.items():
                if rate := rate_on(getattr(roi(workload), key), start.date()):
                    entries.append(
                        Entry(
                            workload=workload,
                            version=served and served["version"],
                            promotion=served and served["id"],
                            period_start=start,
                            period_end=end,
                            kind=COST,
                            item=item,
                            quantity=passed[unit] / sharing[key][settings.origin(workload, "roi", key)],
                            unit=unit,
                            rate=rate,
                            reference=_until(now),
                        )
                    )
    return entries


def _cut(since: datetime, now: datetime, changes: Iterable[datetime]) -> Iterator[tuple[datetime, datetime]]:
    """Cuts the time from `since` to `now` at midnights and changes."""
    midnight = since.replace(hour=0, minute=0, second=0, microsecond=0)
    midnights = [midnight + n * DAY for n in range(1, (now - midnight).days + 1)]
    return pairwise(sorted(cut for cut in {since, now, *midnights, *changes} if since <= cut <= now))


def _by_workload(settings: Settings) -> Callable[[str], RoiSettings]:
    """Returns a cached look-up of the settings of a workload."""
    return lru_cache(maxsize=None)(lambda workload: settings.for_workload(workload).roi)


def _until(now: datetime, **counts: Any) -> str:
    return json.dumps({"until": now.isoformat(), **counts})


def _rows(cursor: duckdb.DuckDBPyConnection, query: str, **parameters: Any) -> list[dict[str, Any]]:
    return rows_of(cursor.execute(QUERIES[query], parameters or None))
