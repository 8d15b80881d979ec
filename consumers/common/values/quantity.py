"""Reads quantities: numbers with signs, scales, units, currencies and periods."""

import re
import unicodedata
from functools import cache

from retuned.consumers.common.values.tables import LONE_LETTERS, Tables, one_of, plain, tables
from retuned.consumers.common.values.value import Value, rounded

_DIGITS = r"\d{1,3}(?:[.,'’\u00a0\u202f ]\d{3})+(?!\d)(?:[.,]\d{1,2}(?!\d))?|\d+(?:[.,]\d+)?"
_FRACTION = r"(?:\d{1,3}[ ])?\d{1,2}[/⁄][1-9]\d?(?![\d/])|\d{0,3}[½⅓⅔¼¾⅛]"
_SPACE = "[\\s\u00a0\u202f]"
_GROUPS = re.compile(r"['’\u00a0\u202f ]")
_COUPLE = 2
_LINKS = frozenset({"and", "et", "y"})
_ALONE = frozenset({"hundert", "tausend", "cent", "mille", "cien", "mil"})
"""Scales that are numbers by themselves."""


@cache
def quantity_pattern(language: str) -> re.Pattern[str]:
    """Returns the pattern of numbers with their signs, scales, units and periods."""
    known = tables(language)
    # Number words, which may follow each other.
    single = {part for word in known.numbers for part in word.split()} - _LINKS
    scaled = {word for word in known.scales if len(word) > 2}
    linked = {"en": "(?:and[ ])?", "fr": "(?:et[ -])?", "es": "(?:y[ ])?"}.get(language, "")
    joined = r"|(?=(?:minüt|stünd|täg|wöch|monat|jähr)ig)" if language == "de" else ""  # zweijährig
    end = rf"(?:(?!\w){joined})"
    articles = set(known.list_of("one")) - single
    article = rf"(?:{one_of(articles)})(?![ -](?:{one_of(single)}){end})|" if articles else ""  # "a six-month term"
    first = f"{article}{one_of({*single, *(_ALONE & known.scales.keys())})}"
    words = rf"(?:{first})(?:[ -]{linked}(?:{one_of(single | scaled)}))*{end}"
    scales = one_of(word for word in known.scales if len(word) > 1)
    letters = "".join(sorted(LONE_LETTERS & known.units.keys()))
    units = f"{one_of(word for word in known.units if len(word) > 1)}|(?-i:[{letters}])"
    money = one_of(word for word in known.currencies if word.isalpha())
    signs = one_of(word for word in known.currencies if not word.isalpha())
    minus = one_of(known.list_of("minus"))
    periods, times = one_of(_periods(known)), one_of(known.list_of("times_of"))
    tail = (
        rf"(?:{_SPACE}?(?P<percent>%|(?:{one_of(known.list_of('percent'))})\b)"
        rf"|{_SPACE}?(?P<sign2>{signs})(?!\w)|{_SPACE}?(?:d['’]|de )?(?P<currency2>{money})\b"
        rf"|{_SPACE}?(?P<cents>{one_of(known.list_of('cents'))})\b(?![ ](?:{scales})\b)"
        rf"|(?:{_SPACE}|-)?(?P<unit>{units})(?![\w])|(?={_SPACE}?-?[\W\d_]|{_SPACE}|$))(?:{_SPACE}(?:{times})\b)?"
    )
    per = (
        rf"(?:{_SPACE}?/{_SPACE}?|{_SPACE}(?:{one_of(known.list_of('per'))}){_SPACE})(?P<period>{periods})\b"
        rf"|{_SPACE}(?P<adverb>{one_of(known.words['periods'])})\b"
    )
    return re.compile(
        rf"(?:(?P<sign1>{signs}){_SPACE}?|\b(?P<currency1>{money}){_SPACE})?"
        rf"(?P<minus>(?<![\w.,\x00)])(?:[-−](?=\d)|(?<!\bau )(?<!\bal )(?<!\blo )(?:{minus})[ ]))?"
        rf"(?:(?P<half>\b(?:{one_of(known.words['halves'])})(?=['’ -])['’ -]?)"
        rf"|(?<![\w])(?:(?P<fraction>{_FRACTION})|(?P<digits>{_DIGITS})(?![.,]?\d))|\b(?P<words>{words}))"
        rf"(?:{_SPACE}?(?P<scale>(?:{scales})\b\.?)|(?P<letter>[kKmM](?:n|io)?)\b)?"
        rf"(?P<more>[ ](?:{one_of(known.list_of('and_half'))})\b)?"
        rf"{tail}(?P<more2>[ ](?:{one_of(known.list_of('and_half'))})\b)?(?:{per})?",
        re.IGNORECASE,
    )


def _periods(known: Tables) -> list[str]:
    return [word for word, unit in known.units.items() if unit.kind in ("duration", "night") and len(word) > 1]


def quantity(match: re.Match[str], known: Tables) -> Value | None:
    """Returns the value of a match of `quantity_pattern`; None: the words do not state a quantity."""
    unit = match["unit"]
    money = match["sign1"] or match["sign2"] or match["currency1"] or match["currency2"]
    is_bare = not (unit or money or match["percent"] or match["cents"])
    amounts, factor = _stated(match, known, is_bare), _scale(match, known, bool(money))
    if amounts is None or factor is None:
        return None
    half = 0.5 if match["more"] or match["more2"] else 0.0
    sign = -1.0 if match["minus"] else 1.0
    amounts = tuple(sign * (amount + half) * factor for amount in amounts)
    period = match["period"] or match["adverb"]
    per = (known.words["periods"].get(plain(period)) or _period(period, known)) if period else ""
    number = amounts[0]
    if match["percent"]:
        return Value("percent", amounts, per=per, number=number)
    if money:
        return Value("money", amounts, known.currencies[plain(money)], per=per, number=number)
    if match["cents"]:
        return Value("money", tuple(rounded(amount / 100) for amount in amounts), per=per, number=number, factor=0.01)
    is_phrase = _is_phrase(match, known, is_bare) and not half
    if unit:
        measure = known.units.get(unit) or known.units[plain(unit)]
        converted = tuple(rounded(amount * measure.factor + measure.offset) for amount in amounts)
        return Value(measure.kind, converted, per=per, number=number, factor=measure.factor, soft=is_phrase)
    is_nine = (match["words"] or "").casefold() == "neuf"  # French for new, too
    return Value("number", amounts, per=per, number=number, soft=is_phrase or is_nine)


def _stated(match: re.Match[str], known: Tables, is_bare: bool) -> tuple[float, ...] | None:
    """Returns the possible numbers of a match, the likeliest first; None: the words are not a number."""
    if match["half"] is not None:
        half = float(known.words["halves"][plain(match["half"])])
        return None if is_bare and half < _COUPLE else (half,)
    if match["fraction"] is not None:
        return None if is_bare else (_fraction(match["fraction"]),)
    if match["words"] is not None:
        amount = _spelled(match["words"], known)
        return None if amount is None or (is_bare and amount in (0, 1)) else (amount,)
    return _amounts(match["digits"], known.words["decimal"])


def _scale(match: re.Match[str], known: Tables, is_money: bool) -> float | None:
    """Returns the factor of a scale such as million; None: the letter after the digits is not a scale."""
    letter = match["letter"]
    if match["scale"]:
        return known.scales[plain(match["scale"])]
    if not letter or match["unit"]:
        return 1.0
    if not (is_money or letter in "kK"):
        return None
    return known.scales.get(letter.casefold(), {"k": 1e3, "m": 1e6}[letter[0].casefold()])


def _is_phrase(match: re.Match[str], known: Tables, is_bare: bool) -> bool:
    """Whether the number may be part of a phrase: "a day", or a bare "dozen"."""
    if match["half"] is not None:
        return is_bare
    return match["words"] is not None and match["words"].casefold() in known.list_of("one")


def _period(word: str, known: Tables) -> str:
    """Returns the English name of a period, by its length."""
    unit = known.units.get(word) or known.units[plain(word)]
    if unit.kind == "night":
        return "night"
    seconds = unit.factor
    return next((name for name, own in _english_periods() if abs(own - seconds) < 1e-6 * seconds), plain(word))


@cache
def _english_periods() -> list[tuple[str, float]]:
    units = tables("en").units
    return [(name, units[name].factor) for name in ("second", "minute", "hour", "day", "week", "month", "year")]


def _fraction(text: str) -> float:
    """Parses 1/2, 1 1/2, ½ and 1½."""
    whole, _, part = unicodedata.normalize("NFKC", re.sub(r"(\d)([½⅓⅔¼¾⅛])", r"\1 \2", text)).rpartition(" ")
    above, below = re.split("[/⁄]", part)
    return float(whole or 0) + float(above) / float(below)


def _spelled(text: str, known: Tables) -> float | None:
    """Parses number words: groups up to 999, each with a scale."""
    words = text.casefold().replace("-", " ").split()
    words = [word for word in words if word not in _LINKS] if known.language == "en" else words
    total, group, at = 0.0, 0.0, 0
    while at < len(words):
        for end in range(min(len(words), at + 6), at, -1):
            word = " ".join(words[at:end])
            if (number := known.numbers.get(word)) is not None:
                group += number
            elif end == at + 1 and word in known.list_of("one"):
                group += 1
            elif (scale := known.scales.get(word)) is not None:
                group = (group or 1) * scale
                if scale > 100:
                    total, group = total + group, 0.0
            else:
                continue
            at = end
            break
        else:
            return None
    return total + group


def _amounts(digits: str, decimal: str) -> tuple[float, ...]:
    """Returns the possible meanings of digits with separators, the likeliest first.

    The language's separator of thousands has one meaning. Its decimal sign before three digits has two, except in
    0.500: people write 1.500 for 1500 in every language.
    """
    text = _GROUPS.sub("", digits)
    signs = [sign for sign in text if sign in ".,"]
    if not signs:
        return (float(text),)
    last = signs[-1]
    whole, _, rest = text.rpartition(last)
    grouped = float(text.replace(".", "").replace(",", ""))
    if len(set(signs)) > 1 or len(rest) != 3:
        if len(set(signs)) == 1 and len(signs) > 1:
            return (grouped,)
        return (float(f"{whole.replace('.', '').replace(',', '')}.{rest}"),)
    if len(signs) > 1 or len(whole) > 3:
        return (grouped,)
    read_as_decimal = float(f"{whole}.{rest}")
    if whole.startswith("0"):
        return (read_as_decimal,)
    return (read_as_decimal, grouped) if last == decimal else (grouped,)
