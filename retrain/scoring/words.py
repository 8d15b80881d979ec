"""The words of texts, in any language. Pure functions on text."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from retuned.consumers.common.values.read import without_marks
from retuned.consumers.common.values.value import Value
from retuned.consumers.privacy.placeholders import unnumbered
from retuned.retrain.scoring.invisible import INVISIBLE

# In scripts without spaces, each character is a word.
_TOKEN = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
    r"|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+"
    r"(?:[-'][^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+)*"
)
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
_NOT = re.compile(r"\b(ca|wo|\w+?)n['’]t\b|\bcannot\b", re.IGNORECASE)
_APOSTROPHE = re.compile(r"(?<=[^\W_])['’](?=[^\W_])")
_WORD_OR_SIGN = re.compile(r"[^\W_]+|[^\w\s]")
_OPENING = frozenset({"Ps", "Pi", "Pf"})
_QUOTES = frozenset("\"'`“”„‟‘’‚‛«»‹›")
_MARKS = frozenset(".,;:!?…。、！？；：؟،।")
_MEANT = frozenset("#%&*@/\\")
"""Characters that Unicode classes as punctuation and that carry meaning: C#, 5%."""


def tokens(text: str) -> list[str]:
    """Returns the words of a text, casefolded. Hyphenated codes stay whole, and placeholders lose their numbers.

    For Chinese, Japanese and Thai, which are written without spaces, returns the characters.
    """
    return _TOKEN.findall(unnumbered(text).casefold())


def token_f1(answer: str, reference: str) -> float:
    """Returns the F1 of the words that two texts share, 0 to 1, as in SQuAD (Rajpurkar et al. 2016)."""
    given, wanted = Counter(tokens(answer)), Counter(tokens(reference))
    shared = (given & wanted).total()
    if not shared:
        return float(not given and not wanted)
    return 2 * shared / (given.total() + wanted.total())


def numbers(text: str) -> Counter[str]:
    """Returns the numbers of a text as written, without separators: 1,500 equals 1.500."""
    return Counter(re.sub(r"[.,]", "", number) for number in _NUMBER.findall(unnumbered(text)))


def marked(text: str, values: Sequence[Value], language: str) -> list[tuple[str, Value | None]]:
    """Returns the words and symbols of a text in order, with its values in their places. "n't" becomes "not".

    List markers and punctuation are left out; symbols such as ✓ and < are not, nor is a sign that structures nothing
    where it stands: the minus of AA-, or a semicolon in quotation marks.
    """
    text = without_marks(text, language)
    inner = {match.start() for match in _APOSTROPHE.finditer(text)}  # "n't" is read below
    text = "".join(
        " " if place not in inner and _is_punctuation(text, place, language) else char
        for place, char in enumerate(text)
    )
    words: list[tuple[str, Value | None]] = []
    end = 0
    for value in (*values, None):
        between = _APOSTROPHE.sub(" ", _NOT.sub(_apart, text[end : value.start if value else len(text)]))
        words += [(word, None) for word in _WORD_OR_SIGN.findall(between.casefold())]
        if value is not None:
            words.append((value.key, value))
            end = value.end
    return words


def _apart(match: re.Match[str]) -> str:
    """Writes a contracted negation as two words."""
    verb = (match[1] or "ca").casefold()
    return f"{ {'ca': 'can', 'wo': 'will'}.get(verb, verb) } not"


@lru_cache(maxsize=10_000)
def plain(text: str) -> str:
    """Normalises a short text: case, spacing, character variants, outer punctuation and `INVISIBLE` carry no meaning.

    Case is Unicode's, and İ is i as in Turkish. A sign before a number is kept.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", unnumbered(INVISIBLE.sub("", text))).casefold())
    text = " ".join(text.replace("i\u0307", "i").split())
    start, end = 0, len(text)
    while end > start and (text[end - 1].isspace() or _is_punctuation(text, end - 1)):
        end -= 1
    while start < end and (
        text[start].isspace() or text[start] in "\"'`„¿¡*" or unicodedata.category(text[start]) in _OPENING
    ):
        start += 1
    return text[start:end] or text


def _is_punctuation(text: str, place: int, language: str = "") -> bool:
    """Whether a character structures the text, by its place: a mark after a word, a quotation mark or a bracket at one,
    a hyphen within one, or a dash between two. In French, a space may come before a mark."""
    char = text[place]
    category = unicodedata.category(char)
    if not category.startswith("P") or char in _MEANT:
        return False
    before, after = text[place - 1 : place] or " ", text[place + 1 : place + 2] or " "
    if char in _MARKS:
        if before.isspace():
            ends = not text[place:].strip("?! \n") or (language == "fr" and after.isspace())
            return ends and bool(text[:place].strip())
        return not (before in _QUOTES and (text[place - 2 : place - 1] or " ").isspace())
    if char in _QUOTES:
        return not (before.isspace() and after.isspace())
    if category == "Pd":
        return (before.isalnum() and after.isalnum()) or (before.isspace() and after.isspace())
    if category == "Ps":
        return not (after.isspace() or after in _QUOTES)
    return category != "Pe" or not (before.isspace() or before in _QUOTES)
