"""A cache of what measurements need from the texts of sampled and approved answers: each text is read once."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.common import tool_calls
from retuned.consumers.common.tone import Features, features
from retuned.consumers.warehouse.connection import named_queries
from retuned.monitors.answers import words
from retuned.monitors.quality.consistency import Claims, claims, question

QUERIES = named_queries("retuned.monitors.quality", "quality.sql")
APPROVED_DAYS = 90
"""Answers approved within this many days define the desired tone."""
APPROVED_ANSWERS, APPROVED_MINIMUM = 300, 20
"""The most and the fewest approved answers."""

Key = tuple[str, datetime]
"""The id and the time of an answer: a reused id is another answer."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What measurements need from a sampled answer.

    Attributes:
        question: a digest of `consistency.question`.
        claims, tone: None: the answer has no words; of claims also: the question is not text alone.
    """

    question: bytes
    has_passages: bool
    claims: Claims | None
    tone: Features | None


class Readings:
    """The readings of all workloads, in memory; for use in one thread.

    Readings of answers that left the sample are dropped at the next measurement. Answers that were deleted after the
    sample was drawn have none.
    """

    def __init__(self) -> None:
        self._sampled: dict[str, dict[Key, Reading]] = defaultdict(dict)
        self._approved: dict[str, dict[tuple[str, datetime, str | None], Features | None]] = defaultdict(dict)

    def sampled(self, cursor: duckdb.DuckDBPyConnection, workload: str) -> dict[Key, Reading]:
        """Returns the readings of the answers in the temporary table `sampled_answers`."""
        keys: list[Key] = [(identity, timestamp) for identity, timestamp, _ in sampled(cursor)]
        known = self._sampled[workload]
        new = {
            (identity, timestamp): _reading(messages, response, context)
            for identity, timestamp, messages, response, context in texts(
                cursor, workload, [key for key in keys if key not in known]
            )
        }
        readings = {key: reading for key in keys if (reading := known.get(key) or new.get(key)) is not None}
        self._sampled[workload] = readings
        return readings

    def approved(
        self, cursor: duckdb.DuckDBPyConnection, workload: str, window_start: datetime, now: datetime
    ) -> list[Features]:
        """Returns the tone of the latest corrections, and of answers before the window that all votes call helpful."""
        latest = latest_approved(cursor, workload, now - timedelta(days=APPROVED_DAYS), window_start)
        known = self._approved[workload]
        new = [key for key in latest if key not in known]
        corrections = {feedback: key for key in new if (feedback := key[2]) is not None}
        answers = {key[:2]: key for key in new if key[2] is None}
        approved: dict[tuple[str, datetime, str | None], str] = {}
        if corrections:
            given = {"ids": list(corrections), "since": now - timedelta(days=APPROVED_DAYS)}
            for feedback, value in cursor.execute(QUERIES["corrections"], given).fetchall():
                approved[corrections[feedback]] = tool_calls.answer_text(json.loads(value))
        for identity, timestamp, _, response, _ in texts(cursor, workload, list(answers)):
            approved[answers[identity, timestamp]] = response
        read = {key: features(answer) if (answer := words(text)) else None for key, text in approved.items()}
        self._approved[workload] = {key: known[key] if key in known else read.get(key) for key in latest}
        return [tone for tone in self._approved[workload].values() if tone is not None]

    def keep(self, workloads: Collection[str]) -> None:
        """Drops the readings of all other workloads."""
        for cache in (self._sampled, self._approved):
            for workload in cache.keys() - set(workloads):
                del cache[workload]


def sampled(cursor: duckdb.DuckDBPyConnection) -> list[tuple[str, datetime, str]]:
    """Returns id, time and model of the answers in the temporary table `sampled_answers`."""
    return cursor.execute(QUERIES["sampled"]).fetchall()


def texts(
    cursor: duckdb.DuckDBPyConnection, workload: str, keys: Sequence[Key]
) -> Iterable[tuple[str, datetime, str, str, str | None]]:
    """Returns id, time, messages, response and context of answers as they are stored."""
    if not keys:
        return []
    times = [timestamp for _, timestamp in keys]
    given = {
        "workload": workload, "ids": [identity for identity, _ in keys], "times": times,
        "first": min(times), "last": max(times),
    }  # fmt: skip
    return cursor.execute(QUERIES["texts"], given).fetchall()


def latest_approved(
    cursor: duckdb.DuckDBPyConnection,
    workload: str,
    since: datetime,
    window_start: datetime,
    most: int = APPROVED_ANSWERS,
) -> list[tuple[str, datetime, str | None]]:
    """Returns the latest approved answers: the id and time of each, and the id of its correction, if there is one.

    The query looks back four times as far with each attempt, until there are enough or `since` is reached: the latest
    judgements are at the end of a long table.
    """
    wanted = {"workload": workload, "since": since, "window_start": window_start, "most": most}
    back = timedelta(hours=1)
    while True:
        judged_since = max(window_start - back, since)
        answers = cursor.execute(QUERIES["approved"], wanted | {"judged_since": judged_since}).fetchall()
        if len(answers) >= most or judged_since == since:
            return answers
        back *= 4


def has_passages(context: str | None) -> bool:
    """Whether an answer was given passages."""
    passages = json.loads(context) if context else None
    return isinstance(passages, list) and bool(passages)


def _reading(messages: str, response: str, context: str | None) -> Reading:
    answer = words(response)
    asked = question(messages, context)
    return Reading(
        question=hashlib.sha256((asked or "").encode("utf-8", "surrogatepass")).digest(),
        has_passages=has_passages(context),
        claims=claims(answer) if answer and asked is not None else None,
        tone=features(answer) if answer else None,
    )
