"""The statistics that checks and figures rest on: two-sample tests and intervals of rates."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

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


def two_sample_ks(reference: Sequence[float], current: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test: could both be draws from one distribution?

    Conservative with ties and, as the limiting distribution is used, with few values. Source: Hodges, "The significance
    probability of the Smirnov two-sample test" (1958).
    """
    from scipy.stats import ks_2samp

    # The exact method overflows on some samples of 500 and warns of it.
    return float(ks_2samp(reference, current, method="asymp").pvalue)


def two_sample_chi_square(reference: Sequence[Hashable], current: Sequence[Hashable]) -> float:
    """p-value of the chi-square test of homogeneity: could both be draws from one set of categories?

    Both samples are taken as samples (a goodness-of-fit test, with the reference as exact, cries drift on every other
    quiet window). Categories whose expected count is under 5 in either sample are pooled (Cochran 1954); where that
    leaves two of which one is still rare, Fisher's exact test decides. One category: 1.
    """
    from scipy.stats import chi2_contingency, fisher_exact

    before, after = Counter(reference), Counter(current)
    smaller = min(len(reference), len(current)) / (len(reference) + len(current))
    counts = sorted(((before[c], after[c]) for c in before | after), key=sum)
    while len(counts) > 2 and sum(counts[0]) * smaller < 5:
        rare, next_rare = counts[0], counts[1]
        counts = sorted([(rare[0] + next_rare[0], rare[1] + next_rare[1]), *counts[2:]], key=sum)
    if len(counts) < 2:
        return 1.0
    if len(counts) == 2 and sum(counts[0]) * smaller < 5:
        return float(fisher_exact(counts).pvalue)
    return float(chi2_contingency(counts, correction=False).pvalue)


def corrected_rate(
    alarms: int, n: int, found: int, positives: int, passed: int, negatives: int
) -> tuple[float, float, float] | None:
    """A rate that an imperfect test measured, corrected for its errors, and its 95% interval; all between 0 and 1.

    Args:
        alarms: of n, how many the test calls positive.
        found: of so many positives, known as such, how many it calls positive (its sensitivity).
        passed: of so many negatives, known as such, how many it calls negative (its specificity).

    Returns:
        None where the test is not surely better than chance: then its alarms say nothing of the rate.

    Sources: Rogan and Gladen, "Estimating prevalence from the results of a screening test", Am J Epidemiol 107 (1978);
    the interval, which holds at small numbers and near 0 and 1, is Lang and Reiczigel's, Prev Vet Med 113 (2014).
    """
    if min(n, positives, negatives) <= 0:
        return None
    sensitivity, specificity = found / positives, passed / negatives
    if wilson(found, positives)[1] + wilson(passed, negatives)[1] <= 1:
        return None
    rate = (alarms / n + specificity - 1) / (sensitivity + specificity - 1)
    # From here on with some observations added to each share, as in Agresti and Coull's interval.
    z2 = Z95 * Z95
    share, n_share = (alarms + z2 / 2) / (n + z2), n + z2
    sensitivity, n_sensitivity = (found + 1) / (positives + 2), positives + 2
    specificity, n_specificity = (passed + 1) / (negatives + 2), negatives + 2
    youden = sensitivity + specificity - 1
    centre = (share + specificity - 1) / youden
    of_sensitivity = sensitivity * (1 - sensitivity) / n_sensitivity
    of_specificity = specificity * (1 - specificity) / n_specificity
    shift = 2 * z2 * (centre * of_sensitivity - (1 - centre) * of_specificity)
    variance = share * (1 - share) / n_share + centre**2 * of_sensitivity + (1 - centre) ** 2 * of_specificity
    half = Z95 * math.sqrt(variance) / youden
    rate = min(max(rate, 0.0), 1.0)
    low, high = (min(max(centre + shift + side * half, 0.0), 1.0) for side in (-1, 1))
    return rate, min(low, rate), max(high, rate)


def stratified_rate(strata: Sequence[tuple[int, int, int]]) -> tuple[float, float, float] | None:
    """A rate and its 95% interval from a sample that took more of some strata than of others.

    Args:
        strata: of each its size, how many of it were looked at, and how many of those count.

    Returns:
        None where nothing was looked at of a stratum that is not empty: it may be anything.

    The interval is Wilson's, at the size of a plain sample of the same variance. Source: Cochran, "Sampling techniques"
    (1977), chapter 5; Korn and Graubard, "Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data" (1998).
    """
    strata = [one for one in strata if one[0]]
    size = sum(one[0] for one in strata)
    if not strata or not all(one[1] for one in strata):
        return None
    z2 = Z95 * Z95
    rate = centre = variance = 0.0
    for members, looked_at, counted in strata:
        share, middle = members / size, (counted + z2 / 2) / (looked_at + z2)
        rate += share * counted / looked_at
        centre += share * middle
        variance += share**2 * middle * (1 - middle) / (looked_at + z2)
    equivalent = max(centre * (1 - centre) / variance - z2, 1.0)
    return wilson(rate * equivalent, equivalent)
