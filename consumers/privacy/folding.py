"""Folds a text for the patterns so that each character has one form, and maps places back to the text.

Digits of all scripts become ASCII digits, full-width letters and signs narrow ones, spaces and dashes ASCII ones,
accents are combined with their letters, and invisible characters are removed.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import groupby

_ACCENTS = "\u0300-\u036f\u3099\u309a"
# Characters without width, marks of writing direction, and enclosing marks.
_UNSEEN = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u20dd-\u20e4\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff"
)
_LEFT_OUT = re.compile(f"(?=[{_ACCENTS}{_UNSEEN}])(?P<accents>[{_ACCENTS}]*+)[{_ACCENTS}{_UNSEEN}]*+")


class Places:
    """Maps places in the copy to places in the text."""

    def __init__(self) -> None:
        # For each removed run: its place in the copy, the number of characters removed up to its end, and the number of
        # accents at its start.
        self._at: list[int] = []
        self._left_out: list[int] = [0]
        self._accents: list[int] = []

    def leave_out(self, start: int, end: int, accents: int) -> None:
        self._at.append(start - self._left_out[-1])
        self._left_out.append(self._left_out[-1] + end - start)
        self._accents.append(accents)

    def start(self, place: int) -> int:
        return place + self._left_out[bisect_right(self._at, place)]

    def end(self, place: int) -> int:
        """Returns the end in the text; accents belong to the letter before them, other removed characters do not."""
        run = bisect_left(self._at, place)
        return place + self._left_out[run] + (self._accents[run] if self._at[run : run + 1] == [place] else 0)


def fold(text: str) -> tuple[str, Places | None]:
    """Returns the copy, and the map of places; None: all places are equal."""
    if text.isascii():
        return text, None
    changed = {character: form for character in set(text) if (form := _form(character)) != character}
    places = None
    if "" in changed.values():
        text, places = _without(text)
    for character, form in changed.items():
        if form:
            text = text.replace(character, form)
    return text, places


def _without(text: str) -> tuple[str, Places]:
    """Removes invisible characters, and combines letters with their accents."""
    places, parts, position = Places(), [], 0
    for run in _LEFT_OUT.finditer(text):
        start, accents = run.start(), run["accents"]
        places.leave_out(start, run.end(), len(accents))
        if accents and start:
            parts += [text[position : start - 1], unicodedata.normalize("NFC", text[start - 1] + accents)[:1]]
        else:
            parts.append(text[position:start])
        position = run.end()
    return "".join([*parts, text[position:]]), places


@cache
def suspect() -> str:
    """Returns an RE2 pattern of texts whose copy may differ in a relevant way; the first call takes 50 ms."""
    alone, beside = [], []
    for code in (*range(0x80, 0xD800), *range(0xE000, 0x10000), *range(0x1D400, 0x1D800), *range(0xE0000, 0xE1000)):
        form = _form.__wrapped__(chr(code))
        if form.isalnum() or form in ("@", ".", "%") or code in (0x3099, 0x309A):
            if form.isascii():
                alone.append(code)
        elif form.isascii():
            beside.append(code)
    near = _ranges(beside)
    return (
        rf'[{_ranges(alone)}]|[^\P{{Nd}}0-9]|[^\s"][{near}]{{1,3}}[!#-~]'
        rf"|[0-9][ ().\-/{near}]{{0,2}}[{near}][ ().\-/{near}]{{0,2}}[0-9]"
    )


def _ranges(codes: Sequence[int]) -> str:
    """Returns the ranges of a character class."""
    runs = (list(run) for _, run in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]))
    return "".join(rf"\x{{{run[0][1]:x}}}-\x{{{run[-1][1]:x}}}" for run in runs)


@lru_cache(8_192)
def _form(character: str) -> str:
    """Returns the form of a character, empty if it is removed; ligatures, fractions and similar ones stay."""
    if character.isascii():
        return character
    if _LEFT_OUT.match(character):
        return ""
    form = unicodedata.normalize("NFKC", character)
    if len(form) > 1:
        return character
    kind = unicodedata.category(form)
    if kind == "Nd":
        return str(unicodedata.decimal(form))
    if kind == "Pd" or form == "\u2212":
        return "-"
    return " " if kind == "Zs" else "\n" if kind in ("Zl", "Zp") else form
