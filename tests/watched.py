"""A promotion that is watched: what is stored of it, and what a look sees."""

import json
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from traffic import MINUTE, START, interactions, promoted, serves, store

from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.settings import Settings
from retuned.monitors.watch.check import WatchCheck, check
from retuned.monitors.watch.comparison import Comparison

HOUR = timedelta(hours=1)
SINCE = START + 24 * HOUR
NOW = SINCE + 12 * HOUR
OVER = SINCE + 14 * 24 * HOUR
SETTINGS = Settings()
OLD, NEW = "support@v1", "support@v2"


def promote(warehouse: Warehouse, version: str | None = "v2", previous: str | None = "v1", **columns: Any) -> None:
    when = columns.pop("created_at", SINCE)
    promoted(warehouse, f"promotion-{when}-{columns.get('workload')}", version, previous, when, **columns)
    serves(warehouse, version, when, columns.get("workload", "support"))


def rated(
    warehouse: Warehouse,
    model: str,
    good: int,
    bad: int,
    start: datetime | None = None,
    name: str = "helpful",
    source: str = "user",
    user: str | None = None,
    **columns: Any,
) -> list[str]:
    """Answers of a model within an hour (by default since the promotion, or before it), rated in random order."""
    start = start or (SINCE if model == NEW else SINCE - 2 * HOUR)
    rng = random.Random(f"{model}{start}{name}")
    offset = int(warehouse.rows("SELECT count(*) AS n FROM interactions")[0]["n"])
    step = HOUR / (good + bad)
    asked = [f"question {number}" for number in range(good + bad)]
    plain = {"context": None, "latency_seconds": None}
    ids = interactions(warehouse, asked, rng, start=start, step=step, model=model, offset=offset, **plain | columns)
    values = [name != "hallucination"] * good + [name == "hallucination"] * bad
    rng.shuffle(values)
    rows = [
        {
            "id": f"{id}-{name}-{source}",
            "timestamp": start + (number + 0.5) * step,
            "interaction_id": id,
            "name": name,
            "value": json.dumps(value),
            "source": source,
            "user_id": user,
            "topic": "feedback",
            "partition": 0,
            "offset": offset + number,
            "received_at": start,
        }
        for number, (id, value) in enumerate(zip(ids, values, strict=True))
    ]
    store(warehouse, "feedback", rows)
    return ids


def seen(warehouse: Warehouse, now: datetime = NOW, settings: Settings = SETTINGS) -> WatchCheck:
    found = check(warehouse, settings, "support", now)
    assert found is not None
    return found


def compared(found: WatchCheck, metric: str = "helpful", source: str = "user") -> Comparison:
    (comparison,) = [c for c in found.comparisons if (c.metric, c.source) == (metric, source)]
    return comparison


def counted(comparison: Comparison) -> tuple[float, int, float, int]:
    return comparison.bad_before, comparison.n_before, comparison.bad_after, comparison.n_after


def timed(warehouse: Warehouse, model: str, hours: range, seconds: float, n: int = 10) -> None:
    """So many answers in each of these hours from the promotion on, six minutes apart, that took so long."""
    place = {"topic": "t", "partition": 0, "offset": 0, "received_at": SINCE}
    first = int(warehouse.rows("SELECT count(*) AS n FROM interactions")[0]["n"])
    times = [SINCE + hour * HOUR + number * 6 * MINUTE for hour in hours for number in range(n)]
    about = {"workload": "support", "model": model, "messages": "[]", "response": "", "latency_seconds": seconds}
    rows = [{"id": f"timed-{first + i}", "timestamp": when, **about, **place} for i, when in enumerate(times)]
    store(warehouse, "interactions", rows)


Said = tuple[str, bool, datetime, timedelta, int]
"""So many answers of a model, whether each is bad, when, and how much later a vote on it came."""


def voted(warehouse: Warehouse, *said: Said, workload: str = "support") -> None:
    """Answers with a vote on each."""
    place = {"topic": "t", "partition": 0, "offset": 0, "received_at": SINCE}
    answers, votes = [], []
    offset = int(warehouse.rows("SELECT count(*) AS n FROM interactions")[0]["n"])
    for model, bad, when, delay, n in said:
        for _ in range(n):
            id = f"{workload}-voted-{offset + len(answers)}"
            about = {"workload": workload, "model": model, "messages": "[]", "response": ""}
            answers.append({"id": id, "timestamp": when, **about, **place})
            vote = {"interaction_id": id, "name": "helpful", "value": json.dumps(not bad), "source": "user"}
            votes.append({"id": f"{id}-vote", "timestamp": when + delay, **vote, **place})
    store(warehouse, "interactions", answers)
    store(warehouse, "feedback", votes)


def regulars_and_others(
    warehouse: Warehouse, days: range, model: Callable[[int, float], str], regulars: float = 0.1, others: float = 0.5
) -> float:
    """Votes of days counted from the promotion: one of each of 120 regulars, and of each of 80 who never come back.

    Args:
        model: what answers on a day, by a number from 0 to 1 that is drawn for each answer.
        regulars, others: the share of bad votes of either.

    Returns:
        the share of bad votes of all that is expected.
    """
    luck = random.Random(7)
    place = {"topic": "t", "partition": 0, "offset": 0, "received_at": SINCE}
    answers, votes = [], []
    for day in days:
        for number in range(200):
            regular = number < 120
            user = f"regular {number}" if regular else f"other {day} {number}"
            when = SINCE + (day + luck.random()) * 24 * HOUR
            id = f"vote-{day}-{number}"
            about = {"workload": "support", "model": model(day, luck.random()), "messages": "[]", "response": ""}
            answers.append({"id": id, "timestamp": when, "user_id": user, **about, **place})
            value = json.dumps(luck.random() >= (regulars if regular else others))
            vote = {"interaction_id": id, "name": "helpful", "value": value, "source": "user"}
            votes.append({"id": f"{id}-vote", "timestamp": when + HOUR, **vote, **place})
    store(warehouse, "interactions", answers)
    store(warehouse, "feedback", votes)
    return 0.6 * regulars + 0.4 * others
