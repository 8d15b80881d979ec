"""What to label next: the answers whose label would teach most are asked of experts, a few a day, none twice.

A request is answered by an expert's `correction` or `helpful` on its interaction, which is feedback like any other. A
few of each day are drawn at random instead, to calibrate the grounding rules; `hallucination` answers those.
"""

import json
import math
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from retuned.consumers.common.durable import replace_text
from retuned.consumers.common.tool_calls import schemas
from retuned.consumers.errors import RetunedError
from retuned.consumers.formats.messages import joined_text
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries, rows_of
from retuned.retrain import versions
from retuned.retrain.data.examples import Example, example, logged_answer
from retuned.retrain.data.questions import QuestionIndex, questions_of
from retuned.retrain.data.similarity import Template
from retuned.retrain.scoring.facts import facts, values
from retuned.retrain.scoring.metric import Chosen, Metric, Same, restored
from retuned.retrain.scoring.tool_calls import has_calls
from retuned.retrain.settings import Settings

QUERIES = named_queries("retuned.retrain.data", "labels.sql")

POOL = 1_000
"""The newest answers that are looked at, and the newest known questions that they are held against."""
SETTLE_DISTANCE = timedelta(hours=1)
"""Feedback that is stored while its answer is being asked about was received a little earlier."""
LEAST_SCORE = 0.3
FAR = 0.6

# How likely an answer is wrong of which nothing else is known than that … Rough: they only rank.
_UNREADABLE, _HEDGED, _UNGROUNDED, _NEW_TOPIC = 0.9, 0.5, 0.7, 0.5

CALIBRATION_SHARE = 0.2
"""Of a day's requests, for labels that calibrate the grounding rules: half of them alarms, half other answers."""
CALIBRATION_ENOUGH = 50
"""So many of either kind, asked within CALIBRATION_DAYS, are enough."""
CALIBRATION_DAYS = 90
_CALIBRATION = (
    "Drawn at random, to measure how often answers are invented: does the context say what the answer says? "
    "Reply with hallucination, true or false."
)

_LEADERS = 20
_ROWS_AT_ONCE = 200
_HEDGE = re.compile(
    r"\b(?:(?:i|we) (?:do not|don['’]t|cannot|can['’]t|could not|couldn['’]t|am not able|am unable)"
    r"|i['’]m (?:not sure|unable|sorry|afraid)|i am (?:not sure|sorry|afraid)|not (?:certain|entirely sure)"
    r"|unfortunately)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Candidate:
    """An answer that could be asked about, and how many people called it good and bad.

    Attributes:
        settled: it is known what is right, or it was asked about: it is only held against others.
    """

    example: Example
    good: int = 0
    bad: int = 0
    settled: bool = False


@dataclass(frozen=True)
class Taught:
    """What the champion was taught: questions, normalised, and the facts of the answers."""

    questions: tuple[str, ...] = ()
    facts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pick:
    """An answer to ask about.

    Attributes:
        score: how likely it is wrong, 0 to 1.
        reason: the weightiest of uncertain, unreadable, ungrounded, new_topic and disagreeing.
        detail: all that spoke for it, as sentences, the weightiest first.
    """

    example: Example
    score: float
    reason: str
    detail: str


def request(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> int:
    """Choose what to ask experts within the budget of the day and store the requests together; returns how many.

    They are announced by `announce_pending`: a broker that is away delays them, and nothing is asked twice.
    """
    asked = warehouse.row(QUERIES["asked"], {"workload": workload, "since": now - timedelta(days=1)})
    assert asked is not None
    left = settings.labels.per_day - asked["requests"]
    if left <= 0:
        return 0
    drawn = _draw(
        warehouse, workload, min(left, math.ceil(CALIBRATION_SHARE * settings.labels.per_day)) - asked["drawn"], now
    )
    left -= len(drawn)
    asked_now = {row["interaction_id"] for row in drawn}
    parameters = {"workload": workload, "limit": POOL}
    candidates = [
        Candidate(made, row["good"], row["bad"], row["settled"] or row["id"] in asked_now)
        for row in _newest(warehouse, workload, now)
        if (made := _example(row)) is not None
    ]
    known = [made for row in warehouse.rows(QUERIES["known"], parameters) if (made := _example(row)) is not None]
    newest = warehouse.row(versions.QUERIES["latest_dataset"], {"workload": workload})
    kept = json.loads(newest["card"]).get("metric") if newest else None
    metric = restored(settings, kept, [one.example.completion for one in candidates])
    similarity = settings.dataset.near_duplicate_similarity
    picks = choose(candidates, known, _taught_to(warehouse, workload), left, similarity, metric)
    requests = [
        *({"reason": "calibration", "detail": _CALIBRATION, "score": None, **row} for row in drawn),
        *(
            {
                "interaction_id": pick.example.interaction_id,
                "reason": pick.reason,
                "detail": pick.detail,
                "score": pick.score,
            }
            for pick in picks
        ),
    ]
    with warehouse.transaction() as cursor:
        for one in requests:
            insert(
                cursor,
                "label_requests",
                id=uuid.uuid4().hex,
                created_at=now,
                workload=workload,
                announced=False,
                **one,
            )
    return len(requests)


def _newest(warehouse: Warehouse, workload: str, now: datetime) -> list[dict[str, Any]]:
    """The newest answers of the model in service, with the votes on them."""
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        cursor.execute(QUERIES["newest"], {"workload": workload, "limit": POOL})
        start, end = cursor.execute(QUERIES["span"]).fetchall()[0]
        if start is None:
            return []
        judgements.comparable_votes(cursor, workload, start, end, now=now)
        return rows_of(cursor.execute(QUERIES["candidates"], {"workload": workload}))


def _draw(warehouse: Warehouse, workload: str, most: int, now: datetime) -> list[dict[str, Any]]:
    """Answers to be labelled that are a random sample of those the grounding rules alarm on, and of the others.

    Whether one is an alarm is not told to whom is asked. The kind of which fewer were asked comes first.
    """
    parameters = {
        "workload": workload,
        "since": now - timedelta(days=CALIBRATION_DAYS),
        "enough": CALIBRATION_ENOUGH,
        "most": max(most, 0),
        "seed": now.isoformat(),
    }
    return warehouse.rows(QUERIES["draw"], parameters)


def choose(
    candidates: Sequence[Candidate],
    known: Iterable[Example],
    taught: Taught,
    count: int,
    similarity: float,
    metric: Chosen,
) -> list[Pick]:
    """The answers whose label would teach most, at most `count`: likely wrong, and unlike each other.

    Five signs are looked for, and each says how likely the answer is wrong; together 1 − Π (1 − sign), as if they were
    independent:

    - uncertain: people called it bad and nobody said what is right, (bad + 1) / (good + bad + 2); or it hedges;
    - unreadable: programs cannot read it, as the metric says: none of the labels, no JSON, no such tool;
    - ungrounded: it states in words values that stand neither in its context nor in the question; without a context,
      nor in anything that the champion was taught;
    - new topic: its question is far (cosine of TF-IDF) from all that the champion was taught;
    - disagreeing: the same question got other answers (the share of those), or people disagree about this one.

    Answers that people called good, and no one bad, are left out. What is picked is the best by score × (1 − cosine to
    the nearest pick), one after the other, as in maximal marginal relevance (Carbonell and Goldstein 1998), without
    near duplicates of picks and of `known` questions.
    """
    known = list(known)
    template = Template([*(one.example.prompt for one in candidates), *(one.prompt for one in known)])
    asked: QuestionIndex[Example] = QuestionIndex(similarity, template)
    for one in known:
        asked.add(one, one)
    answers = _answers(candidates, similarity, template, metric.same)
    open_ones = [one for one in candidates if not one.settled and (one.bad or not one.good) and one.example.question]
    if not open_ones:
        return []
    similar, far = _space([one.example.question for one in open_ones], taught.questions)
    scored = [
        _scored(one, answers[one.example.interaction_id], distance, taught, metric.metric)
        for one, distance in zip(open_ones, far, strict=True)
    ]
    left = {number: pick.score for number, pick in enumerate(scored) if pick.score >= LEAST_SCORE}
    nearest = [0.0] * len(scored)
    picks: list[Pick] = []
    while left and len(picks) < count:
        best = max(left, key=lambda number: (left[number] * (1 - nearest[number]), -number))
        pick = scored[best]
        del left[best]
        if any(asked.same(pick.example)):
            continue
        asked.add(pick.example, pick.example)
        picks.append(pick)
        for number, cosine in enumerate(similar(best)):
            nearest[number] = max(nearest[number], cosine)
    return sorted(picks, key=lambda pick: -pick.score)


def settle(warehouse: Warehouse) -> None:
    """Mark the requests that experts have answered."""
    oldest = warehouse.row(QUERIES["oldest_open"]) or {}
    if oldest["created_at"] is not None:
        warehouse.execute(QUERIES["settle"], {"since": oldest["created_at"] - SETTLE_DISTANCE})


def forget(warehouse: Warehouse, old: datetime) -> int:
    """Delete the requests of before `old` about answers that are in the archive; how many they were."""
    return warehouse.delete(QUERIES["forget"], {"old": old})


def announce_pending(warehouse: Warehouse, publisher: Publisher, topic: str) -> int:
    """Publish the open requests that were not yet, oldest first; returns how many.

    A crash between a message and its mark publishes it twice, with one id.

    Raises:
        BrokerUnavailable: the rest stays pending.
    """
    rows = warehouse.rows(QUERIES["open"], {"workload": None, "pending": True})
    for row in rows:
        publisher.publish(topic, row["interaction_id"], _message(row))
        warehouse.execute(QUERIES["announced"], {"id": row["id"]})
    return len(rows)


def open_requests(warehouse: Warehouse, workload: str | None = None) -> list[dict[str, Any]]:
    """The requests that wait for an answer, oldest first, as they are announced."""
    return [_message(row) for row in warehouse.rows(QUERIES["open"], {"workload": workload, "pending": False})]


def write_files(warehouse: Warehouse, settings: Settings) -> None:
    """Keep the open requests of each workload in the file that its settings name, a line for each request.

    A file is there whole at any time.

    Raises:
        RetunedError: one cannot be written.
    """
    files = {workload: settings.for_workload(workload).labels.file for workload in counts(warehouse)}
    lines: dict[Path, list[str]] = {file: [] for file in (settings.labels.file, *files.values()) if file is not None}
    for row in open_requests(warehouse) if lines else ():
        if (file := files.get(row["workload"])) is not None:
            lines[file].append(json.dumps(row, ensure_ascii=False) + "\n")
    for file, own in lines.items():
        try:
            replace_text(file, "".join(own))
        except OSError as error:
            raise RetunedError(f"labels.file: {file} cannot be written ({error.strerror})") from error


def counts(warehouse: Warehouse) -> dict[str, dict[str, int]]:
    """By workload, how many requests are `open` and how many `answered`."""
    return {row.pop("workload"): row for row in warehouse.rows(QUERIES["counts"])}


def _scored(candidate: Candidate, answers: "_Answers", distance: float | None, taught: Taught, metric: Metric) -> Pick:
    one = candidate.example
    signs: list[tuple[float, str, str]] = []
    good, bad = candidate.good, candidate.bad
    if bad:
        told = "People disagree about it" if good else "People called it wrong, and nobody said what is right"
        reason = "disagreeing" if good else "uncertain"
        signs.append(((bad + 1) / (good + bad + 2), reason, f"{told} ({bad} against, {good} for)."))
    elif _HEDGE.search(one.completion):
        signs.append((_HEDGED, "uncertain", "The answer is unsure of itself."))
    if answers.others:
        told = f"The same question got other answers ({answers.others:.0%} of {answers.count})."
        signs.append((answers.others, "disagreeing", told))
    if why := metric.unreadable(one.completion, {"tools": one.tools}):
        signs.append((_UNREADABLE, "unreadable", f"Programs cannot read it: {why}."))
    stated = values(facts(one.completion)) if metric.in_words and not has_calls(one.completion) else set()
    passages = json.loads(one.context) if one.context else []
    if stated and (passages or taught.facts):
        given = facts("\n".join([*passages, *(turn["content"] for turn in json.loads(one.messages))]))
        loose = stated - given - (frozenset() if passages else taught.facts)
        if loose:
            where = "neither in its context nor in the question" if passages else "in nothing that was taught or asked"
            named = ", ".join(sorted(fact.replace(":", " ", 1) for fact in loose)[:3])
            signs.append((_UNGROUNDED * len(loose) / len(stated), "ungrounded", f"It states what is {where}: {named}."))
    if distance is not None and distance >= FAR:
        signs.append((_NEW_TOPIC * distance, "new_topic", "Nothing like this question was taught."))
    signs.sort(reverse=True)
    return Pick(
        one,
        score=1 - math.prod(1 - sign for sign, _, _ in signs),
        reason=signs[0][1] if signs else "",
        detail=" ".join(detail for _, _, detail in signs),
    )


@dataclass(frozen=True)
class _Answers:
    """The answers to one question: how many, and the share of them that say something else than this one."""

    count: int
    others: float


def _answers(candidates: Sequence[Candidate], similarity: float, template: Template, same: Same) -> dict[str, _Answers]:
    """For each interaction, the answers to its question."""
    examples = [candidate.example for candidate in candidates]
    question = questions_of(examples, similarity, template)
    groups: dict[str, list[Example]] = defaultdict(list)
    for one in examples:
        groups[question[one.prompt_hash]].append(one)
    found = {}
    for group in groups.values():
        meant = _meanings([one.completion for one in group], same)
        shares = Counter(meant)
        for one, meaning in zip(group, meant, strict=True):
            found[one.interaction_id] = _Answers(len(group), 1 - shares[meaning] / len(group))
    return found


def _meanings(answers: Sequence[str], same: Same) -> list[object]:
    """A key for each answer, equal for those that say the same."""
    keys: dict[str, object] = {}
    leaders: list[str] = []
    for answer in answers:
        if answer in keys:
            continue
        leader = next((other for other in leaders if same(answer, other)), None)
        if leader is None and len(leaders) < _LEADERS:
            leaders.append(answer)
        keys[answer] = leader or answer
    return [keys[answer] for answer in answers]


def _space(
    questions: Sequence[str], taught: Sequence[str]
) -> tuple[Callable[[int], list[float]], list[float] | list[None]]:
    """Cosines of TF-IDF: of all questions to one of them; and how far each is from the nearest that was taught, 0 to 1.

    Where nothing was taught, nothing is near or far.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+").fit([*questions, *taught])
    ours, theirs = vectors.transform(questions), vectors.transform(taught) if taught else None

    def similar(number: int) -> list[float]:
        found: list[float] = (ours @ ours[number].T).toarray().ravel().tolist()
        return found

    if theirs is None:
        return similar, [None] * len(questions)
    far: list[float] = []
    for first in range(0, len(questions), _ROWS_AT_ONCE):
        cosines = (ours[first : first + _ROWS_AT_ONCE] @ theirs.T).max(axis=1).toarray().ravel()
        far += (1 - cosines).tolist()
    return similar, far


def _taught_to(warehouse: Warehouse, workload: str) -> Taught:
    """What the champion was taught; nothing where the base model serves, or its dataset is gone."""
    champion = versions.champion(warehouse, workload)
    row = champion and warehouse.row(
        versions.QUERIES["dataset"], {"workload": workload, "version": champion.dataset_version}
    )
    return _taught(row["path"]) if row and Path(row["path"]).is_dir() else Taught()


@lru_cache(maxsize=8)
def _taught(folder: str) -> Taught:
    """A dataset never changes."""
    questions: set[str] = set()
    stated: set[str] = set()
    for split in ("train", "validation"):
        table = pq.read_table(Path(folder) / f"{split}.parquet", columns=["question", "completion"])
        questions.update(table["question"].to_pylist())
        for completion in set(table["completion"].to_pylist()):
            stated |= facts(completion)
    return Taught(tuple(sorted(questions)), frozenset(stated))


def _example(row: dict[str, Any]) -> Example | None:
    return example(
        messages=row["messages"],
        completion=row["response"],
        kind="accepted",
        source="app",
        response=row["response"],
        context=row["context"],
        tools=row["tools"],
        calls=row["calls"],
        interaction_id=row["id"],
        feedback_id="",
        timestamp=row["timestamp"],
        received_at=row["timestamp"],
    )


def _message(row: dict[str, Any]) -> dict[str, Any]:
    messages = json.loads(row["messages"])
    asked = [turn.get("content") or "" for turn in messages if turn["role"] == "user"]
    return {
        "id": row["id"],
        "timestamp": row["created_at"].isoformat(timespec="milliseconds") + "Z",
        "workload": row["workload"],
        "interaction_id": row["interaction_id"],
        "model": row["model"],
        "messages": messages,
        "question": joined_text(asked[-1]) if asked else None,
        "answer": logged_answer(row["response"], row["calls"])[1],
        "tools": schemas(json.loads(row["tools"])) if row["tools"] else [],
        "context": json.loads(row["context"]) if row["context"] else None,
        "reason": row["reason"],
        "detail": row["detail"],
        "score": row["score"],
    }
