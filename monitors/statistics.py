"""Statistics: intervals of rates, two-sample tests, and thresholds for several tests and repeated looks."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Z95 = 1.959963984540054


def wilson(successes: float, n: float) -> tuple[float, float, float]:
    """Returns a rate and its 95% interval, all between 0 and 1; without observations, the interval is 0 to 1.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if n <= 0:
        return 0.0, 0.0, 1.0
    rate = min(max(successes / n, 0.0), 1.0)
    z2 = Z95 * Z95
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    # Rounding may put an end slightly on the wrong side of a rate of 0 or 1.
    return rate, min(max(centre - half, 0.0), rate), max(min(centre + half, 1.0), rate)


def two_sample_chi_square(
    reference: Sequence[Hashable], current: Sequence[Hashable], design_effect: float = 1.0
) -> float:
    """Returns the p-value of the chi-square test of homogeneity of two samples of categories.

    A goodness-of-fit test would treat the reference as exact, and flag every other quiet window. Categories with an
    expected count below 5 in either sample are pooled (Cochran 1954); if two are left and one is still rare, Fisher's
    exact test decides. With one category the p-value is 1. Counts of dependent rows are divided by the design effect
    (Rao and Scott, "The analysis of categorical data from complex sample surveys", JASA 76, 1981).
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
    """Returns a rate and its 95% interval from a stratified sample.

    The interval is Wilson's for a simple random sample of the same variance. Source: Cochran, "Sampling techniques"
    (1977), chapter 12, double sampling for stratification; Korn and Graubard, "Confidence intervals for proportions
    with small expected number of positive counts estimated from survey data" (1998).

    Args:
        strata: for each stratum its size, the number of members examined, and the number of these that count. The
            strata together are a simple random sample of the population, so their sizes have a sampling error.

    Returns:
        None: no member of a stratum was examined.
    """
    strata = [stratum for stratum in strata if stratum[0]]
    size = sum(members for members, _, _ in strata)
    if not strata or not all(examined for _, examined, _ in strata):
        return None
    z2 = Z95 * Z95
    rate = centre = squares = variance = 0.0
    for members, examined, counted in strata:
        share, middle = members / size, (counted + z2 / 2) / (examined + z2)
        rate += share * counted / examined
        centre += share * middle
        squares += share * middle**2
        variance += share**2 * middle * (1 - middle) / (examined + z2)
    variance += max(squares - centre**2, 0.0) / size
    equivalent = max(centre * (1 - centre) / variance - z2, 1.0)
    return wilson(rate * equivalent, equivalent)


def two_sample_kernel(similarity: "Array", reference: int) -> tuple[float, "Array", "Array"]:
    """Computes a kernel two-sample test.

    The witness of a row is its mean similarity to the second sample minus that to the first (Gretton et al., "A kernel
    two-sample test", JMLR 13, 2012); the statistic is the sum of its squares. That is the maximum mean discrepancy
    under the squared kernel, in which rows are similar if they are similar to the same other rows, so that words that
    occur together count as related (Kandola, Shawe-Taylor and Cristianini, "Learning semantic similarity", 2002). Under
    the null hypothesis it is a weighted sum of chi-squares, with the eigenvalues of the centred kernel as weights.

    Args:
        similarity: the kernel matrix of all rows, those of the first sample first, shape (n, n).
        reference: the number of rows of the first sample.

    Returns:
        The statistic, the weights (`chi_square_sum_tail` gives the p-value), and the witness of each row.
    """
    import numpy as np

    n = len(similarity)
    contrast = np.where(np.arange(n) < reference, -1 / reference, 1 / (n - reference))
    witness = similarity @ contrast
    centred = similarity - similarity.mean(axis=1, keepdims=True)
    weights = np.linalg.eigvalsh(centred.T @ centred) * n / (reference * (n - reference) * (n - 1))
    return float(witness @ witness), weights, witness


def chi_square_sum_tail(value: float, weights: "Array") -> float:
    """Returns the chance that a weighted sum of independent chi-squares with one degree of freedom exceeds a value.

    Source: Kuonen, "Saddlepoint approximations for distributions of quadratic forms in normal variables", Biometrika 86
    (1999). Weights that are not positive are ignored.
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
    if abs(u) < 1e-4:  # the formula is undefined at the mean
        return 0.5
    return NormalDist().cdf(-u - math.log(v / u) / u)


def cochran_mantel_haenszel(strata: Iterable[tuple[int, int, int, int]]) -> tuple[float, float, float]:
    """Tests whether a rate fell within strata, unaffected by changes of their mix.

    Sources: Mantel and Haenszel, "Statistical aspects of the analysis of data from retrospective studies of disease",
    JNCI 22 (1959); the rates have the weights of Greenland and Robins (1985).

    Args:
        strata: successes and trials before, successes and trials after, for each stratum.

    Returns:
        The p-value of the null hypothesis that the rate did not fall (one-sided, without continuity correction: half of
        the usual two-sided one if it fell), and the rates before and after over the same mix of strata; (1, 0, 0) if no
        stratum has trials before and after.
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
    """Returns the threshold of Holm's procedure, which bounds the chance of any false alarm among several tests.

    The bound holds however the tests depend on each other. Source: Holm, "A simple sequentially rejective multiple test
    procedure" (1979).

    Args:
        rate: the chance of any false alarm.
        threshold: returns the threshold of a single test for a rate.
    """
    ordered = sorted(p_values)
    left = len(ordered)
    while left and ordered[-left] <= threshold(rate / left):
        left -= 1
    return threshold(rate / max(left, 1))


def repeated_looks(rate: float, moving: int) -> float:
    """Returns the threshold of one look at two windows, for a rate of false alarms over all looks in a window's length.

    Overlapping windows share most rows, so a hundred looks are far from a hundred independent tests. At two nearby
    looks the statistics are correlated by 1 - moving/2 × (time between / length). The chance that the p-value falls
    below p at any time within a length is then about p (1 + moving × ln 1/p), even with continuous looks. Sources:
    Slepian, "First passage time for a particular Gaussian process" (1961); Aldous, "Probability Approximations via the
    Poisson Clumping Heuristic" (1989), section C.

    Args:
        moving: how many of the two windows move: 1 or 2.
    """
    low, high = 0.0, rate
    for _ in range(60):
        middle = (low + high) / 2
        if middle and middle * (1 - moving * math.log(middle)) > rate:
            high = middle
        else:
            low = middle
    return low
