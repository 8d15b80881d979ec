"""Abstention: which answers the grounding rules cannot judge. They read English sentences, and no tables or code."""

import re
from functools import lru_cache

from retuned.consumers.common.languages import is_english
from retuned.monitors.hallucination.scorer import Reason
from retuned.monitors.hallucination.sources import MOST_CHARACTERS

# Two rows of cells in a row, or HTML.
_TABLE = re.compile(
    r"^(?:[^\n|]*\|){2}[^\n]*\n(?:[^\n|]*\|){2}|^(?:[^\n\t]*\t){2}[^\n]*\n(?:[^\n\t]*\t){2}|<t[dhr]\b", re.M
)
# A fence, an object or a list of JSON, or two lines in a row that end as statements do.
_STATEMENT = r"[^\n]*(?:[{}]|[=(][^\n;=(]*;)[ \t]*"
_CODE = re.compile(rf"^[ \t]*(?:```|~~~|\{{\s*\"|\[\s*[\[{{\"])|^{_STATEMENT}\n{_STATEMENT}$", re.M)


def abstention(answer: str, passages: tuple[str, ...]) -> Reason | None:
    """Why the rules cannot judge an answer by its passages; None: they can, both are English prose, as far as known.

    An answer that only calls tools has no words. A text counts as English unless it is surely something else, by its
    script or by what identifies its language.
    """
    if not answer.strip():
        return "no_words"
    if not any(passage.strip() for passage in passages):
        return "no_context"
    reasons = (_abstention(text[:MOST_CHARACTERS]) for text in (answer, *passages))
    return next((reason for reason in reasons if reason is not None), None)


@lru_cache(maxsize=1_024)
def _abstention(text: str) -> Reason | None:
    if _TABLE.search(text):
        return "table"
    if _CODE.search(text):
        return "code"
    return None if is_english(text) else "language"
