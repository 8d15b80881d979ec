"""Groups related questions: from the same conversation, about the same document, or with similar wording.

Related questions are on the same side of a split, so that no held-out question was trained on in other words. They are
one cluster in statistics. Their votes are never merged, and their answers never replace each other.

A conversation is recognised by its id, which may be wrong: an app may send one id for a channel or a customer. An id of
a few questions is taken at its word. Of an id of many, a question belongs to the one before it if it continues it: its
messages hold the other question and its answer. So a conversation of any length is one group, and unrelated questions
under one id are not.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

from retuned.consumers.common.tool_calls import read
from retuned.consumers.privacy.sealing import INSTRUCTING
from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import calls_of, normalise, text_hash
from retuned.retrain.data.similarity import Template, near_groups

GENERAL = 0.05
"""A feature of more than this share of the questions relates none of them, such as a handbook or a greeting."""
LEAST = 20
"""A feature of at most this many questions always relates them."""


class Related:
    """The groups of related questions among examples.

    Near duplicates, and the turns of one conversation, are in one group of any size; of more near duplicates than
    GENERAL of the questions (and LEAST), those of one scope. Any other relation that would make a group larger than
    that is skipped, so that a group fits into one split.

    Attributes:
        template: the text that the questions share, without which they are compared.
        similarity: the least similarity of near duplicates.
    """

    def __init__(self, examples: Iterable[Example], similarity: float) -> None:
        asked: dict[str, Example] = {}
        members: dict[str, list[Example]] = defaultdict(list)
        for example in sorted(examples, key=lambda one: (one.timestamp, one.row_id)):
            asked.setdefault(example.prompt_hash, example)
            members[example.prompt_hash].append(example)
        self.template, self.similarity = Template(one.prompt for one in asked.values()), similarity
        self._of = {question: question for question in asked}
        self._size = dict.fromkeys(asked, 1)
        self._most = max(LEAST, int(GENERAL * len(asked)))
        self._join_near(list(asked.values()))
        self._join_conversations(members)
        self._join_by((key, one) for one, rows in members.items() for row in rows for key in _beginnings(row))
        self._join_by((key, one) for one, rows in members.items() for row in rows for key in _documents(row))

    def of(self, question: str) -> str:
        """Returns the group of a question, both by hash; the question itself if it is unknown."""
        if question not in self._of:
            return question
        root = question
        while self._of[root] != root:
            root = self._of[root]
        while self._of[question] != root:
            self._of[question], question = root, self._of[question]
        return root

    def _join(self, one: str, other: str, *, of_any_size: bool = False) -> None:
        first, second = self.of(one), self.of(other)
        if first != second and (of_any_size or self._size[first] + self._size[second] <= self._most):
            self._of[second] = first
            self._size[first] += self._size.pop(second)

    def _join_by(self, keyed: Iterable[tuple[str, str]]) -> None:
        having: dict[str, dict[str, None]] = defaultdict(dict)
        for key, question in keyed:
            having[key][question] = None
        for questions in having.values():
            if 1 < len(questions) <= self._most:
                first, *others = questions
                for other in others:
                    self._join(first, other)

    def _join_conversations(self, members: Mapping[str, Sequence[Example]]) -> None:
        """Joins the turns of each conversation.

        A question that several conversations ask in the same or nearly the same words, such as a greeting, would make
        one group of all of them: it joins one only within the limit.
        """
        alike: dict[str, set[str | None]] = defaultdict(set)
        for one, rows in members.items():
            alike[self.of(one)].update(row.conversation for row in rows)
        asking = {one: alike[self.of(one)] for one in members}
        turns: dict[str, list[Example]] = defaultdict(list)
        for rows in members.values():
            for row in rows:
                if row.conversation is not None:
                    turns[row.conversation].append(row)
        for rows in turns.values():
            questions = dict.fromkeys(row.prompt_hash for row in rows)
            pairs: Iterable[tuple[str, str]]
            if len(questions) <= self._most:
                pairs = pairwise(sorted(questions, key=lambda one: len(asking[one])))
            else:
                pairs = _continued(rows)
            for one, other in pairs:
                self._join(one, other, of_any_size=len(asking[one]) == len(asking[other]) == 1)

    def _join_near(self, asked: Sequence[Example]) -> None:
        for group in self._near(asked):
            scopes: dict[str, list[Example]] = defaultdict(list)
            for one in group:
                scopes[one.scope].append(one)
            # Words that so many questions share do not tell them apart, but what they are asked about does.
            some = len(group) > self._most and len(scopes) > 1
            for first, *others in chain.from_iterable(map(self._near, scopes.values())) if some else [group]:
                for other in others:
                    self._join(first.prompt_hash, other.prompt_hash, of_any_size=True)

    def _near(self, asked: Sequence[Example]) -> Iterable[list[Example]]:
        """Returns groups of near duplicates, with those between them."""
        groups: dict[int, list[Example]] = defaultdict(list)
        texts = [self.template.varying(one.prompt) for one in asked]
        for one, label in zip(asked, near_groups(texts, self.similarity).tolist(), strict=True):
            groups[label].append(one)
        return groups.values()


def _continued(rows: Sequence[Example]) -> Iterator[tuple[str, str]]:
    """Yields, for each question whose messages hold another one with its answer, the latest such one and itself.

    An exchange of many questions, such as "Thanks", says nothing; of several, the one rated at the nearest time counts.
    """
    answered: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for row in rows:
        for answer in _answers(row):
            answered[row.question, answer].append(row)
    for row in rows:
        for exchange in reversed(list(_exchanges(row))):
            before = answered.get(exchange, ())
            if 0 < len(before) <= LEAST:
                nearest = min(before, key=lambda one: (abs(one.timestamp - row.timestamp), one.row_id))
                yield nearest.prompt_hash, row.prompt_hash
                break


def _exchanges(row: Example) -> Iterator[tuple[str, str]]:
    asked = ""
    for turn in json.loads(row.messages):
        if turn["role"] == "user":
            asked = normalise(turn["content"])
        elif turn["role"] == "assistant":
            yield asked, _form(turn)


def _beginnings(row: Example) -> Iterator[str]:
    """Yields a hash of the messages up to each answer, for apps that send no id of the conversation."""
    begun: list[str] = []
    for turn in json.loads(row.messages):
        if turn["role"] in INSTRUCTING:
            continue
        begun.append(f"{turn['role']} {_form(turn)}")
        if turn["role"] == "assistant":
            yield text_hash("\n".join(begun))
    for answer in _answers(row):
        yield text_hash("\n".join([*begun, f"assistant {answer}"]))


def _answers(row: Example) -> list[str]:
    """Returns the answers with which later messages may continue a row: the one that was given, and the right one."""
    return list(dict.fromkeys(_form({"content": text}) for text in (row.rejected, row.completion) if text))


def _form(turn: Mapping[str, Any]) -> str:
    """Returns the one form of a turn, whether its tool calls stand in its text, as in an answer, or beside it."""
    try:
        words, called = read(turn["content"])
    except ValueError:
        words, called = turn["content"], []
    inside = calls_of({"tool_calls": [call.as_message() for call in called]})
    return " ".join(filter(None, (normalise(words), inside, calls_of(turn))))


def _documents(row: Example) -> Iterator[str]:
    for passage in json.loads(row.context) if row.context else ():
        yield f"document {text_hash(normalise(str(passage)))}"
