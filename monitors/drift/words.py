"""What a column was and is, in words: for the report, the page and the log."""

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
# So many of the values that grew are named.
NAMED = 2


def before_and_now(columns: Columns, column: str) -> tuple[str, str]:
    """What a column was in the reference and what it is now; of categories, those that grew."""
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


def example(columns: Columns, column: str, found: Difference) -> str:
    """A prompt of the current window, of those that became more frequent; empty for numbers."""
    if columns.is_number(column):
        return ""
    if column == TOPIC and columns.topics:
        return _short(columns.topics.newest)
    values = columns.values(column, "current")
    if column == SATISFACTION:
        worst = _worst(ratings(columns.values(column, "reference"), values))
        those = (values == worst + UNHELPFUL).to_numpy()
    else:
        those = found.score(values.to_numpy()) > 0
    return _typical(columns.table["prompt"][values.index[those]])


def segment(columns: Columns, column: str, found: Difference) -> str:
    """The segment in which a column moved beyond what it did in all rows; empty where none did."""
    before, after = (columns.values(column, window) for window in ("reference", "current"))
    scores = [found.score(values.to_numpy()) for values in (before, after)]
    overall = float(scores[1].mean() - scores[0].mean())
    ends = dict[tuple[str, Any], float]()
    for name in columns.segments:
        # Satisfaction is within topics already, and names the worst.
        if name == column or (name, column) == (TOPIC, SATISFACTION):
            continue
        of_rows = [columns.table[name][values.index] for values in (before, after)]
        for value in set(of_rows[0].dropna()) & set(of_rows[1].dropna()):
            inside = [score[(rows == value).to_numpy()] for score, rows in zip(scores, of_rows, strict=True)]
            if min(map(len, inside)) >= MINIMUM_VALUES:
                moved = float(inside[1].mean() - inside[0].mean())
                ends[name, value] = moved - Z95 * math.sqrt(sum(float(part.var()) / len(part) for part in inside))
    furthest = max(ends, key=lambda key: ends[key], default=None)
    if furthest is None or ends[furthest] <= overall:
        return ""
    name, value = furthest
    return f"{name.removeprefix(ATTRIBUTES)} {value!r}"


def _worst(rated: Mapping[str, tuple[int, int, int, int]]) -> str:
    """The topic with the most answers that are no longer helpful."""
    return max(rated, key=lambda topic: _excess(*rated[topic]))


def _excess(helpful_before: int, before: int, helpful_after: int, after: int) -> float:
    """How many fewer answers were helpful than at the rate of before."""
    return after * helpful_before / before - helpful_after if before else 0.0


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "none"


def _shares(values: "pd.Series[Any]") -> Mapping[str, float]:
    return {name: count / len(values) for name, count in Counter(values).items()}


def _typical(prompts: Iterable[str]) -> str:
    """One of middling length."""
    ordered = sorted(prompts, key=lambda prompt: (len(prompt), prompt))
    return _short(ordered[len(ordered) // 2]) if ordered else ""


def _short(prompt: str) -> str:
    """On one line, without what would command a terminal: it goes to logs too."""
    printable = "".join(letter if letter.isprintable() else " " for letter in prompt)
    return shorten(printable, EXAMPLE_LENGTH, placeholder=" …")
