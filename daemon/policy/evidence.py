"""Reads the policy's evidence from the warehouse, and stores its decisions."""

import json
import logging
import math
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, time, timedelta

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.jsontext import as_json
from retuned.daemon.policy import payoff
from retuned.daemon.policy.decision import Decision, Evidence
from retuned.daemon.policy.ratings import UNRATED, Ratings, by_period
from retuned.daemon.settings import Settings, crontab
from retuned.monitors.money.dated import rate_on
from retuned.retrain import queue
from retuned.retrain.release import erased

log = logging.getLogger(__name__)
QUERIES = named_queries("retuned.daemon.policy", "evidence.sql")
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  (the warehouse keeps UTC without a zone)


def gather(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> Evidence:
    """Returns the evidence about a workload; a run that waits or was interrupted counts as running."""
    judgements.follow(warehouse)
    champion = warehouse.row(QUERIES["champion"], {"workload": workload}) or {}
    last_run = warehouse.row(QUERIES["last_run"], {"workload": workload}) or {}
    learned = warehouse.row(QUERIES["last_learned"], {"workload": workload}) or {}
    corrections = warehouse.row(
        QUERIES["corrections"],
        {
            "workload": workload,
            "since_dataset": champion.get("learned_until") or EPOCH,
            "since_run": learned.get("learned_until") or EPOCH,
            "promoted_at": champion.get("promoted_at") or EPOCH,
        },
    )
    refused = warehouse.row(QUERIES["refused"], {"workload": workload})
    failed = warehouse.row(QUERIES["failed"], {"workload": workload})
    assert corrections is not None
    assert refused is not None
    assert failed is not None
    drifted = warehouse.rows(
        QUERIES["drift"],
        {
            "workload": workload,
            "since": learned.get("finished_at") or EPOCH,
            "checks": settings.policy.drift_checks,
        },
    )
    rated = by_period(warehouse, settings.windows, workload, now)
    return Evidence(
        drifted=tuple(row["drifted"] for row in drifted),
        ratings=rated,
        taken_back=bool(learned.get("taken_back")),
        refused_runs=refused["runs"],
        failed_runs=failed["runs"],
        new_corrections=corrections["new"],
        untried_corrections=corrections["untried"],
        corrections_to_learn=corrections["to_learn"],
        last_run_finished_at=last_run.get("finished_at"),
        running=bool(queue.unfinished(warehouse, workload)),
        retrain_cron=settings.schedule.retrain_cron,
        scheduled=_is_time(warehouse, settings.schedule.retrain_cron, workload, last_run.get("started_at"), now),
        money=_money(warehouse, settings, workload, rated, now),
    )


def _is_time(
    warehouse: Warehouse, expression: str | None, workload: str, last_run_started_at: datetime | None, now: datetime
) -> bool:
    """Whether a time of `schedule.retrain_cron` has come since the policy's first decision under this expression, the
    start of the last run, and the last time that was settled. So none is missed while a run waits or the daemon is
    down."""
    if expression is None:
        return False
    known = {"workload": workload, "expression": expression, "last_run": last_run_started_at}
    since = warehouse.row(QUERIES["schedule"], known)
    if since is None:
        return False
    after = since["since"].replace(tzinfo=UTC) + timedelta(microseconds=1)
    due = crontab(expression).get_next_fire_time(None, after)
    return due is not None and due <= now.replace(tzinfo=UTC)


def store(warehouse: Warehouse, workload: str, decision: Decision, evidence: Evidence, now: datetime) -> bool:
    """Store a decision, unless it repeats the last one with other figures. Returns whether it was stored.

    A scheduled time is settled once, unless the run has to wait for something that ends. A new schedule.retrain_cron is
    stored, because its times count from then on.
    """
    settled = evidence.scheduled and not decision.postponed
    last = warehouse.row(QUERIES["last_decision"], {"workload": workload})
    news = (
        last is None
        or last["outcome"] != decision.retrain
        or last["retrain_cron"] != evidence.retrain_cron
        or _gist(json.loads(last["reasons"])) != _gist(decision.reasons)
    )
    if not (decision.retrain or news or settled):
        return False
    warehouse.insert(
        "decisions",
        id=uuid.uuid4().hex,
        created_at=now,
        workload=workload,
        kind="retrain",
        outcome=decision.retrain,
        reasons=json.dumps(decision.reasons),
        figures=as_json(
            {
                "drifted": list(evidence.drifted),
                "ratings": sum(period.total for period in evidence.ratings),
                "refused_runs": evidence.refused_runs,
                "failed_runs": evidence.failed_runs,
                "new_corrections": evidence.new_corrections,
                "untried_corrections": evidence.untried_corrections,
                "corrections_to_learn": evidence.corrections_to_learn,
                "retrain_cron": evidence.retrain_cron,
                "scheduled_time_settled": settled,
                "payoff": asdict(decision.payoff) if decision.payoff else None,
            }
        ),
        run_id=None,
    )
    if decision.retrain:
        log.info("retraining %s: %s", workload, "; ".join(decision.reasons))
    return True


def has_ended(warehouse: Warehouse, workload: str, run_id: str, now: datetime) -> bool:
    """Whether a run that waits was asked for only because of an erasure, and is not needed for that any more."""
    if warehouse.row(QUERIES["waits_for_erasure"], {"run_id": run_id}) is None:
        return False
    return erased.due(warehouse, workload, now) is None or erased.answer(warehouse, workload) is not None


def forget(warehouse: Warehouse, workloads: Sequence[str], old: datetime) -> int:
    """Delete decisions from before `old` that led to no run, except each workload's last. Returns their number."""
    return warehouse.delete(QUERIES["forget"], {"workloads": workloads, "old": old})


def _money(
    warehouse: Warehouse, settings: Settings, workload: str, rated: tuple[Ratings, ...], now: datetime
) -> payoff.Money | None:
    """Returns the gains of answers over the last `payback_days`, and the past runs; None before the first run."""
    runs = warehouse.rows(QUERIES["past_runs"], {"workload": workload})
    if not runs:
        return None
    # From midnight on, because the ledger is summed by day.
    since = datetime.combine(now - timedelta(days=settings.policy.payback_days), time())
    earned = warehouse.row(QUERIES["earned"], {"workload": workload, "since": since})
    assert earned is not None
    periods = math.ceil(settings.policy.payback_days * 86_400 / settings.windows.current_seconds)
    # Less than a day counts as a day: a busy hour must not be projected to a whole day.
    days = max((now - (earned["first_at"] or now)) / timedelta(days=1), 1.0)
    return payoff.Money(
        currency=settings.roi.currency,
        gains=earned["gains"],
        days=days,
        answers=earned["answers"],
        ratings=sum(rated[-periods:], UNRATED),
        hourly_rate=rate_on(settings.roi.training_hourly_rate, now.date()) or 0.0,
        runs=tuple(payoff.PastRun(**run) for run in runs),
    )


def _gist(reasons: list[str] | tuple[str, ...]) -> list[str]:
    """Returns reasons without their figures: a changed count is no new reason."""
    return ["".join(c for c in reason if not c.isdigit()) for reason in reasons]
