"""Sequential evidence (e-values) on a rate, two rates or a mean, valid after every observation."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# The odds ratios that gamblers bet on, relative to the hypothesis. 1 is no bet, so a side whose rate is well known
# costs little.
ODDS = np.array([1.0, 1.1, 1.2, 1.5, 2.0, 4.0])
# The stakes of gamblers on a mean, as a fraction of the largest stake that cannot lose everything; 0 is no bet.
STAKES = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
# Steps of the golden-section search, enough for a precision of 1e-5.
_STEPS = 24


def log_e_value_of_rate(events: float, n: float, rate: float) -> float:
    """Returns the natural logarithm of the evidence that a rate is above `rate`; see `log_e_value`."""
    return float(_log_capital(np.array(events), np.array(n), np.array(rate)))


def log_e_value(
    events_before: npt.ArrayLike,
    n_before: npt.ArrayLike,
    events_after: npt.ArrayLike,
    n_after: npt.ArrayLike,
    margin: float,
) -> Array:
    """Returns the natural logarithm of the evidence that a rate rose by more than a margin.

    It is an e-value against the hypothesis that the rate after is at most the rate before plus the margin, whatever the
    two rates are. If the hypothesis is true and observations are independent, the chance that the e-value ever reaches
    1 / a, however often it is examined while either side grows, is at most a (Ville's inequality).

    For a given rate before, the capital of gamblers who bet on a lower rate is an e-process in the observations before,
    and the capital of gamblers who bet on more than this rate plus the margin is an e-process in those after. The two
    sides are independent, so the product is an e-process, too. The e-value is the smallest product over all rates
    before, so it accounts for the error of both samples, and no sample size has to be fixed in advance. For evidence
    against a rise, use the complements: n - events on both sides, and the margin with the opposite sign.

    Source: the capital of a fixed bet on a coin, averaged over bets (Waudby-Smith and Ramdas, "Estimating means of
    bounded random variables by betting", JRSS B 86, 2024); the least over a nuisance parameter (Ramdas, Grünwald, Vovk
    and Shafer, "Game-theoretic statistics and safe anytime-valid inference", Statistical Science 38, 2023).

    Args:
        events_before, n_before, events_after, n_after: counts; arrays are broadcast against each other.
        margin: -1 to 1.
    """
    k0, n0, k1, n1 = np.broadcast_arrays(
        *(np.asarray(count, dtype=np.float64) for count in (events_before, n_before, events_after, n_after))
    )

    def product(rate: Array) -> Array:
        after = np.minimum(rate + margin, 1.0)
        return _log_capital(n0 - k0, n0, 1 - rate) + _log_capital(k1, n1, after)

    # Both logarithms are convex in the rate, so their sum has one minimum, which may be at an end.
    low, high = np.full(k0.shape, max(0.0, -margin)), np.ones(k0.shape)
    ends = np.minimum(product(low), product(high))
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(_STEPS):
        left, right = high - golden * (high - low), low + golden * (high - low)
        falls = product(left) > product(right)
        low, high = np.where(falls, left, low), np.where(falls, high, right)
    least: Array = np.minimum(product((low + high) / 2), ends)
    return least


def log_e_value_of_mean(values: npt.ArrayLike, mean: float) -> float:
    """Returns the natural logarithm of the evidence that values from -1 to 1 have a mean above `mean`.

    Each gambler stakes a fixed fraction: an observation multiplies capital by 1 + stake (value - mean), which is fair
    at this mean and a loss below it, for any distribution of the values. The capital is averaged over the stakes; see
    `log_e_value`.

    Args:
        values: one for each observation; without observations there is no evidence.
        mean: above -1.
    """
    observations = np.asarray(values, dtype=np.float64)
    stakes = STAKES / (1 + mean)
    capital = np.log1p(stakes[:, None] * (observations - mean)).sum(axis=1)
    most = capital.max()
    return float(most + np.log(np.exp(capital - most).mean()))


def _log_capital(events: Array, n: Array, rate: Array) -> Array:
    """Returns the log mean capital of gamblers who start with 1 and bet, each on one odds ratio, on a higher rate.

    A bet on an odds ratio r multiplies capital by r / (1 + rate (r - 1)) at an event, and by 1 / (1 + rate (r - 1))
    otherwise: fair at the rate, a loss at a lower one. The result is convex in the rate.
    """
    capital = events[..., None] * np.log(ODDS) - n[..., None] * np.log1p(rate[..., None] * (ODDS - 1))
    most = capital.max(axis=-1, keepdims=True)
    total: Array = most[..., 0] + np.log(np.exp(capital - most).mean(axis=-1))
    return total
