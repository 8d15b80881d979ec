"""The primary metric: is an answer right by its reference? Pure functions on text.

Where the reference is a JSON object or array, the fields of the two are compared (see `json_answers`); a bare JSON
constant (`true`) is compared as it stands. All other text is judged by its facts. A fact is a value that a customer
could act on: a number with its unit, an amount of money, a date, a time, a weekday, a code, an address, a name. Wording
is not a fact. Facts are what a wrong answer gets wrong, which neither completion loss nor word overlap shows.
"""

import re
from collections import Counter
from collections.abc import Callable

from retuned.consumers.privacy.placeholders import unnumbered
from retuned.retrain.scoring.json_fields import field_f1, fields, is_fenced

SAME_WORDS = 0.6
"""Token F1 from which an answer whose reference holds no fact counts as right."""

_UNITS = {
    "second": ("second", 1), "minute": ("minute", 1), "hour": ("hour", 1), "day": ("day", 1), "week": ("day", 7),
    "fortnight": ("day", 14), "month": ("month", 1), "year": ("month", 12),
    "business day": ("business day", 1), "working day": ("business day", 1),
    "%": ("%", 1), "percent": ("%", 1), "point": ("point", 1),
    "kg": ("kg", 1), "kilo": ("kg", 1), "kilogram": ("kg", 1), "g": ("g", 1), "gram": ("g", 1),
    "km": ("km", 1), "kilometre": ("km", 1), "kilometer": ("km", 1),
    "m": ("m", 1), "metre": ("m", 1), "meter": ("m", 1), "cm": ("cm", 1),
    "centimetre": ("cm", 1), "centimeter": ("cm", 1), "litre": ("l", 1), "liter": ("l", 1),
    "gb": ("gb", 1), "gigabyte": ("gb", 1), "mb": ("mb", 1), "megabyte": ("mb", 1),
    "€": ("eur", 1), "euro": ("eur", 1), "eur": ("eur", 1), "$": ("usd", 1), "dollar": ("usd", 1), "usd": ("usd", 1),
    "£": ("gbp", 1), "pound": ("gbp", 1), "gbp": ("gbp", 1),
    "franc": ("chf", 1), "chf": ("chf", 1), "cent": ("cent", 1),
}  # fmt: skip
_DURATIONS = {"second", "minute", "hour", "day", "month", "business day"}
_WORDS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17,
    "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90,
}  # fmt: skip
_MONTHS = {
    "january": 1, "jan": 1, "february": 2, "feb": 2, "march": 3, "mar": 3, "april": 4, "apr": 4, "may": 5, "june": 6,
    "jun": 6, "july": 7, "jul": 7, "august": 8, "aug": 8, "september": 9, "sept": 9, "sep": 9, "october": 10, "oct": 10,
    "november": 11, "nov": 11, "december": 12, "dec": 12,
}  # fmt: skip
_WEEKDAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday"

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:[.,]\d{1,2}(?!\d))?|\d+"
_UNIT = r"(?:business|working)[ -]days?|" + "|".join(
    rf"{re.escape(unit)}s?\b" if unit.isalpha() else re.escape(unit)
    for unit in sorted(_UNITS, key=len, reverse=True)
    if " " not in unit
)
_TENS = "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety"
_WORD = rf"(?:{_TENS})[ -](?:one|two|three|four|five|six|seven|eight|nine)|" + "|".join(
    sorted(_WORDS, key=len, reverse=True)
)
_ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+|(?:https?://|www\.)[^\s<>\"')]+", re.IGNORECASE)
_ISO_DATE = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_DATE = re.compile(
    rf"\b(?:(?P<d1>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<m1>{_MONTH})\b"
    rf"|(?P<m2>{_MONTH})\.? (?P<d2>\d{{1,2}})(?:st|nd|rd|th)?\b(?!\d))(?:,? (?P<y>\d{{4}})\b)?",
    re.IGNORECASE,
)
_TIME = re.compile(
    r"\b(?P<h>[01]?\d|2[0-3])(?:[:.](?P<m>[0-5]\d))?\s?(?P<half>[ap])\.?m\b\.?|\b(?P<h24>[01]?\d|2[0-3]):(?P<m24>[0-5]\d)\b",
    re.IGNORECASE,
)
_WEEKDAY = re.compile(rf"\b({_WEEKDAYS})s?\b", re.IGNORECASE)
_CODE = re.compile(
    rf"\b(?!\d+-?(?i:{_UNIT}))(?!(?:EUR|USD|GBP|CHF)\b)(?:(?=[\w-]*[A-Za-z])(?=[\w-]*\d)[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*|[A-Z]{{2,}}(?:-[A-Z]+)*)\b",
)
_RANGE = re.compile(rf"(?P<low>{_NUMBER})\s?(?:-|–|to|and|or)\s?(?=(?:{_NUMBER})[ -]?(?P<unit>{_UNIT}))", re.IGNORECASE)
_MEASURE = re.compile(
    rf"(?P<sign>[€$£]|\b(?:eur|usd|gbp|chf)\b)?\s?(?P<number>{_NUMBER})(?:[ -]?(?P<unit>{_UNIT}))?", re.IGNORECASE
)
_SPELLED = re.compile(rf"\b(?P<number>{_WORD})[ -](?P<unit>{_UNIT})", re.IGNORECASE)
_NAME = re.compile(r"(?<![.!?:•*\n-] )(?<!\n)(?<!^)(?<![\w'’])([A-Z][a-zà-ÿ]+)\b")
_POLARITY = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)

_CONSTANTS = frozenset({"true", "false", "null"})
_DENIAL = re.compile(r"\b(?:no|not|never|none|cannot|without)\b|n['’]t\b", re.IGNORECASE)


def facts(text: str) -> frozenset[str]:
    """The facts of a text, each normalised and led by its kind: `day:30`, `eur:4.99`, `time:17:00`, `name:oslo`.

    Weeks count as days and years as months, so that "two weeks" and "14 days" are one fact. A capitalised word at the
    start of a sentence is no name. The number of a placeholder (`<EMAIL_2>`) counts in its conversation and is no fact.
    """
    found: set[str] = set()
    rest = _take(_ADDRESS, unnumbered(text), lambda match: [f"address:{match[0].rstrip('.,;:!?').casefold()}"], found)
    rest = _take(_ISO_DATE, rest, lambda match: [f"date:{int(match[2])}-{int(match[3])}", f"year:{match[1]}"], found)
    rest = _take(_DATE, rest, _date, found)
    rest = _take(_TIME, rest, _time, found)
    rest = _take(_RANGE, rest, lambda match: [_measure(_number(match["low"]), match["unit"])], found)
    rest = _take(_SPELLED, rest, lambda match: [_measure(_spelled(match["number"]), match["unit"])], found)
    rest = _take(_CODE, rest, lambda match: [f"code:{match[0].casefold()}"], found)
    rest = _take(_MEASURE, rest, _amount, found)
    rest = _take(_WEEKDAY, rest, lambda match: [f"weekday:{match[1].casefold()}"], found)
    found.update(f"name:{match[1].casefold()}" for match in _NAME.finditer(rest.strip()))
    return frozenset(found)


def score(answer: str, reference: str) -> float:
    """How right an answer is, 0 to 1.

    Of a reference that is a JSON object or array: F1 of the fields (path and value). What is no JSON scores 0, and so
    does JSON with other text around it; a code fence is accepted where the reference has one. A reference that is a
    JSON constant must be met exactly.

    Of any other reference: 1.0 when every fact of it stands in the answer and the answer adds nothing that conflicts,
    else 0.0. A conflict is another value of a kind that the reference states (45 days beside 30 days), or yes against
    no. A reference without facts is met by token F1 of at least SAME_WORDS, when both or neither deny.
    """
    if (document := fields(reference)) is not None:
        given = fields(answer, fenced=is_fenced(reference))
        return 0.0 if given is None else field_f1(given, document)
    if reference.strip() in _CONSTANTS:
        return float(answer.strip() == reference.strip())
    wanted = facts(reference)
    if conflicts(answer, reference):
        return 0.0
    if not wanted:
        return float(_same_words(answer, reference))
    stated, words = facts(answer), set(tokens(answer))
    # A name may open the answer's sentence, where `facts` does not see it.
    return float(all(fact in stated or (fact.startswith(("name:", "code:")) and fact[5:] in words) for fact in wanted))


def conflicts(answer: str, reference: str) -> bool | None:
    """Whether the answer states what the reference contradicts; None where it cannot be told.

    A conflict is another value of a kind that the reference states, or yes against no. Of JSON: a field that the
    reference does not have, or another value in it.
    """
    if (document := fields(reference)) is not None:
        given = fields(answer)
        return None if given is None else bool(given - document)
    said, meant = _POLARITY.match(answer), _POLARITY.match(reference)
    if said and meant and said[1].casefold() != meant[1].casefold():
        return True
    wanted = values(facts(reference))
    known = kinds(wanted)
    return any(kinds({fact}) & known for fact in values(facts(answer)) - wanted) if wanted else None


def same_answer(one: str, other: str) -> bool:
    """Two answers say the same: equal facts, no yes against no, and, without facts, mostly the same words.

    JSON documents are the same when all their fields are, and both or neither stand in a code fence.
    """
    documents = fields(one, fenced=is_fenced(other)), fields(other, fenced=is_fenced(one))
    if documents != (None, None):
        return documents[0] == documents[1]
    if not _CONSTANTS.isdisjoint({one.strip(), other.strip()}):
        return one.strip() == other.strip()
    left = facts(one)
    if left != facts(other) or conflicts(one, other):
        return False
    return bool(left) or _same_words(one, other)


def values(stated: frozenset[str] | set[str]) -> set[str]:
    """The facts that exclude each other within a kind: all but names, codes and addresses."""
    return {fact for fact in stated if not fact.startswith(("name:", "code:", "address:"))}


def kinds(stated: frozenset[str] | set[str]) -> set[str]:
    """What the facts are about. All lengths of time are one kind: 30 days can replace two months."""
    return {"duration" if (kind := fact.partition(":")[0]) in _DURATIONS else kind for fact in stated}


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words that two texts share, 0 to 1, as in SQuAD (Rajpurkar et al. 2016)."""
    said, meant = Counter(tokens(answer)), Counter(tokens(reference))
    shared = sum((said & meant).values())
    if not shared:
        return float(not said and not meant)
    return 2 * shared / (said.total() + meant.total())


def tokens(text: str) -> list[str]:
    """The words of a text, casefolded; hyphenated codes stay whole, placeholders lose their numbers."""
    return re.findall(r"\w+(?:[-']\w+)*", unnumbered(text).casefold())


def _same_words(one: str, other: str) -> bool:
    return token_f1(one, other) >= SAME_WORDS and bool(_DENIAL.search(one)) == bool(_DENIAL.search(other))


def _take(pattern: re.Pattern[str], text: str, note: Callable[[re.Match[str]], list[str]], found: set[str]) -> str:
    """The text without the pattern's matches, whose facts are added to those found: a date is not also two numbers."""

    def replace(match: re.Match[str]) -> str:
        found.update(note(match))
        return " , "

    return pattern.sub(replace, text)


def _date(match: re.Match[str]) -> list[str]:
    month = _MONTHS[(match["m1"] or match["m2"]).casefold()]
    day = int(match["d1"] or match["d2"])
    return [f"date:{month}-{day}"] + ([f"year:{match['y']}"] if match["y"] else [])


def _time(match: re.Match[str]) -> list[str]:
    if match["h24"]:
        return [f"time:{int(match['h24'])}:{match['m24']}"]
    hour = int(match["h"]) % 12 + (12 if match["half"].casefold() == "p" else 0)
    return [f"time:{hour}:{match['m'] or '00'}"]


def _amount(match: re.Match[str]) -> list[str]:
    return [_measure(_number(match["number"]), match["sign"] or match["unit"] or "")]


def _measure(number: float, unit: str) -> str:
    unit = re.sub(r"[ -]+", " ", unit.casefold())
    name, factor = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s"), (unit or "number", 1))
    number *= factor
    if name == "hour" and number % 24 == 0:
        name, number = "day", number / 24
    return f"{name}:{number:g}"


def _number(text: str) -> float:
    if re.fullmatch(r"\d+,\d{1,2}", text):
        return float(text.replace(",", "."))  # 4,99 as much of Europe writes it
    return float(text.replace(",", ""))


def _spelled(text: str) -> float:
    return float(sum(_WORDS[word] for word in re.split("[ -]", text.casefold())))
