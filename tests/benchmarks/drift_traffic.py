"""Drift on real traffic: conversations, days that differ, few ratings, Banking77's questions. A part of `drift`.

Where a check's own tests decide and its windows do not matter, they are called on made-up columns; Banking77 takes the
whole way of a check but Evidently.
"""

import csv
import json
import os
import random
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fixtures.feedback.traffic import START, interactions, new_warehouse, prompts, store
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.drift import check as drift
from retuned.monitors.drift.columns import read
from retuned.monitors.drift.comparison import differ, judge
from retuned.monitors.drift.two_samples import Difference, Sample, categories, numbers, satisfaction
from retuned.monitors.drift.windows import windows
from retuned.monitors.settings import Settings, WindowsSettings
from retuned.monitors.statistics import holm, repeated_looks
from retuned.monitors.windows import Window, Windows

DRIFT = Settings().drift
ROWS, WEEK, TOPICS = 1_000, 7, np.asarray((16, 16, 10, 10, 10, 9, 9, 8, 6, 6)) / 100
# The share of a topic deviates from the usual one by so many points (standard deviation) on each day; looks a day.
DEVIATION, LOOKS, DAYS = 0.02, 12, 200
ANSWERS, HELPFUL = 20_000, 0.75
RATED = (0.01, 0.015, 0.05, 0.5)
LATE_RUNS = 60
TURNS, CONVERSATIONS, QUIET_LOOKS = (1, 3, 6, 10), 200, 25
LATE = (
    ("false_alarms_late", "votes come after 6 h (median), quiet: alarms within a day", (6, 6), 0.0),
    ("false_alarms_late_content", "the same, who is not content votes after 1 h", (6, 1), 0.0),
    ("power_late_content", "the same, 20 points less helpful: found within two days", (6, 1), 0.2),
    ("power_late_discontent", "who is content votes after 1 h, else 6 h, 20 points less: found", (1, 6), 0.2),
)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
NEW_INTENTS, NEW_SHARE, QUESTIONS, QUIET_DAYS = 5, 0.3, 1_000, 20


def main(tell: Callable[[str, str, int, int], None]) -> None:
    """Call `tell` with name, words, days (or runs) and how many of them alarmed, or found the shift."""
    for turns in TURNS:
        alarms = sum(conversations_alarm(turns, seed) for seed in range(QUIET_LOOKS))
        tell(f"false_alarms_conversations_{turns}", f"quiet, {turns} turns each: any feature", QUIET_LOOKS, alarms)
    for name, topics in (("", 1), ("_every_topic", len(TOPICS))):
        alarms = sum(day_alarms(seed, topics) for seed in range(DAYS))
        tell(f"false_alarms_days{name}", f"quiet days, {topics} topics ± {DEVIATION:.0%}: any alarm", DAYS, alarms)
    found = sum(day_alarms(seed, len(TOPICS), shift=0.2, looks=1) for seed in range(DAYS // 2))
    tell("power_topic_days", "the same, 20% move to one topic", DAYS // 2, found)
    for rated in RATED:
        alarms = sum(satisfaction_alarms(seed, rated, 0.0) for seed in range(DAYS))
        tell(f"false_alarms_rated_{rated:.1%}"[:-1], f"{rated:.1%} rated, quiet: alarms within two days", DAYS, alarms)
    found = sum(satisfaction_alarms(seed, 0.015, 0.2) for seed in range(DAYS))
    tell("power_satisfaction_rare", "1.5% rated, 20 points less helpful: found within two days", DAYS, found)
    for name, words, medians, fall in LATE:
        found = sum(late_votes_alarm(seed, *medians, fall) for seed in range(LATE_RUNS))
        tell(name, words, LATE_RUNS, found)
    for name, words, runs, flagged in banking77():
        tell(name, words, runs, flagged)


@contextmanager
def _temporary() -> Iterator[tuple[Warehouse, Path]]:
    """An empty warehouse and its folder."""
    with tempfile.TemporaryDirectory() as name, closing(new_warehouse(Path(name))) as warehouse:
        yield warehouse, Path(name)


def flags(differences: Sequence[Difference]) -> bool:
    """Whether a look at these features flags any."""
    threshold = holm(
        [one.p_value for one in differences], DRIFT.false_alarm_rate, lambda rate: repeated_looks(rate, moving=1)
    )
    return any(one.p_value <= threshold and one.share >= DRIFT.minimum_distance for one in differences)


def day_alarms(seed: int, topics: int, shift: float = 0.0, looks: int = LOOKS) -> bool:
    """Whether any look alarms while the current window moves on by a day; before it, a week is the reference.

    So many topics deviate from day to day, and three numbers by so many of their own deviations.
    """
    rng = np.random.default_rng(seed)

    def day(rows: int, shift: float = 0.0) -> list[np.ndarray[Any, Any]]:
        shares = TOPICS.copy()
        shares[:topics] = np.clip(shares[:topics] + rng.normal(0, DEVIATION, topics), 0.01, None)
        shares *= (1 - shift) / shares.sum()
        shares[seed % len(TOPICS)] += shift
        asked = np.asarray([f"topic {n}" for n in rng.choice(len(TOPICS), rows, p=shares)], dtype=object)
        return [asked, *(rng.normal(rng.normal(0, DEVIATION), 1, rows) for _ in range(3))]

    week = [day(ROWS // WEEK) for _ in range(WEEK)]
    after = [day(ROWS, shift) for _ in range(2)]
    numbered = np.repeat(np.arange(-WEEK, 0), ROWS // WEEK)
    for look in range(looks):
        begin = ROWS * look // max(looks - 1, 1)
        columns = []
        for place, test in enumerate((categories, numbers, numbers, numbers)):
            before = Sample(np.concatenate([one[place] for one in week]), numbered)
            now = np.concatenate([one[place] for one in after])[begin : begin + ROWS]
            columns.append(test(before, Sample(now, np.zeros(len(now), int))))
        if flags(columns):
            return True
    return False


def satisfaction_alarms(seed: int, rated: float, fall: float) -> bool:
    """Whether any look within two days finds satisfaction lower; the current window is the day before the look."""
    rng = np.random.default_rng(seed)

    def votes(rate: float, day: int, rows: int) -> Sample:
        topics, helpful = rng.choice(len(TOPICS), rows, p=TOPICS), rng.random(rows) < rate
        texts = [f"topic {topic}: {'yes' if yes else 'no'}" for topic, yes in zip(topics, helpful, strict=True)]
        return Sample(np.asarray(texts, dtype=object), np.full(rows, day))

    daily = int(ANSWERS * rated)
    week = [votes(HELPFUL, day, min(daily, ROWS // WEEK)) for day in range(-WEEK, 0)]
    reference = Sample(np.concatenate([one.values for one in week]), np.concatenate([one.days for one in week]))
    stream = np.concatenate([votes(HELPFUL, 0, daily).values, *(votes(HELPFUL - fall, 0, daily).values for _ in "12")])
    quiet = Difference(1.0, 0.0, 0.0, 1.0, lambda values: np.zeros(len(values)))
    for look in range(1, LOOKS + 1):
        end = daily + 2 * daily * look // LOOKS
        window = stream[end - daily : end]
        kept = np.sort(rng.permutation(len(window))[:ROWS])
        found = satisfaction(reference, Sample(window[kept], np.zeros(len(kept), int)))
        if flags([found] + [quiet] * 10):
            return True
    return False


def late_votes_alarm(seed: int, content: float, discontent: float, fall: float = 0.0, looks: int = LOOKS) -> bool:
    """Whether any look finds satisfaction lower, where votes come late: those within a day after the reference, or
    within two where it has fallen after the first of them.

    5% of 20,000 answers a day are rated, a week of them is the reference; delays are log-normal.

    Args:
        content, discontent: median delay in hours of a vote for the answer, and of one against it.
    """
    rng = np.random.default_rng(seed)
    daily, days = int(ANSWERS * 0.05), WEEK + (3 if fall else 2)
    answered = np.sort(rng.random(daily * days)) * days
    helpful = rng.random(len(answered)) < np.where(answered >= WEEK + 1, HELPFUL - fall, HELPFUL)
    delays = np.where(helpful, content, discontent) / 24 * rng.lognormal(0, 1, len(answered))
    place = {"topic": "events", "partition": 0}
    with _temporary() as (warehouse, _):
        answers, votes = [], []
        for number, (when, delay, yes) in enumerate(zip(answered, delays, helpful, strict=True)):
            at, said = START + when * DAY, START + (when + delay) * DAY
            answers.append(
                {"id": f"i{number}", "timestamp": at, "workload": "support", "model": "base", "messages": "[]"}
                | {"response": "", "offset": number, "received_at": at}
                | place
            )
            votes.append(
                {"id": f"f{number}", "timestamp": said, "interaction_id": f"i{number}", "name": "helpful"}
                | {"value": json.dumps(bool(yes)), "source": "user", "offset": number, "received_at": said}
                | place
            )
        store(warehouse, "interactions", answers)
        first, span = START + (WEEK + 1) * DAY, (2 if fall else 1) * DAY
        votes.sort(key=lambda vote: vote["timestamp"])
        for look in range(1, looks + 1):
            now = first + span * look / looks
            come = bisect_right(votes, now, key=lambda vote: vote["timestamp"])
            store(warehouse, "feedback", votes[:come])
            del votes[:come]
            judgements.follow(warehouse)
            if _finds_a_fall(warehouse, now):
                return True
    return False


def _finds_a_fall(warehouse: Warehouse, now: datetime) -> bool:
    """A look at satisfaction as of that time, among ten features that did not move."""
    quiet = Difference(1.0, 0.0, 0.0, 1.0, lambda values: np.zeros(len(values)))
    start, end = START, START + WEEK * DAY
    found = Windows("support", Window(start, end, ROWS), Window(now - DAY, now, ROWS), standing=True)
    with warehouse.cursor() as cursor:
        drift.put_votes(cursor, found, now)
        rows = cursor.execute(
            "SELECT timestamp < $end, (epoch_us(timestamp) - epoch_us($start)) // 86_400_000_000, value "
            "FROM rated JOIN interactions USING (id) ORDER BY id",
            {"start": start, "end": end},
        ).fetchall()

    def sample(*, reference: bool) -> Sample:
        kept = [(day, "all: yes" if value else "all: no") for before, day, value in rows if before == reference]
        values, days = np.asarray([value for _, value in kept], dtype=object), np.asarray([day for day, _ in kept])
        return Sample(values, days if reference else np.full(len(days), days[-1]))

    return flags([satisfaction(sample(reference=True), sample(reference=False)), *[quiet] * 10])


def conversations_alarm(turns: int, seed: int) -> bool:
    """Whether a look at quiet conversations, each on one topic, flags any feature."""
    rng, length = random.Random(seed), timedelta(minutes=CONVERSATIONS * turns)
    with _temporary() as (warehouse, folder):
        topics = rng.choices(range(5), (3, 3, 2, 2, 1), k=2 * CONVERSATIONS)
        asked = [prompts(turns, rng, tuple(int(topic == other) for other in range(5))) for topic in topics]
        interactions(warehouse, list(chain(*asked)), rng)
        warehouse.execute("UPDATE interactions SET conversation_id = 'c' || (\"offset\" // $turns)", {"turns": turns})
        seconds = length.total_seconds()
        settings = Settings(windows=WindowsSettings(reference_seconds=seconds, current_seconds=seconds))
        return bool(flagged(warehouse, settings, "support", START + 2 * length, folder)[0])


def banking77() -> Iterator[tuple[str, str, int, int]]:
    """Quiet days of real questions, then a day with new intents; answers are intents, nine in ten of them right."""
    folder = os.environ.get("RETUNED_DATA")
    if not folder or not (Path(folder) / "banking77").is_dir():
        print("skipped: Banking77; set RETUNED_DATA to a folder that holds banking77/{train,test}.csv", file=sys.stderr)
        return
    questions: dict[str, list[str]] = {}
    for name in ("train.csv", "test.csv"):
        with (Path(folder) / "banking77" / name).open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                questions.setdefault(row["category"], []).append(row["text"])
    rng = random.Random(0)
    intents = sorted(questions)
    rng.shuffle(intents)
    usual, new = intents[NEW_INTENTS:], intents[:NEW_INTENTS]
    pool = [(text, intent) for intent in usual for text in questions[intent]]
    novel = [(text, intent) for intent in new for text in questions[intent]]
    settings = Settings()
    alarms, shares = 0, []
    with _temporary() as (warehouse, place):
        for day in range(WEEK + QUIET_DAYS + 1):
            last = day == WEEK + QUIET_DAYS
            asked = [rng.choice(novel if last and rng.random() < NEW_SHARE else pool) for _ in range(QUESTIONS)]
            store(warehouse, "interactions", [
                {
                    "id": f"{day}-{number}", "timestamp": START + day * DAY + number * (DAY / QUESTIONS),
                    "workload": "support", "model": "base", "messages": json.dumps([{"role": "user", "content": text}]),
                    "response": intent if rng.random() < 0.9 else rng.choice(usual), "topic": "interactions",
                    "partition": 0, "offset": QUESTIONS * day + number, "received_at": START + day * DAY,
                }
                for number, (text, intent) in enumerate(asked)
            ])  # fmt: skip
            if day >= WEEK:
                names, topic = flagged(warehouse, settings, "support", START + (day + 1) * DAY, place)
                if last:
                    shares.append(topic)
                    yield (
                        "power_banking77",
                        f"Banking77: {NEW_SHARE:.0%} from {NEW_INTENTS} new intents",
                        1,
                        int({"topic", "answer"} <= names),
                    )
                else:
                    alarms += bool(names)
    yield "false_alarms_banking77", "Banking77: quiet days", QUIET_DAYS, alarms
    for topic in shares:
        print(f"share of new questions: {topic.share:.2f} ({topic.low:.2f} to {topic.high:.2f})", file=sys.stderr)


def flagged(
    warehouse: Warehouse, settings: Settings, workload: str, now: Any, folder: Path
) -> tuple[set[str], Difference]:
    """What a check flags but operations, without Evidently around the tests, and the difference of topics."""
    found = windows(warehouse, settings.windows, workload, now)
    assert found is not None
    drift.write_features(warehouse, settings, found, now, folder / "rows.parquet")
    columns = read(folder / "rows.parquet", settings.drift.topics, [])
    differences, _ = differ(columns)
    moving = 1 if found.standing else 2
    verdicts = judge(columns, differences, settings.drift.false_alarm_rate, settings.drift.minimum_distance, moving)
    drifted = {column for column, verdict in verdicts.items() if verdict.drifted} - set(drift.OPERATIONS)
    return drifted, differences["topic"]
