"""Describes the change of a column in words, for the report, the console and the log."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from retuned.monitors.drift.columns import ATTRIBUTES, MINIMUM_VALUES, SATISFACTION, TOPIC, Columns
from retuned.monitors.drift.two_samples import UNHELPFUL, Difference, ratings
from retuned.monitors.statistics import Z95, cochran_mantel_haenszel

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE_LENGTH = 120
# The most values that are named.
NAMED = 2


def before_and_now(columns: Columns, column: str) -> tuple[str, str]:
    """Describes a column in the reference and now; of categories, the ones that grew."""
    before, after = columns.values(column, "reference"), columns.values(column, "current")
    if columns.is_number(column):
        return f"a mean of {before.mean():.3g}", f"{after.mean():.3g}"
    if column == SATISFACTION:
        rated = ratings(before, after)
        _, rate_before, rate_after = cochran_mantel_haenszel(rated.values())
        worst = _worst(rated)
        helpful_before, rated_before, helpful_after, rated_after = rated[worst]
        return f"{rate_before:.0%} helpful", (
            f"{rate_after:.0%} for the same topics, most in {worst!r} "
            f"({_percent(helpful_before, rated_before)} to {_percent(helpful_after, rated_after)})"
        )
    shares_before, shares_after = _shares(before), _shares(after)
    growth = {name: share - shares_before.get(name, 0.0) for name, share in shares_after.items()}
    grown = sorted(growth, key=lambda name: (-growth[name], name))[:NAMED]
    named = [name for name in grown if growth[name] > 0] or grown[:1]
    was, now = (
        ", ".join(f"{name!r} {shares.get(name, 0.0):.0%}" for name in named) for shares in (shares_before, shares_after)
    )
    return was, now


def example(columns: Columns, column: str, difference: Difference) -> str:
    """Returns a current prompt of a kind that became more frequent; empty for numbers."""
    if columns.is_number(column):
        return ""
    if column == TOPIC and columns.topics:
        return _short(columns.topics.newest)
    values = columns.values(column, "current")
    if column == SATISFACTION:
        worst = _worst(ratings(columns.values(column, "reference"), values))
        grown = (values == worst + UNHELPFUL).to_numpy()
    else:
        grown = difference.score(values.to_numpy()) > 0
    return _typical(columns.table["prompt"][values.index[grown]])


def segment(columns: Columns, column: str, difference: Difference) -> str:
    """Returns the segment in which a column moved further than in all rows, beyond chance; empty: none."""
    before, after = (columns.values(column, window) for window in ("reference", "current"))
    scores = [difference.score(values.to_numpy()) for values in (before, after)]
    overall = float(scores[1].mean() - scores[0].mean())
    lows = dict[tuple[str, Any], float]()  # the lower ends of the intervals
    for name in columns.segments:
        # Satisfaction is compared within topics, and its description names the worst one.
        if name == column or (name, column) == (TOPIC, SATISFACTION):
            continue
        segments = [columns.table[name][values.index] for values in (before, after)]
        for value in set(segments[0].dropna()) & set(segments[1].dropna()):
            inside = [score[(rows == value).to_numpy()] for score, rows in zip(scores, segments, strict=True)]
            if min(map(len, inside)) >= MINIMUM_VALUES:
                moved = float(inside[1].mean() - inside[0].mean())
                lows[name, value] = moved - Z95 * math.sqrt(sum(float(part.var()) / len(part) for part in inside))
    furthest = max(lows, key=lambda key: lows[key], default=None)
    if furthest is None or lows[furthest] <= overall:
        return ""
    name, value = furthest
    return f"{name.removeprefix(ATTRIBUTES)} {value!r}"


def _worst(rated: Mapping[str, tuple[int, int, int, int]]) -> str:
    """Returns the topic that lost most helpful answers."""
    return max(rated, key=lambda topic: _excess(*rated[topic]))


def _excess(helpful_before: int, before: int, helpful_after: int, after: int) -> float:
    """Returns how many more answers would be helpful at the former rate."""
    return after * helpful_before / before - helpful_after if before else 0.0


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"


def _shares(values: "pd.Series[Any]") -> Mapping[str, float]:
    return {name: count / len(values) for name, count in Counter(values).items()}


def _typical(prompts: Iterable[str]) -> str:
    """Returns a prompt of median length."""
    ordered = sorted(prompts, key=lambda prompt: (len(prompt), prompt))
    return _short(ordered[len(ordered) // 2]) if ordered else ""


def _short(prompt: str) -> str:
    """Shortens a prompt to one line without control characters, which logs and terminals would interpret."""
    printable = "".join(letter if letter.isprintable() else " " for letter in prompt)
    return shorten(printable, EXAMPLE_LENGTH, placeholder=" …")
