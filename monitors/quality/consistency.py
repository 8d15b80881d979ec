"""Consistency: do answers to the same question say the same? Pure functions on texts."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retuned.consumers.privacy.placeholders import unnumbered
from retuned.monitors.hallucination.clauses import read
from retuned.monitors.hallucination.values import Value, same

_WORD = re.compile(r"\w+")
_POLARITY = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def question(messages: str, context: str | None) -> str:
    """What was asked: the words of all messages and passages (JSON), whatever their case and punctuation.

    Answers may differ when the conversation before or the passages do, so both are a part of the question.
    """
    contents = [str(message.get("content")) for message in json.loads(messages)]
    return " ".join(_WORD.findall(unnumbered("\n".join([*contents, context or ""])).casefold()))


def last_question(messages: str) -> str:
    """What the user said last (messages as JSON); "" where no user speaks."""
    asked = [str(message.get("content")) for message in json.loads(messages) if message.get("role") == "user"]
    return asked[-1] if asked else ""


@dataclass(frozen=True, slots=True)
class Claims:
    """What an answer states: whether it begins with yes or no, and its values by kind (an amount, a date, a time …)."""

    polarity: str | None
    values: Mapping[str, Sequence[Value]]


def claims(answer: str) -> Claims:
    """What an answer states."""
    found = _POLARITY.match(answer)
    return Claims(found[1].casefold() if found else None, _values(answer))


def contradict(one: Claims, other: Claims) -> bool:
    """Whether of two answers each states a value of a kind that the other does not have and has another of, or one says
    yes and the other no. What only one of them mentions is no contradiction."""
    if one.polarity and other.polarity and one.polarity != other.polarity:
        return True
    left, right = one.values, other.values
    return any(_lacking(left[kind], right[kind]) and _lacking(right[kind], left[kind]) for kind in left.keys() & right)


def contradictions(answers: Iterable[tuple[bytes, Claims]]) -> tuple[int, int]:
    """Of answers, each with its question: how many pairs contradict each other, and how many pairs there are.

    An answer is in one pair at most, with another to the same question: so pairs are independent.
    """
    waiting: dict[bytes, Claims] = {}
    contradicting = pairs = 0
    for asked, answer in answers:
        earlier = waiting.pop(asked, None)
        if earlier is None:
            waiting[asked] = answer
            continue
        pairs += 1
        contradicting += contradict(earlier, answer)
    return contradicting, pairs


def _values(answer: str) -> dict[str, list[Value]]:
    found = defaultdict[str, list[Value]](list)
    for clause in read(answer):
        for value in clause.values:
            found[value.kind].append(value)
    return found


def _lacking(values: Sequence[Value], others: Sequence[Value]) -> bool:
    return any(not any(same(value, other) for other in others) for value in values)
