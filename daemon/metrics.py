"""The daemon's own metrics. Ingestion, monitoring and retraining have metrics modules in their packages."""

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
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"retuned_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"retuned_{name}", text, labels, registry=registry)

        self.build = gauge("build_info", "Always 1; the label is the version.", "version")
        self.currency = gauge("currency_info", "Always 1; the label is the currency of all amounts.", "currency")
        self.job_runs = counter(
            "job_runs_total",
            "Runs of a scheduled job, by outcome (succeeded, failed, missed). Prometheus itself uses the label job.",
            *("task", "outcome"),
        )
        self.workload_failures = counter(
            "workload_failures_total",
            "Failures of a part of a scheduled job for one workload; other workloads are not affected.",
            *("task", "workload"),
        )
        self.job_last_success = gauge(
            "job_last_success_timestamp_seconds", "When a job last succeeded, Unix time.", "task"
        )
        self.job_failures = gauge(
            "job_consecutive_failures", "Failed runs of a scheduled job since it last succeeded.", "task"
        )
        self.decisions = counter(
            "retrain_decisions_total", "Decisions of the policy whether to retrain.", "workload", "outcome"
        )
        self.waiting = gauge(
            "runs_waiting",
            "Queued runs, by the reason for waiting: turn, paused, review, rollout, hours or memory; absent if none "
            "waits.",
            *("workload", "reason"),
        )
        self.pauses = gauge("training_pauses", "Pauses of retraining in force, for one workload or for all.")
        self.disk_free = gauge("disk_free_bytes", "Free space where the warehouse is.")
        self.warehouse_bytes = gauge(
            "warehouse_bytes",
            "Size of the warehouse, by part: its file, the used bytes in it, its write-ahead log (file, used, log).",
            "part",
        )
        self.warnings = gauge(
            "warnings", "Problems that need attention but stop nothing: the number of warnings in /api/v1/status."
        )
        self.archived_rows = gauge("archived_rows", "Rows in the archive.", "table")
        self.archived_bytes = gauge("archived_bytes", "Size of the archive's files.", "table")
        self.removed = counter(
            "retention_removed_total",
            "Removals by retention since the start, by kind: version, dataset, reduced_dataset or run_folder; or rows: "
            "ledger, quality, drift_check, watch_check, rollout_check, shadow_answer, decision, "
            "label_request, memory_entry, memory_use or memory_statement; or deleted events: interaction, feedback or "
            "dead_letter.",
            "kind",
        )
        self._erasures = gauge(
            "erasure_waiting_seconds",
            "Age of the oldest erasure that is not carried out, by state: requested, deleting, rewriting, swapping, or "
            "applying where the leader of a cluster has erased and this daemon has not; absent if there is none.",
            "state",
        )
        self._waiting: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def erasures(self, ages: Mapping[str, float]) -> None:
        """Sets the age in seconds of the oldest erasure that waits, by state."""
        self._erasures.clear()
        for state, seconds in ages.items():
            self._erasures.labels(state).set(seconds)

    def waiting_runs(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Set the number of queued runs by workload and reason. Safe for threads."""
        with self._lock:
            for gone in self._waiting - counts.keys():
                self.waiting.remove(*gone)
            for labels, count in counts.items():
                self.waiting.labels(*labels).set(count)
            self._waiting = set(counts)

    def storage(self, size: Size, archived: Iterable[Mapping[str, Any]]) -> None:
        """Set the size of the warehouse, and of the archive by table."""
        for part, value in asdict(size).items():
            self.warehouse_bytes.labels(part).set(value)
        self.archived_rows.clear()
        self.archived_bytes.clear()
        for table in archived:
            self.archived_rows.labels(table["table_name"]).set(table["rows"])
            self.archived_bytes.labels(table["table_name"]).set(table["bytes"])

    def keep(self, workloads: Collection[str]) -> None:
        """Drop the series of all other workloads."""
        forget_other_workloads((self.workload_failures, self.decisions), workloads)
