"""Arithmetic: whether a value follows from others as a sum, a difference, a multiple or a percentage."""

from collections.abc import Sequence
from datetime import date

from retuned.consumers.common.values.value import Value

_MOST = 30
"""The most values that are tried of each kind."""
_CENT = 0.006
_CLOCK = 1_440
_NOT_AMOUNTS = frozenset({"date", "calendar_month", "weekday", "address", "phone", "code", "ordinal", "time"})
_SECONDS = {"day": 86_400.0, "night": 86_400.0, "week": 604_800.0, "month": 2_629_800.0, "year": 31_557_600.0}
_NO_COUNTS = _NOT_AMOUNTS | {"money", "percent"}
"""Kinds whose numbers are not factors."""


def follows(value: Value, known: Sequence[Value], mentioned: Sequence[Value]) -> bool:
    """Whether a value follows by arithmetic from the values of the passages or the conversation.

    A value follows if it is a sum or difference of two values, a percentage of one, a rate over a period, or a multiple
    of one (plus or minus another) by a factor that the conversation or the answer mentions: three nights at 24 euros
    are 72 if the customer stays three nights. With more steps, nearly any number could be derived.

    Args:
        known: the values of the passages.
        mentioned: the values of the conversation, and the other values of the answer.
    """
    if value.kind == "time":
        return _by_clock(value, [*known, *mentioned])
    if value.kind == "date":
        return _by_calendar(value, [*known, *mentioned])
    if value.kind in _NOT_AMOUNTS:
        return False
    targets = [float(reading) for reading in value.readings if isinstance(reading, float)]
    results = _results(value, known, mentioned)
    return any(abs(abs(result) - target) <= _CENT + 1e-6 * abs(target) for target in targets for result in results)


def _results(value: Value, known: Sequence[Value], mentioned: Sequence[Value]) -> list[float]:
    """Returns all amounts of the value's kind that can be derived from others."""
    theirs, ours = _amounts(value, known), _amounts(value, mentioned)
    no_counts = {*_NO_COUNTS, value.kind} - {"number"}
    factors = _numbers([other for other in mentioned if other.kind not in no_counts])
    multiples = [amount * factor for amount in theirs for factor in factors]
    results = [*multiples, *(amount / factor for amount in theirs for factor in factors)]
    if value.kind == "percent":
        numbers, every = _numbers(mentioned), _numbers([*mentioned, *known])
        results += [100 * part / whole for a in numbers for b in every for part, whole in ((a, b), (b, a))]
        results += [100 - amount for amount in theirs]
    else:
        shares = [
            number / 100 for number in _numbers([other for other in (*mentioned, *known) if other.kind == "percent"])
        ]
        factors = [factor for share in shares for factor in (share, 1 - share, 1 + share)]
        results += [amount * factor for amount in (*theirs, *ours) for factor in factors]
    results += _by_rate(value, known, mentioned)
    if value.per in _SECONDS:  # £23 a year: £11.50 every six months
        results += [amount * _SECONDS[value.per] / span for amount in theirs for span in _durations(known) if span]
    results += [a + sign * b for at, a in enumerate(theirs) for b in theirs[at + 1 :] for sign in (1, -1)]
    if value.kind == "duration":
        results += _spans([*known, *mentioned])
    results += [sign * a + b for a in ours for b in (*theirs, *ours) for sign in (1, -1)]
    results += [b - a for a in ours for b in theirs]
    results += [product + amount for product in results[: _MOST * _MOST] for amount in theirs]
    results += [multiple - amount for multiple in multiples for amount in theirs]
    return results


def _amounts(value: Value, others: Sequence[Value]) -> list[float]:
    """Returns the amounts of others of the same kind and currency."""
    amounts = [
        reading
        for other in others
        if other.kind == value.kind and not (other.unit and value.unit and other.unit != value.unit)
        for reading in other.readings
        if isinstance(reading, float)
    ]
    return list(dict.fromkeys(amounts))[:_MOST]


def _by_rate(value: Value, known: Sequence[Value], mentioned: Sequence[Value]) -> list[float]:
    """Returns the amounts of the passages' rates over a period: 9 euros a month for two years, or for a year."""
    spans = _durations([*mentioned, *known])
    return [
        float(rate.readings[0]) * span / _SECONDS[rate.per]
        for rate in known[:_MOST]
        if rate.kind == value.kind and rate.per in _SECONDS and isinstance(rate.readings[0], float)
        for span in (*spans, *_SECONDS.values())
    ]


def _numbers(values: Sequence[Value]) -> list[float]:
    return list(dict.fromkeys(value.number for value in values if value.number))[:_MOST]


def _durations(values: Sequence[Value]) -> list[float]:
    """Returns durations in seconds."""
    return [float(value.readings[0]) for value in values if value.kind == "duration"][:_MOST]


def _minutes(values: Sequence[Value]) -> list[int]:
    """Returns times of day in minutes after midnight."""
    return [int(reading) for value in values if value.kind == "time" for reading in value.readings][:_MOST]


def _spans(values: Sequence[Value]) -> list[float]:
    """Returns the seconds from each time of day to each other one."""
    times = _minutes(values)
    return [float((end - start) % _CLOCK * 60) for start in times for end in times if start != end]


def _by_clock(value: Value, others: Sequence[Value]) -> bool:
    """Whether a time of day is another one plus or minus a duration."""
    spans = [seconds / 60 for seconds in _durations(others)]
    return any(
        (start + sign * span - end) % _CLOCK < 1
        for start in _minutes(others)
        for end in _minutes([value])
        for span in spans
        for sign in (1, -1)
    )


def _by_calendar(value: Value, others: Sequence[Value]) -> bool:
    """Whether a date is another one plus or minus a duration, or a number of working days."""
    days = [round(seconds / 86_400) for seconds in _durations(others)]
    working_days = [int(other.number) for other in others if other.kind == "business_day" and other.number][:_MOST]
    for start in _days(others):
        for end in _days([value]):
            apart = min((start - end) % 365, (end - start) % 365)
            if any(abs(apart - span) <= 1 + span // 50 for span in days if span):
                return True
            if any(span <= apart <= 2 * span + 2 for span in working_days):
                return True
    return False


def _days(values: Sequence[Value]) -> list[int]:
    """Returns dates as days of the year."""
    dates = [str(reading).split("-") for value in values if value.kind == "date" for reading in value.readings]
    return [
        date(2000, int(month), min(int(day), 28)).timetuple().tm_yday + max(int(day) - 28, 0) for month, day in dates
    ]
