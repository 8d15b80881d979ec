"""What the daemon knows, in one dictionary: for the API, the page and the command line."""

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from importlib.metadata import version
from typing import Any

from retuned.consumers.formats.dialects import PASSED_OVER
from retuned.consumers.ingest import Ingest
from retuned.consumers.producers import Producers
from retuned.consumers.warehouse.archive import archived
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.holds import pauses
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.reports.reports import reports
from retuned.daemon.settings import Settings
from retuned.monitors.blindness import blind
from retuned.monitors.money import roi
from retuned.monitors.money.outcomes import outcomes_of
from retuned.monitors.watch import canary
from retuned.monitors.watch import check as watch
from retuned.retrain.data import label_requests as labels
from retuned.retrain.release import approvals
from retuned.retrain.release.deployments import Deployment, deployments
from retuned.retrain.release.reconciler import Reconciler
from retuned.retrain.release.routes import Experiment, all_under_way
from retuned.retrain.scoring.label import in_figures, mistaken

SQL = named_queries("retuned.daemon", "status.sql")
WORST_LABELS = 10
"""Of a decision, so many labels are shown."""
APPROVALS = 5
"""So many requests for approval of a workload are shown."""


def status(jobs: Jobs, ingest: Ingest | None, started_at: datetime | None) -> dict[str, Any]:
    """JSON-serialisable; times are ISO 8601, UTC. `ingest` and `started_at` are None when no daemon is running."""
    context, warehouse = jobs.context, jobs.context.warehouse
    counts = warehouse.row(SQL["counts"])
    begun = [one.as_dict() for one in jobs.runs.under_way()]
    workloads = _workloads(context)
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
        "training": begun[0] if begun else {},
        "under_way": begun,
        "queue": jobs.runs.queue(),
        "pauses": pauses(warehouse),
        "currency": context.settings.roi.currency,
        "workloads": dict(sorted(workloads.items(), key=lambda item: not item[1]["quality"])),  # the quiet ones last
    }


def ingestion(ingest: Ingest | None, warehouse: Warehouse, settings: Settings) -> dict[str, Any]:
    """The state of the loop, which producers are set aside, and what was passed over since the start, by reason.

    Without a daemon the producers are those that were set aside when the last batch was stored.
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


def _workloads(context: Context) -> dict[str, dict[str, Any]]:
    """What is known of each workload, by a number of queries that does not grow with theirs."""
    warehouse = context.warehouse
    settings = {name: context.settings.for_workload(name) for name in context.measured()}
    names = list(settings)

    def rows(query: str, **more: str) -> defaultdict[str, list[dict[str, Any]]]:
        found = defaultdict[str, list[dict[str, Any]]](list)
        for row in warehouse.rows(SQL[query], {"workloads": names, **more}):
            texts = {name: json.loads(row[name]) for name in ("reasons", "scores") if row.get(name)}
            found[row.pop("workload")].append(row | texts)
        return found

    aliases = {name: {row["alias"]: row["version"] for row in of} for name, of in rows("aliases").items()}
    quality, history = rows("quality"), rows("history", metric="helpful_rate", source="user")
    checks, references, decisions = rows("drift"), rows("drift_reference"), rows("decisions")
    runs, promotions, quarantine = rows("runs"), rows("promotions"), rows("quarantine")
    blindness, asked_for = defaultdict[str, list[Any]](list), defaultdict[str, list[Any]](list)
    for one in blind(warehouse, *names):
        blindness[one.workload].append(asdict(one))
    for request in approvals.listed(warehouse, most=None, each=APPROVALS):
        asked_for[request["workload"]].append(request)
    watched, asked, deployed = watch.in_force(warehouse, settings), labels.counts(warehouse), deployments(warehouse)
    rollouts = all_under_way(warehouse)
    canaries = canary.latest_of(warehouse, [one.id for one in rollouts.values()])
    earned = _roi(warehouse, settings)
    return {
        name: {
            "objective": own.objective,
            "base_model": own.models.base and str(own.models.base),
            "champion": aliases.get(name, {}).get("champion"),
            "previous": aliases.get(name, {}).get("previous"),
            "rollout": _rollout(own, rollouts[name], canaries) if name in rollouts else None,
            "quality": quality[name],
            "blind": blindness[name],
            "helpful_rate": history[name],
            "drift": checks[name],
            "drift_reference": next(iter(references[name]), None),
            "decisions": [_with_labels(row) for row in decisions[name]],
            "runs": runs[name],
            "approvals": asked_for[name],
            "promotions": promotions[name],
            "watch": asdict(seen) | {"has_power": seen.has_power} if (seen := watched.get(name)) else None,
            "quarantine": quarantine[name],
            "roi": earned[name],
            "labels": asked.get(name, {"open": 0, "answered": 0}),
            "reports": reports(context.reports, name),
            "serving": _serving(deployed, context.reconciler, name),
        }
        for name, own in settings.items()
    }


def _serving(deployed: list[Deployment], reconciler: Reconciler, workload: str) -> dict[str, Any]:
    """What the targets of a workload should have, and what each replica has, as far as this process knows."""
    return {
        "deployments": [
            {
                "model": one.name,
                "aliases": sorted(one.aliases),
                "share": one.share,
                "since": one.since,
                "served_at": one.served_at,
                **_enough(reconciler, one),
            }
            for one in deployed
            if one.workload == workload
        ],
        "replicas": [replica.as_dict() for replica in reconciler.replicas(workload)],
    }


def _enough(reconciler: Reconciler, one: Deployment) -> dict[str, Any]:
    """Whether enough replicas answer with a version that serves, and what is missing where."""
    if one.version is None or not one.serves:
        return {"served": None, "lacking": None}
    found = reconciler.service(one)
    return {"served": found.enough, "lacking": found.lacking or None}


def _rollout(settings: Settings, running: Experiment, checks: Mapping[str, canary.CanaryCheck]) -> dict[str, Any]:
    """A rollout under way, with the latest check of its canary.

    `next_share` is what the next step brings, `next_at` its earliest time, which may be over; null: only the end of the
    watch is left.
    `shadow` is the share of the conversations for which the version is asked in shadow; null: it is not.
    """
    seen, next_share, next_at = None, None, None
    if running.state == "canary":
        seen, next_share = checks.get(running.id), settings.rollout.after(running.share)
        next_at = running.step_since + timedelta(seconds=settings.rollout.minimum_seconds)
    return {
        **asdict(running),
        "shadow": settings.rollout.shadow if running.state == "canary" and running.share == 0 else None,
        "next_share": next_share,
        "next_at": next_at,
        "check": None if seen is None else asdict(seen),
    }


def _with_labels(decision: dict[str, Any]) -> dict[str, Any]:
    """A decision with what the candidate made of each label, the worst first, instead of all its figures; without,
    where it has none."""
    figures = json.loads(decision.pop("figures") or "{}")
    table = in_figures(figures)
    if not table:
        return decision
    wrong = [one for one in mistaken(table) if one[2] < one[1]]
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
    """The ledger of each workload, of the versions that its latest changes are about, what those changes earned, and
    what became of conversations."""
    names = list(settings)
    tenures, ledgers = roi.tenures_of(warehouse, settings), roi.of_workloads(warehouse, names)
    left_out, ends = roi.left_out_of(warehouse, names), outcomes_of(warehouse, names)
    found = {}
    for name in names:
        recent = {None, *(version for one in tenures[name] for version in (one.version, one.previous_version))}
        became = ends.get(name)
        earned, versions = ledgers[name]
        found[name] = {
            **asdict(earned),
            "versions": [{"version": version, **asdict(of)} for version, of in versions.items() if version in recent],
            "promotions": [asdict(tenure) for tenure in tenures[name]],
            "left_out": left_out[name],
            "conversations": became and asdict(became) | {"cost_per_resolved": became.cost_per_resolved},
        }
    return found
