"""The reasoning before an answer, between `<think>` and `</think>`, in the form of Qwen, DeepSeek and others."""

import re

OPENING, CLOSING = "<think>", "</think>"

CLOSED_EMPTY = re.compile(r"\s*<think>\s*</think>\s*")
OPEN_AT_THE_END = re.compile(r"<think>\s*\Z")


def split(text: str, *, opened: bool = False) -> tuple[str | None, str]:
    """Splits a text into reasoning and answer.

    If the prompt ended with the opening tag, the text has only the closing one. Reasoning without an end was cut off,
    so the answer is empty.

    Args:
        opened: the prompt ended with the opening tag.

    Returns:
        The reasoning (None: none) and the answer.
    """
    started = text.lstrip().startswith(OPENING)
    before, closing, after = text.partition(CLOSING)
    if not (started or opened or (closing and OPENING not in before)):  # an answer may mention the tags
        return None, text.strip()
    reasoning = before.lstrip().removeprefix(OPENING).strip()
    return reasoning or None, after.strip()


def written(thought: str, answer: str) -> str:
    """Joins reasoning and answer; the inverse of `split`."""
    return f"{OPENING}\n{thought}\n{CLOSING}\n\n{answer}"
