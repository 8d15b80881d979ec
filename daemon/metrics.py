"""The daemon's own metrics. Those of ingestion, monitoring and retraining stand in their packages' metrics modules."""

from prometheus_client import CollectorRegistry, Counter, Gauge


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
        self.disk_free = Gauge("retuned_disk_free_bytes", "Free space where the warehouse is.", registry=registry)
