"""The daemon's status as one dictionary, for the API, the page and the command line."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any

from retuned.consumers.formats.dialects import PASSED_OVER
from retuned.consumers.ingest_loop import IngestLoop
from retuned.consumers.producers import Producers
from retuned.consumers.warehouse.archive import archived
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon import workloads
from retuned.daemon.console import attention, overview
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.holds import pauses
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.reports.reports import reports
from retuned.daemon.settings import Settings
from retuned.monitors.blindness import blind
from retuned.monitors.money import roi
from retuned.monitors.money.outcomes import outcomes_of
from retuned.monitors.quality import measure as quality
from retuned.monitors.watch import canary, memory
from retuned.monitors.watch import check as watch
from retuned.retrain.data import label_requests as labels
from retuned.retrain.memory import entries
from retuned.retrain.release import approvals
from retuned.retrain.release.deployments import Deployment, deployments
from retuned.retrain.release.reconciler import Reconciler
from retuned.retrain.release.routes import Experiment, all_under_way
from retuned.retrain.scoring.label import in_figures, mistaken

SQL = named_queries("retuned.daemon", "status.sql")
WORST_LABELS = 10
"""Labels that are listed for a decision."""
MOST_LISTED = 100
"""Runs or versions in a list."""
APPROVALS = 5
"""Requests for approval that are listed for a workload."""

Rows = defaultdict[str, list[dict[str, Any]]]
"""Rows by workload."""


def status(
    jobs: Jobs, ingest: IngestLoop | None, started_at: datetime | None, names: list[str] | None = None
) -> dict[str, Any]:
    """Returns the status, JSON-serialisable. `ingest` and `started_at` are None if no daemon runs.

    Args:
        names: the workloads that are shown; None: those that are measured.
    """
    context, warehouse = jobs.context, jobs.context.warehouse
    counts = warehouse.row(SQL["counts"])
    under_way = [run.as_dict() for run in jobs.runs.under_way()]
    shown = _workloads(context, context.measured() if names is None else names)
    states = _states(context, list(shown))
    return {
        "version": version("retuned"),
        "started_at": started_at,
        "running": ingest is not None,
        "as_of": context.now(),
        "booked_at": (warehouse.row(SQL["booked_at"]) or {}).get("booked_at"),
        "ingestion": (counts or {})
        | {"latest_dead_letters": warehouse.rows(SQL["latest_dead_letters"])}
        | ingestion(ingest, warehouse, context.settings),
        "storage": {"path": str(warehouse.path.resolve()), **asdict(warehouse.size()), "archived": archived(warehouse)},
        "jobs": {"failures": dict(context.failures)},
        "training": under_way[0] if under_way else {},
        "under_way": under_way,
        "queue": jobs.runs.queue(),
        "pauses": pauses(warehouse),
        "currency": context.settings.roi.currency,
        "by_attention": list(states),
        "known_workloads": len(workloads.known(warehouse)),
        "workloads": {
            name: shown[name] | {"attention": states[name]}
            for name in sorted(shown, key=lambda name: not shown[name]["quality"])  # idle ones last
        },
    }


def runs(jobs: Jobs, workload: str | None) -> list[dict[str, Any]]:
    """Returns the latest retrainings of a workload, or of all: those under way first, then those in line."""
    begun = {run.run_id: run.as_dict() for run in jobs.runs.under_way()}
    waiting = {run["run_id"]: run["reason"] for run in jobs.runs.queue()}
    rows = jobs.context.warehouse.rows(SQL["latest_runs"], {"workload": workload, "most": MOST_LISTED})
    for row in rows:
        row |= {name: json.loads(row[name]) for name in ("reasons", "scores") if row[name]}
        row |= {"progress": begun.get(row["id"]), "waits_for": waiting.get(row["id"])}
    return rows


def versions(warehouse: Warehouse, workload: str | None) -> list[dict[str, Any]]:
    """Returns the latest versions of a workload, or of all, newest first: what the gate found, and who gets them."""
    rows = warehouse.rows(SQL["versions"], {"workload": workload, "most": MOST_LISTED})
    served = {(one.workload, one.version): one for one in deployments(warehouse)}
    for row in rows:
        found = served.get((row["workload"], row["version"]))
        row["scores"] = json.loads(row["scores"]) if row["scores"] else None
        row |= {"aliases": sorted(found.aliases) if found else [], "share": found.share if found else 0.0}
    return rows


def ingestion(ingest: IngestLoop | None, warehouse: Warehouse, settings: Settings) -> dict[str, Any]:
    """Returns the state of ingestion, the producers that are set aside, and the skipped messages since the start.

    Without a daemon, the producers are those that were set aside when the last batch was stored.
    """
    set_aside = ingest.set_aside() if ingest else Producers.known(settings.ingest, warehouse).set_aside()
    return {
        "source": "segments" if settings.store.kind == "cluster" else "kafka",
        "broker_up": ingest.broker_up if ingest else None,
        "lag_events": ingest.lag if ingest else None,
        "lag_seconds": ingest.lag_seconds if ingest else {},
        "last_event_at": ingest.last_event_at if ingest else None,
        "set_aside": [asdict(producer) for producer in set_aside],
        "passed_over": [
            {"reason": reason, "count": count, "explanation": PASSED_OVER[reason]}
            for reason, count in (ingest.passed_over.most_common() if ingest else ())
        ],
    }


def _workloads(context: Context, names: list[str]) -> dict[str, dict[str, Any]]:
    settings = {name: context.settings.for_workload(name) for name in names}
    memory.follow(context.warehouse)
    with context.warehouse.snapshot():  # so that a rollout and its latest change are of one time
        by_key = _by_key(context, settings)
    return {name: {key: values[name] for key, values in by_key.items()} for name in settings}


def _states(context: Context, names: list[str]) -> dict[str, dict[str, Any]]:
    """Returns what of each workload a person should know first; the workload that needs a person most comes first."""
    now = context.now()
    found = attention.ranked(
        attention.state_of(facts, now)
        for facts in overview.facts(context.warehouse, names, now, context.experts_needed)
    )
    return {
        state.facts.workload: {
            "level": state.finding.level,
            "sentence": state.finding.sentence,
            "evidence": state.finding.evidence,
            "answers": state.facts.answers,
            "change": state.change,
        }
        for state in found
    }


def _by_key(context: Context, settings: Mapping[str, Settings]) -> dict[str, Mapping[str, Any]]:
    """Returns the values of each key of the status by workload. The number of queries does not grow with workloads."""
    warehouse, names = context.warehouse, list(settings)

    def rows(query: str, **more: str) -> Rows:
        return _rows(warehouse, query, {"workloads": names, **more})

    aliases = {name: {row["alias"]: row["version"] for row in found} for name, found in rows("aliases").items()}
    references, decisions = rows("drift_reference"), rows("decisions")
    requests, deployed = labels.counts(warehouse), deployments(warehouse)
    return {
        "objective": {name: own.objective for name, own in settings.items()},
        "base_model": {name: own.models.base and str(own.models.base) for name, own in settings.items()},
        "incumbent": {name: own.incumbent.model for name, own in settings.items()},
        "champion": {name: aliases.get(name, {}).get("champion") for name in names},
        "previous": {name: aliases.get(name, {}).get("previous") for name in names},
        "rollout": _rollouts(warehouse, settings),
        "quality": quality.latest(warehouse, names),
        "blind": _by_workload(asdict(row) for row in blind(warehouse, *names)),
        "helpful_rate": rows("history", metric="helpful_rate", source="user"),
        "drift": rows("drift"),
        "drift_reference": {name: next(iter(references[name]), None) for name in names},
        "decisions": {name: [_with_labels(row) for row in decisions[name]] for name in names},
        "runs": rows("runs"),
        "approvals": _by_workload(approvals.listed(warehouse, most=None, each=APPROVALS)),
        "promotions": rows("promotions"),
        "watch": _watched(warehouse, settings),
        "quarantine": rows("quarantine"),
        "roi": _roi(warehouse, settings),
        "labels": {name: requests.get(name, {"open": 0, "answered": 0}) for name in names},
        "memory": _memory(warehouse, settings),
        "reports": {name: reports(context.reports, name) for name in names},
        "serving": {name: _serving(deployed, context.reconciler, name) for name in names},
    }


def _memory(warehouse: Warehouse, settings: Mapping[str, Settings]) -> dict[str, dict[str, Any]]:
    counts, used = entries.counts(warehouse), memory.totals(warehouse)
    return {
        name: {"mode": own.memory.mode, "entries": counts.get(name, {})} | used.get(name, {"helped": 0, "held_out": 0})
        for name, own in settings.items()
    }


def _rows(warehouse: Warehouse, query: str, parameters: dict[str, Any]) -> Rows:
    """Returns the rows of a query by workload, with JSON decoded."""
    found: Rows = defaultdict(list)
    for row in warehouse.rows(SQL[query], parameters):
        decoded = {name: json.loads(row[name]) for name in ("reasons", "scores", "estimate") if row.get(name)}
        found[row.pop("workload")].append(row | decoded)
    return found


def _by_workload(rows: Iterable[dict[str, Any]]) -> Rows:
    found: Rows = defaultdict(list)
    for row in rows:
        found[row["workload"]].append(row)
    return found


def _watched(warehouse: Warehouse, settings: Mapping[str, Settings]) -> dict[str, dict[str, Any] | None]:
    """Returns the watch in force by workload; None: there is none."""
    checks = watch.in_force(warehouse, settings)
    return {
        name: asdict(check) | {"has_power": check.has_power} if (check := checks.get(name)) else None
        for name in settings
    }


def _rollouts(warehouse: Warehouse, settings: Mapping[str, Settings]) -> dict[str, dict[str, Any] | None]:
    """Returns the rollout under way by workload; None: there is none."""
    running = all_under_way(warehouse)
    checks = canary.latest_of(warehouse, [rollout.id for rollout in running.values()])
    return {name: _rollout(own, running[name], checks) if name in running else None for name, own in settings.items()}


def _serving(deployed: list[Deployment], reconciler: Reconciler, workload: str) -> dict[str, Any]:
    """Returns the deployments of a workload, and the state of each replica as this process knows it."""
    return {
        "deployments": [
            {
                "model": deployment.name,
                "aliases": sorted(deployment.aliases),
                "share": deployment.share,
                "since": deployment.since,
                "served_at": deployment.served_at,
                **_in_service(reconciler, deployment),
            }
            for deployment in deployed
            if deployment.workload == workload
        ],
        "replicas": [replica.as_dict() for replica in reconciler.replicas(workload)],
    }


def _in_service(reconciler: Reconciler, deployment: Deployment) -> dict[str, Any]:
    """Returns whether enough replicas answer with a version, and what is missing on the others."""
    if deployment.version is None or not deployment.serves:
        return {"served": None, "lacking": None}
    service = reconciler.service(deployment)
    return {"served": service.enough, "lacking": service.lacking or None}


def _rollout(settings: Settings, running: Experiment, checks: Mapping[str, canary.CanaryCheck]) -> dict[str, Any]:
    """Returns a rollout under way, with the latest check of its canary.

    `next_share` is the share of the next step, `next_at` its earliest time, which may have passed; null: only the end
    of the watch is left. `shadow` is the share of the conversations in shadow; null: the version is not in shadow.
    """
    check, next_share, next_at = None, None, None
    if running.state == "canary":
        check, next_share = checks.get(running.id), settings.rollout.after(running.share)
        next_at = running.step_since + timedelta(seconds=settings.rollout.minimum_seconds)
    return {
        **asdict(running),
        "shadow": settings.rollout.shadow if running.state == "canary" and running.share == 0 else None,
        "next_share": next_share,
        "next_at": next_at,
        "check": None if check is None else asdict(check),
    }


def _with_labels(decision: dict[str, Any]) -> dict[str, Any]:
    """Returns a decision without its figures, with the labels that the candidate mistakes, worst first, if any."""
    figures = json.loads(decision.pop("figures") or "{}")
    table = in_figures(figures)
    if not table:
        return decision
    wrong = [row for row in mistaken(table) if row[2] < row[1]]  # right answers < questions
    return decision | {
        "labels": {
            "known": len(table),
            "macro_f1": {model: figures[f"macro_f1_{model}"] for model in ("champion", "candidate")},
            "mistaken": [
                {"label": label, "questions": questions, "right": right, "taken_for": taken}
                for label, questions, right, taken in wrong[:WORST_LABELS]
            ],
            "more": max(0, len(wrong) - WORST_LABELS),
        }
    }


def _roi(warehouse: Warehouse, settings: Mapping[str, Settings]) -> dict[str, dict[str, Any]]:
    """Returns by workload the ledger, that of the versions in its latest changes, the gains of those changes, and the
    outcomes of conversations."""
    names = list(settings)
    tenures, ledgers = roi.tenures_of(warehouse, settings), roi.of_workloads(warehouse, names)
    left_out, outcomes = roi.left_out_of(warehouse, names), outcomes_of(warehouse, names)
    found = {}
    for name in names:
        recent = {None}.union(*({tenure.version, tenure.previous_version} for tenure in tenures[name]))
        outcome = outcomes.get(name)
        earned, versions = ledgers[name]
        found[name] = {
            **asdict(earned),
            "versions": [
                {"version": version, **asdict(sums)} for version, sums in versions.items() if version in recent
            ],
            "promotions": [asdict(tenure) for tenure in tenures[name]],
            "left_out": left_out[name],
            "conversations": outcome and asdict(outcome) | {"cost_per_resolved": outcome.cost_per_resolved},
        }
    return found
