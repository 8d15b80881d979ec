"""The evidence that the policy decides on, gathered from the warehouse, and the decisions that are kept."""

import json
import logging
import uuid
from dataclasses import asdict
from datetime import datetime, time, timedelta

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.jsontext import as_json
from retuned.daemon.policy import payoff
from retuned.daemon.policy.decision import Decision, Evidence
from retuned.daemon.settings import Settings
from retuned.monitors.rates import rate_on
from retuned.monitors.windows import in_service_since

log = logging.getLogger(__name__)
QUERIES = named_queries("retuned.daemon.policy", "evidence.sql")
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  (the warehouse keeps UTC without a zone)


def gather(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> Evidence:
    """What the warehouse knows of a workload; a run that waits or was interrupted counts as running."""
    judgements.follow(warehouse)
    champion = warehouse.row(QUERIES["champion"], {"workload": workload}) or {}
    last_run = warehouse.row(QUERIES["last_run"], {"workload": workload}) or {}
    windows = settings.windows
    ratings = warehouse.row(
        QUERIES["ratings"],
        {
            "workload": workload,
            "since": in_service_since(warehouse, windows, workload, now) or now,
            "now": now,
            "current_seconds": windows.current_seconds,
            "current_events": windows.current_events,
            "reference_seconds": windows.reference_seconds,
        },
    )
    corrections = warehouse.row(
        QUERIES["corrections"],
        {
            "workload": workload,
            "since_dataset": champion.get("learned_until") or EPOCH,
            "since_run": last_run.get("learned_until") or EPOCH,
            "promoted_at": champion.get("promoted_at") or EPOCH,
        },
    )
    assert ratings is not None
    assert corrections is not None
    drifted = warehouse.rows(
        QUERIES["drift"],
        {
            "workload": workload,
            "since": last_run.get("finished_at") or EPOCH,
            "checks": settings.policy.drift_checks,
        },
    )
    return Evidence(
        drifted=tuple(row["drifted"] for row in drifted),
        ratings_before=payoff.Ratings(ratings["before_helpful"], ratings["before_total"]),
        ratings_now=payoff.Ratings(ratings["now_helpful"], ratings["now_total"]),
        taken_back=bool(last_run.get("taken_back")),
        new_corrections=corrections["new"],
        untried_corrections=corrections["untried"],
        corrections_to_learn=corrections["to_learn"],
        last_run_finished_at=last_run.get("finished_at"),
        running=bool(last_run and last_run["finished_at"] is None),
        money=_money(warehouse, settings, workload, now),
    )


def store(warehouse: Warehouse, workload: str, decision: Decision, evidence: Evidence, now: datetime) -> None:
    """Keep a decision, unless it only repeats the last one with other figures."""
    last = warehouse.row(QUERIES["last_decision"], {"workload": workload})
    news = (
        last is None
        or last["outcome"] != decision.retrain
        or _gist(json.loads(last["reasons"])) != _gist(decision.reasons)
    )
    if not (decision.retrain or news):
        return
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
                "helpful_rate_before": evidence.ratings_before.rate,
                "ratings_before": evidence.ratings_before.total,
                "helpful_rate_now": evidence.ratings_now.rate,
                "ratings_now": evidence.ratings_now.total,
                "new_corrections": evidence.new_corrections,
                "untried_corrections": evidence.untried_corrections,
                "corrections_to_learn": evidence.corrections_to_learn,
                "payoff": asdict(decision.payoff) if decision.payoff else None,
            }
        ),
        run_id=None,
    )
    if decision.retrain:
        log.info("retraining %s: %s", workload, "; ".join(decision.reasons))


def forget(warehouse: Warehouse, old: datetime) -> int:
    """Delete the decisions of before `old` that no run followed, but for each workload's last; how many they were."""
    return warehouse.delete(QUERIES["forget"], {"old": old})


def _money(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> payoff.Money | None:
    """What answers earned over the latest payback time, and what runs took; None before the first run, and where a
    provider trains, which is not paid by the hour."""
    if settings.train.engine == "api":
        return None
    runs = warehouse.rows(QUERIES["past_runs"], {"workload": workload})
    if not runs:
        return None
    # From midnight on: the ledger is summed by day.
    since = datetime.combine(now - timedelta(days=settings.policy.payback_days), time())
    earned = warehouse.row(QUERIES["earned"], {"workload": workload, "since": since})
    assert earned is not None
    # Of less than a day nothing is projected: a lively hour is no day of such hours.
    days = max((now - (earned["first_at"] or now)) / timedelta(days=1), 1.0)
    return payoff.Money(
        currency=settings.roi.currency,
        gains=earned["gains"],
        days=days,
        answers=earned["answers"],
        ratings=payoff.Ratings(earned["helpful"], earned["ratings"]),
        hourly_rate=rate_on(settings.roi.training_hourly_rate, now.date()) or 0.0,
        runs=tuple(payoff.PastRun(**run) for run in runs),
    )


def _gist(reasons: list[str] | tuple[str, ...]) -> list[str]:
    """Reasons without their figures: a count that moved is not a new reason."""
    return ["".join(c for c in reason if not c.isdigit()) for reason in reasons]
