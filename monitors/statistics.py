"""The statistics that checks and figures rest on: two-sample tests and intervals of rates."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

Z95 = 1.959963984540054


def wilson(successes: float, n: int) -> tuple[float, float, float]:
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
