"""What was read of the sampled answers and of those that people approved: each text is read once, not each minute."""

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
"""Answers approved in the last days tell how answers ought to sound."""
APPROVED_ANSWERS, APPROVED_MINIMUM = 300, 20
"""The latest so many of them, and how many it takes."""

Key = tuple[str, datetime]
"""The id and the time of an answer: an id that is used again is another answer."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What is known of a sampled answer without its text.

    Attributes:
        question: a digest of what was asked, see `consistency.question`.
        claims, tone: None: the answer has no words.
    """

    question: bytes
    has_passages: bool
    claims: Claims | None
    tone: Features | None


class Readings:
    """Kept in memory, for one thread. What left the sample is forgotten at the next look; what was deleted since it was
    drawn has no reading."""

    def __init__(self) -> None:
        self._sampled: dict[str, dict[Key, Reading]] = defaultdict(dict)
        self._approved: dict[str, dict[tuple[str, datetime, str | None], Features | None]] = defaultdict(dict)

    def sampled(self, cursor: duckdb.DuckDBPyConnection, workload: str) -> dict[Key, Reading]:
        """Of the answers in the temporary table `sampled_answers`."""
        keys: list[Key] = [(identity, timestamp) for identity, timestamp, _ in sampled(cursor)]
        known = self._sampled[workload]
        new = {
            (identity, timestamp): _reading(messages, response, context)
            for identity, timestamp, messages, response, context in texts(
                cursor, workload, [key for key in keys if key not in known]
            )
        }
        found = {key: reading for key in keys if (reading := known.get(key) or new.get(key)) is not None}
        self._sampled[workload] = found
        return found

    def approved(
        self, cursor: duckdb.DuckDBPyConnection, workload: str, window_start: datetime, now: datetime
    ) -> list[Features]:
        """The tone of how people want answers to be: of the latest corrections, and of answers of before the window
        that everybody found helpful; those that have words."""
        latest = latest_approved(cursor, workload, now - timedelta(days=APPROVED_DAYS), window_start)
        known = self._approved[workload]
        new = [key for key in latest if key not in known]
        corrections = {feedback: key for key in new if (feedback := key[2]) is not None}
        answers = {key[:2]: key for key in new if key[2] is None}
        said: dict[tuple[str, datetime, str | None], str] = {}
        if corrections:
            given = {"ids": list(corrections), "since": now - timedelta(days=APPROVED_DAYS)}
            for feedback, value in cursor.execute(QUERIES["corrections"], given).fetchall():
                said[corrections[feedback]] = tool_calls.answer_text(json.loads(value))
        for identity, timestamp, _, response, _ in texts(cursor, workload, list(answers)):
            said[answers[identity, timestamp]] = response
        read = {key: features(spoken) if (spoken := words(text)) else None for key, text in said.items()}
        self._approved[workload] = {key: known[key] if key in known else read.get(key) for key in latest}
        return [tone for tone in self._approved[workload].values() if tone is not None]

    def keep(self, workloads: Collection[str]) -> None:
        """Forget what is of other workloads."""
        for kept in (self._sampled, self._approved):
            for workload in kept.keys() - set(workloads):
                del kept[workload]


def sampled(cursor: duckdb.DuckDBPyConnection) -> list[tuple[str, datetime, str]]:
    """Id, time and model of the answers in the temporary table `sampled_answers`."""
    return cursor.execute(QUERIES["sampled"]).fetchall()


def texts(
    cursor: duckdb.DuckDBPyConnection, workload: str, keys: Sequence[Key]
) -> Iterable[tuple[str, datetime, str, str, str | None]]:
    """Id, time, messages, response and context of answers, as they are stored; nothing is read for no keys."""
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
    """The latest approved answers: id and time of each, and the id of its correction where there is one.

    Looks back from the window's start four times as far each time, until there are enough or `since` is reached: what
    people said last is at the end of a long table.
    """
    wanted = {"workload": workload, "since": since, "window_start": window_start, "most": most}
    back = timedelta(hours=1)
    while True:
        said_since = max(window_start - back, since)
        found = cursor.execute(QUERIES["approved"], wanted | {"said_since": said_since}).fetchall()
        if len(found) >= most or said_since == since:
            return found
        back *= 4


def _reading(messages: str, response: str, context: str | None) -> Reading:
    said = words(response)
    passages = json.loads(context) if context else None
    return Reading(
        question=hashlib.sha256(question(messages, context).encode("utf-8", "surrogatepass")).digest(),
        has_passages=isinstance(passages, list) and bool(passages),
        claims=claims(said) if said else None,
        tone=features(said) if said else None,
    )
