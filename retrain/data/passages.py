"""Retrieved passages in a conversation."""

from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]


def with_context(messages: list[Message], passages: Sequence[str]) -> list[Message]:
    """The conversation with the passages before its last question, those that it does not hold already.

    The question becomes `Context:`, each passage, and `Question:` with the question, each after an empty line: what an
    app must send, too, if it wants the adapter's best answers and its own prompt does not show the passages.
    """
    held = _squeezed(" ".join(turn.get("content") or "" for turn in messages))
    missing = [passage.strip() for passage in passages if passage.strip() and _squeezed(passage) not in held]
    asked = [number for number, turn in enumerate(messages) if turn["role"] == "user"]
    if not missing or not asked:
        return messages
    turn = messages[asked[-1]]
    told = "\n\n".join(["Context:", *missing, f"Question: {turn.get('content') or ''}"])
    return [*messages[: asked[-1]], {**turn, "content": told}, *messages[asked[-1] + 1 :]]


def same_text(one: str, other: str) -> bool:
    """Do they differ in white space and case at most?"""
    return _squeezed(one) == _squeezed(other)


def _squeezed(text: str) -> str:
    return " ".join(text.split()).casefold()
