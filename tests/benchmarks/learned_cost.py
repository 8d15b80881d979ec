"""What it costs to build a dataset, as feedback grows: one row in ten answers one question, in words of its own."""

import json
import math
import os
import random
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from learned_tasks import facts

from fixtures.feedback.traffic import new_warehouse
from fixtures.worlds.learned import START, World, built_from
from retuned.consumers.errors import RetunedError

SIZES = (20_000, 50_000, 200_000)
LIMIT_SECONDS = 600.0
_PLACES = ("depot", "harbour", "customs office", "van", "sorting hall", "neighbour", "locker", "post office", "train")


def main() -> dict[str, float]:
    """Seconds of each size, by the clock and of processors; the first that takes too long is the last that is tried."""
    figures: dict[str, float] = {}
    work: dict[int, float] = {}
    for size in SIZES:
        seconds, work[size] = seconds_for(size)
        late = seconds >= LIMIT_SECONDS
        print(f"{size:,} feedback rows: {'more than ' * late}{seconds:.1f} s, CPU {work[size]:.1f} s", file=sys.stderr)
        if late:
            del work[size]
            break
        figures[f"dataset_seconds_{size // 1000}k"] = seconds
        figures[f"dataset_cpu_seconds_{size // 1000}k"] = work[size]
    if len(work) > 1:
        (smaller, less), (larger, more) = list(work.items())[-2:]
        figures["dataset_growth_exponent"] = math.log(more / less) / math.log(larger / smaller)
    return figures


def seconds_for(size: int) -> tuple[float, float]:
    """Seconds that `build_dataset` takes, and of processors in its child; it is ended after LIMIT_SECONDS."""
    with tempfile.TemporaryDirectory() as folder:
        warehouse = new_warehouse(Path(folder))
        try:
            world = crowded(size)
            world.into(warehouse)
            began, before = time.monotonic(), os.times()
            try:
                built_from(warehouse, world.end, Path(folder), LIMIT_SECONDS, maximum_rows=size)
            except RetunedError:
                if time.monotonic() - began < LIMIT_SECONDS:
                    raise
            after = os.times()
            children = after.children_user + after.children_system - before.children_user - before.children_system
            return time.monotonic() - began, children
        finally:
            warehouse.close()


def crowded(size: int) -> World:
    """So many rows of feedback. Nine in ten are about questions that one account or a few ask."""
    luck, world = random.Random(0), World("cost")
    items = facts(5_000, luck)
    for number in range(size):
        when = START + timedelta(seconds=10 * number)
        who = f"account-{luck.randrange(size // 10)}"
        if number % 10 == 0:
            question = "Where is my parcel?"
            answer = f"Parcel {luck.randrange(10**7)} is at the {luck.choice(_PLACES)}, due at {luck.randrange(24)}:00."
        else:
            item = luck.choice(items)
            question = f"{item.question} My number is {luck.randrange(size // 2)}."
            answer = luck.choice(item.wordings)
        interaction = world.asked(question, "I cannot say.", when, right=[answer], who=who)
        world.said(interaction, "correction", answer, when + timedelta(seconds=5), who=who)
    return world


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
