"""Finds the values of a text, in time linear in its length."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache

from retuned.consumers.common.values.context import bounded, ranges, summed
from retuned.consumers.common.values.quantity import quantity, quantity_pattern
from retuned.consumers.common.values.tables import Tables, one_of, plain, tables
from retuned.consumers.common.values.value import Value, clock

_ADDRESS = re.compile(r"[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+|(?:https?://|www\.)[^\s<>\"')\]]+", re.IGNORECASE)
_PHONE = re.compile(r"(?<![\w.,])(?:\+|00)?\(?\d{1,4}\)?(?:[ ./()-]{1,2}\d{2,})+(?![\w.,]*\d)")
_PHONE_DIGITS = 8
_GROUPED = re.compile(r"\d{1,3}(?:[.]\d{3})+")
_ISO = re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b")
_NUMERIC = re.compile(r"(?<![\d./])(\d{1,2})[./](\d{1,2})(?:[./](\d{4}|\d\d)(?!\d)|(?<=\.\d\d)\.(?!\d))")
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th|er|ère|ème|º|ª)\b")
_CODE = re.compile(r"\b(?=[A-Za-z-]{0,40}\d)(?=[\d-]{0,40}[A-Za-z])[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*\b")
_CODE_BY_LETTER = r"[A-Z]{1,9}(?:-?\d\w*)(?:-\w+)*\b"
_TIME = re.compile(r"\b(\d{1,2})(?:[:.h](\d\d))?\s?([ap])\.?\s?m\b\.?", re.IGNORECASE)
_CLOCK = re.compile(r"\b([01]?\d|2[0-4])\s?[:h]\s?([0-5]\d)\b(?:\s?(?:uhr|h\b))?", re.IGNORECASE)
_MONTH_WORDS = frozenset({"may", "march", "mars"})
"""Names of months that are also other words."""
# The same answers are compared again and again. At most 40 MB of ASCII.
_MOST_REMEMBERED, _LONGEST_REMEMBERED = 20_000, 2_000

Parse = Callable[[re.Match[str], Tables], Value | None]
"""Returns the value of a match; None: the match is not a value."""


def read(text: str, language: str) -> tuple[Value, ...]:
    """Returns the values of a text in order, each with the words of its bound.

    Numbers of list items, spelled ordinals and amounts that no float can hold are not values.

    Args:
        language: one of LANGUAGES.
    """
    return _remembered(text, language) if len(text) <= _LONGEST_REMEMBERED else _read(text, language)


@lru_cache(_MOST_REMEMBERED)
def _remembered(text: str, language: str) -> tuple[Value, ...]:
    return _read(text, language)


def _read(text: str, language: str) -> tuple[Value, ...]:
    values: list[Value] = []
    known = tables(language)
    rest = without_marks(text, language, "\x00")
    for pattern, parse in _patterns(language):

        def take(match: re.Match[str], parse: Parse = parse) -> str:
            value = parse(match, known)
            if value is None:
                return match[0]
            values.append(replace(value, text=match[0].strip(), start=match.start(), end=match.end()))
            return _blank(match)

        rest = pattern.sub(take, rest)
    values.sort(key=lambda value: value.start)
    completed = bounded(summed(ranges(values, text, known), text), text, known)
    return tuple(value for value in completed if value.is_finite)


def without_marks(text: str, language: str, filling: str = " ") -> str:
    """Blanks the marks of list items: bullets, and numbers that count 1, 2, 3 and so on."""
    marks = list(_marks(language).finditer(text))
    numbers = [int(match["n"]) for match in marks if match["n"]]
    if numbers != list(range(1, len(numbers) + 1)) or len(numbers) == 1:
        marks = [match for match in marks if not match["n"]]
    for match in marks:
        text = text[: match.start()] + filling * len(match[0]) + text[match.end() :]
    return text


def _blank(match: re.Match[str]) -> str:
    return "\x00" * (match.end() - match.start())


@cache
def _marks(language: str) -> re.Pattern[str]:
    steps = one_of(tables(language).list_of("steps"))
    return re.compile(
        rf"(?:^[ \t]*(?:[-*•#>]+[ \t]+)?(?:\*\*)?|(?<=[.:;!?,][ ]))"
        rf"(?P<step>(?:{steps})[ ])?\(?(?P<n>\d{{1,2}})(?(step)[.:)]?|[.):])(?=\s)"
        r"|^[ \t]*[-*•#>]+[ \t]+",
        re.IGNORECASE | re.MULTILINE,
    )


@cache
def _patterns(language: str) -> list[tuple[re.Pattern[str], Parse]]:
    """Returns the patterns in order; text that one matches is hidden from the later ones."""
    known = tables(language)
    month, weekday = one_of(known.months), one_of(known.weekdays)
    wide = one_of(name for name in known.months if len(name) > 3 or name in _MONTH_WORDS)
    of, year = r"(?:of |de |del |d['’])?", r"(?:,?\s+(?:de |del )?(?P<y>(?:19|20)\d\d)\b(?!\s?(?:€|%)))?"
    flags = re.IGNORECASE
    o_clock = one_of(known.list_of("clock")[:1]) if language in ("en", "de") else "(?!)"
    before = {"fr": r"(?<=\bà )|(?<=\bde )", "es": r"(?<=\blas )|(?<=\bla )"}.get(language, "(?!)")
    units = one_of({*known.units, *known.currencies, "%", *known.list_of("percent"), *known.list_of("cents")})
    return [
        (_ADDRESS, lambda match, _: _address(match[0])),
        (_ISO, lambda match, _: _date(int(match[2]), int(match[3]), match[1])),
        (_NUMERIC, _numeric_date),
        (
            re.compile(rf"(?<![\w.,])(?P<d>\d{{1,2}})(?:st|nd|rd|th|er|\.|º)?\s+{of}(?P<m>{month})\b\.?{year}", flags),
            _named_date,
        ),
        (
            re.compile(rf"\b(?P<m>{month})\.?\s+(?P<d>\d{{1,2}})(?:st|nd|rd|th)?\b(?!\d|[.,]\d){year}", flags),
            _named_date,
        ),
        (re.compile(rf"\b(?P<m>{wide})\b{year}", flags), _month),
        (_TIME, _half_day),
        (_CLOCK, lambda match, _: clock(60 * int(match[1]) + int(match[2]), float(match[1]), known.language)),
        (
            re.compile(
                rf"\b(?P<h>[01]?\d|2[0-4])(?:[.:](?P<n>[0-5]\d))?\s?(?:{o_clock})\b"
                rf"|(?:{before})(?P<b>[01]?\d|2[0-4])(?:\s?(?:h|heures?|horas)\b|(?=[\s,.])(?!\s?(?:{units})(?!\w)))"
                rf"(?![\s.,]?\d)",
                flags,
            ),
            _hour,
        ),
        (re.compile(rf"\b(?:{one_of(known.words['times'])})\b", flags), _named_time),
        (_PHONE, _phone),
        (_ORDINAL, lambda match, _: Value("ordinal", (match[1],))),
        (
            re.compile(rf"\b(?!(?:{one_of(w for w in known.currencies if w.isalpha())})-?\d){_CODE_BY_LETTER}", flags),
            lambda match, _: Value("code", (match[0].casefold(),)),
        ),
        (quantity_pattern(language), quantity),
        (
            re.compile(rf"\b(?P<w>{weekday})s?\b", flags),
            lambda match, _: _weekday(known.weekdays[plain(match["w"])]),
        ),
        (
            re.compile(rf"\b(?P<w>{one_of(known.short_weekdays)})\b(?=\.?\s?(?:[-–,]|to\b|bis\b|au?\b))"),
            lambda match, _: _weekday(known.short_weekdays[match["w"]]),
        ),
        (_CODE, lambda match, _: Value("code", (match[0].casefold(),))),
    ]


def _address(text: str) -> Value:
    text = re.sub(r"^(?:https?://)?(?:www\.)?", "", text.casefold()).rstrip(".,;:!?/")
    return Value("address", (text,))


def _phone(match: re.Match[str], _: Tables) -> Value | None:
    digits = re.sub(r"\D", "", match[0])
    if len(digits) < _PHONE_DIGITS or _GROUPED.fullmatch(match[0]):
        return None
    return Value("phone", (digits,))


def _date(month: int, day: int, year: str | None, *more: str) -> Value | None:
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return Value("date", (f"{month}-{day}", *more), year or "")


def _numeric_date(match: re.Match[str], known: Tables) -> Value | None:
    first, second = int(match[1]), int(match[2])
    year = f"20{match[3]}" if match[3] and len(match[3]) == 2 else match[3]
    if known.language != "en":
        return _date(second, first, year) if year or known.language == "de" else None
    if year is None:
        return None
    if first > 12 or second > 12 or first == second:
        return _date(min(first, second), max(first, second), year) if min(first, second) <= 12 else None
    return _date(first, second, year, f"{second}-{first}")


def _named_date(match: re.Match[str], known: Tables) -> Value | None:
    return _date(known.months[plain(match["m"])], int(match["d"]), match["y"])


def _month(match: re.Match[str], known: Tables) -> Value:
    name = plain(match["m"])
    soft = name in _MONTH_WORDS and not match["y"]
    return Value("calendar_month", (str(known.months[name]),), match["y"] or "", soft=soft)


def _half_day(match: re.Match[str], _: Tables) -> Value | None:
    hour = int(match[1])
    if not 1 <= hour <= 12:
        return None
    minutes = 60 * (hour % 12 + (12 if match[3].casefold() == "p" else 0)) + int(match[2] or 0)
    return Value("time", (str(minutes),), number=float(hour))


def _hour(match: re.Match[str], known: Tables) -> Value:
    hour = match["h"] or match["b"]
    return clock(60 * int(hour) + int(match["n"] or 0), float(hour), known.language)


def _named_time(match: re.Match[str], known: Tables) -> Value:
    return Value("time", (str(known.words["times"][plain(match[0])]),), soft=True)


def _weekday(number: int) -> Value:
    return Value("weekday", (str(number),))
