"""Consistency: whether answers to the same question contradict each other. Pure functions on texts."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from retuned.consumers.common.languages import language_among
from retuned.consumers.common.values.read import read
from retuned.consumers.common.values.tables import LANGUAGES
from retuned.consumers.common.values.value import Value, same
from retuned.consumers.formats.messages import joined_text, texts_of
from retuned.consumers.privacy.placeholders import unnumbered

_WORD = re.compile(r"\w+")
_AMBIGUOUS = frozenset({"number", "ordinal"})
"""Kinds whose values may count different things: two documents, three steps."""
_POLARITY = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


def question(messages: str, context: str | None) -> str | None:
    """Returns the words of all messages and passages (JSON), without case and punctuation; None if some content is no
    text, such as an image.

    Answers may rightly differ if the earlier conversation or the passages do, so both are part of the question.
    """
    contents = [joined_text(message.get("content") or "") for message in json.loads(messages)]
    if None in contents:
        return None
    return " ".join(_WORD.findall(unnumbered("\n".join([*filter(None, contents), context or ""])).casefold()))


def last_question(messages: str) -> str:
    """Returns the user's last message (messages as JSON); "" if there is none."""
    contents = [message.get("content") for message in json.loads(messages) if message.get("role") == "user"]
    return (texts_of(contents[-1]) or "") if contents else ""


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of an answer.

    Attributes:
        polarity: yes or no, if the answer begins with it.
        values: by kind (amount, date, time …).
    """

    polarity: str | None
    values: Mapping[str, Sequence[Value]]


def claims(answer: str) -> Claims:
    """Reads the claims of an answer."""
    match = _POLARITY.match(answer)
    return Claims(match[1].casefold() if match else None, _values(answer))


def contradict(one: Claims, other: Claims) -> bool:
    """Whether two answers contradict each other.

    They do if one begins with yes and the other with no, or if for some kind both have a value that the other lacks. A
    kind of value that only one of them has is no contradiction.
    """
    if one.polarity and other.polarity and one.polarity != other.polarity:
        return True
    left, right = one.values, other.values
    return any(_lacking(left[kind], right[kind]) and _lacking(right[kind], left[kind]) for kind in left.keys() & right)


def contradictions(answers: Iterable[tuple[bytes, Claims]]) -> tuple[int, int]:
    """Counts the pairs of answers to the same question that contradict each other, and all pairs.

    Each answer is in at most one pair, so pairs are independent.

    Args:
        answers: the claims of each answer, with a key of its question.
    """
    unpaired: dict[bytes, Claims] = {}
    contradicting = pairs = 0
    for key, answer in answers:
        earlier = unpaired.pop(key, None)
        if earlier is None:
            unpaired[key] = answer
            continue
        pairs += 1
        contradicting += contradict(earlier, answer)
    return contradicting, pairs


def _values(answer: str) -> dict[str, list[Value]]:
    by_kind = defaultdict[str, list[Value]](list)
    language = language_among(answer, LANGUAGES)
    for value in read(unnumbered(answer), language) if language else ():
        if value.kind not in _AMBIGUOUS:
            by_kind[value.kind].append(value)
    return by_kind


def _lacking(values: Sequence[Value], others: Sequence[Value]) -> bool:
    """Whether any of the values, except phrases ("a day"), is not among the others."""
    return any(not value.soft and all(same(value, other) is False for other in others) for value in values)
