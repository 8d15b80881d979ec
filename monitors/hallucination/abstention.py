"""Abstention: answers whose values cannot be compared."""

import re
from functools import lru_cache

from retuned.consumers.common.languages import language_among
from retuned.consumers.common.values.tables import LANGUAGES
from retuned.monitors.hallucination.scorer import Reason

MOST_CHARACTERS = 50_000
"""The most characters that are read of an answer, of all its passages, and of all its conversation."""

# A code fence, a JSON object or list, or two consecutive lines that end like statements.
_STATEMENT = r"[^\n]*(?:[{}]|[=(][^\n;=(]*;)[ \t]*"
_CODE = re.compile(rf"^[ \t]*(?:```|~~~|\{{\s*\"|\[\s*[\[{{\"])|^{_STATEMENT}\n{_STATEMENT}$", re.M)


def abstention(answer: str, passages: tuple[str, ...]) -> Reason | None:
    """Returns why the values of an answer or its passages cannot be read; None: they can.

    An answer that only calls tools has no words. The language of a text counts as supported unless the text is clearly
    in another language or script.
    """
    if not answer.strip():
        return "no_words"
    if not any(passage.strip() for passage in passages):
        return "no_context"
    reasons = (_abstention(text) for text in (answer, *passages))
    return next((reason for reason in reasons if reason is not None), None)


@lru_cache(maxsize=1_024)
def _abstention(text: str) -> Reason | None:
    if _CODE.search(text):
        return "code"
    return "language" if language_among(text, LANGUAGES) is None else None
