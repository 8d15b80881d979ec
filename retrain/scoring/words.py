"""The words of texts, in any language. Pure functions on text."""

import re
import unicodedata
from collections import Counter

from retuned.consumers.privacy.placeholders import unnumbered

# Scripts that are written without spaces: each character is a word.
_TOKEN = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
    r"|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
    r"(?:[-'][^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+)*"
)
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_QUOTES = "\"'`“”„«»‘’"


def tokens(text: str) -> list[str]:
    """The words of a text, casefolded; hyphenated codes stay whole, placeholders lose their numbers.

    Of Chinese, Japanese and Thai, which are written without spaces, the characters.
    """
    return _TOKEN.findall(unnumbered(text).casefold())


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words that two texts share, 0 to 1, as in SQuAD (Rajpurkar et al. 2016)."""
    said, meant = Counter(tokens(answer)), Counter(tokens(reference))
    shared = sum((said & meant).values())
    if not shared:
        return float(not said and not meant)
    return 2 * shared / (said.total() + meant.total())


def numbers(text: str) -> Counter[str]:
    """The numbers of a text as they are written, without separators: 1,500 and 1.500 are one."""
    return Counter(re.sub(r"[.,]", "", found) for found in _NUMBER.findall(unnumbered(text)))


def plain(text: str) -> str:
    """A short text without what does not change its meaning: case, spacing, Unicode variants, quotes, the full stop."""
    text = " ".join(unicodedata.normalize("NFKC", unnumbered(text)).casefold().split())
    return text.strip(_QUOTES).removesuffix(".").strip(_QUOTES)
