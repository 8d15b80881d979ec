"""Values: what numbers, amounts, times, dates and addresses a sentence states, however it writes them."""

import re
from calendar import monthrange
from dataclasses import dataclass, replace

from retuned.monitors.hallucination.vocabulary import STOP_WORDS

_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = {name: number for number, name in enumerate(_MONTHS, 1)}
_MONTH |= {name[:3]: number for name, number in _MONTH.items() if name != "may"} | {"sept": 9}
_WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_WEEKDAY = {name: number for number, name in enumerate(_WEEKDAYS)}
_WEEKDAY |= {f"{name}s": number for name, number in _WEEKDAY.items()}
_WEEK = dict.fromkeys(("weekday", "weekdays"), range(5)) | dict.fromkeys(("weekend", "weekends"), range(5, 7))
_HOLIDAYS = {
    ("christmas", "eve"): (12, 24), ("christmas", "day"): (12, 25), ("boxing", "day"): (12, 26),
    ("new", "year's", "eve"): (12, 31), ("new", "year's", "day"): (1, 1),
}  # fmt: skip
_ONES = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
_SPELLED = {word: float(number) for number, word in enumerate(f"{_ONES} eighteen nineteen".split(), 1)}
_TENS = {
    word: 10.0 * ten for ten, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}
_SPELLED |= _TENS | {"zero": 0.0, "dozen": 12.0}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "k": 1e3}
_TIMES = {"once": 1.0, "twice": 2.0, "thrice": 3.0}
_PLACES = {word: place for place, word in enumerate("third fourth fifth sixth seventh eighth ninth tenth".split(), 3)}
_THROUGH = frozenset({"to", "through", "until", "till", "-", "–"})
_FRACTIONS = {"third": 1 / 3, "quarter": 0.25, "fifth": 0.2, "tenth": 0.1}
_HALVES = {
    ("in", "the", "morning"): 0,
    ("in", "the", "afternoon"): 720,
    ("in", "the", "evening"): 720,
    ("at", "night"): 720,
}
_LABELLED = frozenset(
    "building chapter class floor gate generation level line model page phase platform room series size step table "
    "terminal tier track type unit version zone".split()
)
_HOURS = {"noon": 720, "midday": 720, "midnight": 0}

_CURRENCIES = {
    "€": "eur", "euro": "eur", "eur": "eur", "$": "usd", "dollar": "usd", "usd": "usd", "£": "gbp", "pound": "gbp",
    "gbp": "gbp", "franc": "chf", "chf": "chf", "yen": "jpy", "rupee": "inr", "zloty": "pln",
    "cent": "", "penny": "", "pence": "", "crown": "",
}  # fmt: skip
# Unit: kind, and how much of the kind's base it is. Seconds, months, metres, grams, litres, gigabytes, megabits.
_UNITS = {
    **{unit: ("money", 0.01 if unit in {"cent", "penny", "pence"} else 1.0) for unit in _CURRENCIES},
    "%": ("%", 1.0), "percent": ("%", 1.0), "times": ("times", 1.0),
    "second": ("duration", 1.0), "sec": ("duration", 1.0), "minute": ("duration", 60.0), "min": ("duration", 60.0),
    "hour": ("duration", 3_600.0), "hr": ("duration", 3_600.0), "h": ("duration", 3_600.0),
    "day": ("duration", 86_400.0), "night": ("duration", 86_400.0), "week": ("duration", 604_800.0),
    "fortnight": ("duration", 1_209_600.0), "month": ("months", 1.0), "year": ("months", 12.0),
    "mm": ("length", 1e-3), "cm": ("length", 0.01), "centimetre": ("length", 0.01), "centimeter": ("length", 0.01),
    "m": ("length", 1.0), "metre": ("length", 1.0), "meter": ("length", 1.0), "km": ("length", 1e3),
    "kilometre": ("length", 1e3), "kilometer": ("length", 1e3), "mile": ("length", 1_609.344),
    "mg": ("weight", 1e-3), "g": ("weight", 1.0), "gram": ("weight", 1.0), "kg": ("weight", 1e3),
    "kilo": ("weight", 1e3), "kilogram": ("weight", 1e3), "tonne": ("weight", 1e6), "lb": ("weight", 453.6),
    "ml": ("volume", 1e-3), "l": ("volume", 1.0), "litre": ("volume", 1.0), "liter": ("volume", 1.0),
    "kb": ("data", 1e-6), "mb": ("data", 1e-3), "gb": ("data", 1.0), "tb": ("data", 1e3),
    "megabyte": ("data", 1e-3), "gigabyte": ("data", 1.0), "terabyte": ("data", 1e3),
    "mbit": ("bandwidth", 1.0), "mbps": ("bandwidth", 1.0), "gbit": ("bandwidth", 1e3), "gbps": ("bandwidth", 1e3),
    "kw": ("power", 1.0), "kwh": ("energy", 1.0), "degree": ("temperature", 1.0), "°": ("temperature", 1.0),
}  # fmt: skip
_PERIODS = {
    "second": "second", "minute": "minute", "hour": "hour", "hourly": "hour", "day": "day", "daily": "day",
    "night": "day", "nightly": "day", "week": "week", "weekly": "week", "month": "month", "monthly": "month",
    "quarter": "quarter", "year": "year", "yearly": "year", "annual": "year", "annually": "year",
}  # fmt: skip
_BEFORE_A_YEAR = frozenset("in of by until till since from during year spring summer autumn winter".split())
# Kinds that come at so much for each period.
_RATED = frozenset({"money", "times", "weight", "length", "data", "count", "energy", "volume", "duration"})

# What stands before "a week" that is a length of time.
_ONE_OF_A_TIME = frozenset("within in for over under than after least most about".split())

_BEFORE_A_VALUE = {
    ("at", "least"): "least", ("minimum", "of"): "least", ("minimum",): "least", ("at", "most"): "most",
    ("up", "to"): "most", ("maximum", "of"): "most", ("maximum",): "most", ("within",): "most",
    ("not", "exceed"): "most",
    ("over",): "more", ("above",): "more", ("exceeding",): "more", ("under",): "less", ("below",): "less",
    ("before",): "before", ("until",): "before", ("after",): "after",
}  # fmt: skip
# What stands before "than": affirmed, and denied.
_THAN = dict.fromkeys(
    "more longer larger bigger higher older heavier later greater further".split(), ("more", "most")
) | dict.fromkeys("less fewer smaller shorter lower younger lighter earlier".split(), ("less", "least"))
_BEHIND_A_VALUE = {
    ("or", "more"): "least", ("or", "longer"): "least", ("or", "above"): "least", ("or", "over"): "least",
    ("or", "older"): "least", ("and", "over"): "least", ("and", "above"): "least", ("or", "less"): "most",
    ("or", "fewer"): "most", ("or", "younger"): "most", ("or", "under"): "most",
    ("before",): "before", ("ahead",): "before", ("prior",): "before", ("beforehand",): "before",
    ("in", "advance"): "before", ("after",): "after", ("afterwards",): "after", ("later",): "after",
}  # fmt: skip
CONFLICTING = frozenset(
    {("least", "most"), ("most", "least"), ("more", "less"), ("less", "more"), ("before", "after"), ("after", "before")}
)
"""Bounds of one value that cannot both hold. At least against less is none: what is due later costs a fee."""

LOOSE = frozenset({"count", "duration", "times"})
"""Kinds of which a number of one may be that of another: children under four (years), three attempts (times)."""

_TOKEN = re.compile(
    r"""
    (?P<address>[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64}){1,6}|(?:https?://|www\.)[^\s<>"')]{1,500}[^\s<>"').,;:!?])
    |(?P<iso>\d{4}-\d\d-\d\d)\b
    |(?P<clock>(?P<hour>\d{1,2})(?:[:.](?P<minute>[0-5]\d))?\s?(?P<half>[ap])\.?m\b\.?)
    |(?P<clock24>(?P<hour24>[01]?\d|2[0-4]):(?P<minute24>[0-5]\d)\b(?:\s?h\b)?)
    |(?P<number>\d+(?:[.,]\d+)*)(?P<ordinal>(?:st|nd|rd|th)\b)?
    |(?P<code>[A-Za-z]{1,9}\d\w{0,20})
    |(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)*)
    |(?P<mark>[€$£¢%°;:,.!?()–—/&-])
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Value:
    """A number with its unit, a time, a date, a weekday, an address.

    Attributes:
        kind: what it measures; one value of a kind can stand where another should. "" for a bare number.
        keys: the amount in the kind's base, as text; two values of one kind are equal when they share a key.
        number: as written, where it is a number.
        currency: of money, where it is known; without one an amount equals the same amount in any.
        bound: least, most, more, less, before or after, where the sentence says so.
        per: the period of a rate, as in 5 euros a month.
    """

    kind: str
    keys: tuple[str, ...]
    number: float | None = None
    currency: str = ""
    bound: str = ""
    per: str = ""

    @property
    def token(self) -> str:
        """The value as a word among words."""
        return f"{self.kind} {self.keys[0]}"


@dataclass(slots=True)
class Token:
    """A word in lower case, a mark, or a value; of a range or a list of weekdays, all values."""

    text: str
    capital: bool = False
    glued: bool = False
    values: tuple[Value, ...] = ()
    number: float | None = None
    code: bool = False
    upper: bool = False


_ALWAYS, _NOW = Value("always", ("always",)), Value("duration", ("now",))
# Times in words.
_PHRASES = {
    ("around", "the", "clock"): _ALWAYS,
    ("day", "and", "night"): _ALWAYS,
    ("any", "hour"): _ALWAYS,
    ("any", "time"): _ALWAYS,
    ("anytime",): _ALWAYS,
    ("immediately",): _NOW,
    ("immediate",): _NOW,
    ("instantly",): _NOW,
    ("instant",): _NOW,
    ("right", "away"): _NOW,
    ("straight", "away"): _NOW,
    ("at", "once"): _NOW,
}
_WORDED = frozenset(phrase[0] for phrase in _PHRASES) | _TIMES.keys() | _FRACTIONS.keys() | {"same", "next", "half"}
_AND_A_HALF = ("and", "a", "half")


def money(amount: float, currency: str = "") -> Value:
    """An amount of money."""
    return Value("money", (f"{amount:.12g}",), amount, currency)


def tokens(sentence: str) -> list[Token]:
    """The words, marks and values of a sentence, in order. Time is linear in its length."""
    found = _scan(sentence)
    for merge in (_spelled, _dates, _measures, _rates, _bounds):
        found = merge(found)
    return found


def same(one: Value, other: Value) -> bool:
    """Whether the second value says the first. A bare number equals any amount written with it."""
    if (one.kind, other.kind) == ("month", "date"):
        return other.keys[0].startswith(f"{one.keys[0]}-")  # on 1 May is in May
    if one.kind == other.kind:
        return any(key in other.keys for key in one.keys) and (
            one.currency == other.currency or not (one.currency and other.currency)
        )
    loose = not one.kind or not other.kind or {one.kind, other.kind} <= LOOSE
    return loose and one.number == other.number and (one.number not in {None, 1.0} or "time" in {one.kind, other.kind})


def _scan(sentence: str) -> list[Token]:
    found: list[Token] = []
    end = -1
    for match in _TOKEN.finditer(sentence):
        text, group, glued = match[0], match.lastgroup, match.start() == end
        end = match.end()
        token = Token(
            text.lower().replace("’", "'"), text[0].isupper() and match.start() > 0, glued, upper=text[0].isupper()
        )
        if match["address"]:
            token.values = (Value("address", (token.text,)),)
        elif match["iso"]:
            token.values = (_date(int(text[5:7]), int(text[8:10])), Value("year", (text[:4],)))
        elif match["clock"]:
            hour = int(match["hour"]) % 12 + (12 if match["half"].lower() == "p" else 0)
            clock = _clock(60 * hour + int(match["minute"] or 0))
            token.values = (replace(clock, number=float(match["hour"])),)
        elif match["clock24"]:
            token.values = (_clock(60 * int(match["hour24"]) + int(match["minute24"])),)
        elif match["ordinal"]:
            token.number = _amount(match["number"])
            token.text = f"{token.text}"
            token.values = (Value("place", (f"{token.number:g}",), token.number),)
        elif match["number"]:
            token.number = _amount(match["number"])
        elif group == "code":
            token.code, token.capital = True, True
        elif glued and found and found[-1].number is not None and text in {"G", "K", "D"}:
            # 5G and 4K are names, 5g is a weight
            found[-1] = Token(f"{found[-1].text}{token.text}", True, found[-1].glued, code=True)
            continue
        elif found and found[-1].text == "°" and text in {"C", "F"}:
            continue
        elif token.text in _PLACES:
            token.values = (Value("place", (str(_PLACES[token.text]),), float(_PLACES[token.text])),)
        elif token.text in _HOURS:
            token.values = (_clock(_HOURS[token.text]),)
        found.append(token)
    return found


def _spelled(given: list[Token]) -> list[Token]:
    """Numbers and values in words: twenty-five, two hundred, half an hour, half past six, twice."""
    found: list[Token] = []
    at = 0
    while at < len(given):
        token = given[at]
        if token.text in _WORDED or token.number == 24 or _text(given, at + 1) == "past":
            value, used = _worded(given, at)
            if value is not None:
                found.append(Token(token.text, values=(value,)))
                at += used
                continue
        before = found[-1] if found and found[-1].number is not None else None
        if before and token.text == "dozen":
            before.number, used = 12 * (before.number or 1), 1
        elif before and token.text in {"thirds", "fifths", "tenths"}:
            share = _FRACTIONS[token.text.removesuffix("s")] * (before.number or 1)
            found[-1], used = Token(token.text, values=(_share(share),)), 1
        elif before and token.text == "quarters":
            before.number = 0.25 * (before.number or 1)
            used = 3 if _text(given, at + 1) == "of" and _text(given, at + 2) in {"an", "a"} else 1
        elif token.text in {"a", "an"} and _text(given, at + 1) in _UNITS and _texts(given, at + 2, 3) == _AND_A_HALF:
            found += [Token(token.text, number=1.5), given[at + 1]]
            used = 5
        else:
            number, used = _in_words(given, at)
            # "one" alone is a pronoun more often than a number
            if number is not None and (token.text != "one" or _unit(given, at + used)[1]):
                token = Token(token.text, glued=token.glued, number=number, values=token.values)
            found.append(token)
        at += used
    return found


def _in_words(given: list[Token], at: int) -> tuple[float | None, int]:
    """The number at a place, in digits or words, and how many tokens it takes."""
    word, used = _text(given, at), 1
    number = _SPELLED.get(word, _number(given, at))
    if word == "half" and _text(given, at + 1) in {"an", "a"} and _text(given, at + 2) in _UNITS:
        return 0.5, 2
    if word == "half" and _text(given, at + 1) in _PERIODS.keys() & _UNITS.keys():
        return 0.5, 1
    if word == "quarter" and _texts(given, at + 1, 2) == ("of", "an") and _text(given, at + 3) in _UNITS:
        return 0.25, 3
    if word == "other" and _text(given, at - 1) == "every" and _text(given, at + 1) in _UNITS:
        return 2.0, 1
    if number is None:
        return None, 1
    if word in _TENS:
        behind = 2 if _text(given, at + 1) == "-" else 1
        ones = _SPELLED.get(_text(given, at + behind), 0.0)
        if 0 < ones < 10:
            number, used = number + ones, behind + 1
    if _texts(given, at + used, 3) == _AND_A_HALF:
        number, used = number + 0.5, used + 3
    while (scale := _SCALES.get(_text(given, at + used))) and (
        _text(given, at + used) != "k" or given[at + used].glued
    ):
        number, used = number * scale, used + 1
        and_more = used + (_text(given, at + used) == "and")
        if scale in {1e2, 1e3} and _text(given, at + and_more) in _SPELLED:  # six hundred and thirty
            more, taken = _in_words(given, at + and_more)
            if more is not None and more < scale:
                number, used = number + more, and_more + taken
    return number, used


def _worded(given: list[Token], at: int) -> tuple[Value | None, int]:
    """The value at a place that is no plain number, and how many tokens it takes."""
    word, following = given[at].text, _text(given, at + 1)
    if given[at].number == 24:
        return (_ALWAYS, 3) if following == "/" and _number(given, at + 2) == 7 else (None, 0)
    for phrase, value in _PHRASES.items():
        if _texts(given, at, len(phrase)) == phrase and (word != "at" or _in_words(given, at - 2)[0] is None):
            return value, len(phrase)  # two users at once are not immediate
    if word in _TIMES and (
        word == "twice" or following in {"a", "an", "per", "every", "each"} or following in _PERIODS
    ):
        return Value("times", (f"{_TIMES[word]:g}",), _TIMES[word]), 1
    if (
        word in _FRACTIONS
        and not (following == "of" and _text(given, at + 2) == "an")
        and (
            _text(given, at - 1) == "one" or (_text(given, at - 1) == "a" and following in {"of", "off", "", ".", ","})
        )
    ):
        return _share(_FRACTIONS[word]), 1
    if word in {"same", "next"} and (used := _day(given, at + 1)):
        return Value("duration", (f"{word} day",)), used
    if following in {"past", "to"} and (clock := _past(given, at)) is not None:
        return Value("time", (str(clock), str(clock + 720))), 3  # without am or pm it may be either
    if word == "half" and following not in {"an", "a", "term", "-", "board"} | _PERIODS.keys():
        return _share(0.5), 1
    return None, 0


def _dates(given: list[Token]) -> list[Token]:
    """Dates (3 March, March 3rd, 3 to 17 March 2027), weekdays and their ranges."""
    found: list[Token] = []
    at = 0
    while at < len(given):
        token, used = given[at], 1
        if token.number is not None and 1 <= token.number <= 31:
            to = at + 2 if _text(given, at + 1) in {"to", "-", "–", "until", "and"} else at
            last = given[to] if to < len(given) else token
            behind = to + (2 if _text(given, to + 1) == "of" else 1)
            month = _month(given, behind)
            if month and last.number is not None and 1 <= last.number <= 31:
                token = Token(
                    token.text, values=tuple(_date(month, int(t.number or 0)) for t in given[at : to + 1 : 2])
                )
                used = behind + 1 - at
        elif _texts(given, at, 3) == ("last", "day", "of") and (last_of := _month(given, at + 3)):
            token, used = Token(token.text, values=(_date(last_of, monthrange(2027, last_of)[1]),)), 4
        elif _month(given, at) and (day := _number(given, at + 1)) is not None and 1 <= day <= 31:
            token, used = Token(token.text, values=(_date(_MONTH[token.text], int(day)),)), 2
        elif _month(given, at):
            until = at + 5 if _texts(given, at + 2, 3) == ("the", "end", "of") else at + 2
            start, end = _MONTH[token.text], _MONTH.get(_text(given, until))
            through = _text(given, at + 1) in _THROUGH or (
                _text(given, at + 1) == "and" and _text(given, at - 1) == "between"
            )
            months = [start]
            if end is not None and through and _number(given, until + 1) is None:
                months = [(start + month - 1) % 12 + 1 for month in range((end - start) % 12 + 1)]
                used = until + 1 - at
            token = Token(token.text, values=tuple(Value("month", (str(month),)) for month in months))
        elif (first := _WEEKDAY.get(token.text.removesuffix("'s"))) is not None:
            last_day = _WEEKDAY.get(_text(given, at + 2))
            days = [first]
            if last_day is not None and _text(given, at + 1) in _THROUGH:
                days, used = [(first + day) % 7 for day in range((last_day - first) % 7 + 1)], 3
            token = Token(token.text, values=tuple(Value("weekday", (_WEEKDAYS[day],)) for day in days))
        elif token.text in _WEEK and _text(given, at + 1) != "of":
            token = Token(token.text, values=tuple(Value("weekday", (_WEEKDAYS[day],)) for day in _WEEK[token.text]))
        elif holiday := next((h for h in _HOLIDAYS if _texts(given, at, len(h)) == h), None):
            token, used = Token(token.text, values=(_date(*_HOLIDAYS[holiday]),)), len(holiday)
        if token.values and token.values[0].kind in {"date", "month"}:
            behind = at + used + (_text(given, at + used) == ",")
            if year := _year(given, behind):
                token.values, used = (*token.values, year), behind + 1 - at
        elif not token.values and (year := _year(given, at)) and _text(given, at - 1) in _BEFORE_A_YEAR:
            token = Token(token.text, values=(year,))
        found.append(token)
        at += used
    return found


def _measures(given: list[Token]) -> list[Token]:
    """Numbers with their units, before or behind them; of a range both ends get the unit of the second."""
    found: list[Token] = []
    at = 0
    while at < len(given):
        token = given[at]
        if token.values and token.values[0].kind == "time":
            # half past six in the evening
            half = next((h for h in _HALVES if _texts(given, at + 1, len(h)) == h), None)
            if half:
                minutes = int(token.values[0].keys[0]) % 720 + _HALVES[half]
                token.values = (_clock(minutes),)
                at += len(half)
        if token.number is None or token.values:
            currency = token.text if token.text in _CURRENCIES else token.text.removesuffix("s")
            if currency in _CURRENCIES and not token.text.endswith("s") and _number(given, at + 1) is not None:
                at += 1
                found.append(Token(token.text, values=(_measured(given[at].number or 0.0, currency),)))
                at += 1
                if _text(given, at) in {"to", "-", "–"} and (end := _number(given, at + 1)) is not None:
                    found.append(Token(token.text, values=(_measured(end, currency),)))
                    at += 2
                continue
            found.append(token)
            at += 1
            continue
        unit, used = _unit(given, at + 1)
        last = at
        since = found[-2] if len(found) > 1 and found[-1].text in _THROUGH else None
        if since and since.values and since.values[0].kind == "time" and unit in {"", "count"} and token.number <= 12:
            clock = int(60 * token.number) % 720  # half past six to eight
            found.append(Token(token.text, values=(Value("time", (str(clock), str(clock + 720)), token.number),)))
            at += 1
            continue
        sharp = _text(given, at + 1) in {"o'clock", "o’clock"}
        half = next((h for h in _HALVES if _texts(given, at + 1 + sharp, len(h)) == h), None)
        if sharp and not half and 1 <= token.number <= 12:
            clock = int(60 * (token.number % 12))
            found.append(Token(token.text, values=(Value("time", (str(clock), str(clock + 720)), token.number),)))
            at += 2
            continue
        at += sharp
        if half and 1 <= token.number <= 12:
            clock = int(60 * (token.number % 12)) + _HALVES[half] * (token.number != 12 or half != ("at", "night"))
            found.append(Token(token.text, values=(Value("time", (str(clock),), token.number),)))
            at += 1 + len(half)
            continue
        if not unit and _text(given, at + 1) in {"to", "-", "–", "and", "or", "x"}:
            # 3 to 5 days, 7 to 10:30, 5 to 10 pm
            behind = given[at + 2] if at + 2 < len(given) else None
            if behind is not None and behind.number is not None:
                unit, used = _unit(given, at + 3)
                last = at + 2 if unit and (unit != "count" or _text(given, at + 1) != "and") else at
                unit = unit if last > at else ""
            elif behind and behind.values and behind.values[0].kind == "time" and token.number <= 24:
                found.append(Token(token.text, values=(_clock(int(60 * token.number)),)))
                at += 1
                continue
        if (
            last == at
            and unit in {"", "count"}
            and found
            and ((found[-1].upper and found[-1].text not in STOP_WORDS) or found[-1].text in _LABELLED)
        ):
            unit = f"no. {found[-1].text.removesuffix('s')}"  # Flex 10, Terminal 2: a name
        elif last == at and not unit and len(found) > 1 and found[-1].text in {"and", "or"} and found[-2].values:
            named = found[-2].values[-1].kind
            unit = named if named.startswith("no. ") else ""  # Screens 3 and 5
        joined = _text(given, at + 1 + used) == "and"
        cents = _number(given, at + 1 + used + joined) or 0.0
        of_money = last == at and _UNITS.get(unit, ("",))[0] == "money" and token.number.is_integer()
        if of_money and 0 < cents < 100:
            hundredths, more = _unit(given, at + 2 + used + joined)
            if hundredths in {"cent", "penny", "pence"} or not (more or joined):
                token.number, used = token.number + cents / 100, used + 1 + joined + more  # three euros (and) fifty
        ends = [token.number] if last == at else [token.number, given[last].number or 0.0]
        found.append(Token(token.text, values=tuple(_measured(number, unit) for number in ends)))
        at = last + 1 + used
    return found


def _rates(given: list[Token]) -> list[Token]:
    """Periods of rates: 5 euros a month, per month, monthly; and a single length of time: within a week."""
    found: list[Token] = []
    rated: Token | None = None
    reach, once = 0, False
    for at, token in enumerate(given):
        period = _PERIODS.get(token.text)
        before = given[at - 1].text if at else ""
        reach -= 4 if token.text in {",", ";", "and", "but"} else 1
        if before == "per" and not period and rated and reach > 0 and rated.values[0].kind == "money":
            rated.values = tuple(replace(value, per=value.per or token.text) for value in rated.values)  # per stay
        if token.values:
            rated, reach = token, 6
            if once and token.values[0].kind == "money":
                token.values = tuple(replace(value, per="once") for value in token.values)
        elif token.text == "one" and at + 2 < len(given) and given[at + 2].text in {"time", "off"}:
            once = True
        elif token.text == "once" and rated and reach > 0 and rated.values[0].kind == "money":
            rated.values = tuple(replace(value, per="once") for value in rated.values)
            continue
        elif period and (
            before in {"a", "an", "per", "each", "every", "/"}
            or token.text not in _UNITS
            or (before == "and" and at > 2 and given[at - 3].text == "per")  # per person and night
        ):
            earlier = given[at - 2].text if at > 1 else ""
            if rated and reach > 0 and rated.values[0].kind in _RATED:
                of_time = rated.values[0].number if rated.values[0].kind == "duration" else None
                if (of_time, period) == (24, "day"):
                    rated.values = (_ALWAYS,)
                elif (of_time, period) == (7, "week"):
                    rated.text, rated.values = "daily", ()
                else:
                    rated.values = tuple(replace(value, per=period) for value in rated.values)
                reach = 0
                continue
            if earlier in _ONE_OF_A_TIME and token.text in _UNITS and before in {"a", "an"}:
                found.append(Token(token.text, values=(_measured(1.0, token.text),)))
                continue
        found.append(token)
    return found


def _bounds(given: list[Token]) -> list[Token]:
    """Bounds of values: at least 3, 3 or more, up to 3, before 3 pm, 3 hours before."""
    for at, token in enumerate(given):
        if not token.values:
            continue
        bound = ""
        start = at
        while start and given[start - 1].text in {"the", "first", "last", "a", "about", "€", "$", "£"}:
            start -= 1
        if start > 1 and given[start - 1].text == "than" and given[start - 2].text in _THAN:
            words_before = [token.text for token in given[max(start - 5, 0) : start]]
            denied = any(word in {"no", "not", "never"} or word.endswith("n't") for word in words_before)
            bound = _THAN[given[start - 2].text][denied]
        for length in (2, 1):
            words = tuple(t.text for t in given[max(start - length, 0) : start])
            bound = bound or _BEFORE_A_VALUE.get(words, "")
        if token.values[0].kind in {"duration", "count", "", "money", "%", "weight", "length"}:
            for length in (2, 1):
                words = tuple(t.text for t in given[at + 1 : at + 1 + length])
                behind = _BEHIND_A_VALUE.get(words, "")
                bound = behind or bound
                if behind:
                    break
        if bound:
            token.values = tuple(replace(value, bound=bound) for value in token.values)
    return given


def _unit(given: list[Token], at: int) -> tuple[str, int]:
    """The unit at a place and how many tokens it takes; "count" for another word, ("", 0) for none."""
    start = at
    if _text(given, at) == "-":
        at += 1
    word = _text(given, at)
    if word in {"working", "business"} and _text(given, at + (2 if _text(given, at + 1) == "-" else 1)).startswith(
        "day"
    ):
        return "working day", at + (3 if _text(given, at + 1) == "-" else 2) - start
    if word == "per" and _text(given, at + 1) == "cent":
        return "%", at + 2 - start
    for unit in (word, word.removesuffix("'s"), word.removesuffix("'").removesuffix("s"), word.removesuffix("es")):
        if unit in _UNITS and (unit not in {"m", "g", "l", "h"} or word == unit):
            return unit, at + 1 - start
    if len(word) > 2 and word[0].isalpha() and word not in _NO_NOUN and given[at].number is None:
        return "count", 0
    return "", 0


_NO_NOUN = frozenset(
    "and but for from than the that this with are was were will has have can may more less before after until "
    "per each every when while you your our they their not only also which who".split()
)


def _measured(number: float, unit: str) -> Value:
    if unit == "working day":
        return Value("duration", (f"{number:g} working days",), number)
    if unit == "count" or not unit or unit.startswith("no. "):
        return Value(unit, (f"{number:.12g}",), number)
    kind, factor = _UNITS[unit]
    amount = number * factor
    if kind == "money":
        return replace(money(round(amount, 4), _CURRENCIES[unit]), number=number)
    if kind == "months":
        # a month is also 30 days, a year 365
        days = 365 * amount / 12 if unit == "year" else 30 * amount
        return Value("duration", (f"{amount:.12g} months", f"{days * 86_400:.12g}"), number)
    if kind == "duration":
        days = amount / 86_400
        months = (f"{days / 30:.12g} months",) if days and days % 30 == 0 else ()
        return Value("duration", (f"{amount:.12g}", *months), number)
    return Value(kind, (f"{amount:.12g}",), number)


def _share(fraction: float) -> Value:
    """A fraction in words, as a percentage; its number is the fraction."""
    return Value("%", (f"{100 * fraction:.0f}",), fraction)


def _date(month: int, day: int) -> Value:
    return Value("date", (f"{month}-{day}",))


def _clock(minutes: int) -> Value:
    return Value("time", (str(minutes % 1_440),), float(minutes // 60))


def _amount(text: str) -> float:
    """ "1,000" and "1000", "3.50" and "3,5" are one number each."""
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    elif re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", text):
        text = text.replace(".", "")
    text = text.replace(",", ".")
    head, _, tail = text.partition(".")
    return float(f"{head[:300]}.{tail.replace('.', '')[:300] or 0}")


def _past(given: list[Token], at: int) -> int | None:
    """Minutes from midnight or noon of half past six, quarter to six, ten past six."""
    hour = _number(given, at + 2) or _SPELLED.get(_text(given, at + 2), 0.0)
    minutes = {("half", "past"): 30, ("quarter", "past"): 15, ("quarter", "to"): -15}
    past = _SPELLED.get(_text(given, at), _number(given, at)) if _text(given, at + 1) == "past" else None
    offset = minutes.get((_text(given, at), _text(given, at + 1)), past)
    return None if offset is None or not 1 <= hour <= 12 else int(60 * hour + offset) % 720


def _day(given: list[Token], at: int) -> int:
    """How many tokens "day" takes, with what stands before it: same day, next-day, next working day."""
    used = 1
    while _text(given, at) in {"-", "working", "business"}:
        at, used = at + 1, used + 1
    return used + 1 if _text(given, at) == "day" else 0


def _month(given: list[Token], at: int) -> int | None:
    """The month at a place; may and march are words too."""
    word = _text(given, at)
    return None if word in {"may", "march"} and not given[at].upper else _MONTH.get(word)


def _year(given: list[Token], at: int) -> Value | None:
    """The year at a place."""
    number = _number(given, at) or 0.0
    return Value("year", (f"{number:g}",)) if 1900 < number < 2200 and number.is_integer() else None


def _texts(given: list[Token], at: int, count: int) -> tuple[str, ...]:
    return tuple(token.text for token in given[at : at + count])


def _text(given: list[Token], at: int) -> str:
    return given[at].text if 0 <= at < len(given) else ""


def _number(given: list[Token], at: int) -> float | None:
    return given[at].number if 0 <= at < len(given) else None
