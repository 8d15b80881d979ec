"""A value in a text, and comparison of values."""

import math
import re
from dataclasses import dataclass

OPPOSED = frozenset(
    {(">=", "<="), (">=", "<"), (">", "<="), (">", "<"), ("before", "after")}
    | {("<=", ">="), ("<", ">="), ("<=", ">"), ("<", ">"), ("after", "before")}
)
"""Pairs of bounds of one value that exclude each other."""


_SPELLED = re.compile(r"^\W*0\d|[.,]\d*0\W*$")
_DURATIONS = (("month", 2_629_800), ("day", 86_400), ("hour", 3_600), ("minute", 60))


@dataclass(frozen=True, slots=True)
class Value:
    """A value at one place of a text.

    Attributes:
        kind: number, percent, money, date, calendar_month, time, weekday, address, phone, code, or a physical quantity
            (`duration`, `mass`, …). Values of different kinds never contradict each other.
        readings: the amount in the kind's base unit, or as text. Ambiguous notations have several: 1.500 may be 1500 or
            1.5, and 3/4 the fourth of March or the third of April.
        unit: the optional part of a value: the currency of money, the year of a date.
        bound: >=, <=, >, <, before or after, if the sentence has one.
        per: the period of a rate, such as month.
        number: the number as written, if it is one.
        factor: the amount of the base unit for each one of `number`.
        soft: whether it may be a phrase ("a day"), which can support another value, but whose absence means nothing.
        text: as written.
        start, end: the place in the text.
    """

    kind: str
    readings: tuple[float | str, ...]
    unit: str = ""
    bound: str = ""
    per: str = ""
    number: float | None = None
    factor: float = 1.0
    soft: bool = False
    text: str = ""
    start: int = 0
    end: int = 0

    @property
    def is_finite(self) -> bool:
        """Whether floats can hold its numbers: those with hundreds of digits are infinite."""
        return all(math.isfinite(amount) for amount in (self.number, *self.readings) if isinstance(amount, float))

    @property
    def is_spelled(self) -> bool:
        """Whether a bare number has a zero that adds nothing to its amount: a version 3.10, a PIN 0042."""
        return self.kind == "number" and bool(_SPELLED.search(self.text))

    @property
    def key(self) -> str:
        """The kind and amount: `money:4.99 EUR`; for durations, the largest whole unit: `day:30`."""
        amount = self.readings[0]
        if self.is_spelled:
            return f"{self.kind}:{self.text}"
        if self.kind == "duration" and isinstance(amount, float) and amount:
            name, seconds = next((unit for unit in _DURATIONS if amount % unit[1] == 0), ("second", 1))
            return f"{name}:{amount / seconds:.10g}"
        return f"{self.kind}:{amount if isinstance(amount, str) else f'{amount:.10g}'}{self.unit and f' {self.unit}'}"


_ABOUT = 0.05
_PER_YEAR = {"hour": 8_766.0, "day": 365.25, "night": 365.25, "week": 52.18, "month": 12.0, "year": 1.0}
_DAYS = (0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334)


def neighbours(one: Value, other: Value) -> bool:
    """Whether adjacent values with different bounds may be equivalent: over 17 and at least 18, before 1 May and until
    30 April."""
    if one.kind != other.kind or one.bound == other.bound:
        return False
    return any(abs(mine - theirs) in (1, 364) for mine in _steps(one) for theirs in _steps(other))


def _steps(value: Value) -> list[float]:
    """Returns the readings of a discrete value as integers: whole numbers, days."""
    if value.kind != "date":
        return [value.number] if value.number is not None and value.number.is_integer() else []
    dates = [str(reading).split("-") for reading in value.readings]
    return [float(_DAYS[int(month) - 1] + int(day)) for month, day in dates]


def same(one: Value, other: Value) -> bool | None:
    """Whether two values are equal apart from their bounds; None: the notation is ambiguous.

    A bare number may be any quantity with the same number: 9 and 9 am. Amounts in different units, and rates of
    different periods, are ambiguous if they are nearly equal. So are bare numbers that differ in a zero alone, since
    they may be names: 3.1 and 3.10.
    """
    if one.kind != other.kind:
        ambiguous = "number" in (one.kind, other.kind) and one.number is not None and one.number == other.number
        return None if ambiguous else False
    if one.unit and other.unit and one.unit != other.unit:
        return False
    if one.per and other.per and one.per != other.per:
        return None if _nearly(_yearly(one), _yearly(other)) else False
    if not set(one.readings) & set(other.readings):
        if one.kind == "phone":
            return None if _is_longer(one, other) else False
        return None if one.factor != other.factor and _near(one, other) else False
    if (one.is_spelled or other.is_spelled) and one.text.strip() != other.text.strip():
        return None
    return True if (one.readings, one.unit, one.per) == (other.readings, other.unit, other.per) else None


def _near(one: Value, other: Value) -> bool:
    """Whether amounts in different units are equal by common conversions: a month and 30 days."""
    a, b = float(one.readings[0]), float(other.readings[0])
    return abs(a - b) <= 1 if one.kind == "temperature" else _nearly(a, b)


def _nearly(one: float, other: float) -> bool:
    return abs(one - other) <= _ABOUT * max(abs(one), abs(other))


def _yearly(rate: Value) -> float:
    return float(rate.readings[0]) * _PER_YEAR.get(rate.per, 1.0)


def _is_longer(one: Value, other: Value) -> bool:
    """Whether one telephone number is the other with a country code."""
    shorter, longer = sorted((str(value.readings[0]).lstrip("0") for value in (one, other)), key=len)
    return longer.endswith(shorter)


def opposed(one: Value, other: Value) -> bool:
    """Whether the bounds of two equal values exclude each other: at least 18, under 18."""
    return (one.bound, other.bound) in OPPOSED


def rounded(amount: float) -> float:
    """Rounds away errors of conversion."""
    return float(f"{amount:.9g}")


def clock(minutes: int, hour: float, language: str) -> Value:
    """Returns a time of day; in English, 5:30 may also be in the afternoon."""
    is_ambiguous = language == "en" and 60 <= minutes < 720
    return Value("time", (f"{minutes}", f"{minutes + 720}") if is_ambiguous else (f"{minutes}",), number=hour)
