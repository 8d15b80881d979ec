"""Texts of errors, and texts of people."""

import re
from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def without(text: str, words: Iterable[str | None]) -> str:
    """Returns a text with `…` in place of each of these words."""
    for word in filter(None, words):
        text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "…", text)
    return text
