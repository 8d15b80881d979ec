"""Judgeable: which answers the grounding scorer can judge. Its rules read English sentences, and no tables or code."""

import re
from collections.abc import Sequence
from functools import lru_cache

from retuned.consumers.common.languages import is_english
from retuned.monitors.hallucination.rules import MOST_CHARACTERS

# Two rows of cells in a row, or HTML.
_TABLE = re.compile(
    r"^(?:[^\n|]*\|){2}[^\n]*\n(?:[^\n|]*\|){2}|^(?:[^\n\t]*\t){2}[^\n]*\n(?:[^\n\t]*\t){2}|<t[dhr]\b", re.M
)
# A fence, an object or a list of JSON, or two lines in a row that end as statements do.
_STATEMENT = r"[^\n]*(?:[{}]|[=(][^\n;=(]*;)[ \t]*"
_CODE = re.compile(rf"^[ \t]*(?:```|~~~|\{{\s*\"|\[\s*[\[{{\"])|^{_STATEMENT}\n{_STATEMENT}$", re.M)


def is_judgeable(answer: str, passages: Sequence[str]) -> bool:
    """Whether the scorer can judge an answer by its passages: both are English prose, as far as can be told.

    A text counts as English unless it is surely something else, by its script or by what identifies its language.
    """
    return all(_is_english_prose(text[:MOST_CHARACTERS]) for text in (answer, "\n".join(passages)))


@lru_cache(maxsize=256)
def _is_english_prose(text: str) -> bool:
    if _TABLE.search(text) or _CODE.search(text):
        return False
    return is_english(text)
