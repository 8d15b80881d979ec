"""Counts the tables of capacity.md: `python docs/capacity.py`. Change what is yours here, and run it again.

MEASURED are the figures of `python tests/benchmarks/run.py capacity`, `minute` and `gateway`, in SI units; ASSUMED is the
traffic, how long what is kept, and how full machines may be; PRICES are round numbers, no vendor's.
"""

import re
from math import ceil
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
RATES = (1_000, 10_000, 100_000, 1_000_000)
WORKLOADS = (1, 10, 100, 1_000)
DAY, MONTH = 86_400, 2_629_800

MEASURED = {
    "event_bytes": 1_000.0,
    "kafka_bytes": 500.0,
    "parquet_bytes": 300.0,
    "duckdb_bytes": 400.0,
    "ingester_seconds": 10e-6,
    "ingester_names_seconds": 5e-3,
    "follower_seconds": 5e-6,
    "segment_postgres_seconds": 1e-3,
    "segment_postgres_bytes": 1_000.0,
    "segments_per_second": 500.0,
    "jobs_seconds": 1e-6,  # of a minute's jobs, for each answer of the last day
    "workload_seconds": 0.14,  # of an idle minute's jobs, for each workload
    "workload_memory_bytes": 1e6,
    "gateway_seconds": 0.26e-3,
}
ASSUMED = {
    "batch_events": 10_240,  # ingest.batch_events
    "segment_seconds": 5,  # store.segment_seconds
    "kafka_copies": 3,
    "kafka_days": 3,
    "bucket_months": 12,
    "keep_days": 14,  # retention.keep_days
    "used": 0.6,  # of a core, on average
    "daemons": 2,
    "runs_a_month": 4.3,  # of each workload
    "rows": 2_000,
    "tokens": 600,  # of a row
    "epochs": 3,
    "parameters": 8e9,
    "flops": 1e14,  # that a GPU does of those that it could
    "evaluation_seconds": 300,
    "version_bytes": 2e8,
    "versions": 10,
}
PRICES = {
    "core": 25.0,  # a month, with 4 GB of memory
    "disk": 0.10,  # a GB for a month
    "objects": 0.025,
    "puts": 5.0,  # a million
    "gpu": 2.5,  # an hour
}


def cores(rate: float, seconds: float) -> float:
    """That do so much work, each as full as it may be."""
    return rate * seconds / ASSUMED["used"]


class Events:
    """What a rate of events needs."""

    def __init__(self, rate: int) -> None:
        m, a = MEASURED, ASSUMED
        self.rate = rate
        self.clusters = ceil(rate / daemon_rate())
        each = rate / self.clusters
        self.kafka_mb = rate * m["kafka_bytes"] / 1e6
        self.kafka_tb = rate * m["kafka_bytes"] * DAY * a["kafka_days"] * a["kafka_copies"] / 1e12
        self.ingesters = max(2, ceil(cores(rate, m["ingester_seconds"])))
        self.named = max(2, ceil(cores(rate, m["ingester_names_seconds"])))
        self.segments = max(self.ingesters / a["segment_seconds"], rate / a["batch_events"])
        self.postgres_cores = cores(self.segments, m["segment_postgres_seconds"])
        self.postgres_gb = self.segments * m["segment_postgres_bytes"] * 12 * MONTH / 1e9
        self.objects_tb = rate * m["parquet_bytes"] * MONTH / 1e12
        self.puts = 2 * self.segments * MONTH / 1e6
        self.follow_cores = cores(each, m["follower_seconds"])
        self.jobs_cores = cores(each, m["jobs_seconds"] * DAY / 60)
        self.disk_tb = each * m["duckdb_bytes"] * DAY * a["keep_days"] / 1e12
        self.gateway_cores = cores(rate, m["gateway_seconds"])

    def cost(self) -> dict[str, float]:
        """A month, by part, after as many months as the bucket keeps."""
        p, daemons = PRICES, ASSUMED["daemons"] * self.clusters
        kafka = max(3.0, self.kafka_mb / 20) * p["core"] + self.kafka_tb * 1e3 * p["disk"]
        daemon = max(2.0, ceil(self.follow_cores + self.jobs_cores) + 1) * p["core"] + self.disk_tb * 1e3 * p["disk"]
        return {
            "Kafka": kafka,
            "ingesters": self.ingesters * p["core"],
            "PostgreSQL": max(2.0, self.postgres_cores) * p["core"] + self.postgres_gb * p["disk"],
            "object storage": self.objects_tb * 1e3 * ASSUMED["bucket_months"] * p["objects"] + self.puts * p["puts"],
            "daemons": daemons * daemon,
            "gateways": max(2, ceil(self.gateway_cores)) * p["core"],
        }


def daemon_rate() -> float:
    """Events a second that one daemon follows and measures: ingestion is one thread, the jobs of a minute take a minute."""
    return min(ASSUMED["used"] / MEASURED["follower_seconds"], ASSUMED["used"] * 60 / DAY / MEASURED["jobs_seconds"])


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
