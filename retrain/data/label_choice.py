"""Chooses the answers whose label would teach most."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from retuned.retrain.data.examples import Example
from retuned.retrain.data.related import Related
from retuned.retrain.scoring.facts import exclude_each_other, unsupported
from retuned.retrain.scoring.metric import Chosen, Metric
from retuned.retrain.scoring.tool_calls import has_calls

LEAST_SCORE = 0.3
FAR = 0.6

# The probability that an answer is wrong if this is all that is known of it. Rough: they only rank.
_UNREADABLE, _HEDGED, _UNGROUNDED, _NEW_TOPIC = 0.9, 0.5, 0.7, 0.5

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
    """An answer that could be labelled, with the numbers of good and bad votes.

    Attributes:
        settled: the right answer is known or was requested. The candidate is only compared with others.
    """

    example: Example
    good: int = 0
    bad: int = 0
    settled: bool = False


@dataclass(frozen=True)
class Taught:
    """What the champion was trained on: the normalised questions, and the facts of the answers."""

    questions: tuple[str, ...] = ()
    facts: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Pick:
    """An answer to label.

    Attributes:
        score: the probability that it is wrong.
        reason: the strongest sign: uncertain, unreadable, ungrounded, new_topic or disagreeing.
        detail: all signs as sentences, the strongest first.
    """

    example: Example
    score: float
    reason: str
    detail: str


def choose(
    candidates: Sequence[Candidate],
    known: Iterable[Example],
    taught: Taught,
    count: int,
    similarity: float,
    metric: Chosen,
) -> list[Pick]:
    """Returns at most `count` answers that are likely wrong and unlike each other.

    Five signs estimate the probability that an answer is wrong. They are combined as if independent, 1 − Π (1 − sign):

    - uncertain: people rated it bad and nobody gave the right answer, (bad + 1) / (good + bad + 2); or it hedges;
    - unreadable: programs cannot read it, by the metric: it is no label, no JSON, or calls an unknown tool;
    - ungrounded: it states values that are neither in its context nor in the question; without a context, nor in
      anything that the champion was trained on;
    - new topic: its question is far (cosine of TF-IDF) from all training questions of the champion;
    - disagreeing: the same question got other answers (their share), or people disagree about this one.

    Answers with good votes and no bad one are left out. Picks maximise score × (1 − cosine to the nearest pick), one
    after the other (maximal marginal relevance, Carbonell and Goldstein 1998). Questions that are related to a pick or
    to a `known` question are skipped.
    """
    known = list(known)
    # One document may be the subject of many different questions, so documents do not relate questions here.
    questions = [replace(example, context=None) for example in (*(one.example for one in candidates), *known)]
    related = Related(questions, similarity)
    asked = {related.of(example.prompt_hash) for example in known}
    unlike = _unlike(candidates, metric)
    unsettled = [one for one in candidates if not one.settled and (one.bad or not one.good) and one.example.question]
    if not unsettled:
        return []
    similar, distances = _space([one.example.question for one in unsettled], taught.questions)
    scored = [
        _scored(candidate, unlike[candidate.example.interaction_id], distance, taught, metric.metric)
        for candidate, distance in zip(unsettled, distances, strict=True)
    ]
    left = {number: pick.score for number, pick in enumerate(scored) if pick.score >= LEAST_SCORE}
    nearest = [0.0] * len(scored)
    picks: list[Pick] = []
    while left and len(picks) < count:
        best = max(left, key=lambda number: (left[number] * (1 - nearest[number]), -number))
        pick = scored[best]
        del left[best]
        if (group := related.of(pick.example.prompt_hash)) in asked:
            continue
        asked.add(group)
        picks.append(pick)
        for number, cosine in enumerate(similar(best)):
            nearest[number] = max(nearest[number], cosine)
    return sorted(picks, key=lambda pick: -pick.score)


_Sign = tuple[float, str, str]
"""The probability that the answer is wrong, the reason, and a sentence."""


def _scored(
    candidate: Candidate, unlike: tuple[int, float], distance: float | None, taught: Taught, metric: Metric
) -> Pick:
    signs = sorted(_signs(candidate, unlike, distance, taught, metric), reverse=True)
    return Pick(
        candidate.example,
        score=1 - math.prod(1 - sign for sign, _, _ in signs),
        reason=signs[0][1] if signs else "",
        detail=" ".join(detail for _, _, detail in signs),
    )


def _signs(
    candidate: Candidate, unlike: tuple[int, float], distance: float | None, taught: Taught, metric: Metric
) -> Iterator[_Sign]:
    answer, good, bad = candidate.example.completion, candidate.good, candidate.bad
    if bad:
        votes = "People disagree about it" if good else "People called it wrong, and nobody gave the right answer"
        reason = "disagreeing" if good else "uncertain"
        yield (bad + 1) / (good + bad + 2), reason, f"{votes} ({bad} against, {good} for)."
    elif _HEDGE.search(answer):
        yield _HEDGED, "uncertain", "The answer is unsure of itself."
    count, others = unlike
    if others:
        yield others, "disagreeing", f"The same question got other answers ({others:.0%} of {count})."
    if why := metric.unreadable(answer, {"tools": candidate.example.tools}):
        yield _UNREADABLE, "unreadable", f"Programs cannot read it: {why}."
    if metric.in_words and not has_calls(answer):
        yield from _ungrounded(candidate.example, taught)
    if distance is not None and distance >= FAR:
        yield _NEW_TOPIC * distance, "new_topic", "Nothing like this question was taught."


def _ungrounded(example: Example, taught: Taught) -> Iterator[_Sign]:
    passages = json.loads(example.context) if example.context else []
    source = "\n".join([*passages, *(turn["content"] for turn in json.loads(example.messages))])
    stated, without = (
        {value.key for value in found if exclude_each_other(value)} for found in unsupported(example.completion, source)
    )
    if not stated or not (passages or taught.facts):
        return
    loose = without - (frozenset() if passages else taught.facts)
    if loose:
        where = "neither in its context nor in the question" if passages else "in nothing that was taught or asked"
        named = ", ".join(sorted(fact.replace(":", " ", 1) for fact in loose)[:3])
        yield _UNGROUNDED * len(loose) / len(stated), "ungrounded", f"It states values that are {where}: {named}."


def _unlike(candidates: Sequence[Candidate], metric: Chosen) -> dict[str, tuple[int, float]]:
    """Returns, by interaction, how many answers its question has, and the share of those that differ from its own."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for candidate in candidates:
        groups[candidate.example.prompt_hash].append(candidate.example)
    unlike = {}
    for group in groups.values():
        leader = _leaders([example.completion for example in group], metric)
        counts = Counter(leader[example.completion] for example in group)
        for example in group:
            same = counts[leader[example.completion]]
            unlike[example.interaction_id] = len(group), 1 - same / len(group)
    return unlike


def _leaders(answers: Sequence[str], metric: Chosen) -> dict[str, str]:
    """Maps each answer to the first one with the same meaning, of at most _LEADERS; else to the last of these."""
    leader_of: dict[str, str] = {}
    leaders: list[str] = []
    for answer in answers:
        if answer not in leader_of:
            leader = next((other for other in leaders if metric.same(answer, other)), None)
            if leader is None and len(leaders) < _LEADERS:
                leaders.append(leader := answer)
            leader_of[answer] = leader or leaders[-1]
    return leader_of


def _space(
    questions: Sequence[str], taught: Sequence[str]
) -> tuple[Callable[[int], list[float]], list[float] | list[None]]:
    """Returns cosines of TF-IDF: a function from a question to its cosines with all questions, and the distance of each
    question to the nearest taught one, 0 to 1; None if nothing was taught."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+").fit([*questions, *taught])
    ours, theirs = vectors.transform(questions), vectors.transform(taught) if taught else None

    def similar(number: int) -> list[float]:
        cosines: list[float] = (ours @ ours[number].T).toarray().ravel().tolist()
        return cosines

    if theirs is None:
        return similar, [None] * len(questions)
    distances: list[float] = []
    for first in range(0, len(questions), _ROWS_AT_ONCE):
        cosines = (ours[first : first + _ROWS_AT_ONCE] @ theirs.T).max(axis=1).toarray().ravel()
        distances += (1 - cosines).tolist()
    return similar, distances
