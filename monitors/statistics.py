"""The statistics that checks and figures rest on: two-sample tests and intervals of rates."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Z95 = 1.959963984540054


def wilson(successes: float, n: float) -> tuple[float, float, float]:
    """A rate and its 95% interval, all between 0 and 1.

    Without observations nothing is known: rate 0, interval 0 to 1. Source: E. B. Wilson, "Probable inference, the law
    of succession, and statistical inference", JASA 22 (1927).
    """
    if n <= 0:
        return 0.0, 0.0, 1.0
    rate = min(max(successes / n, 0.0), 1.0)
    z2 = Z95 * Z95
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # Rounding may leave the ends a hair on the wrong side of the rate when it is 0 or 1.
    return rate, min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate)


def clustered_rate(units: Mapping[tuple[int, int], int]) -> tuple[float, float, float]:
    """A rate and its 95% interval, from observations of which those of one unit (an account, a conversation) are alike.

    Args:
        units: how many units have so many successes of so many observations.

    The interval is Wilson's, at the effective number of observations: n / (1 + ρ (m - 1)), where m is the mean size of
    the unit of an observation and ρ the correlation within units, estimated from all pairs and raised by one and a half
    standard errors, as few units tell little of it; where nothing is known of it, 1. Sources: Kish, "Survey sampling"
    (1965), section 5.4, for the effect of the design; Korn and Graubard, "Confidence intervals for proportions with
    small expected number of positive counts estimated from survey data" (1998), for the effective size in the interval.
    """
    observed = sum(n * count for (_, n), count in units.items())
    if not observed:
        return wilson(0, 0)
    successes = sum(yes * count for (yes, _), count in units.items())
    pairs = sum(n * (n - 1) * count for (_, n), count in units.items())
    if not pairs:
        return wilson(successes, observed)
    rate = successes / observed
    variance = rate * (1 - rate)
    together = sum((yes - rate * n) ** 2 * count for (yes, n), count in units.items()) - observed * variance
    correlation = min(max(together / (variance * pairs), 0.0), 1.0) if variance else 1.0
    # Units that tell of the correlation: those of one observation do not, and less the rarer successes or failures are.
    middle = (successes + Z95 * Z95 / 2) / (observed + Z95 * Z95)
    telling = 4 * middle * (1 - middle) * pairs**2 / sum((n * (n - 1)) ** 2 * count for (_, n), count in units.items())
    correlation = min(correlation + 1.5 * (1 - correlation) / math.sqrt(telling), 1.0)
    effective = observed / (1 + correlation * pairs / observed)
    return wilson(rate * effective, effective)


def two_sample_chi_square(
    reference: Sequence[Hashable], current: Sequence[Hashable], design_effect: float = 1.0
) -> float:
    """p-value of the chi-square test of homogeneity: could both be draws from one set of categories?

    Both samples are taken as samples (a goodness-of-fit test, with the reference as exact, cries drift on every other
    quiet window). Categories whose expected count is under 5 in either sample are pooled (Cochran 1954); where that
    leaves two of which one is still rare, Fisher's exact test decides. One category: 1. Rows that depend on each other
    count as so many fewer (`design_effect`; Rao and Scott, "The analysis of categorical data from complex sample
    surveys", JASA 76, 1981).
    """
    from scipy.stats import chi2_contingency, fisher_exact

    before, after = Counter(reference), Counter(current)
    smaller = min(len(reference), len(current)) / (len(reference) + len(current))
    counts = sorted(((before[c] / design_effect, after[c] / design_effect) for c in before | after), key=sum)
    while len(counts) > 2 and sum(counts[0]) * smaller < 5:
        rare, next_rare = counts[0], counts[1]
        counts = sorted([(rare[0] + next_rare[0], rare[1] + next_rare[1]), *counts[2:]], key=sum)
    if len(counts) < 2:
        return 1.0
    if len(counts) == 2 and sum(counts[0]) * smaller < 5:
        return float(fisher_exact([[round(rows) for rows in pair] for pair in counts]).pvalue)
    return float(chi2_contingency(counts, correction=False).pvalue)


def stratified_rate(strata: Sequence[tuple[int, int, int]]) -> tuple[float, float, float] | None:
    """A rate and its 95% interval from a sample that took more of some strata than of others.

    Args:
        strata: of each its size, how many of it were looked at, and how many of those count. The strata together are a
            plain sample of what the rate is of, so their sizes are not exact either.

    Returns:
        None where nothing was looked at of a stratum that is not empty: it may be anything.

    The interval is Wilson's, at the size of a plain sample of the same variance. Source: Cochran, "Sampling techniques"
    (1977), chapter 12, double sampling for stratification; Korn and Graubard, "Confidence intervals for proportions
    with small expected number of positive counts estimated from survey data" (1998).
    """
    strata = [one for one in strata if one[0]]
    size = sum(one[0] for one in strata)
    if not strata or not all(one[1] for one in strata):
        return None
    z2 = Z95 * Z95
    rate = centre = squares = variance = 0.0
    for members, looked_at, counted in strata:
        share, middle = members / size, (counted + z2 / 2) / (looked_at + z2)
        rate += share * counted / looked_at
        centre += share * middle
        squares += share * middle**2
        variance += share**2 * middle * (1 - middle) / (looked_at + z2)
    variance += max(squares - centre**2, 0.0) / size
    equivalent = max(centre * (1 - centre) / variance - z2, 1.0)
    return wilson(rate * equivalent, equivalent)


def two_sample_kernel(similarity: "Array", reference: int) -> tuple[float, "Array", "Array"]:
    """Could the first rows and the others be draws from one distribution, by how similar they are to each other?

    The witness of a row is its mean similarity to the second sample less that to the first (Gretton et al., "A kernel
    two-sample test", JMLR 13, 2012); the statistic is the sum of its squares. That is the maximum mean discrepancy
    under the squared kernel, in which rows are similar that are similar to the same others: words that occur together
    count as related (Kandola, Shawe-Taylor and Cristianini, "Learning semantic similarity", 2002). Without a difference
    it is distributed as a weighted sum of chi-squares, with the eigenvalues of the centred kernel as weights.

    Args:
        similarity: a kernel matrix of all rows, those of the first sample before the others, shape (n, n).
        reference: rows of the first sample.

    Returns:
        The statistic and those weights, whose p-value is `chi_square_sum_tail`, and the witness of each row.
    """
    import numpy as np

    n = len(similarity)
    contrast = np.where(np.arange(n) < reference, -1 / reference, 1 / (n - reference))
    witness = similarity @ contrast
    centred = similarity - similarity.mean(axis=1, keepdims=True)
    weights = np.linalg.eigvalsh(centred.T @ centred) * n / (reference * (n - reference) * (n - 1))
    return float(witness @ witness), weights, witness


def chi_square_sum_tail(value: float, weights: "Array") -> float:
    """The chance that a weighted sum of independent chi-squares, one degree of freedom each, exceeds a value.

    Source: Kuonen, "Saddlepoint approximations for distributions of quadratic forms in normal variables", Biometrika 86
    (1999). Weights that are not positive are passed over.
    """
    import numpy as np
    from scipy.optimize import brentq

    weights = weights[weights > 1e-10 * weights.max(initial=0.0)]
    if not len(weights) or value <= 0:
        return 1.0
    largest = float(weights.max())
    low = -len(weights) / value
    high = (1 - min(largest / (2 * value), 0.5)) / (2 * largest)
    saddle = float(brentq(lambda at: (weights / (1 - 2 * at * weights)).sum() - value, low, high))
    u = math.copysign(math.sqrt(max(2 * saddle * value + float(np.log1p(-2 * saddle * weights).sum()), 0.0)), saddle)
    v = saddle * math.sqrt(float((2 * weights**2 / (1 - 2 * saddle * weights) ** 2).sum()))
    if abs(u) < 1e-4:  # at the mean, where the formula has a hole
        return 0.5
    return NormalDist().cdf(-u - math.log(v / u) / u)


def cochran_mantel_haenszel(strata: Iterable[tuple[int, int, int, int]]) -> tuple[float, float, float]:
    """Did a rate fall within strata, whatever became of their mix?

    Args:
        strata: successes and trials before, successes and trials after, of each stratum.

    Returns:
        The p-value against "it did not fall" (one-sided, without continuity correction: half of the usual two-sided one
        where it fell), and the rates before and after, both over one mix of strata; (1, 0, 0) when no stratum has both.
        Sources: Mantel and Haenszel, "Statistical aspects of the analysis of data from retrospective studies of
        disease", JNCI 22 (1959); the rates have the weights of Greenland and Robins (1985).
    """
    excess = variance = weights = weighted_before = weighted_after = 0.0
    for successes_before, before, successes_after, after in strata:
        total = before + after
        if not before or not after:
            continue
        successes = successes_before + successes_after
        excess += successes_after - after * successes / total
        if total > 1:
            variance += before * after * successes * (total - successes) / (total * total * (total - 1))
        weight = before * after / total
        weights += weight
        weighted_before += weight * successes_before / before
        weighted_after += weight * successes_after / after
    if not weights:
        return 1.0, 0.0, 0.0
    p_value = NormalDist().cdf(excess / math.sqrt(variance)) if variance else 1.0
    return p_value, weighted_before / weights, weighted_after / weights


def holm(p_values: Iterable[float], rate: float, threshold: Callable[[float], float]) -> float:
    """The threshold that keeps the chance of any false alarm among several tests at a rate, however they depend.

    `threshold` is that of one test by itself, for a rate. What lies at or under the result is what Holm's procedure
    rejects: the rate is shared out over the tests that are not rejected. Source: Holm, "A simple sequentially rejective
    multiple test procedure" (1979).
    """
    ordered = sorted(p_values)
    left = len(ordered)
    while left and ordered[-left] <= threshold(rate / left):
        left -= 1
    return threshold(rate / max(left, 1))


def repeated_looks(rate: float, moving: int) -> float:
    """The threshold of one look at two windows, for a rate of false alarms over all looks in a window's length.

    Windows that overlap are much alike, and a hundred looks at them are far from a hundred trials. Between looks near
    each other a statistic of two windows of one length, of which one moves or both do (`moving`: 1 or 2), is correlated
    by 1 - moving/2 × (time between / length). The chance that it passes p at any time within a length is then about
    p (1 + moving × ln 1/p), even if one looks without a pause. Sources: Slepian, "First passage time for a particular
    Gaussian process" (1961); Aldous, "Probability Approximations via the Poisson Clumping Heuristic" (1989), section C.
    """
    low, high = 0.0, rate
    for _ in range(60):
        middle = (low + high) / 2
        if middle and middle * (1 - moving * math.log(middle)) > rate:
            high = middle
        else:
            low = middle
    return low
