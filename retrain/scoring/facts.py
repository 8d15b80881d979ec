"""The metric `facts`: is an answer right by its reference? Pure functions on English text.

Where the reference is a JSON object or array, the fields of the two are compared (see `json_fields`); a bare JSON
constant (`true`) is compared as it stands. All other text is judged by its facts. A fact is a value that a customer
could act on: a number with its unit, an amount of money, a date, a time, a weekday, a code, an address, a name. Wording
is not a fact. Facts are what a wrong answer gets wrong, which neither completion loss nor word overlap shows.
"""

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from retuned.consumers.common.languages import is_english
from retuned.consumers.common.tool_calls import OPENING
from retuned.consumers.privacy.placeholders import unnumbered
from retuned.retrain.scoring.json_fields import field_f1, fields, is_fenced
from retuned.retrain.scoring.score import Metric, Score
from retuned.retrain.scoring.text import same_text
from retuned.retrain.scoring.words import token_f1 as token_f1
from retuned.retrain.scoring.words import tokens as tokens

SAME_WORDS = 0.6
"""Token F1 from which an answer whose reference holds no fact counts as right."""
FEW_WORDS = 3
"""A reference without facts that has no more words must be met word by word: "very negative" is not "negative"."""

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

_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n|,?\s\bbut\b|,\s(?=not\b)")
_CLAUSE_END = re.compile(r"[.!?;:,](?=\s|$)|\n|[()]|\s–\s|\b(?:but|while|whereas)\b|\b(?<!\d )and\b(?!\s*\d)")
# A denied verb turns what is said of a value; a quantity of none ("no fee", "no questions asked") does not, unless the
# sentence begins with it.
_DENIED = re.compile(r"\b(?:not|never|cannot|no longer)\b|n['’]t\b|^\W*no\s+(?!later|more|longer|less|fewer)\w", re.I)
_BOUNDED = re.compile(
    r"\b(?:after|afterwards|beyond|later|more|longer|less|fewer|over|exceed\w*|until|before|unless|only|if|worry|forget|"
    r"hesitate|need|have to)\b",
    re.I,
)
"""Beside a denial the sentence may mean the same as one without: "not after 30 days" is "within 30 days"."""
_STEM = 5
_FILLERS = frozenset(
    "a an the of to in on at by for from with within up per as than that this these those it its is are was be been "
    "or and you your we our they their i me my he she can could may might will would must shall do does did have has "
    "had some any all most least about around perhaps maybe also even just now then there here so too more less only "
    "instead well sometimes".split()
)


def facts(text: str) -> frozenset[str]:
    """The facts of a text, each normalised and led by its kind: `day:30`, `eur:4.99`, `time:17:00`, `name:oslo`.

    Weeks count as days and years as months, so that "two weeks" and "14 days" are one fact. A capitalised word at the
    start of a sentence is no name, nor is one in another language than English, where nouns may be written so. The
    number of a placeholder (`<EMAIL_2>`) counts in its conversation and is no fact.
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
    names = {f"name:{match[1].casefold()}" for match in _NAME.finditer(rest.strip())}
    return frozenset(found | names) if names and is_english(text) else frozenset(found)


class Facts(Metric):
    """The metric: 1 for an answer that states the facts of the approved one, else 0. It abstains outside English."""

    name = "facts"
    meaning = "1 for an answer that states every fact of the approved one and nothing that conflicts with it, else 0"

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """See `score`."""
        if not _is_judged(approved):
            return Score(None, "the approved answer is not in English")
        value = score(answer, approved)
        return Score(value, "" if value == 1.0 else _shortfall(answer, approved))

    def same(self, one: str, other: str) -> bool:
        """See `same_answer`."""
        return same_answer(one, other)

    def key(self, answer: str) -> Hashable:
        """Its facts; without any, its words."""
        return facts(answer) or super().key(answer)


def score(answer: str, reference: str) -> float:
    """How right an answer is, 0 to 1.

    Of a reference that is a JSON object or array: F1 of the fields (path and value). What is no JSON scores 0, and so
    does JSON with other text around it; a code fence is accepted where the reference has one. A reference that is a
    JSON constant must be met exactly.

    Of any other reference: 1.0 when every fact of it stands in the answer and nothing in the answer conflicts with it
    (see `conflicts`), else 0.0. A reference without facts is met by token F1 of at least SAME_WORDS, when both or
    neither deny; one of at most FEW_WORDS, by the same words.
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
    """Whether the answer states what the reference contradicts; None where it cannot be told: outside English, and of
    calls of tools.

    These conflict: yes against no; another value in the place of one that the reference states (45 days for 30 days;
    30 days, or is it 45?), but not one that has a subject of its own (refunds take 5 days); a sentence that denies what
    the reference says of a value, or says what it denies; values of one kind whose subjects changed places. Of JSON: a
    field that the reference does not have, or another value in it.
    """
    if (document := fields(reference)) is not None:
        given = fields(answer)
        return None if given is None else bool(given - document)
    if OPENING in reference or not is_english(reference):
        return None
    said, meant = _POLARITY.match(answer), _POLARITY.match(reference)
    if said and meant and said[1].casefold() != meant[1].casefold():
        return True
    wanted = values(facts(reference))
    if not wanted:
        return None
    stated = values(facts(answer))
    if any(_replaces(fact, answer, reference, stated, wanted) for fact in stated - wanted):
        return True
    return _denies(answer, reference, stated & wanted) or _swaps(answer, reference, stated & wanted)


def same_answer(one: str, other: str) -> bool:
    """Two answers say the same: equal facts, no yes against no, and, without facts, mostly the same words.

    JSON documents are the same when all their fields are, and both or neither stand in a code fence.
    """
    documents = fields(one, fenced=is_fenced(other)), fields(other, fenced=is_fenced(one))
    if documents != (None, None):
        return documents[0] == documents[1]
    if not _CONSTANTS.isdisjoint({one.strip(), other.strip()}):
        return one.strip() == other.strip()
    if not (is_english(one) and is_english(other)):
        return same_text(one, other)
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


def _is_judged(reference: str) -> bool:
    return fields(reference) is not None or reference.strip() in _CONSTANTS or is_english(reference)


def _shortfall(answer: str, reference: str) -> str:
    """Why an answer is not right, for people."""
    if fields(reference) is not None:
        return "other fields"
    if conflicts(answer, reference):
        return "conflicts with the approved answer"
    missing = sorted(facts(reference) - facts(answer))
    return f"misses {', '.join(fact.replace(':', ' ', 1) for fact in missing)}" if missing else "other words"


def _replaces(fact: str, answer: str, reference: str, stated: set[str], wanted: set[str]) -> bool:
    """Whether a value that the reference does not have stands in the place of one that it has."""
    kind = kinds({fact})
    rivals = {one for one in wanted if kinds({one}) == kind}
    if not rivals:
        return False
    if not rivals <= stated:
        return True
    known = _stems(reference) | {stem for one in rivals for stem in _subject(one, answer)}
    return not _subject(fact, answer) - known


def _denies(answer: str, reference: str, shared: set[str]) -> bool:
    for fact in shared:
        said, meant = _denials(fact, answer), _denials(fact, reference)
        if len(said) == len(meant) == 1 and None not in (said | meant) and said != meant:
            return True
    return False


def _denials(fact: str, text: str) -> set[bool | None]:
    """Of the sentences that state the fact, whether they deny; None: it cannot be told."""
    return {
        None if (denied := bool(_DENIED.search(sentence))) and _BOUNDED.search(sentence) else denied
        for sentence in _SENTENCE_END.split(text)
        if fact in facts(sentence)
    }


def _swaps(answer: str, reference: str, shared: set[str]) -> bool:
    """Whether two values of a kind have each other's subjects."""
    facts_in_order = sorted(shared)
    for place, one in enumerate(facts_in_order):
        for other in facts_in_order[place + 1 :]:
            if kinds({one}) != kinds({other}):
                continue
            first, second = _subject(one, reference), _subject(other, reference)
            first, second = first - second, second - first
            said_of_one, said_of_other = _subject(one, answer), _subject(other, answer)
            said_of_one, said_of_other = said_of_one - said_of_other, said_of_other - said_of_one
            kept = first & said_of_one or second & said_of_other
            if not kept and (first & said_of_other or second & said_of_one):
                return True
    return False


def _subject(fact: str, text: str) -> set[str]:
    """The words of the clauses that state a fact."""
    return {stem for clause in _CLAUSE_END.split(text) if fact in facts(clause) for stem in _stems(clause)}


def _stems(text: str) -> set[str]:
    """The beginnings of the words that name something: no fillers, numbers and units."""
    return {
        word.removesuffix("s")[:_STEM]
        for word in tokens(text)
        if word.isalpha()
        and word not in _FILLERS
        and not word.endswith("ly")
        and word not in _WORDS
        and word not in _UNITS
        and word.removesuffix("s") not in _UNITS
    }


def _same_words(one: str, other: str) -> bool:
    said, meant = ([word for word in tokens(text) if word not in ("a", "an", "the")] for text in (one, other))
    if min(len(said), len(meant)) <= FEW_WORDS:
        return said == meant
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
