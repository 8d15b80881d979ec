"""What people taught: corrections and accepted answers, each joined with the interaction that it is about."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar

from retuned.consumers.formats.messages import joined_text
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.data.similarity import Identity, NearIndex, Template, identity, normalise, text_hash
from retuned.retrain.scoring.facts import facts, kinds, same_answer, token_f1
from retuned.retrain.settings import DatasetSettings

QUERIES = named_queries("retuned.retrain", "retrain.sql")

T = TypeVar("T")

_SAME_RESPONSE = 0.8
_SHORT = 3
_WITNESSES = 2
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
        row_id: hash of the question's identity and the completion.
        prompt_hash: of the question's identity: the conversation, system prompt, context and tools.
        prompt: the conversation without its system messages, normalised.
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
        scope: hash of system prompt, context and tools, the rest of the question's identity; empty without any.
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
    scope: str = ""

    @property
    def identity(self) -> str:
        """Of its question; `prompt_hash` is its hash."""
        return str(Identity(self.prompt, self.scope))

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
class Statements:
    """Corrections and accepted answers of a workload, newest first, before any is set aside.

    Attributes:
        corrections: every correction, also several of one interaction.
        accepted: answers that were called good and not bad, one of each interaction.
        cut: the interactions whose answer ended at its limit of tokens.
    """

    corrections: list[Example]
    accepted: list[Example]
    cut: frozenset[str]


def read_statements(
    warehouse: Warehouse, workload: str, settings: DatasetSettings, distrusted: Iterable[str] = ()
) -> Statements:
    """The newest dataset.maximum_rows corrections and as many accepted answers, written as the configuration asks.

    Args:
        distrusted: accounts whose judgement of an answer does not count.
    """
    rewrite = Rewriter(settings)
    cut: set[str] = set()

    def read(query: Literal["corrections", "accepted"], **more: Any) -> list[Example]:
        rows = warehouse.rows(QUERIES[query], {"workload": workload, "limit": settings.maximum_rows, **more})
        cut.update(row["interaction_id"] for row in rows if row.pop("finish_reason") in _CUT)
        kind: Literal["correction", "accepted"] = "correction" if query == "corrections" else "accepted"
        return [made for row in rows if (made := example(kind=kind, rewrite=rewrite, **row)) is not None]

    accepted = read("accepted", distrusted=sorted(distrusted)) if settings.accepted_answers else []
    return Statements(read("corrections"), accepted, frozenset(cut))


def one_of_each_interaction(statements: Statements, usable: Callable[[Example], bool]) -> list[Example]:
    """The usable examples, one correction of each interaction: the most trusted, then the newest.

    An accepted answer is left out when the correction of its interaction contradicts it.
    """
    corrected: dict[str, Example] = {}
    for row in filter(usable, statements.corrections):
        other = corrected.get(row.interaction_id)
        if other is None or row.rank > other.rank:
            corrected[row.interaction_id] = row
    return list(corrected.values()) + [
        row
        for row in filter(usable, statements.accepted)
        if (other := corrected.get(row.interaction_id)) is None or agree(row.completion, other.completion)
    ]


def thumbs(
    warehouse: Warehouse, workload: str, settings: DatasetSettings, distrusted: Iterable[str] = ()
) -> Iterator[tuple[Example, bool]]:
    """The answers that people last called helpful or not, newest first, and which of the two."""
    rewrite = Rewriter(settings)
    parameters = {"workload": workload, "limit": settings.maximum_rows, "distrusted": sorted(distrusted)}
    for row in warehouse.rows(QUERIES["thumbs"], parameters):
        helpful = row.pop("helpful")
        made = example(kind="accepted", rewrite=rewrite, **row)
        if made is not None:
            yield made, helpful


def sources(warehouse: Warehouse, workload: str, settings: DatasetSettings) -> list[str]:
    """The interactions that a dataset would be made from: what retention must leave in the warehouse."""
    limits = {"workload": workload, "limit": settings.maximum_rows}
    asked: dict[str, dict[str, Any]] = {"corrections": limits, "thumbs": limits | {"distrusted": []}}
    if settings.accepted_answers:
        asked["accepted"] = limits | {"distrusted": []}
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
    tools: str | None = None,
    rewrite: Callable[[str], str] = str,
) -> Example | None:
    """An example from its parts, or None when there is no question, nothing to learn, or more than text to read.

    `messages`, `context` and `tools` are JSON.
    """
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
    of = _identity(conversation, context, tools)
    return Example(
        row_id=text_hash(json.dumps([str(of), completion])),
        prompt_hash=text_hash(str(of)),
        prompt=of.text,
        scope=of.scope,
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


def restored(values: Mapping[str, Any]) -> Example:
    """An example from its columns in a dataset's files. Up to version 0.1.0 these had an identity of less."""
    row = Example(**values)
    if "scope" in values:
        return row
    of = _identity(json.loads(row.messages), row.context, None)
    return replace(row, prompt_hash=text_hash(str(of)), prompt=of.text, scope=of.scope)


def _identity(conversation: Sequence[Mapping[str, Any]], context: str | None, tools: str | None) -> Identity:
    return identity(
        " ".join(turn["content"] for turn in conversation if turn["role"] != "system"),
        " ".join(turn["content"] for turn in conversation if turn["role"] == "system"),
        [str(passage) for passage in json.loads(context)] if context else (),
        json.loads(tools) if tools else None,
    )


class QuestionIndex(Generic[T]):
    """Finds what was added under the same question: equal in identity, or a near duplicate of it.

    Near duplicates have system prompt, context and tools in common, are as alike as the limit asks, what most prompts
    share left out, and name the same things: "lamp A2" and "lamp B3" are two questions, and so are those of a lamp
    and of a sofa: what counts is a word in the place of another. A word more, a short one, or another form of it makes
    no other question.
    """

    def __init__(self, similarity: float, template: Template) -> None:
        self._template = template
        self._near: NearIndex[Example] = NearIndex(similarity)
        self._equal: dict[str, list[T]] = {}

    def add(self, example: Example, value: T) -> None:
        """Add a value under a question; one question may hold several."""
        if example.prompt_hash not in self._equal:
            self._near.add(self._template.varying(example.prompt), example, _block(example))
        self._equal.setdefault(example.prompt_hash, []).append(value)

    def same(self, example: Example) -> Iterator[T]:
        """The values under the same question, those of an equal identity first, else in the order of adding."""
        yield from self._equal.get(example.prompt_hash, ())
        text = self._template.varying(example.prompt)
        for other in self._near.near(text, _block(example)):
            if other.prompt_hash != example.prompt_hash and not (
                _replaces(text, self._template.varying(other.prompt)) or _replaces(example.prompt, other.prompt)
            ):
                yield from self._equal[other.prompt_hash]


def questions_of(examples: Iterable[Example], similarity: float, template: Template) -> dict[str, str]:
    """For each prompt hash that of the first example that asks the same question."""
    first: QuestionIndex[str] = QuestionIndex(similarity, template)
    found: dict[str, str] = {}
    for example in examples:
        if example.prompt_hash not in found:
            known = next(first.same(example), None)
            found[example.prompt_hash] = known or example.prompt_hash
            if known is None:
                first.add(example, example.prompt_hash)
    return found


class Changes:
    """Which answers became others for all who ask, in whatever words?

    One fact is asked for in many wordings, and when it changes, people correct some of them. The text of an answer
    alone does not show that: of a label ("REFUND") most questions are right while others are corrected from it to
    another. An old answer became a new one when

    - most of the questions that it answered, or half of them, have the new answer by now: the same questions moved;
    - the new answer came in the old one's place: in more than half of its questions people gave the old one before, or
      corrected it to the new one. A label has questions of its own.
    - this was seen of two questions at least.

    An answer is known by its text, and on one question by its facts.
    """

    def __init__(self) -> None:
        self._answered: dict[Hashable, set[str]] = defaultdict(set)
        self._texts: dict[tuple[str, frozenset[str]], set[Hashable]] = defaultdict(set)
        self._current: dict[str, frozenset[str]] = {}
        self._corrected: dict[tuple[Hashable, frozenset[str]], set[str]] = defaultdict(set)
        self._became: dict[tuple[Hashable, frozenset[str]], bool] = {}

    def add(self, question: str, text: Hashable, stated: frozenset[str]) -> None:
        """An answer to a question, with its facts; of a question the answer that counts today is added last."""
        self._answered[text].add(question)
        self._texts[question, stated].add(text)
        self._current[question] = stated

    def corrected(self, question: str, old: Hashable, new: frozenset[str]) -> None:
        """Somebody corrected an answer to this question to other facts."""
        self._corrected[old, new].add(question)

    def became(self, old: Hashable, new: frozenset[str]) -> bool:
        """Whether the old answer became one with the new facts. Ask when all answers are added."""
        if (old, new) not in self._became:
            self._became[old, new] = self._moved(old, new)
        return self._became[old, new]

    def _moved(self, old: Hashable, new: frozenset[str]) -> bool:
        before = self._answered.get(old, set())
        moved = {question for question in before if self._current[question] == new}
        came = moved | self._corrected.get((old, new), set())
        texts = {text for question in came for text in self._texts.get((question, new), ())}
        own = {question for text in texts for question in self._answered[text]}
        return len(came) >= _WITNESSES and bool(moved) and 2 * len(moved) >= len(before) and 2 * len(came) > len(own)


class Contradictions:
    """Which examples do newer corrections contradict?

    A correction contradicts an older example when it answers the same question differently, or when the example's
    answer became the correction's for all wordings of the question (see `Changes`).
    """

    def __init__(
        self, evidence: Sequence[Example], earlier: Sequence[Example], since: datetime | None, similarity: float,
        template: Template,
    ) -> None:  # fmt: skip
        """`evidence`: corrections and accepted answers. `earlier`: what stands in earlier datasets, or was right once.
        `since`: when earlier datasets end, if there are any."""
        self._by_question: QuestionIndex[Example] = QuestionIndex(similarity, template)
        newest_first = sorted(evidence, key=lambda row: row.timestamp, reverse=True)
        said: set[tuple[str, str, int]] = set()
        for row in newest_first:
            # Of those that state the same of one prompt, the newest counts for all.
            if row.kind == "correction" and (key := (row.prompt_hash, row.completion, row.rank)) not in said:
                said.add(key)
                self._by_question.add(row, row)
        self._same: dict[str, list[Example]] = {}
        self._texts: dict[frozenset[str], list[str]] = defaultdict(list)
        self._changed = self._changes(newest_first, earlier, since, similarity, template)

    def of(self, example: Example, *, earlier: bool) -> Example | None:
        """A correction that puts the example out of date, or None.

        Args:
            earlier: the example stands in an earlier dataset, and any newer correction counts against it. Otherwise
                both are new evidence, where a less trusted source does not overrule a more trusted one, whatever
                the order.
        """
        if example.prompt_hash not in self._same:
            self._same[example.prompt_hash] = list(self._by_question.same(example))
        for correction in self._same[example.prompt_hash]:
            if self._overrules(correction, example, earlier) and not agree(correction.completion, example.completion):
                return correction
        changed = self._changed.get(self._text(example.completion), ())
        return next((one for one in changed if self._overrules(one, example, earlier)), None)

    def _changes(
        self, newest_first: Sequence[Example], earlier: Sequence[Example], since: datetime | None, similarity: float,
        template: Template,
    ) -> dict[str, list[Example]]:  # fmt: skip
        """For each text of an answer that became another, the corrections to what it became, newest first."""
        everything = {row.row_id: row for row in [*earlier, *newest_first]}.values()
        question = questions_of(everything, similarity, template)
        changes = Changes()
        answers: dict[str, set[str]] = defaultdict(set)
        for row in sorted(
            everything, key=lambda row: (since is None or row.received_at > since, row.rank, row.timestamp)
        ):
            asked = question[row.prompt_hash]
            stated = _facts(row.completion)
            changes.add(asked, self._text(row.completion), stated)
            answers[asked].add(self._text(row.completion))
        corrections = [row for row in newest_first if row.kind == "correction" and _facts(row.completion)]
        for row in corrections:
            if row.rejected:
                changes.corrected(question[row.prompt_hash], self._text(row.rejected), _facts(row.completion))
        changed: dict[str, list[Example]] = defaultdict(list)
        for row in corrections:
            new = _facts(row.completion)
            before = answers[question[row.prompt_hash]] | ({self._text(row.rejected)} if row.rejected else set())
            for old in before:
                if _facts(old) != new and kinds(_facts(old)) & kinds(new) and changes.became(old, new):
                    changed[old].append(row)
        return changed

    def _text(self, text: str) -> str:
        """The first of the answers that state the same facts in mostly the same words."""
        if not (stated := _facts(text)):
            return text
        known = self._texts[stated]
        found = next((other for other in known if text == other or _same_response(text, other)), None)
        if found is None:
            known.append(found := text)
        return found

    @staticmethod
    def _overrules(correction: Example, example: Example, earlier: bool) -> bool:
        if earlier or correction.rank == example.rank:
            return correction.timestamp > example.timestamp
        return correction.rank > example.rank


@lru_cache(50_000)
def _same_response(one: str, other: str) -> bool:
    """Mostly the same words, and none in the place of another: an answer about a lamp is none about a sofa."""
    return token_f1(one, other) >= _SAME_RESPONSE and not _replaces(normalise(one), normalise(other))


def _replaces(one: str, other: str) -> bool:
    """Whether each of two normalised texts has a word that names something in the place of one in the other."""
    mine, theirs = set(one.split()), set(other.split())
    return _unlike(mine - theirs, theirs) and _unlike(theirs - mine, mine)


def _unlike(words: set[str], others: set[str]) -> bool:
    """Whether one of the words names something, a long one or a number, and is no form of another: "return" and
    "returning"."""
    naming = [word for word in words if len(word) > _SHORT or not word.isalpha()]
    return any(not any(_same_word(one, other) for other in others) for one in naming)


def _same_word(one: str, other: str) -> bool:
    if not (one.isalpha() and other.isalpha()):
        return one == other
    return one[: _stem(one, other)] == other[: _stem(one, other)]


def _stem(one: str, other: str) -> int:
    return max(_SHORT + 1, 3 * max(len(one), len(other)) // 5)


def _block(example: Example) -> str:
    """Questions of different blocks are not the same: other facts, system prompt, context or tools."""
    asked = (turn.get("content") or "" for turn in json.loads(example.messages) if turn["role"] != "system")
    return text_hash(json.dumps([example.scope, sorted(frozenset().union(*map(_facts, asked)))]))
