"""Adds retrieved passages to a conversation, and shortens both to a model's maximum length."""

from collections.abc import Sequence
from typing import Any

from retuned.consumers.privacy.sealing import INSTRUCTING

Message = dict[str, Any]


def with_context(messages: list[Message], passages: Sequence[str]) -> list[Message]:
    """Returns the conversation with the passages that it lacks before its last question.

    The question becomes `Context:`, each passage, and `Question:` with the question, separated by empty lines. An app
    whose prompt does not contain the passages should send the same text to get the adapter's best answers.
    """
    shown = missing(messages, passages)
    asked = [number for number, turn in enumerate(messages) if turn["role"] == "user"]
    if not shown or not asked:
        return messages
    turn = messages[asked[-1]]
    text = "\n\n".join(["Context:", *shown, f"Question: {turn.get('content') or ''}"])
    return [*messages[: asked[-1]], {**turn, "content": text}, *messages[asked[-1] + 1 :]]


def shortened(messages: list[Message], passages: Sequence[str]) -> list[tuple[list[Message], list[str]]]:
    """Returns the conversation with the passages that it lacks, complete and then shorter and shorter, for models with
    a short input.

    The oldest turns are dropped first, up to the next question; the passages in them go with the last question then.
    After them the last passages are dropped, which retrieval ranks lowest. System messages, the last question and what
    follows it, and the first passage are kept: without them the task would be another one.
    """
    asked = [number for number, turn in enumerate(messages) if turn["role"] == "user"]
    turns = [
        [turn for number, turn in enumerate(messages) if number >= start or turn["role"] in INSTRUCTING]
        for start in [0, *asked[1:]]
    ]
    forms = [(kept, missing(kept, passages)) for kept in turns]
    shortest, lacking = forms[-1]
    return forms + [(shortest, lacking[:count]) for count in range(len(lacking) - 1, 0, -1)]


def missing(messages: list[Message], passages: Sequence[str]) -> list[str]:
    """Returns the passages that the conversation does not contain."""
    content = _squeezed(" ".join(turn.get("content") or "" for turn in messages))
    return [passage.strip() for passage in passages if passage.strip() and _squeezed(passage) not in content]


def same_text(one: str, other: str) -> bool:
    """Returns whether two texts differ at most in white space and case."""
    return _squeezed(one) == _squeezed(other)


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()
