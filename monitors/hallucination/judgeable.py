"""Judgeable: which answers the grounding scorer can judge. Its rules read English sentences, and no tables or code."""

import re
from collections.abc import Sequence
from functools import cache, lru_cache

from retuned.consumers.common.languages import load_identifier
from retuned.monitors.hallucination.rules import MOST_CHARACTERS

_READ = 300
"""Characters of a text by which its language is identified."""
_FOREIGN_LETTERS = 0.2
"""Share of letters that are not Latin from which on a text is in another script."""
_SURE = 0.5
_FEWEST_WORDS = 3
"""Of fewer words, names mostly, the language is not told."""
_ENGLISH = frozenset({"en", "pcm"})
"""And Nigerian Pidgin, for which short English sentences are often taken."""
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-zªºÀ-ɏḀ-ỿ]")
_WORD = re.compile(r"[^\W\d_]{2,}")
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
    text = text[:_READ]
    letters = len(_LETTER.findall(text))
    if letters - len(_LATIN.findall(text)) > _FOREIGN_LETTERS * letters:
        return False
    if len(_WORD.findall(text)) < _FEWEST_WORDS:
        return True
    language, sure = _identifier().classify(text)
    return language in _ENGLISH or sure < _SURE


_identifier = cache(load_identifier)
