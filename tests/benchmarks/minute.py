"""The jobs of a minute on one workload with five million answers a day.

    python tests/benchmarks/run.py minute

Two days of answers are in the warehouse, three in a conversation, each with five passages of 1,000 characters, 1.5%
rated. Then a minute's worth of new ones is stored, and a process that has done nothing else runs the jobs of that
minute: CPU seconds of the process and of its children (those of the first minute after a start apart: what is there
is booked), and the longest time for which a thread that wanted to run could not, because Python's lock was held. On a
machine that is busy with other work the last figure is that machine's.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from months import jobs_of, run

from retuned.consumers.warehouse.connection import Warehouse

NOW = datetime(2026, 3, 3)
A_DAY, DAYS = int(os.environ.get("ADAY", "5000000")), 2
A_MINUTE = A_DAY // 1_440
GAP_MICROSECONDS = 86_400_000_000 // A_DAY
MINUTES = 4
"""The first one is apart: what a process does once after its start is in it."""
AT_ONCE = 500_000
SENTENCES = (
    "Parcels to {0} are on their way for {1} days at most, and letters for {2} days.",
    "A parcel of up to {1} kilograms costs {2} euros, one of up to {3} kilograms costs {1} euros more.",
    "The office in {0} is open from {2} to {3} o'clock, on Saturdays until {1} o'clock.",
    "Whoever is not at home finds a card, and can fetch the parcel in {0} for {3} days.",
)
TOWNS = ("Bern", "Basel", "Chur", "Genf", "Lausanne", "Lugano", "Luzern", "Thun", "Zug")
SQL = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")


def contexts() -> list[str]:
    """Five passages of about 1,000 characters for each of nine kinds of answers."""
    luck = random.Random(0)

    def passage(town: str) -> str:
        return " ".join(luck.choice(SENTENCES).format(town, *luck.sample(range(2, 30), 3)) for _ in range(12))

    return [json.dumps([passage(town) for _ in range(5)]) for town in TOWNS]


def store(warehouse: Warehouse, first: int, last: int) -> None:
    """Answers `first` to before `last`; the last of all before NOW has the number A_DAY * DAYS."""
    given = {
        "first": first, "last": last, "now": NOW, "total": A_DAY * DAYS, "gap": GAP_MICROSECONDS, "workload": "support",
        "contexts": contexts(),
    }  # fmt: skip
    with warehouse.cursor() as cursor:
        run(cursor, SQL, given)


class Waits(threading.Thread):
    """How long a thread that wants to run each millisecond has to wait for Python's lock."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest, self.over = 0.0, threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            began = time.perf_counter()
            time.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - began - 0.001)


def measure(folder: Path) -> dict[str, float]:
    """The minutes, in this process."""
    at = NOW
    jobs, _, warehouse = jobs_of(folder, lambda: at)
    seconds, longest, total = [], [], A_DAY * DAYS
    for minute in range(1, MINUTES + 1):
        at = NOW + minute * timedelta(minutes=1)
        store(warehouse, total, total + A_MINUTE)
        total += A_MINUTE
        waits = Waits()
        waits.start()
        before = sum(os.times()[:4])
        for job in ("quality", "watch", "announce"):
            jobs.run(job)
        seconds.append(sum(os.times()[:4]) - before)
        waits.over.set()
        waits.join()
        longest.append(waits.longest)
        print(f"minute {minute}: {seconds[-1]:.2f} s of CPU, waited {waits.longest:.3f} s", file=sys.stderr, flush=True)
    if jobs.context.failures:
        raise RuntimeError(f"a job failed, the figures are none: {jobs.context.failures}")
    warehouse.close()
    return {
        "minute_job_first_cpu_seconds": seconds[0],
        "minute_job_cpu_seconds": statistics.median(seconds[1:]),
        "minute_job_lock_seconds": statistics.median(longest[1:]),
    }


def main() -> dict[str, float]:
    """Takes some minutes on two cores, and 4 GB of disk."""
    with tempfile.TemporaryDirectory() as name:
        _, _, warehouse = jobs_of(Path(name), lambda: NOW)
        for first in range(0, A_DAY * DAYS, AT_ONCE):
            store(warehouse, first, first + AT_ONCE)
        warehouse.checkpoint()
        warehouse.close()
        child = subprocess.run([sys.executable, __file__, name], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(child.stdout)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
