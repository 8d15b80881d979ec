"""Identifies the language of a text."""

import re
from functools import cache, lru_cache
from typing import Any

_READ = 300
"""The first characters of a text that are used."""
_SURE = 0.5
_FEWEST_WORDS = 3
"""The language of fewer words, mostly names, is uncertain."""
_FEWEST_FOREIGN, _SURER = 6, 0.9
_FOREIGN_LETTERS = 0.2
"""With a larger share of non-Latin letters, a text is in another script."""
_WORD = re.compile(r"[^\W\d_]{2,}")
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"[A-Za-zªºÀ-ɏḀ-ỿ]")


@cache
def identifier() -> Any:
    """Returns the language identifier (langid.py, Lui and Baldwin 2012). Loading it takes 0.4 s and 20 MB."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def language_among(text: str, languages: tuple[str, ...]) -> str | None:
    """Returns the most likely of some languages; None: the text is clearly in another language or script.

    A text with too few words always gets the most likely of the languages.
    """
    return _among(text[:_READ], languages)


def is_in_another(text: str, languages: tuple[str, ...]) -> bool:
    """Whether a text is surely in none of some languages; False for one that is too short to tell."""
    return _is_in_another(text[:_READ], languages)


@lru_cache(maxsize=4_096)
def _among(text: str, languages: tuple[str, ...]) -> str | None:
    letters = len(_LETTER.findall(text))
    if letters - len(_LATIN.findall(text)) > _FOREIGN_LETTERS * letters:
        return None
    ranked = [("en" if name == "pcm" else str(name), float(sure)) for name, sure in identifier().rank(text)]
    if ranked[0][0] not in languages and ranked[0][1] >= _SURE and len(_WORD.findall(text)) >= _FEWEST_WORDS:
        return None
    return next(name for name, _ in ranked if name in languages)


@lru_cache(maxsize=4_096)
def _is_in_another(text: str, languages: tuple[str, ...]) -> bool:
    foreign = len(_LETTER.findall(text)) - len(_LATIN.findall(text))
    if len(_WORD.findall(text)) < _FEWEST_WORDS and foreign < _FEWEST_FOREIGN:  # not all scripts separate words
        return False
    found, sure = identifier().classify(text)
    return float(sure) >= _SURER and found not in languages
