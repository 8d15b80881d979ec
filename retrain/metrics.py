"""The metrics of making a better model, with their help. They are set from results; nothing is queried at a scrape."""

import threading
from collections import defaultdict
from collections.abc import Collection
from datetime import UTC
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from retuned.consumers.common.series import forget_other_workloads
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.consensus import QUARANTINED
from retuned.retrain.decision.evaluate import BASE, CANDIDATE, CHAMPION, LOGGED
from retuned.retrain.release.approvals import waiting
from retuned.retrain.release.replicas import Replica
from retuned.retrain.release.rollout import Event
from retuned.retrain.release.routes import under_way
from retuned.retrain.run import RunResult
from retuned.retrain.versions import QUERIES, aliases, model_name


class Metrics:
    """All metrics of this package, on the registry that is passed in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.runs = Counter(
            "retuned_training_runs_total",
            "Retrainings that ended, by state: succeeded, refused, failed, cancelled or interrupted",
            ["workload", "state"],
            registry=registry,
        )
        self.seconds = Histogram(
            "retuned_training_seconds",
            "Time spent training and evaluating in a run that trained",
            ["workload"],
            buckets=(30, 60, 120, 300, 900, 3_600, 4 * 3_600),
            registry=registry,
        )
        self.loss = Gauge(
            "retuned_training_loss",
            "Loss of the completion tokens in nats per token: of the latest step (train) and epoch (validation)",
            ["workload", "split"],
            registry=registry,
        )
        self.tokens_per_second = Gauge(
            "retuned_training_tokens_per_second",
            "Tokens trained on each second, prompts included, in the latest step",
            ["workload"],
            registry=registry,
        )
        self.progress_ratio = Gauge(
            "retuned_training_progress_ratio",
            "Steps done over steps planned; a training that stops early ends below 1",
            ["workload"],
            registry=registry,
        )
        self.active = Gauge(
            "retuned_training_active_timestamp_seconds",
            "When a run under way last told of progress, Unix time; absent while none is under way",
            ["workload"],
            registry=registry,
        )
        self.decisions = Counter(
            "retuned_gate_decisions_total",
            "Decisions of the gate, by outcome: passed or refused",
            ["workload", "outcome"],
            registry=registry,
        )
        self.promotions = Counter(
            "retuned_promotions_total",
            "Changes of what serves in the warehouse, by event: promoted and rolled_back, of the champion; canary, "
            "each of its steps; canary_rolled_back; completed, the end of a holdback",
            ["workload", "event"],
            registry=registry,
        )
        self.model = Gauge(
            "retuned_model_info",
            "1 for the model that an alias names: champion, previous or canary",
            ["workload", "model_name", "alias"],
            registry=registry,
        )
        self.approvals = Gauge(
            "retuned_approvals_waiting",
            "Versions that the gate passed and that wait for a person's approval",
            ["workload"],
            registry=registry,
        )
        self.approval_expiry = Gauge(
            "retuned_approval_expiry_timestamp_seconds",
            "When the request for approval that waits expires, Unix time; absent while none waits",
            ["workload"],
            registry=registry,
        )
        self.rollout_share = Gauge(
            "retuned_rollout_share_ratio",
            "Share of the conversations that a version which is being rolled out answers; absent while none is",
            ["workload"],
            registry=registry,
        )
        self.score = Gauge(
            "retuned_evaluation_score_ratio",
            "Mean score on the holdout in the latest evaluation; …@logged: of what production had answered there",
            ["workload", "model_name"],
            registry=registry,
        )
        self.label_requests = Gauge(
            "retuned_label_requests_open",
            "Answers that experts are asked to judge and have not yet",
            ["workload"],
            registry=registry,
        )
        self.labels_answered = Counter(
            "retuned_label_requests_answered_total",
            "Requests that experts answered, in the warehouse",
            ["workload"],
            registry=registry,
        )
        self.quarantined = Gauge(
            "retuned_quarantined_feedback",
            "Pieces of feedback that the latest dataset sets aside, by reason: outvoted, contradicts_expert, "
            "account, burst or collusion",
            ["workload", "reason"],
            registry=registry,
        )
        self.replica_up = Gauge(
            "retuned_replica_up",
            "1 while a replica of a target answers, 0 while it does not; absent until it was asked",
            ["target", "replica"],
            registry=registry,
        )
        self.replica_in_sync = Gauge(
            "retuned_replica_in_sync",
            "1 while a replica has what it should have of a workload and answers with it; absent while that is unknown",
            ["workload", "target", "replica"],
            registry=registry,
        )
        self.effect_probe = Gauge(
            "retuned_effect_probe_passed",
            "1 where a replica answers with the version of that name, 0 where it answers with something else; absent "
            "where that cannot be told",
            ["workload", "model_name", "target", "replica"],
            registry=registry,
        )
        self.served_seconds = Gauge(
            "retuned_served_seconds",
            "From the latest decision that brings a version to its targets until it is in service there",
            ["workload"],
            registry=registry,
        )
        self.version_served = Gauge(
            "retuned_version_served",
            "1 while enough replicas of each target (serving.replica_share) answer with a version that has a share of "
            "the conversations, 0 while too few do; absent while that is unknown",
            ["workload", "model_name"],
            registry=registry,
        )
        self._counted: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._named: dict[str, set[tuple[str, str]]] = {}
        self._lock = threading.Lock()
        self._scored: dict[str, set[str]] = {}

    def progress(self, workload: str, line: dict[str, Any]) -> None:
        """Take in a progress line of a run."""
        self.active.labels(workload).set_to_current_time()
        if line.get("loss") is not None:
            self.loss.labels(workload, "train").set(line["loss"])
            if "tokens_per_second" in line:  # a provider reports no speed
                self.tokens_per_second.labels(workload).set(line["tokens_per_second"])
            if "steps" in line:
                self.progress_ratio.labels(workload).set(line["step"] / line["steps"])
        if line.get("validation_loss") is not None:
            self.loss.labels(workload, "validation").set(line["validation_loss"])

    def idle(self, workload: str) -> None:
        """No run is under way any more."""
        self.active.remove_by_labels({"workload": workload})

    def finished(self, result: RunResult) -> None:
        """Take in a run that ended."""
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
        """Take in which models serve, with which share, how often that has changed, and what waits for approval.

        Threads may do so at once.
        """
        with self._lock:
            self._aliases(warehouse, workload)

    def keep(self, measured: Collection[str], workloads: Collection[str]) -> None:
        """Forget all other workloads; of feedback, those that are not measured."""
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
        for event in get_args(Event):  # from 0 on: the first one ever is an increase, too
            key, count = (workload, event), counts.get(event, 0)
            # In one step: a scrape that saw 0 before what was counted until a restart would see an increase.
            self.promotions.labels(*key).inc(count - self._counted[key])
            self._counted[key] = count
        self.runs.labels(workload, "failed")  # from 0 on, too: a failure before a restart and one since it are two
        request = waiting(warehouse, workload)
        self.approvals.labels(workload).set(0 if request is None else 1)
        if request is None:
            self.approval_expiry.remove_by_labels({"workload": workload})
        else:
            self.approval_expiry.labels(workload).set(request.expires_at.replace(tzinfo=UTC).timestamp())

    def replica(self, seen: Replica) -> None:
        """Take in a replica that was looked at. Threads may do so at the same time."""
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
        """Take in how long it took until the latest change was served."""
        self.served_seconds.labels(workload).set(seconds)

    def served_by_enough(self, workload: str, enough: dict[str, bool]) -> None:
        """Take in which versions of a workload are answered with by enough replicas. Threads may do so at the same
        time."""
        with self._lock:
            self.version_served.remove_by_labels({"workload": workload})
            for name, value in enough.items():
                self.version_served.labels(workload, name).set(value)

    def quarantine(self, warehouse: Warehouse, workload: str) -> None:
        """Take in what the latest dataset sets aside."""
        counts = {row["reason"]: row["count"] for row in warehouse.rows(QUERIES["quarantined"], {"workload": workload})}
        for reason in QUARANTINED:
            self.quarantined.labels(workload, reason).set(counts.get(reason, 0))

    def labels(self, counts: dict[str, dict[str, int]]) -> None:
        """Take in how many requests for labels are open and answered, by workload."""
        for workload, count in counts.items():
            self.label_requests.labels(workload).set(count["open"])
            key = (workload, "label_answered")
            # Fewer than before: retention deleted old ones.
            self.labels_answered.labels(workload).inc(max(0, count["answered"] - self._counted[key]))
            self._counted[key] = count["answered"]
