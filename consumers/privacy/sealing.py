"""Seals of instructions: keyed hashes that tell equal lines apart from lines that only look equal after redaction.

`You help <EMAIL_1>` may name the company in every request, or another customer in each. The warehouse keeps no address,
so before redaction takes it out, the lines are sealed: equal seals mean equal lines.
"""

import hmac
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

from retuned.consumers.privacy.placeholders import has_placeholder

INSTRUCTING = ("system", "developer")
"""The roles of messages with instructions."""
SEALED = "sealed_instructions"
"""The attribute of interactions that holds the seal."""


def leading(messages: Any) -> list[Any]:
    """Returns the messages with instructions that precede a conversation; of JSON of any kind."""
    turns = messages if isinstance(messages, list) else []
    return list(takewhile(lambda turn: isinstance(turn, dict) and turn.get("role") in INSTRUCTING, turns))


def seal(key: bytes, messages: Sequence[Any], tools: Sequence[Any]) -> str | None:
    """Returns the seal of the lines of leading instructions and of tools in which redaction replaced something.

    None if it replaced nothing, or if a placeholder was there before, since nobody knows what that stands for.

    Args:
        messages, tools: each before and after redaction, as decoded JSON.
    """
    lines: list[str] = []
    for before, after in ((leading(messages[0]), leading(messages[1])), tools):
        for old, new in _leaves(before, after):
            if has_placeholder(old):
                return None
            lines += _changed(old, new)
    if not lines:
        return None
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    return hmac.digest(key, text, "sha256").hex()[:32]


def _leaves(before: Any, after: Any) -> Iterator[tuple[str, str]]:
    """Yields the keys and values of two JSON values of the same shape, as text."""
    if isinstance(before, dict) and isinstance(after, dict):
        for (old_key, old), (new_key, new) in zip(before.items(), after.items(), strict=False):
            yield old_key, new_key
            yield from _leaves(old, new)
    elif isinstance(before, list) and isinstance(after, list):
        for old, new in zip(before, after, strict=False):
            yield from _leaves(old, new)
    else:
        yield str(before), str(after)


def _changed(old: str, new: str) -> list[str]:
    """Returns the lines that differ; the whole text if a line break was replaced."""
    if old == new:
        return []
    before, after = old.split("\n"), new.split("\n")
    if len(before) != len(after):
        return [old]
    return [one for one, other in zip(before, after, strict=True) if one != other]
