"""Metrics of training and releases. They are set from results; a scrape queries nothing."""

import threading
from collections import defaultdict
from collections.abc import Collection, Mapping
from datetime import UTC
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from retuned.consumers.common.series import forget_other_workloads
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.table import QUARANTINED
from retuned.retrain.decision.evaluation import BASE, CANDIDATE, CHAMPION, LOGGED
from retuned.retrain.memory.entries import STATES
from retuned.retrain.release.approvals import waiting
from retuned.retrain.release.replicas import Replica
from retuned.retrain.release.rollout import Event
from retuned.retrain.release.routes import under_way
from retuned.retrain.run import RunResult
from retuned.retrain.versions import QUERIES, aliases, model_name

_METRICS: dict[str, tuple[type[Counter] | type[Gauge] | type[Histogram], str, str, list[str]]] = {
    "runs": (
        Counter,
        "retuned_training_runs_total",
        "Retrainings that ended, by state: succeeded, refused, failed, cancelled or interrupted",
        ["workload", "state"],
    ),
    "seconds": (
        Histogram,
        "retuned_training_seconds",
        "Time spent training and evaluating in a run that trained",
        ["workload"],
    ),
    "loss": (
        Gauge,
        "retuned_training_loss",
        "Loss of the completion tokens of the latest step, in nats per token",
        ["workload"],
    ),
    "tokens_per_second": (
        Gauge,
        "retuned_training_tokens_per_second",
        "Tokens trained on per second, prompts included, in the latest step",
        ["workload"],
    ),
    "progress_ratio": (
        Gauge,
        "retuned_training_progress_ratio",
        "Steps done over steps planned",
        ["workload"],
    ),
    "active": (
        Gauge,
        "retuned_training_active_timestamp_seconds",
        "When a run in progress last reported progress, Unix time; absent while there is none",
        ["workload"],
    ),
    "decisions": (
        Counter,
        "retuned_gate_decisions_total",
        "Decisions of the gate, by outcome: passed or refused",
        ["workload", "outcome"],
    ),
    "promotions": (
        Counter,
        "retuned_promotions_total",
        "Changes of what serves in the warehouse, by event: promoted and rolled_back, of the champion; "
        "canary, each of its steps; canary_rolled_back; completed, the end of a holdback",
        ["workload", "event"],
    ),
    "model": (
        Gauge,
        "retuned_model_info",
        "1 for the model that an alias names: champion, previous or canary",
        ["workload", "model_name", "alias"],
    ),
    "approvals": (
        Gauge,
        "retuned_approvals_waiting",
        "Versions that the gate passed, and datasets, that wait for a person's approval",
        ["workload"],
    ),
    "approval_expiry": (
        Gauge,
        "retuned_approval_expiry_timestamp_seconds",
        "When the first pending request for approval expires, Unix time; absent while none is pending",
        ["workload"],
    ),
    "rollout_share": (
        Gauge,
        "retuned_rollout_share_ratio",
        "Share of the conversations that a version in rollout answers; absent while there is no rollout",
        ["workload"],
    ),
    "score": (
        Gauge,
        "retuned_evaluation_score_ratio",
        "Mean score on the holdout in the latest evaluation; …@logged: of the logged answers of production",
        ["workload", "model_name"],
    ),
    "label_requests": (
        Gauge,
        "retuned_label_requests_open",
        "Answers that experts are asked to label and have not yet",
        ["workload"],
    ),
    "labels_answered": (
        Counter,
        "retuned_label_requests_answered_total",
        "Label requests that experts have answered, in the warehouse",
        ["workload"],
    ),
    "quarantined": (
        Gauge,
        "retuned_quarantined_feedback",
        "Pieces of feedback that the latest dataset sets aside, by reason: outvoted, contradicts_expert, "
        "account, declined or unspecific",
        ["workload", "reason"],
    ),
    "erased_versions": (
        Gauge,
        "retuned_erased_versions",
        "Versions that learned rows which were erased since, and that still exist",
        ["workload"],
    ),
    "erased_versions_overdue": (
        Gauge,
        "retuned_erased_versions_overdue",
        "Those that still exist after forget.within_days, unless a person keeps them",
        ["workload"],
    ),
    "memory_entries": (
        Gauge,
        "retuned_memory_entries",
        "Entries of the memory of corrections, by state: active, frozen, superseded, overruled, withdrawn, retired, "
        "expired or removed",
        ["workload", "state"],
    ),
    "replica_up": (
        Gauge,
        "retuned_replica_up",
        "1 while a replica of a target answers, 0 while it does not; absent before the first request",
        ["target", "replica"],
    ),
    "replica_in_sync": (
        Gauge,
        "retuned_replica_in_sync",
        "1 while a replica has the versions that it should have of a workload and answers with them; absent "
        "while unknown",
        ["workload", "target", "replica"],
    ),
    "effect_probe": (
        Gauge,
        "retuned_effect_probe_passed",
        "1 if a replica answers with the version of that name, 0 if it answers with something else; absent if unknown",
        ["workload", "model_name", "target", "replica"],
    ),
    "served_seconds": (
        Gauge,
        "retuned_served_seconds",
        "Time from the latest decision that brings a version to its targets until it is in service there",
        ["workload"],
    ),
    "version_served": (
        Gauge,
        "retuned_version_served",
        "1 while enough replicas of each target (serving.replica_share) answer with a version that has a "
        "share of the conversations, 0 while too few do; absent while unknown",
        ["workload", "model_name"],
    ),
}
"""The metrics by attribute: type, name, help and labels."""
_BUCKETS = (30, 60, 120, 300, 900, 3_600, 4 * 3_600)


class Metrics:
    """All metrics of this package, on the registry that is passed in (see `_METRICS`)."""

    runs: Counter
    decisions: Counter
    promotions: Counter
    labels_answered: Counter
    loss: Gauge
    tokens_per_second: Gauge
    progress_ratio: Gauge
    active: Gauge
    model: Gauge
    approvals: Gauge
    approval_expiry: Gauge
    rollout_share: Gauge
    score: Gauge
    label_requests: Gauge
    quarantined: Gauge
    erased_versions: Gauge
    erased_versions_overdue: Gauge
    memory_entries: Gauge
    replica_up: Gauge
    replica_in_sync: Gauge
    effect_probe: Gauge
    served_seconds: Gauge
    version_served: Gauge
    seconds: Histogram

    def __init__(self, registry: CollectorRegistry) -> None:
        for attribute, (kind, name, text, labels) in _METRICS.items():
            buckets: dict[str, Any] = {"buckets": _BUCKETS} if kind is Histogram else {}
            setattr(self, attribute, kind(name, text, labels, registry=registry, **buckets))
        self._counted: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._named: dict[str, set[tuple[str, str]]] = {}
        self._lock = threading.Lock()
        self._scored: dict[str, set[str]] = {}

    def progress(self, workload: str, line: dict[str, Any]) -> None:
        """Updates the metrics from a progress report of a run."""
        self.active.labels(workload).set_to_current_time()
        if line.get("loss") is not None:
            self.loss.labels(workload).set(line["loss"])
            if "tokens_per_second" in line:
                self.tokens_per_second.labels(workload).set(line["tokens_per_second"])
            if "steps" in line:
                self.progress_ratio.labels(workload).set(line["step"] / line["steps"])

    def idle(self, workload: str) -> None:
        """Removes the metric of a run in progress."""
        self.active.remove_by_labels({"workload": workload})

    def finished(self, result: RunResult) -> None:
        """Updates the metrics from the result of a run."""
        workload = result.workload
        self.runs.labels(workload, result.state).inc()
        if result.state == "interrupted":
            return  # its time is counted when it is resumed and ends
        if result.train_seconds:
            self.seconds.labels(workload).observe(result.train_seconds + result.evaluate_seconds)
        if result.passed is not None:
            self.decisions.labels(workload, "passed" if result.passed else "refused").inc()
        if result.scores:
            names = {BASE: None, CHAMPION: result.parent_version, CANDIDATE: result.version, LOGGED: LOGGED}
            scores = {model_name(workload, names[model]): value for model, value in result.scores.items()}
            for gone in self._scored.get(workload, set()) - scores.keys():
                self.score.remove(workload, gone)
            for name, value in scores.items():
                self.score.labels(workload, name).set(value)
            self._scored[workload] = set(scores)

    def aliases(self, warehouse: Warehouse, workload: str) -> None:
        """Updates aliases, shares, changes and pending approvals of a workload. Thread-safe."""
        with self._lock:
            self._aliases(warehouse, workload)

    def keep(self, measured: Collection[str], workloads: Collection[str]) -> None:
        """Removes the metrics of all other workloads; those of feedback, of workloads not in `measured`."""
        with self._lock:
            forget_other_workloads([self.quarantined], measured)
            for workload in forget_other_workloads(vars(self).values(), workloads):
                self._named.pop(workload, None)
                self._scored.pop(workload, None)
                for event in (*get_args(Event), "label_answered"):
                    self._counted.pop((workload, event), None)

    def _aliases(self, warehouse: Warehouse, workload: str) -> None:
        named = {(model_name(workload, version), alias) for alias, version in aliases(warehouse, workload).items()}
        for gone in self._named.get(workload, set()) - named:
            self.model.remove(workload, *gone)
        for model, alias in named:
            self.model.labels(workload, model, alias).set(1)
        self._named[workload] = named
        running = under_way(warehouse, workload)
        if running is None:
            self.rollout_share.remove_by_labels({"workload": workload})
        else:
            self.rollout_share.labels(workload).set(running.share)
        counts = {row["event"]: row["count"] for row in warehouse.rows(QUERIES["promotions"], {"workload": workload})}
        for event in get_args(Event):  # start at 0, so that the first event is an increase
            key, count = (workload, event), counts.get(event, 0)
            # In one step: else a scrape after a restart could see 0, and then earlier events as an increase.
            self.promotions.labels(*key).inc(count - self._counted[key])
            self._counted[key] = count
        self.runs.labels(workload, "failed")  # start at 0, so that the first failure is an increase
        requests = waiting(warehouse, workload)
        self.approvals.labels(workload).set(len(requests))
        if not requests:
            self.approval_expiry.remove_by_labels({"workload": workload})
        else:
            self.approval_expiry.labels(workload).set(requests[0].expires_at.replace(tzinfo=UTC).timestamp())

    def replica(self, seen: Replica) -> None:
        """Updates the metrics of a replica. Thread-safe."""
        labels = {"target": seen.kind, "replica": seen.address}
        with self._lock:
            for metric in (self.replica_up, self.replica_in_sync, self.effect_probe):
                metric.remove_by_labels(labels)
            if seen.up is not None:
                self.replica_up.labels(**labels).set(seen.up)
            for workload in seen.workloads:
                if (in_sync := seen.in_sync(workload)) is not None:
                    self.replica_in_sync.labels(workload, *labels.values()).set(in_sync)
            for model in seen.models.values():
                if model.matches is not None:
                    self.effect_probe.labels(model.workload, model.name, *labels.values()).set(model.matches)

    def served(self, workload: str, seconds: float) -> None:
        """Sets the time until the latest change was in service."""
        self.served_seconds.labels(workload).set(seconds)

    def served_by_enough(self, workload: str, enough: dict[str, bool]) -> None:
        """Sets which versions of a workload enough replicas answer with. Thread-safe."""
        with self._lock:
            self.version_served.remove_by_labels({"workload": workload})
            for name, value in enough.items():
                self.version_served.labels(workload, name).set(value)

    def quarantine(self, warehouse: Warehouse, workload: str) -> None:
        """Updates the numbers of rows that the latest dataset sets aside."""
        counts = {row["reason"]: row["count"] for row in warehouse.rows(QUERIES["quarantined"], {"workload": workload})}
        for reason in QUARANTINED:
            self.quarantined.labels(workload, reason).set(counts.get(reason, 0))

    def erased(self, counts: dict[str, tuple[int, int]]) -> None:
        """Updates the numbers of versions that learned erased rows, existing and overdue, by workload."""
        self.erased_versions.clear()
        self.erased_versions_overdue.clear()
        for workload, (number, overdue) in counts.items():
            self.erased_versions.labels(workload).set(number)
            self.erased_versions_overdue.labels(workload).set(overdue)

    def memory(self, workload: str, counts: Mapping[str, int]) -> None:
        """Updates the numbers of the memory's entries by state."""
        for state in STATES:
            self.memory_entries.labels(workload, state).set(counts.get(state, 0))

    def labels(self, counts: dict[str, dict[str, int]]) -> None:
        """Updates the numbers of open and answered label requests."""
        for workload, count in counts.items():
            self.label_requests.labels(workload).set(count["open"])
            key = (workload, "label_answered")
            # Retention deletes old requests, which is no decrease.
            self.labels_answered.labels(workload).inc(max(0, count["answered"] - self._counted[key]))
            self._counted[key] = count["answered"]
