"""Which questions are the same: equal in identity, or near duplicates."""

import json
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from retuned.retrain.data.examples import Example, facts_of
from retuned.retrain.data.similarity import NearIndex, Template, text_hash

T = TypeVar("T")

_SHORT = 3


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
                word_replaced(text, self._template.varying(other.prompt)) or word_replaced(example.prompt, other.prompt)
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


def word_replaced(one: str, other: str) -> bool:
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
    return text_hash(json.dumps([example.scope, sorted(frozenset().union(*map(facts_of, asked)))]))
