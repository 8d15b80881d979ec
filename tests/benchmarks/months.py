"""A year of 50 workloads in compressed time: what grows with the months, and what does not.

One warehouse, in which each day's events and what jobs leave behind in a day are inserted in bulk (drift checks by the
quarter of an hour, looks of the watch by five minutes, weekly runs with their files); every other week the real jobs
that book, archive and clean up run, at that day's time. What is thinned or summed two days later anyway is inserted
more coarsely than it comes: figures of `quality` by the hour, fixed costs by ten minutes.

What is kept is filled within the first month, so that the last one shows what grows for ever: events leave for the
archive after four weeks (but for the newest 1,000 corrections and votes of each workload), checks and decisions go
after as long, and three reports of checks that found drift are kept. With the defaults the same is reached after 100
days, and reports grow until there are 50 of each workload.

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
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prometheus_client import CollectorRegistry, generate_latest

sys.path.insert(0, str(Path(__file__).parents[1]))

from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.consumers.warehouse.connection import Warehouse, parameters_of
from retuned.consumers.warehouse.opening import open_warehouse
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
SPLITS = {"train": 0.85, "holdout": 0.15, "regression": 0.5, "thumbs": 0.5, "set_aside": 0.2}
"""Rows of each file of a dataset, over ROWS."""
TURNS, SCRAPES = 2, 50
SQL = dict(
    re.findall(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", Path(__file__).with_suffix(".sql").read_text(), re.M | re.S)
)
CLEAN_UP, CLEAN_DAYS = ("archive", "retention"), 14

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


def jobs_of(folder: Path, now: Callable[[], datetime]) -> tuple[Jobs, CollectorRegistry, Warehouse]:
    """Jobs over the warehouse of a folder, at a time."""
    settings = Settings.model_validate(
        {
            "warehouse": {"path": folder / "retuned.duckdb"},
            "models": {"directory": folder / "models", "base": None},
            "retention": {"keep_days": 28, "history_days": 28},
            "drift": {"keep_reports": 3},
            "dataset": {"maximum_rows": 1_000},
            "roi": {"hourly_rate": 40, "training_hourly_rate": 2, "fixed_daily_cost": 24},
        }
    )
    warehouse, registry = open_warehouse(settings.warehouse), CollectorRegistry()
    metrics = Metrics(registry), MonitorMetrics(registry), RetrainMetrics(registry)
    context = Context(warehouse, settings, MemoryPublisher(), *metrics, threading.Event(), now)
    return Jobs(context, print), registry, warehouse


class Year:
    """What happens, day by day; every workload has the same fate."""

    def __init__(self, folder: Path, measured: tuple[int, ...]) -> None:
        self.folder, self.measured = folder, measured
        self.champion = self.promotion = self.latest = None
        self.since = self.now = START

    def run(self, first: int, last: int) -> None:
        """The days from `first` to before `last`, each month with a line of the table."""
        began = time.monotonic()
        jobs, _, warehouse = jobs_of(self.folder, lambda: self.now)
        for number in range(first, last):
            self.now = START + (number + 1) * DAY
            self._day(warehouse, number)
            if (number + 1) % CLEAN_DAYS == 0 or number + 1 in self.measured:
                for job in jobs.table():
                    if job.id in CLEAN_UP:
                        job.work()
            if (number + 1) % MONTH == 0:
                warehouse.checkpoint()
                spent = f"{time.monotonic() - began:.0f} s"
                print(f"day {number + 1}", spent, sizes(warehouse, self.folder), file=sys.stderr, flush=True)
        warehouse.close()

    def _day(self, warehouse: Warehouse, number: int) -> None:
        day = START + number * DAY
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

    def _train(self, cursor: Any, number: int, given: dict[str, Any]) -> None:
        """A run of each workload; the first of each four is promoted."""
        given["version"] = self.latest = f"{number:07x}"
        promoted = number % 28 == 0
        given["promotion"] = f"p{number}" if promoted else None
        run(cursor, SQL["runs"], given)
        for w in range(WORKLOADS):
            home = self.folder / "models" / f"support.{w}"
            adapter, dataset = home / f"{self.latest}{w}", home / "datasets" / f"{self.latest}d{w}"
            for path in (adapter, dataset):
                path.mkdir(parents=True)
            (adapter / "content").write_bytes(os.urandom(ADAPTER_BYTES))
            for name, share in SPLITS.items():
                pq.write_table(examples(f"{number}-{w}-{name}", round(share * ROWS)), dataset / f"{name}.parquet")
        if promoted:
            run(cursor, SQL["promoted"], given)
            self.champion, self.promotion, self.since = self.latest, given["promotion"], given["day"]

    def _reports(self, number: int) -> None:
        folder = self.folder / "reports"
        folder.mkdir(exist_ok=True)
        for w in range(WORKLOADS):
            for ending in ("json", "html"):
                (folder / f"d{number}-{w}.{ending}").write_bytes(os.urandom(PAGE_BYTES // 2))


def examples(name: str, count: int) -> pa.Table:
    """Rows of a dataset, as the columns of `Example`, with texts that no compression shortens much."""
    text = [os.urandom(60).hex() for _ in range(count)]
    same = dict.fromkeys(("source", "kind", "scope", "rejected", "context", "user_id", "topic", "origin"), [""] * count)
    ids = [f"{name}-{n}" for n in range(count)]
    known = {"row_id": ids, "prompt_hash": ids, "interaction_id": ids, "feedback_id": ids, "completion": text}
    asked = dict.fromkeys(("prompt", "question", "messages"), text)
    times = dict.fromkeys(("timestamp", "received_at"), [START] * count)
    return pa.table(same | known | asked | times | {"replay": [False] * count})


def run(cursor: Any, statements: str, given: dict[str, Any]) -> None:
    """Each statement with the parameters that it names, in one transaction."""
    cursor.begin()
    for statement in statements.split(";\n"):
        if statement.strip():
            cursor.execute(statement, parameters_of(statement, given))
    cursor.commit()


def measure(folder: Path, now: datetime) -> dict[str, float]:
    """An idle minute, in this process, which has done nothing else."""
    at = now
    jobs, registry, warehouse = jobs_of(folder, lambda: at)
    seconds, scrapes = [], []
    for turn in range(TURNS + 1):  # imports and caches are warm after the first
        at = now + turn * timedelta(minutes=1)
        before = time.process_time()
        for job in ("quality", "watch", "announce"):
            jobs.run(job)
        seconds.append(time.process_time() - before)
    if jobs.context.failures:
        raise RuntimeError(f"a job failed, the figures are none: {jobs.context.failures}")
    page = b""
    for _ in range(SCRAPES):
        before = time.process_time()
        page = generate_latest(registry)
        scrapes.append(time.process_time() - before)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    warehouse.checkpoint()
    disk, file = sizes(warehouse, folder), warehouse.size().file
    warehouse.close()
    return {
        "idle_cpu_seconds": min(seconds[1:]),
        "scrape_seconds": statistics.median(scrapes),
        "scrape_bytes": float(len(page)),
        "memory_mib": pages * resource.getpagesize() / 2**20,
        "disk_mib": sum(disk[kind] for kind in ("warehouse", "models", "reports")),
        "file_mib": file / 2**20,
        "archive_mib": disk["archive"],
    }


def sizes(warehouse: Warehouse, folder: Path) -> dict[str, float]:
    """MiB of what lies on the disk, by kind; of the models, those of datasets apart once more."""
    size = warehouse.size()
    held = {name: bytes_in(folder / name) for name in ("models", "reports", "archive")}
    held["warehouse"] = size.used + size.log
    held["datasets"] = sum(map(bytes_in, (folder / "models").glob("*/datasets")))
    return {kind: round(count / 2**20, 1) for kind, count in held.items()}


def bytes_in(folder: Path) -> int:
    """Of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main(months: tuple[int, int] = (MONTH, YEAR)) -> dict[str, float]:
    """Takes some ten minutes on two cores."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        year = Year(Path(name), months)
        measured = {}
        for first, last in pairwise((0, *months)):
            year.run(first, last)
            child = subprocess.run(
                [sys.executable, __file__, name, year.now.isoformat()], check=True, stdout=subprocess.PIPE, text=True
            )
            measured[last] = json.loads(child.stdout)
            print(f"day {last}: {child.stdout}", file=sys.stderr, flush=True)
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
