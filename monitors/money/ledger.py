"""The ledger: what the model gained and cost, entered item by item, and summed by day after a while."""

import json
import uuid
from calendar import monthrange
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any

import duckdb

from retuned.consumers.warehouse import answer_minutes
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries, rows_of
from retuned.monitors.rates import rate_on
from retuned.monitors.settings import RoiSettings, Settings

QUERIES = named_queries("retuned.monitors.money", "ledger.sql")
GAIN, COST = "gain", "cost"
DAY = timedelta(days=1)

_OF_RUNS = {
    "training": ("hours", "training_hourly_rate"),
    "judging": ("tokens", "judge_token_cost"),
    "provider_training": ("tokens", "provider_training_token_cost"),
    "provider_input": ("tokens", "provider_input_token_cost"),
    "provider_output": ("tokens", "provider_output_token_cost"),
}
"""Items of finished runs: their unit, and the key of their rate."""
_OF_SHADOW = {"shadow": "token_cost", "shadow_judging": "judge_token_cost"}
"""Items of answers in shadow, in tokens: the key of their rate."""


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: amount = quantity × rate, in the currency of the settings.

    Attributes:
        kind: gain or cost.
        version: whose it is; None: the base model's, or another's that is none of ours.
        promotion: id of the change of the champion that was in force; None: before the first.
        period_start, period_end: first and last of what was counted, UTC. The rate is that of the day.
        quantity: below zero where the entry corrects an earlier one, and where more was escalated than expected.
        reference: the run, or in JSON up to when was booked and how many answers were counted.
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
        """What it is worth or cost."""
        return self.quantity * self.rate


def book(warehouse: Warehouse, settings: Settings, now: datetime) -> list[Entry]:
    """Enter into the ledger what happened since the last booking, and return the new entries.

    The entries and how far they reach are written in one transaction: however often and wherever the process ends,
    nothing is booked twice and nothing is left out. Events are told apart by the transaction that stored them, not by
    their times or offsets: an event that was stored late, or replayed, is in the next booking. What is learned of an
    answer after it was booked makes another entry, over the difference, at the rate of the answer's day.

    - Gain `time_saved`: hours of `time_saved_seconds` × hourly rate.
    - Gain `escalations_avoided`: (baseline rate × conversations − escalated ones) × cost of one, where a baseline is
      configured and for workloads that report `escalated` at all.
    - Gain `tickets_avoided`: conversations called `resolved`, and not escalated, × worth of one.
    - Gain `third_party_replaced`: what the attribute `third_party_cost` of the interactions says, or their number ×
      the price of a call.
    - Cost `inference`: what the events say they cost, or their tokens × token cost.
    - Cost `data_work`: answers that an expert spoke of, each once for each expert, × hours for one × hourly rate.
    - Cost `training`: hours of training and evaluation of finished runs, but for those at a provider.
    - Cost `provider_training`, `provider_input`, `provider_output`: tokens that a provider trained on, and that it read
      and generated in the evaluation of finished runs.
    - Cost `judging`: tokens of the language model that judged the answers of finished runs.
    - Cost `shadow`: tokens of what candidates answered in shadow × token cost; `shadow_judging`: tokens of the language
      model that judged it. Both are the candidate's.
    - Cost `licences` and `fixed`: months and days that passed × the cost of one, shared out evenly over the workloads
      that have it: those of the same entry of the configuration, or all that have none of their own.

    What has no rate, or a rate of zero, is not booked. What one event reports beyond the limits of the settings is
    taken for a mistake: it is not booked, and counted in `ledger_left_out`. What became of conversations is counted in
    `ledger_outcomes`, whatever they are worth.
    """
    answer_minutes.follow(warehouse)
    with warehouse.transaction() as cursor:
        entries = [
            *_answers(cursor, settings, now),
            *_runs(cursor, settings),
            *_shadow(cursor, settings, now),
            *_fixed(cursor, settings, now),
        ]
        for entry in entries:
            insert(cursor, "ledger", id=uuid.uuid4().hex, created_at=now, **asdict(entry), amount=entry.amount)
        for row in _rows(cursor, "left_out"):
            insert(cursor, "ledger_left_out", created_at=now, **row)
        cursor.execute(QUERIES["moments"])
        cursor.execute(QUERIES["outcomes"])
        cursor.execute(QUERIES["advance"], {"now": now})
    return entries


def roll_up(warehouse: Warehouse, settings: Settings, now: datetime, detail: timedelta) -> int:
    """Sum by day what was booked on days that ended more than `detail` ago; no figure of the ledger changes.

    Entries of one day become one for each workload, version, promotion, item, unit and rate, booked when the last of
    them was. Sums over conversations are kept by day, but for the hours before a change of champion, with which it is
    compared, or may be. Each day is written in a transaction of its own. No booking may be under way.

    Returns:
        how many rows fewer there are.
    """
    changed = [row["workload"] for row in warehouse.rows(QUERIES["changed_workloads"])]
    longest = max(of.windows.current_seconds for of in (settings, *map(settings.for_workload, changed)))
    window = timedelta(seconds=longest)
    before = _midnight(now - detail)
    moments_before = min(before, _midnight(now - window - timedelta(hours=1)))
    days = [row["booked_on"] for row in warehouse.rows(QUERIES["days_to_roll_up"], {"before": before})]
    return (
        sum(_rolled(warehouse, "entries", day=day) for day in days)
        + _rolled(warehouse, "left_out", before=before)
        + _rolled(warehouse, "moments", before=moments_before, window=window.total_seconds())
    )


def _rolled(warehouse: Warehouse, rows: str, **given: Any) -> int:
    """How many rows fewer there are."""
    with warehouse.transaction() as cursor:
        cursor.execute(QUERIES[f"rolled_{rows}"], given)
        (deleted,) = cursor.execute(QUERIES[f"delete_rolled_{rows}"]).fetchall()[0]
        (inserted,) = cursor.execute(QUERIES[f"insert_rolled_{rows}"]).fetchall()[0]
    return int(deleted - inserted)


def _midnight(when: datetime) -> datetime:
    return when.replace(hour=0, minute=0, second=0, microsecond=0)


def _answers(cursor: duckdb.DuckDBPyConnection, settings: Settings, now: datetime) -> list[Entry]:
    """What interactions and feedback come to."""
    for step in ("new", "touched"):
        cursor.execute(QUERIES[step])
    days = cursor.execute(QUERIES["touched_days"]).fetchall()
    cursor.execute(f"CREATE OR REPLACE TEMP TABLE counted AS {QUERIES['counted']}", {"day": None})
    for (day,) in days:
        cursor.execute(f"INSERT INTO counted {QUERIES['counted']}", {"day": day})
    cursor.execute(QUERIES["rates"])
    roi = _by_workload(settings)
    for workload, day in cursor.execute(QUERIES["days"]).fetchall():
        of = roi(workload)
        rates = (
            of.hourly_rate, of.escalation_cost, of.baseline_escalation_rate, of.ticket_cost,
            of.third_party_cost, of.token_cost, of.expert_hourly_rate,
        )  # fmt: skip
        limits = (of.maximum_time_saved_seconds, of.maximum_event_amount)
        on_day = [rate_on(rate, day) for rate in rates]
        cursor.execute(QUERIES["rate"], [workload, day, *on_day, of.expert_minutes / 60, *limits])
    cursor.execute(QUERIES["states"])
    cursor.execute(QUERIES["lines"], {"currency": settings.roi.currency})
    rows = _rows(cursor, "entries")
    return [Entry(reference=_until(now, answers=row.pop("answers")), **row) for row in rows]


def _runs(cursor: duckdb.DuckDBPyConnection, settings: Settings) -> list[Entry]:
    entries, roi = [], _by_workload(settings)
    for item, (unit, key) in _OF_RUNS.items():
        for row in _rows(cursor, "of_runs", item=item):
            run, own = row.pop("id"), roi(row["workload"])
            rate = rate_on(getattr(own, key), row["period_end"].date())
            if rate:
                entries.append(Entry(**row, kind=COST, item=item, unit=unit, rate=rate, reference=run))
    return entries


def _shadow(cursor: duckdb.DuckDBPyConnection, settings: Settings, now: datetime) -> list[Entry]:
    entries, roi = [], _by_workload(settings)
    for row in _rows(cursor, "of_shadow"):
        rate = rate_on(getattr(roi(row["workload"]), _OF_SHADOW[row["item"]]), row["period_end"].date())
        if rate:
            reference = _until(now, answers=row.pop("answers"))
            entries.append(Entry(**row, promotion=None, kind=COST, unit="tokens", rate=rate, reference=reference))
    cursor.execute(QUERIES["shadow_booked"])
    return entries


def _fixed(cursor: duckdb.DuckDBPyConnection, settings: Settings, now: datetime) -> list[Entry]:
    """What the time since the last booking cost, in parts of one day and one champion each."""
    since = _rows(cursor, "since")[0]["since"] or _rows(cursor, "first_received")[0]["since"]
    workloads = [row["workload"] for row in _rows(cursor, "workloads")]
    if since is None or since >= now:
        return []
    midnight = _midnight(since)
    midnights = [midnight + n * DAY for n in range(1, (now - midnight).days + 1)]
    entries, roi = [], _by_workload(settings)
    bearers = {
        key: Counter(settings.origin(workload, "roi", key) for workload in workloads)
        for key in ("licence_monthly_cost", "fixed_daily_cost")
    }
    for workload in workloads:
        changes = _rows(cursor, "changes", workload=workload)
        cuts = {since, now, *midnights, *(change["created_at"] for change in changes)}
        for start, end in pairwise(sorted(cut for cut in cuts if since <= cut <= now)):
            served = next((change for change in reversed(changes) if change["created_at"] <= start), None)
            days = (end - start) / DAY
            months = days / monthrange(start.year, start.month)[1]
            for item, passed, unit, key in (
                ("licences", months, "months", "licence_monthly_cost"),
                ("fixed", days, "days", "fixed_daily_cost"),
            ):
                quantity = passed / bearers[key][settings.origin(workload, "roi", key)]
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
                            quantity=quantity,
                            unit=unit,
                            rate=rate,
                            reference=_until(now),
                        )
                    )
    return entries


def _by_workload(settings: Settings) -> Callable[[str], RoiSettings]:
    """The rates of each workload, looked up once."""
    return lru_cache(maxsize=None)(lambda workload: settings.for_workload(workload).roi)


def _until(now: datetime, **counted: Any) -> str:
    return json.dumps({"until": now.isoformat(), **counted})


def _rows(cursor: duckdb.DuckDBPyConnection, query: str, **parameters: Any) -> list[dict[str, Any]]:
    return rows_of(cursor.execute(QUERIES[query], parameters or None))
