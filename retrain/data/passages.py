"""Retrieved passages in a conversation, and what of both is left out where a model cannot read all of it."""

from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

_INSTRUCTING = ("system", "developer")


def with_context(messages: list[Message], passages: Sequence[str]) -> list[Message]:
    """The conversation with the passages before its last question, those that it does not hold already.

    The question becomes `Context:`, each passage, and `Question:` with the question, each after an empty line: what an
    app must send, too, if it wants the adapter's best answers and its own prompt does not show the passages.
    """
    shown = missing(messages, passages)
    asked = [number for number, turn in enumerate(messages) if turn["role"] == "user"]
    if not shown or not asked:
        return messages
    turn = messages[asked[-1]]
    told = "\n\n".join(["Context:", *shown, f"Question: {turn.get('content') or ''}"])
    return [*messages[: asked[-1]], {**turn, "content": told}, *messages[asked[-1] + 1 :]]


def shortened(messages: list[Message], passages: Sequence[str]) -> list[tuple[list[Message], Sequence[str]]]:
    """The conversation with its passages, whole and then shorter and shorter, for a model that does not read so much.

    The oldest turns go first, up to the next question; then the last passages, which retrieval ranks lowest. What
    instructs the model, the last question, what follows it, and the first passage stay whole: without one of these it
    would be another task.
    """
    asked = [number for number, turn in enumerate(messages) if turn["role"] == "user"]
    turns = [
        [turn for number, turn in enumerate(messages) if number >= start or turn["role"] in _INSTRUCTING]
        for start in [0, *asked[1:]]
    ]
    return [(kept, passages) for kept in turns] + [
        (turns[-1], passages[:count]) for count in range(len(passages) - 1, 0, -1)
    ]


def missing(messages: list[Message], passages: Sequence[str]) -> list[str]:
    """The passages that the conversation does not hold."""
    held = _squeezed(" ".join(turn.get("content") or "" for turn in messages))
    return [passage.strip() for passage in passages if passage.strip() and _squeezed(passage) not in held]


def same_text(one: str, other: str) -> bool:
    """Do they differ in white space and case at most?"""
    return _squeezed(one) == _squeezed(other)


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()
