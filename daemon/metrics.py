"""The daemon's own metrics. Those of ingestion, monitoring and retraining stand in their packages' metrics modules."""

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge

from retuned.consumers.common.series import forget_other_workloads
from retuned.consumers.warehouse.connection import Size


class Metrics:
    """Jobs, decisions and the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.build = Gauge(
            "retuned_build_info", "Always 1; the label tells the version.", ["version"], registry=registry
        )
        self.job_runs = Counter(
            "retuned_job_runs_total",
            "Runs of a scheduled job, by outcome (succeeded, failed, missed); Prometheus itself owns the label job.",
            ["task", "outcome"],
            registry=registry,
        )
        self.workload_failures = Counter(
            "retuned_workload_failures_total",
            "Times that a part of a scheduled job failed for one workload; the other workloads go on.",
            ["task", "workload"],
            registry=registry,
        )
        self.job_last_success = Gauge(
            "retuned_job_last_success_timestamp_seconds",
            "When a job last succeeded, Unix time.",
            ["task"],
            registry=registry,
        )
        self.decisions = Counter(
            "retuned_retrain_decisions_total",
            "Decisions of the policy to retrain or not.",
            ["workload", "outcome"],
            registry=registry,
        )
        self.waiting = Gauge(
            "retuned_runs_waiting",
            "Retrainings in line, by what they wait for: turn, paused, rollout, hours or memory; absent where none is.",
            ["workload", "reason"],
            registry=registry,
        )
        self.pauses = Gauge(
            "retuned_training_pauses", "Pauses of retraining in force, of one workload or of all.", registry=registry
        )
        self.disk_free = Gauge("retuned_disk_free_bytes", "Free space where the warehouse is.", registry=registry)
        self.warehouse_bytes = Gauge(
            "retuned_warehouse_bytes",
            "Size of the warehouse, by part: its file, what is used of it, its write-ahead log (file, used, log).",
            ["part"],
            registry=registry,
        )
        self.warnings = Gauge(
            "retuned_warnings",
            "What needs attention and stops nothing: the length of warnings in /api/v1/status.",
            registry=registry,
        )
        self.archived_rows = Gauge("retuned_archived_rows", "Rows in the archive.", ["table"], registry=registry)
        self.archived_bytes = Gauge(
            "retuned_archived_bytes", "Size of the archive's files.", ["table"], registry=registry
        )
        self.removed = Counter(
            "retuned_retention_removed_total",
            "What retention removed since start, by kind: version, dataset, reduced_dataset or run_folder; or rows: "
            "ledger, quality, drift_check, watch_check, rollout_check, shadow_answer, decision or label_request.",
            ["kind"],
            registry=registry,
        )
        self._waiting: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def waiting_runs(self, counts: Mapping[tuple[str, str], int]) -> None:
        """How many runs wait, by workload and by what they wait for. Threads may do so at the same time."""
        with self._lock:
            for gone in self._waiting - counts.keys():
                self.waiting.remove(*gone)
            for labels, count in counts.items():
                self.waiting.labels(*labels).set(count)
            self._waiting = set(counts)

    def storage(self, size: Size, archived: Iterable[Mapping[str, Any]]) -> None:
        """What the warehouse takes, and what the archive holds, by table."""
        for part, value in asdict(size).items():
            self.warehouse_bytes.labels(part).set(value)
        for table in archived:
            self.archived_rows.labels(table["table_name"]).set(table["rows"])
            self.archived_bytes.labels(table["table_name"]).set(table["bytes"])

    def keep(self, workloads: Collection[str]) -> None:
        """Forget all other workloads."""
        forget_other_workloads((self.workload_failures, self.decisions), workloads)
