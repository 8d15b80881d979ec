"""Monetary rates that may change: a number, or numbers with the first day of each."""

import math
from collections.abc import Callable
from datetime import date, datetime
from itertools import pairwise
from typing import Annotated, Any, NamedTuple

from pydantic import PlainSerializer, PlainValidator


class Dated(NamedTuple):
    """A rate and the first day (UTC) on which it applies."""

    first: date
    value: float


Rates = float | tuple[Dated, ...]
"""One rate for all days, or dated rates, the oldest first."""


def rate_on(rates: Rates | None, day: date) -> float | None:
    """Returns the rate of a day; None: none is configured, or the day is before the first."""
    if not isinstance(rates, tuple):
        return rates
    return next((dated.value for dated in reversed(rates) if dated.first <= day), None)


def _reader(most: float) -> Callable[[Any], Rates | None]:
    """Returns a validator of rates from 0 to `most`, or None."""

    def number(given: Any) -> float:
        try:
            value = float(given)
        except (TypeError, ValueError):
            value = math.nan
        if isinstance(given, bool) or not (math.isfinite(value) and 0 <= value <= most):
            raise ValueError(
                f"expected a number {f'from 0 to {most:g}' if math.isfinite(most) else 'not below 0'}, not {given!r}"
            )
        return value

    def dated(given: Any) -> Dated:
        if isinstance(given, Dated):
            return given
        if not isinstance(given, dict) or given.keys() != {"from", "value"}:
            raise ValueError(f"expected {{from: 2026-01-31, value: 1.5}}, not {given!r}")
        first = given["from"]
        if isinstance(first, datetime) or not isinstance(first, date):  # a datetime is a date, too
            try:
                first = date.fromisoformat(str(first))
            except ValueError:
                raise ValueError(f"from: expected a day such as 2026-01-31, not {first!r}") from None
        return Dated(first, number(given["value"]))

    def rates(given: Any) -> Rates | None:
        if given is None:
            return None
        if not isinstance(given, list | tuple):
            return number(given)
        found = tuple(dated(item) for item in given)
        if not found:
            raise ValueError("expected a number, or a list of {from: 2026-01-31, value: 1.5}, not an empty list")
        for before, after in pairwise(found):
            if before.first == after.first:
                raise ValueError(f"two rates begin on {after.first}")
            if before.first > after.first:
                raise ValueError(f"{after.first} stands after {before.first}; put the oldest first")
        return found

    return rates


def _plain(rates: Rates | None) -> Any:
    """Returns rates in the form of the configuration file."""
    if isinstance(rates, tuple):
        return [{"from": dated.first.isoformat(), "value": dated.value} for dated in rates]
    return rates


Rate = Annotated[Rates | None, PlainValidator(_reader(math.inf)), PlainSerializer(_plain)]
ShareRate = Annotated[Rates | None, PlainValidator(_reader(1.0)), PlainSerializer(_plain)]
