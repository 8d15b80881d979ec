"""What a model thinks before it answers, between `<think>` and `</think>`, as Qwen, DeepSeek and others write it."""

import re

OPENING, CLOSING = "<think>", "</think>"

CLOSED_EMPTY = re.compile(r"\s*<think>\s*</think>\s*")
OPEN_AT_THE_END = re.compile(r"<think>\s*\Z")


def split(text: str, *, opened: bool = False) -> tuple[str | None, str]:
    """The reasoning and the answer of a text.

    Where the prompt ended with the opening tag, the text has the closing one alone. Reasoning without an end was cut
    off before the answer, which then is empty.

    Args:
        opened: the prompt ended with the opening tag.

    Returns:
        reasoning, None without any; answer.
    """
    started = text.lstrip().startswith(OPENING)
    before, closing, after = text.partition(CLOSING)
    if not (started or opened or (closing and OPENING not in before)):  # else an answer may speak of the tags
        return None, text.strip()
    reasoning = before.lstrip().removeprefix(OPENING).strip()
    return reasoning or None, after.strip()


def written(thought: str, answer: str) -> str:
    """A text that `split` takes apart again."""
    return f"{OPENING}\n{thought}\n{CLOSING}\n\n{answer}"
