"""Workloads of several kinds, from what production answered to an untouched exam.

    RETUNED_DATA=/path/to/data python tests/benchmarks/run.py workloads
    RETUNED_DATA=/path/to/data python tests/benchmarks/run.py workloads.german     one of them alone

For each: what the base model, the promoted adapter and TRL's SFTTrainer (the same rows and steps) answer rightly in the
exam, by a judgement that shares no code with the program's scores; the worst class; the least share of a class's rows
that was kept; and how far what the gate reported is from that judgement on the same answers. On two cores a workload
takes ten to forty minutes. Those whose data are not there are skipped, and say where they come from.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from workloads import bookings, intents, shops, summaries, tool_calls
from workloads.loop import figures
from workloads.task import Skipped, Task

TASKS: dict[str, Callable[[], Task]] = {
    "banking77": partial(intents.task, "banking77", 10, 60, "title_case"),
    "banking77_snake_case": partial(intents.task, "banking77_snake_case", 10, 60, "snake_case"),
    "banking77_code": partial(intents.task, "banking77_code", 10, 60, "code"),
    "banking77_all": partial(intents.task, "banking77_all", 77, 20, "title_case"),
    "restaurant8k": bookings.task,
    "tool_calls": tool_calls.task,
    "german": partial(shops.task, "german"),
    "french": partial(shops.task, "french"),
    "summaries": summaries.task,
}


def main(*named: str) -> dict[str, float]:
    """All workloads, or those that are named."""
    found: dict[str, float] = {}
    for name in named or TASKS:
        try:
            task = TASKS[name]()
        except Skipped as reason:
            print(f"{name} is skipped: {reason}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as place:
            found |= figures(task, Path(place))
    return found
