"""What the console's pages cost with many workloads and events.

    python tests/benchmarks/run.py console

`console_overview_ms` is the median CPU time to read the overview of 200 workloads with 3 million events and to rank
them, `console_queries` how many queries that takes. `console_page_ms` is the CPU time of a page of it from a snapshot,
which all tabs share; `console_workload_ms` and `console_answers_ms` those of the page of one workload and of a search.
`console_label_seconds` is how long an expert waits from an answer to the next request, over HTTP.
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.daemon.pages import browser
from fixtures.worlds.fleet import fill
from retuned.consumers.kafka.memory import MemoryPublisher
from retuned.daemon.console import attention, overview
from retuned.daemon.operations.local import Local, opened
from retuned.daemon.settings import Settings

NOW = datetime(2026, 3, 30, 9, 0, 0)
WORKLOADS, EVENTS, TIMES = 200, 3_000_000, 15


def median(act: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> float:
    """The median seconds of a few runs, after one that is not counted."""
    act()
    taken = []
    for _ in range(TIMES):
        began = clock()
        act()
        taken.append(clock() - began)
    return statistics.median(taken)


def measured(local: Local) -> dict[str, float]:
    """The figures of a warehouse without events."""
    warehouse = local.warehouse
    local.jobs.context.now = lambda: NOW
    local.jobs.context.publisher = MemoryPublisher()
    names = fill(warehouse, NOW, WORKLOADS, EVENTS)
    queries = 0
    rows = warehouse.rows

    def counted(*arguments: Any) -> list[dict[str, Any]]:
        nonlocal queries
        queries += 1
        return rows(*arguments)

    def seen() -> list[attention.State]:
        return attention.ranked(attention.state_of(one, NOW) for one in overview.facts(warehouse, names, NOW))

    warehouse.rows = counted  # type: ignore[method-assign]
    seen()
    count, warehouse.rows = queries, rows  # type: ignore[method-assign]
    client = browser(local)

    def get(path: str) -> Any:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        return answer

    def taught() -> None:
        item = get("/api/v1/inbox").json()["items"][0]["request_id"]
        began.append(time.perf_counter())
        answer = client.post(f"/labels/{item}", data={"verdict": "correction", "correction": "Within 14 days."})
        get(answer.headers["location"])
        began[-1] = time.perf_counter() - began[-1]

    began: list[float] = []
    for _ in range(TIMES):
        taught()
    return {
        "console_overview_ms": 1_000 * median(seen),
        "console_queries": float(count),
        "console_page_ms": 1_000 * median(lambda: get("/")),
        "console_workload_ms": 1_000 * median(lambda: get(f"/workloads/{names[3]}?range=28d")),
        "console_answers_ms": 1_000 * median(lambda: get("/answers?text=order+77")),
        "console_label_seconds": statistics.median(began),
    }


def main() -> dict[str, float]:
    """Takes about two minutes on one core."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(warehouse={"path": Path(folder) / "w.duckdb"}, kafka={"expert_topic": "experts"})
        with opened(settings) as local:
            return measured(local)


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
