"""A comparison of two rates that may be looked at after every observation, as often as one likes."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# What is betted on: that odds are so many times higher than the hypothesis says. 1 is not to bet, so that a side whose
# rate is well known costs little.
ODDS = np.array([1.0, 1.1, 1.2, 1.5, 2.0, 4.0])
# Of the most that cannot be lost, by which a gambler on a mean bets; 0 is not to bet.
STAKES = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
# Steps of the golden section search, after which a rate is known to within 1e-5.
_STEPS = 24


def log_e_value(
    events_before: npt.ArrayLike,
    n_before: npt.ArrayLike,
    events_after: npt.ArrayLike,
    n_after: npt.ArrayLike,
    margin: float,
) -> Array:
    """Natural logarithm of the evidence that a rate rose by more than a margin.

    It is an e-value against "the rate after is at most the rate before plus the margin", whatever the two rates are.
    If that is true and observations are independent, then the chance that the e-value is ever 1 / a or more, however
    often one looks while either side grows, is at most a (Ville's inequality).

    For any one rate before, the capital of gamblers who bet on a lower one is an e-process in the observations before,
    and that of gamblers who bet on more than this rate plus the margin is one in those after. The two sides are
    independent, so their product is one too; the e-value is the smallest product over all rates before. So the error
    of both samples counts, and neither size need be settled in advance. Against "the rate after is above the rate
    before plus the margin" take the complements: n - events on both sides, and the margin with the other sign.

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

    # Both logarithms are convex in the rate, and so is their sum: one minimum, which may be at an end.
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
    """Natural logarithm of the evidence that values of -1 to 1 have a mean above this one; see `log_e_value`.

    Each gambler stakes a fixed share of the most that cannot be lost: capital is multiplied by
    1 + stake (value - mean), which is fair at that mean and losing below it, however the values are distributed. It is
    averaged over the stakes.

    Args:
        values: one for each observation; none: no evidence.
        mean: above -1.
    """
    found = np.asarray(values, dtype=np.float64)
    stakes = STAKES / (1 + mean)
    capital = np.log1p(stakes[:, None] * (found - mean)).sum(axis=1)
    most = capital.max()
    return float(most + np.log(np.exp(capital - most).mean()))


def _log_capital(events: Array, n: Array, rate: Array) -> Array:
    """Of gamblers who began with 1 and bet, each on his odds, that events are more frequent than the rate.

    A bet on odds that are r times higher multiplies capital by r / (1 + rate (r - 1)) at an event, and by
    1 / (1 + rate (r - 1)) otherwise: fair at that rate, losing at a lower one. Convex in the rate.
    """
    capital = events[..., None] * np.log(ODDS) - n[..., None] * np.log1p(rate[..., None] * (ODDS - 1))
    most = capital.max(axis=-1, keepdims=True)
    total: Array = most[..., 0] + np.log(np.exp(capital - most).mean(axis=-1))
    return total
