"""What people taught: corrections and accepted answers, each joined with the interaction that it is about."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from functools import lru_cache
from importlib.resources import files
from itertools import islice, takewhile
from typing import Any, Literal

from retuned.consumers.messages import joined_text
from retuned.consumers.warehouse import Warehouse, named_queries
from retuned.retrain.scoring import facts, kinds, same_answer, token_f1
from retuned.retrain.settings import DatasetSettings
from retuned.retrain.similarity import NearIndex, normalise, text_hash

QUERIES = named_queries(files("retuned.retrain") / "sql", "retrain.sql")

_SAME_RESPONSE = 0.8
_LATEST = 5
_SHORT = 3
_CUT = ("length", "max_tokens", "incomplete")  # as OpenAI's chat and responses, Anthropic and OpenTelemetry say it
_ISO_DATE = re.compile(r"\b\d{4}-\d{2}-\d{2}\b")

# These are asked of one text, and of one pair, again and again.
_facts = lru_cache(50_000)(facts)
agree = lru_cache(50_000)(same_answer)

_RANKS = {"accepted": 0, "user": 1, "app": 1, "judge": 1, "expert": 2, "demonstration": 2}


@dataclass(frozen=True)
class Example:
    """One thing to learn: after these messages, this completion.

    Attributes:
        row_id: hash of prompt and completion.
        prompt: the conversation without its system messages, normalised; what makes two examples the same question.
        question: its last user message, normalised.
        messages: the conversation, system messages included: JSON, list of objects with role and content, a string.
        source: user, expert, judge or app, as in the feedback; demonstration for what was imported as one.
        rejected: the answer that a correction replaces; None for an accepted answer and a demonstration.
        context: the passages that the answer was to rest on: JSON, list of strings, or None.
        timestamp: when the feedback was given.
        received_at: when feedback and interaction were both there.
        user_id: pseudonym of who gave the feedback, None when nobody is named.
        topic: name of the topic that the question belongs to; None before it is known.
        origin: version of the dataset in whose holdout a regression row first stood; None elsewhere.
    """

    row_id: str
    prompt_hash: str
    prompt: str
    question: str
    messages: str
    completion: str
    kind: Literal["correction", "accepted"]
    source: str
    rejected: str | None
    context: str | None
    interaction_id: str
    feedback_id: str
    timestamp: datetime
    received_at: datetime
    user_id: str | None = None
    topic: str | None = None
    origin: str | None = None

    @property
    def rank(self) -> int:
        """How far it is trusted: an expert's correction over any other, a correction over an accepted answer."""
        return _RANKS["accepted"] if self.kind == "accepted" else _RANKS.get(self.source, 1)

    @property
    def taught_by(self) -> str:
        """The source that it counts for: that of the correction, or accepted."""
        return self.source if self.kind == "correction" else "accepted"

    def as_row(self) -> dict[str, Any]:
        """Its columns in a dataset's files."""
        return asdict(self)


@dataclass(frozen=True)
class Testimony:
    """What people said of the answers of a workload, newest first, before anybody asks whether to believe it.

    Attributes:
        corrections: every correction, also several of one interaction.
        accepted: answers that were called good and not bad, one of each interaction.
        cut: the interactions whose answer ended at its limit of tokens.
    """

    corrections: list[Example]
    accepted: list[Example]
    cut: frozenset[str]


def heard(warehouse: Warehouse, workload: str, settings: DatasetSettings, disbelieved: Iterable[str] = ()) -> Testimony:
    """The newest dataset.maximum_rows corrections and as many accepted answers, written as the configuration asks.

    Args:
        disbelieved: accounts whose judgement of an answer does not count.
    """
    rewrite = Rewriter(settings)
    cut: set[str] = set()

    def read(query: Literal["corrections", "accepted"], **more: Any) -> list[Example]:
        rows = warehouse.rows(QUERIES[query], {"workload": workload, "limit": settings.maximum_rows, **more})
        cut.update(row["interaction_id"] for row in rows if row.pop("finish_reason") in _CUT)
        kind: Literal["correction", "accepted"] = "correction" if query == "corrections" else "accepted"
        return [made for row in rows if (made := example(kind=kind, rewrite=rewrite, **row)) is not None]

    accepted = read("accepted", disbelieved=sorted(disbelieved)) if settings.accepted_answers else []
    return Testimony(read("corrections"), accepted, frozenset(cut))


def one_each(testimony: Testimony, usable: Callable[[Example], bool]) -> list[Example]:
    """The usable examples, one correction of each interaction: the most trusted, then the newest.

    An accepted answer is left out when the correction of its interaction contradicts it.
    """
    corrected: dict[str, Example] = {}
    for row in filter(usable, testimony.corrections):
        other = corrected.get(row.interaction_id)
        if other is None or row.rank > other.rank:
            corrected[row.interaction_id] = row
    return list(corrected.values()) + [
        row
        for row in filter(usable, testimony.accepted)
        if (other := corrected.get(row.interaction_id)) is None or agree(row.completion, other.completion)
    ]


def thumbs(
    warehouse: Warehouse, workload: str, settings: DatasetSettings, disbelieved: Iterable[str] = ()
) -> Iterator[tuple[Example, bool]]:
    """The answers that people last called helpful or not, newest first, and which of the two."""
    rewrite = Rewriter(settings)
    parameters = {"workload": workload, "limit": settings.maximum_rows, "disbelieved": sorted(disbelieved)}
    for row in warehouse.rows(QUERIES["thumbs"], parameters):
        helpful = row.pop("helpful")
        made = example(kind="accepted", rewrite=rewrite, **row)
        if made is not None:
            yield made, helpful


def sources(warehouse: Warehouse, workload: str, settings: DatasetSettings) -> list[str]:
    """The interactions that a dataset would be made from: what retention must leave in the warehouse."""
    limits = {"workload": workload, "limit": settings.maximum_rows}
    asked: dict[str, dict[str, Any]] = {"corrections": limits, "thumbs": limits | {"disbelieved": []}}
    if settings.accepted_answers:
        asked["accepted"] = limits | {"disbelieved": []}
    return [
        row["interaction_id"]
        for query, parameters in asked.items()
        for row in warehouse.rows(f"SELECT interaction_id FROM ({QUERIES[query]})", parameters)
    ]


class Rewriter:
    """Writes completions as the configuration asks: terms and names replaced, ISO dates in the house's form."""

    def __init__(self, settings: DatasetSettings) -> None:
        self._replace = [(re.compile(pattern), text) for pattern, text in settings.replace.items()]
        self._date_format = settings.date_format

    def __call__(self, text: str) -> str:
        """The text, rewritten."""
        for pattern, replacement in self._replace:
            text = pattern.sub(replacement, text)
        return _ISO_DATE.sub(self._date, text) if self._date_format else text

    def _date(self, match: re.Match[str]) -> str:
        assert self._date_format is not None
        try:
            return date.fromisoformat(match[0]).strftime(self._date_format)
        except ValueError:  # 2026-13-40 is a number of something
            return match[0]


def example(
    messages: str,
    completion: str,
    kind: Literal["correction", "accepted"],
    source: str,
    response: str,
    context: str | None,
    interaction_id: str,
    feedback_id: str,
    timestamp: datetime,
    received_at: datetime,
    user_id: str | None = None,
    rewrite: Callable[[str], str] = str,
) -> Example | None:
    """An example from its parts, or None when there is no question, nothing to learn, or more than text to read."""
    conversation = []
    for turn in json.loads(messages):
        text = joined_text(turn.get("content") or "")
        if text is None:
            return None  # images and the like: a model of text cannot learn from them
        conversation.append({**turn, "content": text})
    asked = [turn["content"] for turn in conversation if turn["role"] == "user"]
    completion = rewrite(completion).strip()
    if not asked or not asked[-1].strip() or not completion:
        return None
    prompt = normalise(" ".join(turn["content"] for turn in conversation if turn["role"] != "system"))
    return Example(
        row_id=text_hash(json.dumps([prompt, completion])),
        prompt_hash=text_hash(prompt),
        prompt=prompt,
        question=normalise(asked[-1]),
        messages=json.dumps(conversation, ensure_ascii=False),
        completion=completion,
        kind=kind,
        source=source,
        rejected=response if kind == "correction" and source != "demonstration" else None,
        context=context,
        interaction_id=interaction_id,
        feedback_id=feedback_id,
        timestamp=timestamp,
        received_at=received_at,
        user_id=user_id,
    )


class Contradictions:
    """Which examples do newer corrections contradict?

    A correction contradicts an older example when

    - it answers the same question (a near-duplicate prompt with the same facts in it) differently, or
    - the answer that it rejected says what the example says, and it puts another fact of the same kind in its place:
      the same policy, asked for in other words. One such correction proves little, for a model also gives the right
      answer to the wrong question: of the latest things that people said of that answer, most must reject it.
    """

    def __init__(self, evidence: Sequence[Example], similarity: float, since: datetime | None) -> None:
        """`evidence`: corrections and accepted answers. `since`: when earlier datasets end, if there are any."""
        self._since = since
        self._by_prompt: NearIndex[list[Example]] = NearIndex(similarity)
        self._near: dict[str, list[Example]] = {}
        self._by_rejected: dict[frozenset[str], list[Example]] = defaultdict(list)
        self._by_completion: dict[frozenset[str], list[Example]] = defaultdict(list)
        said: dict[str, dict[tuple[str, int], Example]] = {}
        for example in sorted(evidence, key=lambda row: row.timestamp, reverse=True):
            if stated := _facts(example.completion):
                self._by_completion[stated].append(example)
            if example.kind != "correction":
                continue
            # Of those that say the same of one prompt, the newest speaks for all.
            said.setdefault(example.prompt_hash, {}).setdefault((example.completion, example.rank), example)
            if example.rejected and (stated := _facts(example.rejected)):
                self._by_rejected[stated].append(example)
        for corrections in said.values():
            first, *_ = found = list(corrections.values())
            self._by_prompt.add(first.prompt, found)

    def of(self, example: Example, *, earlier: bool) -> Example | None:
        """A correction that puts the example out of date, or None.

        Args:
            earlier: the example stands in an earlier dataset, and any newer correction counts against it. Otherwise
                both are new evidence, where a less trusted source does not overrule a more trusted one, whatever
                the order.
        """
        for correction in self._same_question(example):
            if self._overrules(correction, example, earlier) and not agree(correction.completion, example.completion):
                return correction
        stated = _facts(example.completion)
        rejections = (
            correction
            for correction in (self._by_rejected.get(stated, ()) if stated else ())
            if self._overrules(correction, example, earlier)
            and correction.rejected is not None
            and (meant := _facts(correction.completion)) != stated
            and kinds(meant) & kinds(stated)
            and _same_response(correction.rejected, example.completion)
        )
        against = list(islice(rejections, _LATEST))
        if not against:
            return None
        upheld = (
            other
            for other in takewhile(
                lambda other: other.timestamp > example.timestamp, self._by_completion.get(stated, ())
            )
            # What upheld an answer before the champion learned it says nothing of today.
            if (not earlier or self._since is None or other.received_at > self._since)
            and _same_response(other.completion, example.completion)
        )
        said = [*against, *islice(upheld, _LATEST)]
        latest = sorted(said, key=lambda one: one.timestamp, reverse=True)[:_LATEST]
        against = [one for one in latest if one in against]
        return against[0] if 2 * len(against) > len(latest) else None

    def _same_question(self, example: Example) -> list[Example]:
        found = self._near.get(example.prompt_hash)
        if found is None:
            near = self._by_prompt.near(example.prompt)
            found = [row for rows in near if same_question(rows[0], example) for row in rows]
            self._near[example.prompt_hash] = found
        return found

    @staticmethod
    def _overrules(correction: Example, example: Example, earlier: bool) -> bool:
        if earlier or correction.rank == example.rank:
            return correction.timestamp > example.timestamp
        return correction.rank > example.rank


def same_question(one: Example, other: Example) -> bool:
    """Of two near-duplicate prompts: do they name the same things?

    "Lamp A2" and "lamp B3" are two questions, and so are those of a lamp and of a sofa: what counts is a word in the
    place of another. A word more, a short one, or another form of it makes no other question.
    """
    if one.prompt_hash == other.prompt_hash:
        return True
    return not _replaces(one.prompt, other.prompt) and _asked_about(one) == _asked_about(other)


@lru_cache(50_000)
def _same_response(one: str, other: str) -> bool:
    """Mostly the same words, and none in the place of another: an answer about a lamp is none about a sofa."""
    return token_f1(one, other) >= _SAME_RESPONSE and not _replaces(normalise(one), normalise(other))


def _replaces(one: str, other: str) -> bool:
    """Whether each of two normalised texts has a word that names something in the place of one in the other."""
    mine, theirs = set(one.split()), set(other.split())
    return _unlike(mine - theirs, theirs) and _unlike(theirs - mine, mine)


def _unlike(words: set[str], others: set[str]) -> bool:
    """Whether one of the words is long enough to name something and no form of another: "return" and "returning"."""
    long = [word for word in words if len(word) > _SHORT]
    return any(not any(one[: _stem(one, other)] == other[: _stem(one, other)] for other in others) for one in long)


def _stem(one: str, other: str) -> int:
    return max(_SHORT + 1, 3 * max(len(one), len(other)) // 5)


def _asked_about(example: Example) -> frozenset[str]:
    return frozenset().union(
        *(_facts(turn.get("content") or "") for turn in json.loads(example.messages) if turn["role"] != "system")
    )
