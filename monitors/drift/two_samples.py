"""Compares two samples of one column: tests whether they differ, and estimates the share of rows that changed.

The share has one meaning for every column: the smallest share of the current rows that must differ from those of the
reference (the total variation distance of the two distributions). It is 20% if 20% of the rows moved from some values
to others, if 20% have a new value, or if values that 20% had are gone. The excess of the current window in any set of
values is a lower bound of it; the set of all values that grew attains it. That set is chosen in one half of the rows
and measured in the other, and vice versa, so that chance alone adds nothing (Lopez-Paz and Oquab, "Revisiting
classifier two-sample tests", 2017).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from retuned.monitors.rates.days import DesignEffects, design_effects
from retuned.monitors.statistics import Z95, cochran_mantel_haenszel, two_sample_chi_square

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

SEPARATOR = ": "
HELPFUL, UNHELPFUL = f"{SEPARATOR}yes", f"{SEPARATOR}no"
# A category with fewer expected rows is not tested by itself (Cochran 1954).
EXPECTED = 5
# Numbers are binned by the deciles of both windows' rows.
BINS = 10


@dataclass(frozen=True)
class Sample:
    """The non-empty values of a column in one window.

    Attributes:
        days: the day number of each value.
        units: the unit (an account, else a conversation) of each value; None: values are independent.
    """

    values: "NDArray[Any]"
    days: "NDArray[np.int64]"
    units: "NDArray[Any] | None" = None

    def scored(self, score: Callable[[Any], "Array"]) -> tuple["Array", "NDArray[np.int64]", "NDArray[Any] | None"]:
        return score(self.values), self.days, self.units


@dataclass(frozen=True)
class Difference:
    """The difference between two samples.

    Attributes:
        share: the share, 0 to 1, of the current rows that must differ from those of the reference.
        low, high: the 95% interval of the share.
        score: returns a score of each value, higher for values that are more frequent in the current window.
    """

    p_value: float
    share: float
    low: float
    high: float
    score: Callable[[Any], "Array"]


def numbers(reference: Sample, current: Sample) -> Difference:
    """Compares two samples of numbers by the Kolmogorov-Smirnov test.

    The test is conservative with ties and, as the limiting distribution is used, with few values. The design effect of
    days is taken at the cut where the two distributions are furthest apart. Source: Hodges, "The significance
    probability of the Smirnov two-sample test" (1958).

    Raises:
        ValueError: a value is not a number.
    """
    import numpy as np
    from scipy.stats import kstwo

    reference, current = (Sample(sample.values.astype(np.float64), sample.days) for sample in (reference, current))
    distance, grew = grown_side(reference.values, current.values)
    rows, others = len(reference.values), len(current.values)
    effects = design_effects(reference.scored(grew), current.scored(grew))
    p_value = effects.p_value(
        lambda effect: float(kstwo.sf(distance, max(round(rows * others / (rows + others) / effect), 1)))
    )
    share = changed_share(reference, current, _grown_bins, effects)
    return Difference(float(np.clip(p_value, 0, 1)), *share, grew)


def categories(reference: Sample, current: Sample) -> Difference:
    """Compares two samples of categories by a chi-square test of all categories, and one of each against the rest.

    The two share the chance of a false alarm: the smaller p-value, doubled, where that of the single categories is the
    smallest times their number. The first finds changes that are spread over many categories; the second finds a change
    in one category although days vary in others.
    """
    import numpy as np

    names, counts = _counts(reference.values, current.values)
    totals = counts.sum(axis=1)
    pooled = counts.sum(axis=0) / totals.sum()
    shares = counts / totals[:, None]
    scores = (shares[1] - shares[0]) / np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / totals).sum(), 1e-12))
    usual = np.flatnonzero(np.minimum(pooled, 1 - pooled) * totals.min() >= EXPECTED)
    candidates = usual if len(usual) else np.arange(len(names))
    effects = {
        place: design_effects(*(sample.scored(_is(names[place])) for sample in (reference, current)))
        for place in candidates.tolist()
    }
    furthest = max(effects, key=lambda place: abs(float(scores[place])))
    before, after = reference.values.tolist(), current.values.tolist()
    p_value = effects[furthest].p_value(lambda effect: two_sample_chi_square(before, after, effect))
    if len(names) > 2 and len(usual):
        squares = {place: float(scores[place]) ** 2 for place in usual.tolist()}
        single = min(effects[place].p_value(partial(_tail, square)) for place, square in squares.items())
        p_value = min(2 * p_value, 2 * len(usual) * single, 1.0)
    share = changed_share(reference, current, _grown_names, effects[furthest])
    return Difference(p_value, *share, _is(max(zip(scores.tolist(), names, strict=True))[1]))


def satisfaction(reference: Sample, current: Sample) -> Difference:
    """Compares two samples of rated topics ("topic: yes"): whether the helpful rate within topics fell.

    It uses the one-sided Cochran-Mantel-Haenszel test, which a changed mix of topics does not affect. The share is the
    fall of the helpful rate: the smallest share of the rated answers that must have become unhelpful.
    """
    from statistics import NormalDist

    rated = ratings(reference.values, current.values)
    usual = {
        topic: (helpful_before + helpful_after) / max(before + after, 1)
        for topic, (helpful_before, before, helpful_after, after) in rated.items()
    }

    def unhelpful(values: Any) -> "Array":
        import numpy as np

        return np.asarray(
            [
                usual.get(topic, 0.0) - (verdict == "yes")
                for topic, _, verdict in (v.rpartition(SEPARATOR) for v in values)
            ]
        )

    effects = design_effects(reference.scored(unhelpful), current.scored(unhelpful))
    p_value, before, after = cochran_mantel_haenszel(rated.values())
    score = NormalDist().inv_cdf(min(max(p_value, 1e-300), 1 - 1e-16))
    adjusted = effects.p_value(lambda effect: NormalDist().cdf(score / math.sqrt(effect)))
    share = _interval(before - after, _fall_variance(rated.values()) * effects.mean)
    return Difference(adjusted if p_value < 1 else 1.0, *share, unhelpful)


def ratings(reference: Iterable[str], current: Iterable[str]) -> dict[str, tuple[int, int, int, int]]:
    """Counts helpful and rated answers of each topic, before and after, from two columns of satisfaction."""
    before, after = Counter(reference), Counter(current)
    topics = sorted({value.rpartition(SEPARATOR)[0] for value in before | after})
    return {
        topic: (
            before[topic + HELPFUL],
            before[topic + HELPFUL] + before[topic + UNHELPFUL],
            after[topic + HELPFUL],
            after[topic + HELPFUL] + after[topic + UNHELPFUL],
        )
        for topic in topics
    }


def _fall_variance(strata: Iterable[tuple[int, int, int, int]]) -> float:
    """Returns the variance of the difference of the rates of `cochran_mantel_haenszel` (Greenland and Robins 1985)."""
    weights = variance = 0.0
    for helpful_before, before, helpful_after, after in strata:
        if not before or not after:
            continue
        weight = before * after / (before + after)
        rates = helpful_before / before, helpful_after / after
        variance += weight**2 * sum(rate * (1 - rate) / rows for rate, rows in zip(rates, (before, after), strict=True))
        weights += weight
    return variance / weights**2 if weights else 0.0


def grown_side(
    reference: "NDArray[Any]", current: "NDArray[Any]", errors: float = 0.0
) -> tuple[float, Callable[[Any], "Array"]]:
    """Returns the K-S statistic, and a score that is 1 on the side of its cut that grew.

    Args:
        errors: standard errors that are subtracted at each cut, to prefer cuts that chance moves less.
    """
    import numpy as np

    cuts = np.unique(np.concatenate([reference, current]))
    below = [np.searchsorted(np.sort(values), cuts, side="right") / len(values) for values in (reference, current)]
    variance = sum(part * (1 - part) / len(values) for part, values in zip(below, (reference, current), strict=True))
    place = int((np.abs(below[1] - below[0]) - errors * np.sqrt(variance)).argmax())
    cut, up_to_it = cuts[place], bool(below[1][place] > below[0][place])
    return float(abs(below[1] - below[0])[place]), lambda values: ((values <= cut) == up_to_it).astype(np.float64)


def _grown_bins(reference: "NDArray[Any]", current: "NDArray[Any]") -> Callable[[Any], "Array"]:
    """Returns a score that is 1 in the ranges of numbers that grew."""
    import numpy as np

    cuts = np.unique(np.quantile(np.concatenate([reference, current]), np.linspace(0, 1, BINS + 1)[1:-1]))
    before, after = (
        np.bincount(np.searchsorted(cuts, values), minlength=len(cuts) + 1) / len(values)
        for values in (reference, current)
    )
    return lambda values: (after > before)[np.searchsorted(cuts, values)].astype(np.float64)


def _grown_names(reference: "NDArray[Any]", current: "NDArray[Any]") -> Callable[[Any], "Array"]:
    """Returns a score that is 1 for the categories that grew."""
    import numpy as np

    names, counts = _counts(reference, current)
    shares = counts / counts.sum(axis=1, keepdims=True)
    grown = [name for name, before, after in zip(names, *shares.tolist(), strict=True) if after > before]
    return lambda values: np.isin(values, grown).astype(np.float64)


def _tail(square: float, design_effect: float) -> float:
    """Returns the chance that a chi-square with one degree of freedom exceeds a value."""
    return math.erfc(math.sqrt(square / design_effect / 2))


def _is(name: Any) -> Callable[[Any], "Array"]:
    return lambda values: (values == name).astype(float)


def _counts(reference: "NDArray[Any]", current: "NDArray[Any]") -> tuple[list[Any], "Array"]:
    """Returns the categories, and their rows in each window, shape (2, categories)."""
    import numpy as np

    before, after = Counter(reference.tolist()), Counter(current.tolist())
    names = sorted(before | after)
    return names, np.asarray([[window[name] for name in names] for window in (before, after)], dtype=np.float64)


def changed_share(
    reference: Sample, current: Sample, grown: Callable[..., Callable[[Any], "Array"]], effects: DesignEffects
) -> tuple[float, float, float]:
    """Returns the share of rows that changed, and its 95% interval.

    Args:
        grown: returns a score that is 1 for the values that grew; fitted to one half of the rows, used on the other.
    """
    excess = variance = 0.0
    for half in range(2):
        score = grown(*(sample.values[half::2] for sample in (reference, current)))
        shares = [float(score(sample.values[1 - half :: 2]).mean()) for sample in (reference, current)]
        rows = [len(sample.values[1 - half :: 2]) for sample in (reference, current)]
        excess += (shares[1] - shares[0]) / 2
        variance += sum(share * (1 - share) / n for share, n in zip(shares, rows, strict=True)) / 4
    return _interval(excess, variance * effects.mean)


def _interval(excess: float, variance: float) -> tuple[float, float, float]:
    """Returns a share, at least 0, and its 95% interval."""
    share, error = max(excess, 0.0), Z95 * math.sqrt(variance)
    return share, max(share - error, 0.0), min(share + error, 1.0)
