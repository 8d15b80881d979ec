"""Counts the tables of capacity.md: `python docs/capacity.py`. Change what is yours here, and run it again.

MEASURED are figures of the benchmarks `capacity`, `minute` and `gateway`, in SI units; ASSUMED is the traffic, how long
what is kept, and how full machines may be; PRICES are round numbers, no vendor's.
"""

import re
from math import ceil
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
RATES = (1_000, 10_000, 100_000, 1_000_000)
WORKLOADS = (1, 10, 100, 1_000)
DAY, MONTH = 86_400, 2_629_800

MEASURED = {
    "event_bytes": 1_038,
    "kafka_bytes": 340,
    "parquet_bytes": 197,
    "duckdb_bytes": 239,
    "ingester_seconds": 130e-6,
    "ingester_unredacted_seconds": 12.2e-6,
    "ingester_names_seconds": 36.6e-3,
    "ingester_memory_bytes": 528 * 2**20,
    "follower_seconds": 7.9e-6,
    "segment_postgres_seconds": 0.20e-3,
    "segment_postgres_bytes": 1_664,
    "segments_per_second": 586,
    "segments_per_second_together": 1_849,
    "jobs_seconds": 0.16e-3,  # of a minute's jobs, for each answer that came in it
    "jobs_window_seconds": 0.10e-6,  # of each run of them, for each answer of the last day
    "workload_seconds": 0.26,  # of each run of them, for a workload in which nothing came
    "workload_memory_bytes": 1.3e6,
    "gateway_seconds": 0.26e-3,
}
_ASSUMED = {
    "used": (0.6, "of a core, on average: peaks and catching up have room"),
    "batch_events": (10_240, "most events of a segment (`ingest.batch_events`)"),
    "segment_seconds": (5, "a segment's longest time (`store.segment_seconds`)"),
    "kafka_copies": (3, "copies of a topic"),
    "kafka_days": (3, "retention of topics"),
    "kafka_bytes_of_a_core": (20e6, "bytes a second that a broker takes in for each core, copies among them"),
    "bucket_months": (12, "how long the bucket keeps segments"),
    "quality_seconds": (60, "from one run of the jobs to the next (`schedule.quality_seconds`)"),
    "keep_days": (14, "how long a daemon keeps events (`retention.keep_days`; its default is 90)"),
    "daemons": (2, "a leader and its standby"),
    "runs_a_month": (4.3, "trainings of each workload"),
    "rows": (2_000, "of a training"),
    "tokens": (600, "of a row"),
    "epochs": (3, "passes over the rows"),
    "parameters": (8e9, "weights of the base model"),
    "flops": (1e14, "operations a second that a GPU does in a training"),
    "evaluation_seconds": (300, "on that GPU: answers of two models to the holdout, and loading them"),
    "version_bytes": (2e8, "of an adapter, its dataset and its reports"),
    "versions": (10, "kept of each workload"),
}
_PRICES = {
    "core": (25.0, "with 4 GB of memory, for a month"),
    "disk": (0.10, "a GB of an SSD, for a month"),
    "objects": (0.025, "a GB in a bucket, for a month"),
    "puts": (5.0, "a million PUTs"),
    "gpu": (2.5, "an hour of a GPU"),
}
ASSUMED = {name: value for name, (value, _) in _ASSUMED.items()}
PRICES = {name: value for name, (value, _) in _PRICES.items()}


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
        self.jobs_cores = cores(each, jobs_seconds())
        self.disk_tb = each * m["duckdb_bytes"] * DAY * a["keep_days"] / 1e12
        self.gateway_cores = cores(rate, m["gateway_seconds"])

    def cost(self) -> dict[str, float]:
        """A month, by part, after as many months as the bucket keeps."""
        p, daemons = PRICES, ASSUMED["daemons"] * self.clusters
        kafka = (
            max(3.0, self.kafka_mb * 1e6 * ASSUMED["kafka_copies"] / ASSUMED["kafka_bytes_of_a_core"]) * p["core"]
            + self.kafka_tb * 1e3 * p["disk"]
        )
        daemon = max(2.0, ceil(self.follow_cores + self.jobs_cores) + 1) * p["core"] + self.disk_tb * 1e3 * p["disk"]
        return {
            "Kafka": kafka,
            "ingesters": self.ingesters * p["core"],
            "PostgreSQL": max(2.0, self.postgres_cores) * p["core"] + self.postgres_gb * p["disk"],
            "object storage": self.objects_tb * 1e3 * ASSUMED["bucket_months"] * p["objects"] + self.puts * p["puts"],
            "daemons": daemons * daemon,
            "gateways": max(2, ceil(self.gateway_cores)) * p["core"],
        }


def jobs_seconds() -> float:
    """CPU of the jobs for each answer: once as it is new, and in each run of the day after."""
    return MEASURED["jobs_seconds"] + MEASURED["jobs_window_seconds"] * DAY / ASSUMED["quality_seconds"]


def daemon_rate() -> float:
    """Events a second that one daemon follows and measures, each by one thread."""
    return ASSUMED["used"] / max(MEASURED["follower_seconds"], jobs_seconds())


def gpu_hours() -> float:
    """Of one run, by 4 operations for each weight and token: LoRA has no gradients of the weights themselves."""
    a = ASSUMED
    trained = 4 * a["parameters"] * a["rows"] * a["tokens"] * a["epochs"] / a["flops"]
    return (trained + a["evaluation_seconds"]) / 3_600


def units() -> str:
    m = MEASURED
    rows = [
        ("an event, as JSON", f"{m['event_bytes']:,.0f} B", "capacity.events"),
        ("… in Kafka, lz4 by the producer", f"{m['kafka_bytes']:,.0f} B", "capacity.events"),
        ("… in object storage, Parquet", f"{m['parquet_bytes']:,.0f} B", "capacity.events"),
        ("… in a daemon's warehouse", f"{m['duckdb_bytes']:,.0f} B", "capacity.events"),
        ("ingester, patterns", f"{micro('ingester_seconds')} of CPU an event", "capacity.events"),
        ("… without redaction", f"{micro('ingester_unredacted_seconds')} of CPU an event", "capacity.events"),
        ("… with names of people", f"{micro('ingester_names_seconds')} of CPU an event", "capacity.names"),
        ("… its memory", f"{m['ingester_memory_bytes'] / 2**20:,.0f} MiB", "capacity.events"),
        ("a daemon that follows", f"{micro('follower_seconds')} of CPU an event", "capacity.events"),
        ("the minute's jobs, an answer that is new", f"{micro('jobs_seconds')} of CPU", "minute"),
        ("… a million answers of the last day", f"{m['jobs_window_seconds'] * 1e6:.2f} s of CPU each time", "minute"),
        ("… a workload without new answers", f"{m['workload_seconds']:.2f} s of CPU each time", "capacity.workloads"),
        ("PostgreSQL, a segment", f"{micro('segment_postgres_seconds')} of CPU", "capacity.segments"),
        ("… in its tables", f"{m['segment_postgres_bytes']:,.0f} B", "capacity.segments"),
        (
            "… recorded by one ingester, by eight",
            f"{m['segments_per_second']:,.0f}, {m['segments_per_second_together']:,.0f} a second",
            "capacity.segments",
        ),
        ("gateway, a request", f"{micro('gateway_seconds')} of CPU", "gateway"),
    ]
    return table(("what", "measured", "by `run.py`"), [(what, value, f"`{by}`") for what, value, by in rows])


def micro(name: str) -> str:
    seconds = MEASURED[name]
    return f"{figure(seconds * 1e3)} ms" if seconds >= 1e-3 else f"{figure(seconds * 1e6)} µs"


def events() -> str:
    found = [Events(rate) for rate in RATES]
    a = ASSUMED
    rows = [
        ("Kafka: MB a second, before copies", [figure(one.kafka_mb) for one in found]),
        (
            f"… TB on its disks, {a['kafka_days']} days, {a['kafka_copies']} copies",
            [figure(one.kafka_tb) for one in found],
        ),
        ("ingesters of one core, patterns; partitions of a topic", [figure(one.ingesters) for one in found]),
        ("… with names of people", [figure(one.named) for one in found]),
        ("PostgreSQL: segments a second", [figure(one.segments) for one in found]),
        ("… GB a year", [figure(one.postgres_gb) for one in found]),
        ("object storage: TB a month", [figure(one.objects_tb) for one in found]),
        ("… million PUTs a month", [figure(one.puts) for one in found]),
        ("clusters (a daemon and its standby each)", [figure(one.clusters) for one in found]),
        ("each daemon: cores to follow", [figure(one.follow_cores) for one in found]),
        ("… cores for the jobs", [figure(one.jobs_cores) for one in found]),
        (f"… TB of disk, {a['keep_days']} days", [figure(one.disk_tb) for one in found]),
        ("gateways: cores, if all answers go through them", [figure(one.gateway_cores) for one in found]),
    ]
    return table(("events a second", *(f"{rate:,}" for rate in RATES)), [(name, *cells) for name, cells in rows])


def workloads() -> str:
    m, a = MEASURED, ASSUMED
    rows = [
        (
            "cores for the jobs of each minute, without traffic",
            [cores(n, m["workload_seconds"] / a["quality_seconds"]) for n in WORKLOADS],
        ),
        ("memory of the daemon for them, GB", [n * m["workload_memory_bytes"] / 1e9 for n in WORKLOADS]),
        ("GPU hours a month", [n * a["runs_a_month"] * gpu_hours() for n in WORKLOADS]),
        ("GPUs that are always busy", [n * a["runs_a_month"] * gpu_hours() * 3_600 / MONTH for n in WORKLOADS]),
        ("GB of versions", [n * a["versions"] * a["version_bytes"] / 1e9 for n in WORKLOADS]),
        ("cost of GPUs a month", [n * a["runs_a_month"] * gpu_hours() * PRICES["gpu"] for n in WORKLOADS]),
    ]
    head = ("workloads", *(f"{n:,}" for n in WORKLOADS))
    return table(head, [(name, *map(figure, values)) for name, values in rows])


def costs() -> str:
    found = [Events(rate).cost() for rate in RATES]
    rows = [(part, *(figure(one[part]) for one in found)) for part in found[0]]
    rows.append(("**together**", *(f"**{figure(sum(one.values()))}**" for one in found)))
    month = [sum(one.values()) / (rate * MONTH / 1e6) for one, rate in zip(found, RATES, strict=True)]
    rows.append(("for a million events", *(figure(one) for one in month)))
    named = [(Events(rate).named - Events(rate).ingesters) * PRICES["core"] for rate in RATES]
    rows.append(("names of people, on top", *(figure(one) for one in named)))
    return table(("a month, at events a second", *(f"{rate:,}" for rate in RATES)), rows)


def assumptions() -> str:
    rows = [(f"`{name}`", f"{value:,.10g}", text) for name, (value, text) in (_ASSUMED | _PRICES).items()]
    return table(("name in docs/capacity.py", "value", "what it is"), rows)


def figure(value: float) -> str:
    """Two digits that count, and no more."""
    if value >= 100:
        return f"{float(f'{value:.2g}'):,.0f}"
    return f"{float(f'{value:.2g}'):g}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(text: str) -> str:
    """The page with its tables as they are counted now: each follows a comment with the name of its function."""
    for made in (units, assumptions, events, workloads, costs):
        begin = f"<!-- {made.__name__}: python docs/capacity.py -->\n"
        text, found = re.subn(rf"({re.escape(begin)})(?:\|.*\n)*", lambda _, b=begin, m=made: b + m() + "\n", text)
        assert found == 1, begin
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
