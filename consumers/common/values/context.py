"""Completes values by the words around them: ranges, amounts in several parts, and bounds."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from retuned.consumers.common.values.tables import Tables, one_of, plain, tables
from retuned.consumers.common.values.value import Value, clock, rounded

_REACH = 60
"""The most characters between a value and the words of its bound."""
_ONE_PM = 780


def ranges(found: list[Value], text: str, known: Tables) -> list[Value]:
    """Copies the unit to both ends of a range: 3 to 5 days, $5-10, 9-17 Uhr."""
    between = re.compile(rf"\s*(?:[-–—]|{one_of(known.list_of('to'))})\s*", re.IGNORECASE)
    found = list(found)
    for at in range(len(found) - 1, 0, -1):
        low, high = found[at - 1], found[at]
        if not between.fullmatch(text[low.end : high.start]):
            continue
        if low.kind == high.kind == "time" and len(low.readings) > 1 and float(high.readings[0]) >= _ONE_PM:
            found[at - 1] = replace(low, readings=low.readings[:1])  # 9:00-17:00
        if (low.kind == "number") == (high.kind == "number"):
            continue
        bare, full = (low, high) if low.kind == "number" else (high, low)
        if bare.number is None or full.number is None:
            continue
        if full.kind == "time":
            if bare is high or not bare.number.is_integer():
                continue
            filled = clock(60 * int(bare.number), bare.number, known.language)
        else:
            amounts = (
                float(full.readings[0]) + (float(amount) - full.number) * full.factor for amount in bare.readings
            )
            filled = replace(full, readings=tuple(map(rounded, amounts)), number=bare.number)
        found[at - 1 if bare is low else at] = replace(filled, text=bare.text, start=bare.start, end=bare.end)
    return found


_PARTS = re.compile(r"\s*(?:,|and|und|et|y)?\s*", re.IGNORECASE)


def summed(found: list[Value], text: str) -> list[Value]:
    """Adds the parts of one amount: 1 hour 30 minutes, 4 dollars and 90 cents."""
    joined: list[Value] = []
    for value in found:
        last = joined[-1] if joined else None
        if (
            last
            and value.kind == last.kind in ("duration", "length", "mass", "money")
            and float(value.readings[0]) < last.factor
            and value.factor < last.factor
            and (last.number or 0.0).is_integer()
            and _PARTS.fullmatch(text[last.end : value.start])
        ):
            amount = rounded(float(last.readings[0]) + float(value.readings[0]))
            whole = text[last.start : value.end]
            joined[-1] = replace(last, readings=(amount,), number=None, text=whole, end=value.end, per=value.per)
        else:
            joined.append(value)
    return joined


def bounded(found: list[Value], text: str, known: Tables) -> Iterator[Value]:
    """Yields the values with the bounds before or after them, including the words of the bounds."""
    before, behind, between = _bound_patterns(known.language)
    end = 0
    for value in found:
        start = max(value.start - _REACH, end)
        ahead, end = text[start : value.start], value.end
        match = None if start and between.fullmatch(ahead) else before.search(ahead)
        if match and not (plain(match[1]) == "by" and value.kind not in ("date", "time", "weekday", "calendar_month")):
            yield replace(value, bound=known.bounds[plain(match[1])], start=start + match.start())
        elif match := behind.match(text[value.end : value.end + _REACH]):
            end += match.end()
            yield replace(value, bound=known.behind[plain(match[1])], end=end)
        else:
            yield value


@cache
def _bound_patterns(language: str) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    known = tables(language)
    fillers = one_of(word for word in known.fillers if " " not in word)
    words = [bound for bound in known.bounds if bound[0].isalpha()]
    signs = [bound for bound in known.bounds if not bound[0].isalpha()]
    return (
        re.compile(
            rf"((?<![\w'’])(?:{one_of(words)})|{one_of(signs)})(?:\s+(?:{fillers}|of|de|las|los))*\s*$", re.IGNORECASE
        ),
        re.compile(rf"\s*\(?({one_of(known.behind)})(?!\w|\s+\d)", re.IGNORECASE),
        re.compile(rf"\s*(?:[-–—]|{one_of(known.list_of('to'))})\s*", re.IGNORECASE),
    )
