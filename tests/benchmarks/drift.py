"""Drift checks: how often they cry wolf, and what they find, next to Evidently's default methods in the same runs.

    make bench-drift

Each run puts 500 questions into a reference and 500 into a current window of a warehouse, and takes the way of a check
from there: windows, samples, features, topics, tests, Evidently. Evidently's defaults get the same features. A shift
counts as found when the feature that is named after it is flagged, a quiet run as a false alarm when any is.
"""

import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import customers
import drift_traffic
import pandas as pd

from fixtures.feedback.traffic import START, new_warehouse, store
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.drift import check as drift
from retuned.monitors.drift.columns import ANSWERS, CATEGORIES, NUMBERS, SAMPLES, SATISFACTION, Columns, read
from retuned.monitors.drift.comparison import differ, judge
from retuned.monitors.settings import Settings, WindowsSettings
from retuned.monitors.statistics import holm, repeated_looks, wilson
from retuned.monitors.windows import Window, Windows, windows

ROWS = 500
QUIET, SHIFTED = 200, 60
MINUTE = timedelta(minutes=1)
SETTINGS = Settings(windows=WindowsSettings(reference_seconds=60 * ROWS, current_seconds=60 * ROWS, sample_rows=ROWS))
LANGUAGES, TOPICS = tuple(customers.FOREIGN), tuple(customers.TOPICS)
HELPFUL = dict(zip(customers.TOPICS, (0.9, 0.85, 0.8, 0.7, 0.75, 0.9, 0.85, 0.6, 0.7, 0.4), strict=True))
# A look each twenty minutes of a day, and so many quiet days; the current window is a day long.
LOOKS, DAYS = 72, 50


@dataclass
class Traffic:
    """What customers of one time are like; without arguments, as usual.

    Attributes:
        growing: a topic that a fifth of all questions moves to, from the others.
        length: factor on the length of answers.
        novelties: share of the questions with a word that nobody used before.
        language: one in ten questions is in it.
        worse: points that the helpful rate lies lower, within each topic.
    """

    growing: str | None = None
    length: float = 1.0
    novelties: float = 0.0
    language: str | None = None
    worse: float = 0.0

    def rows(self, count: int, rng: random.Random) -> list[dict[str, Any]]:
        """So many events, each with a rating or None."""
        made = []
        shares = dict(zip(customers.TOPICS, customers.WEIGHTS, strict=True))
        moving = 0.2 / (1 - shares.get(self.growing or "", 0) / sum(shares.values()))
        for usual in customers.topics(count, rng):
            topic = self.growing if self.growing and usual != self.growing and rng.random() < moving else usual
            prompt = customers.question(topic, rng)
            if rng.random() < self.novelties:
                prompt += f" It is about {rng.choice(customers.NOVELTIES)}."
            if self.language and rng.random() < 0.1:
                prompt = customers.foreign_question(self.language, rng)
            answer = "You find it in the app. " * 40
            length = rng.lognormvariate(5.3 + 0.05 * len(topic), 0.45) * self.length
            passages = ["From the handbook of the shop. " * rng.randint(1, 9) for _ in range(rng.choice((0, 1, 2, 3)))]
            made.append(
                {
                    "prompt": prompt,
                    "response": answer[: int(length)],
                    "context": json.dumps(passages) if passages else None,
                    "latency_seconds": rng.lognormvariate(0, 0.4),
                    "helpful": rng.random() < HELPFUL[topic] - self.worse if rng.random() < 0.5 else None,
                }
            )
        return made


def insert(warehouse: Warehouse, workload: str, rows: list[dict[str, Any]], step: timedelta) -> None:
    """Store events, one each step, and what was said of them."""
    events, said = [], []
    for number, row in enumerate(rows):
        when = START + number * step
        common = {"timestamp": when, "received_at": when, "partition": 0, "offset": number}
        messages = json.dumps([{"role": "user", "content": row["prompt"]}])
        events.append(
            {key: row[key] for key in ("response", "context", "latency_seconds")}
            | {"id": f"{workload}-{number:06}", "workload": workload, "model": "base", "messages": messages}
            | {"topic": "interactions"}
            | common
        )
        if row["helpful"] is not None:
            said.append(
                {"id": f"{workload}-said-{number}", "interaction_id": f"{workload}-{number:06}", "name": "helpful"}
                | {"value": json.dumps(row["helpful"]), "source": "user", "topic": "feedback"}
                | common
            )
    store(warehouse, "interactions", events)
    store(warehouse, "feedback", said)


def features(warehouse: Warehouse, workload: str, traffic: Traffic, rng: random.Random, folder: Path) -> Path:
    """The features of a usual reference and of a current window of such traffic, as a check hands them to its child."""
    insert(warehouse, workload, Traffic().rows(ROWS, rng) + traffic.rows(ROWS, rng), MINUTE)
    found = windows(warehouse, SETTINGS.windows, workload, START + 2 * ROWS * MINUTE)
    assert found is not None
    assert (found.reference.conversations, found.current.conversations) == (ROWS, ROWS)
    path = folder / "rows.parquet"
    drift.write_features(warehouse, SETTINGS, found, found.current.end, path)
    return path


def flagged(columns: Columns) -> set[str]:
    """What a check flags."""
    differences, _ = differ(columns)
    verdicts = judge(columns, differences, SETTINGS.drift.false_alarm_rate, SETTINGS.drift.minimum_distance, 1)
    return {column for column, verdict in verdicts.items() if verdict.drifted}


def flagged_by_defaults(columns: Columns) -> set[str]:
    """What Evidently flags with its default methods and thresholds, on the same features."""
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    usable = [name for name in NUMBERS + CATEGORIES if columns.unusable(name) is None]
    definition = DataDefinition(
        numerical_columns=[name for name in usable if name in NUMBERS],
        categorical_columns=[name for name in usable if name in CATEGORIES],
        text_columns=[],
    )
    snapshot = Report([ValueDrift(column=name) for name in usable], include_tests=True).run(
        Dataset.from_pandas(columns.frame(usable, "current"), data_definition=definition),
        Dataset.from_pandas(columns.frame(usable, "reference"), data_definition=definition),
    )
    return {
        test.metric_config.params["column"]
        for test in snapshot.tests_results
        if test.id == "drift" and test.status.value == "FAIL"
    }


# What changes, the features of which one must be flagged, and what a current window of it looks like.
SHIFTS: dict[str, tuple[str, str, Callable[[random.Random], Traffic]]] = {
    "topic": ("20% of questions move to one topic", "topic", lambda rng: Traffic(growing=rng.choice(TOPICS))),
    "length": ("answers 30% longer", "response_length", lambda _: Traffic(length=1.3)),
    "words": ("a new word in 20% of questions", "new_words", lambda _: Traffic(novelties=0.2)),
    "language": ("10% in a new language", "language", lambda rng: Traffic(language=rng.choice(LANGUAGES))),
    "concept": ("helpful rate 20 points lower in each topic", SATISFACTION, lambda _: Traffic(worse=0.2)),
}  # fmt: skip


def run(
    warehouse: Warehouse, name: str, traffic: Traffic, rng: random.Random, folder: Path
) -> tuple[set[str], set[str]]:
    """What a check flags, and what Evidently's defaults do."""
    columns = read(features(warehouse, name, traffic, rng, folder), SETTINGS.drift.topics, [])
    return flagged(columns), flagged_by_defaults(columns)


def alarmed_days(folder: Path) -> tuple[float, float, float]:
    """Share of quiet days on which any look alarms: as it is, without the correction for looks, and without it but only
    on two in a row.

    The reference stands, the current window moves on by three or four questions a look. Topics are found once a day,
    and compared by the chi-square test of their clusters: 144 times the kernel test would take too long.
    """
    counts = [0, 0, 0]
    for day in range(DAYS):
        columns = stream(folder / f"day-{day}", random.Random(-1 - day))
        now = columns.table["window"] == "current"
        sampled = {
            kind: columns.table.index[now & (columns.table["sample"] == kind)] for kind in {ANSWERS, *SAMPLES.values()}
        }
        corrected, uncorrected = [], []
        for look in range(LOOKS):
            # Ordered by time, as ids are numbers of one length; half of a sample is in the current window.
            kept = [
                rows[(begin := len(rows) // 2 * look // (LOOKS - 1)) : begin + len(rows) // 2]
                for rows in sampled.values()
            ]
            table = pd.concat([columns.table[~now], *(columns.table.loc[rows] for rows in kept)])
            values = [one.p_value for one in differ(replace(columns, table=table, topics=None))[0].values()]
            rate = SETTINGS.drift.false_alarm_rate
            corrected.append(min(values) <= holm(values, rate, lambda share: repeated_looks(share, moving=1)))
            uncorrected.append(min(values) <= holm(values, rate, lambda share: share))
        in_a_row = (one and other for one, other in pairwise(uncorrected))
        counts = [
            count + alarm
            for count, alarm in zip(counts, (any(corrected), any(uncorrected), any(in_a_row)), strict=True)
        ]
    corrected_days, uncorrected_days, days_in_a_row = (count / DAYS for count in counts)
    return corrected_days, uncorrected_days, days_in_a_row


def stream(folder: Path, rng: random.Random) -> Columns:
    """A reference, and as many events as a current window sees while it moves on by its length."""
    folder.mkdir()
    with closing(new_warehouse(folder)) as warehouse:
        insert(warehouse, "stream", Traffic().rows(3 * ROWS, rng), MINUTE)
        edge, end = START + ROWS * MINUTE, START + 3 * ROWS * MINUTE
        found = Windows("stream", Window(START, edge, ROWS), Window(edge, end, 2 * ROWS), standing=True)
        settings = SETTINGS.model_copy(update={"windows": WindowsSettings(sample_rows=2 * ROWS)})
        drift.write_features(warehouse, settings, found, end, folder / "rows.parquet")
    columns = read(folder / "rows.parquet", SETTINGS.drift.topics, [])
    return replace(columns, table=columns.table.assign(day=0))  # all of one day: what is looked at are looks


def check_seconds(folder: Path, counts: tuple[int, ...], times: int) -> list[float]:
    """The time of a check, its child included, with so many events stored, all of them in the windows.

    The best of several, in turns: what else runs on the machine disturbs all alike.
    """
    settings = Settings(windows=WindowsSettings(seasonal_rows=None))
    eight_days = timedelta(days=8)
    taken: dict[int, list[float]] = {events: [] for events in counts}
    with ExitStack() as stack:
        warehouses = []
        for events in counts:
            (folder / str(events)).mkdir()
            warehouses.append(stack.enter_context(closing(new_warehouse(folder / str(events)))))
            insert(warehouses[-1], "pool", Traffic().rows(2_000, random.Random(0)), MINUTE)
            warehouses[-1].execute(
                """
                INSERT INTO interactions BY NAME
                SELECT pool.* REPLACE ('many-' || number AS id, 'many' AS workload, number AS "offset",
                                       $start + to_seconds(number * $seconds / $events) AS timestamp)
                FROM range($events) numbers(number) JOIN (SELECT * FROM interactions WHERE workload = 'pool') pool
                ON pool."offset" = hash(number) % 2000
                ORDER BY number
                """,
                {"start": START, "events": events, "seconds": eight_days.total_seconds()},
            )
        for _ in range(times):
            for events, warehouse in zip(counts, warehouses, strict=True):
                began = time.perf_counter()
                outcome = drift.check(warehouse, settings, "many", START + eight_days, folder / "reports")
                taken[events].append(time.perf_counter() - began)
                assert outcome.reference_rows + outcome.current_rows == events, outcome.detail
                assert len(outcome.features) >= 9, outcome.detail
    return [min(taken[events]) for events in counts]


def main() -> dict[str, float]:
    """Half an hour on one core."""
    warnings.simplefilter("ignore")  # SciPy, on the samples that Evidently's defaults hand to it
    figures: dict[str, float] = {}
    table = [("", "checks", "retuned", "Evidently's defaults")]

    def tell(name: str, words: str, runs: int, flags: list[tuple[bool, ...]]) -> None:
        ours, defaults = sum(flag for flag, _ in flags), sum(flag for _, flag in flags)
        figures[f"drift_{name}"], figures[f"drift_{name}_defaults"] = ours / runs, defaults / runs
        table.append((words, str(runs), *(f"{n / runs:.1%} ({_interval(n, runs)})" for n in (ours, defaults))))
        print("  ".join(table[-1]), file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with closing(new_warehouse(folder)) as warehouse:
            alarms = [run(warehouse, f"quiet-{n}", Traffic(), random.Random(n), folder) for n in range(QUIET)]
            tell("false_alarms", "quiet: any feature flagged", QUIET, [tuple(map(bool, both)) for both in alarms])
            for shift, (words, feature, make) in SHIFTS.items():
                found = []
                for n in range(SHIFTED):
                    rng = random.Random(10_000 + n)
                    found.append(run(warehouse, f"{shift}-{n}", make(rng), rng, folder))
                flags = [(feature in ours, feature in defaults) for ours, defaults in found]
                tell(f"power_{shift}", words, SHIFTED, flags)
            del figures["drift_power_concept_defaults"]  # nothing in them compares within topics

        def tell_traffic(name: str, words: str, runs: int, flags: int) -> None:
            figures[f"drift_{name}"] = flags / runs
            table.append((words, str(runs), f"{flags / runs:.1%} ({_interval(flags, runs)})", ""))
            print("  ".join(table[-1]), file=sys.stderr, flush=True)

        drift_traffic.main(tell_traffic)
        figures["drift_false_alarms_conversations"] = max(
            figures[f"drift_false_alarms_conversations_{turns}"] for turns in drift_traffic.TURNS
        )
        corrected, uncorrected, in_a_row = alarmed_days(folder)
        figures["drift_quiet_days_with_alarm"] = corrected
        table += [
            ("quiet days with an alarm, a look each 20 minutes", str(DAYS), f"{corrected:.0%}", ""),
            ("  without the correction for looks", str(DAYS), f"{uncorrected:.0%}", ""),
            ("  without it, two alarms in a row", str(DAYS), f"{in_a_row:.0%}", ""),
        ]
        few, many = check_seconds(folder, (10_000, 1_000_000), 5)
        figures |= {"drift_growth_1m_over_10k": many / few, "drift_check_seconds": many}
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), file=sys.stderr)
    return figures


def _interval(successes: int, n: int) -> str:
    _, low, high = wilson(successes, n)
    return f"{low:.1%} to {high:.1%}"


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
