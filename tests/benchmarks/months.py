"""A year of 50 workloads in compressed time: what grows with the months, and what does not.

One warehouse, in which each day's events and what jobs leave behind in a day are inserted in bulk (the rows of the
ledger by the minute, drift checks by the quarter of an hour, looks of the watch by five minutes, weekly runs with their
files); once a week the real jobs that archive and clean up run, at that day's time. Figures of `quality` are inserted
by the hour: those of minutes are thinned to that two days later. Events leave for the archive after four weeks, but for
the newest 1,000 corrections and votes of each workload, so that the first month ends with about as many in the
warehouse as the last one.

After one month and after twelve a new process opens the warehouse, as a restarted daemon would, and measures the jobs
of a minute in which no event came in: CPU seconds, those of a scrape of /metrics, and the memory of the process
afterwards. Disk is the warehouse (what is used of its file, and its log), models, datasets and reports; the archive,
which grows by design, stands apart.
"""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

sys.path.insert(0, str(Path(__file__).parents[1]))

from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse, open_warehouse, parameters_of
from retuned.daemon.jobs.context import Context
from retuned.daemon.jobs.jobs import Jobs
from retuned.daemon.metrics import Metrics
from retuned.daemon.settings import Settings
from retuned.monitors.metrics import Metrics as MonitorMetrics
from retuned.retrain.metrics import Metrics as RetrainMetrics

START = datetime(2026, 1, 1)
DAY = timedelta(days=1)
WORKLOADS, EVENTS = 50, 200
"""Events are a day's, of each workload; three in ten are voted on, one in fifty is corrected."""
MONTH, YEAR = 30, 365
ROWS, ADAPTER_BYTES, PAGE_BYTES = 200, 200_000, 100_000
"""Of a dataset, an adapter and a drift report: the last two are smaller than real ones, for the disk's sake."""
TURNS, SCRAPES = 2, 50
SQL = dict(
    re.findall(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", Path(__file__).with_suffix(".sql").read_text(), re.M | re.S)
)
CLEAN_UP, CLEAN_DAYS = ("archive", "retention"), 7

FEATURE = json.dumps(
    {
        "feature": "prompt_length", "method": "two-sample K-S test, p-value", "threshold": 0.0003, "value": 0.4,
        "drifted": False, "reference": "a median of 71 characters", "current": "a median of 72 characters",
        "distance": 0.04, "example": None,
    }
)  # fmt: skip
COMPARISON = json.dumps(
    {
        "metric": "helpful", "source": "user", "bad_before": 20, "n_before": 60, "bad_after": 21, "n_after": 60,
        "worse": 0.1, "as_good": 0.4,
    }
)  # fmt: skip
SCORES = {"base": 0.4, "champion": 0.68, "candidate": 0.7}
DETAIL = json.dumps({"scores": SCORES, "promoted": True, "curve": [1.5] * 200})


def jobs_of(folder: Path, now: datetime) -> tuple[Jobs, CollectorRegistry, Warehouse]:
    """Jobs over the warehouse of a folder, at a time."""
    settings = Settings.model_validate(
        {
            "warehouse": {"path": folder / "retuned.duckdb"},
            "models": {"directory": folder / "models", "base": None},
            "retention": {"keep_days": 28},
            "dataset": {"maximum_rows": 1_000},
            "roi": {"hourly_rate": 40, "training_hourly_rate": 2, "fixed_daily_cost": 24},
        }
    )
    warehouse, registry = open_warehouse(settings.warehouse), CollectorRegistry()
    metrics = Metrics(registry), MonitorMetrics(registry), RetrainMetrics(registry)
    context = Context(warehouse, settings, MemoryPublisher(), *metrics, threading.Event(), lambda: now)
    return Jobs(context, print), registry, warehouse


class Year:
    """What happens, day by day; every workload has the same fate."""

    def __init__(self, folder: Path, measured: tuple[int, ...]) -> None:
        self.folder, self.measured = folder, measured
        self.champion = self.promotion = self.latest = None
        self.since = START

    def day(self, number: int) -> None:
        """All of one day, and the jobs at the end of a week."""
        day = START + number * DAY
        jobs, _, warehouse = jobs_of(self.folder, day + DAY)
        given: dict[str, Any] = {
            "day": day, "number": number, "events": EVENTS, "workloads": WORKLOADS, "version": self.champion,
            "promotion": self.promotion, "features": FEATURE, "since": self.since,
            "comparison": COMPARISON, "rows": ROWS, "detail": DETAIL, "models": str(self.folder / "models"),
            "parent": self.champion, "champion": self.champion, "generation": number // 70,
            "reports": str(self.folder / "reports"),
        }  # fmt: skip
        with warehouse.cursor() as cursor:
            run(cursor, SQL["data"], given)
            self._reports(number)
            if self.promotion and day - self.since < 3 * DAY:
                run(cursor, SQL["watched"], given)
            if number % 7 == 0:
                self._train(cursor, number, given)
        if (number + 1) % CLEAN_DAYS == 0 or number + 1 in self.measured:
            for job in jobs.table():
                if job.id in CLEAN_UP:
                    job.work()
        warehouse.close()

    def _train(self, cursor: Any, number: int, given: dict[str, Any]) -> None:
        """A run of each workload; the first of each four is promoted."""
        given["version"] = self.latest = f"{number:07x}"
        promoted = number % 28 == 0
        given["promotion"] = f"p{number}" if promoted else None
        run(cursor, SQL["runs"], given)
        for w in range(WORKLOADS):
            home = self.folder / "models" / f"support.{w}"
            for path, size in (
                (home / f"{self.latest}{w}", ADAPTER_BYTES), (home / "datasets" / f"{self.latest}d{w}", 250 * ROWS),
            ):  # fmt: skip
                path.mkdir(parents=True)
                (path / "content").write_bytes(os.urandom(size))
        if promoted:
            run(cursor, SQL["promoted"], given)
            self.champion, self.promotion, self.since = self.latest, given["promotion"], given["day"]

    def _reports(self, number: int) -> None:
        folder = self.folder / "reports"
        folder.mkdir(exist_ok=True)
        for w in range(WORKLOADS):
            for ending in ("json", "html"):
                (folder / f"d{number}-{w}.{ending}").write_bytes(os.urandom(PAGE_BYTES // 2))


def run(cursor: Any, statements: str, given: dict[str, Any]) -> None:
    """Each statement with the parameters that it names, in one transaction."""
    cursor.begin()
    for statement in statements.split(";\n"):
        if statement.strip():
            cursor.execute(statement, parameters_of(statement, given))
    cursor.commit()


def measure(folder: Path, now: datetime) -> dict[str, float]:
    """An idle minute, in this process, which has done nothing else."""
    jobs, registry, warehouse = jobs_of(folder, now)
    seconds, scrapes = [], []
    for turn in range(TURNS + 1):  # imports and caches are warm after the first
        jobs.context.now = lambda turn=turn: now + turn * timedelta(minutes=1)
        before = time.process_time()
        for job in ("quality", "watch", "announce"):
            jobs.run(job)
        seconds.append(time.process_time() - before)
    page = b""
    for _ in range(SCRAPES):
        before = time.process_time()
        page = generate_latest(registry)
        scrapes.append(time.process_time() - before)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    tables = warehouse.rows("SELECT table_name, estimated_size FROM duckdb_tables() WHERE NOT temporary")
    warehouse.checkpoint()
    size = warehouse.size()
    print(*(tuple(row.values()) for row in tables), size, file=sys.stderr)
    warehouse.close()
    return {
        "idle_cpu_seconds": min(seconds[1:]),
        "scrape_seconds": statistics.median(scrapes),
        "scrape_bytes": float(len(page)),
        "memory_mib": pages * resource.getpagesize() / 2**20,
        "disk_mib": (size.used + size.log + sum(map(bytes_in, (folder / "models", folder / "reports")))) / 2**20,
        "file_mib": size.file / 2**20,
        "archive_mib": bytes_in(folder / "archive") / 2**20,
    }


def bytes_in(folder: Path) -> int:
    """Of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main(months: tuple[int, int] = (MONTH, YEAR)) -> dict[str, float]:
    """Takes some minutes on two cores."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        year = Year(Path(name), months)
        measured = {}
        for number in range(max(months)):
            year.day(number)
            if number + 1 in months:
                now = (START + (number + 1) * DAY).isoformat()
                child = subprocess.run(
                    [sys.executable, __file__, name, now], check=True, stdout=subprocess.PIPE, text=True
                )
                measured[number + 1] = json.loads(child.stdout)
                print(f"day {number + 1}: {child.stdout}", file=sys.stderr, flush=True)
        first, last = (measured[day] for day in months)
    for figure in first:
        found |= {f"months_{figure}_first": first[figure], f"months_{figure}_last": last[figure]}
    for ratio, figure in (
        ("disk", "disk_mib"), ("idle_cpu", "idle_cpu_seconds"), ("memory", "memory_mib"), ("scrape", "scrape_seconds"),
    ):  # fmt: skip
        found[f"months_{ratio}_ratio"] = last[figure] / first[figure]
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), datetime.fromisoformat(sys.argv[2]))))
