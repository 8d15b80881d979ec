"""The comparison that may be looked at any time: it keeps its promise, and finds what is worse."""

import math
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest

from retuned.monitors.rates.sequential import ODDS, log_e_value

BUDGET = 0.05
Evidence = npt.NDArray[np.float64]


def binomial(n: int, k: int, rate: float) -> float:
    return math.comb(n, k) * rate**k * (1 - rate) ** (n - k)


@pytest.mark.parametrize("margin", [0.0, 0.1, -0.1])
@pytest.mark.parametrize(("n_before", "n_after"), [(1, 1), (6, 4), (4, 12), (0, 5)])
def test_its_mean_is_at_most_one_whatever_the_rates_are(n_before: int, n_after: int, margin: float) -> None:
    """The definition of an e-value, added up over every possible outcome."""
    counts = np.array(list(product(range(n_before + 1), range(n_after + 1))))
    values = np.exp(log_e_value(counts[:, 0], n_before, counts[:, 1], n_after, margin))
    for before in np.linspace(0, 1, 21):
        for after in np.linspace(0, 1, 21):
            if after <= before + margin + 1e-12:
                chance = [
                    binomial(n_before, k0, float(before)) * binomial(n_after, k1, float(after)) for k0, k1 in counts
                ]
                assert values @ chance <= 1 + 1e-9, (before, after)


@pytest.mark.parametrize(
    "counts", [(30, 200, 70, 200), (150, 1_000, 40, 100), (0, 50, 20, 20), (500, 10_000, 900, 10_000)]
)
def test_no_rate_before_gives_less(counts: tuple[int, int, int, int]) -> None:
    """The search finds what trying a hundred thousand rates finds."""
    k0, n0, k1, n1 = counts
    rates = np.linspace(0, 0.95, 100_001)

    def capital(events: int, n: int, rate: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        bets = [events * math.log(r) - n * np.log1p(rate * (r - 1)) for r in ODDS]
        total: npt.NDArray[np.float64] = np.logaddexp.reduce(bets) - math.log(len(ODDS))
        return total

    least = (capital(n0 - k0, n0, 1 - rates) + capital(k1, n1, rates + 0.05)).min()
    assert float(log_e_value(*counts, 0.05)) == pytest.approx(least, abs=1e-4)


def looked_at_after_each(
    before: float, after: float, n_before: int, votes: int, runs: int, margin: float
) -> tuple[Evidence, Evidence]:
    """Log e-values of simulated runs (runs, votes), and the z scores of a test that is made for one look."""
    rng = np.random.default_rng(20)
    k0 = rng.binomial(n_before, before, size=(runs, 1))
    k1, n1 = (rng.random((runs, votes)) < after).cumsum(axis=1), np.arange(1, votes + 1)
    shape = k1.shape
    all_counts = np.stack(np.broadcast_arrays(k0, k1, n1), axis=-1).reshape(-1, 3)
    counts, place = np.unique(all_counts, axis=0, return_inverse=True)
    found = log_e_value(counts[:, 0], n_before, counts[:, 1], counts[:, 2], margin)
    rate0, rate1 = k0 / n_before, k1 / n1
    error = np.sqrt(rate0 * (1 - rate0) / n_before + np.maximum(rate1 * (1 - rate1), 0.01) / n1)
    return found[place].reshape(shape), (rate1 - rate0 - margin) / error


@pytest.mark.parametrize(("before", "margin"), [(0.15, 0.05), (0.4, 0.0), (0.03, 0.02)])
def test_looking_after_every_vote_keeps_the_budget(before: float, margin: float) -> None:
    """At the edge of what is tolerated; a test that is made for one look takes back far more often."""
    evidence, z = looked_at_after_each(before, before + margin, n_before=300, votes=250, runs=150, margin=margin)
    assert (evidence >= math.log(1 / BUDGET)).any(axis=1).mean() <= BUDGET
    assert (z[:, 29:] > 1.645).any(axis=1).mean() > 1.5 * BUDGET


def test_what_is_as_good_is_hardly_ever_taken_back() -> None:
    """Where the margin is not used up, the budget is not either."""
    evidence, _ = looked_at_after_each(0.15, 0.15, n_before=300, votes=250, runs=150, margin=0.05)
    assert (evidence >= math.log(1 / BUDGET)).any(axis=1).mean() <= BUDGET / 10


@pytest.mark.parametrize(("n_before", "at_most"), [(300, 200), (1_000, 150)])
def test_a_clear_harm_is_found_soon(n_before: int, at_most: int) -> None:
    """From 85% helpful to 65%, tolerated 5 points, a seventh of the budget: median number of votes."""
    evidence, _ = looked_at_after_each(0.15, 0.35, n_before=n_before, votes=350, runs=60, margin=0.05)
    alarm = evidence >= math.log(7 / BUDGET)
    first = np.where(alarm.any(axis=1), alarm.argmax(axis=1) + 1, 350)
    assert np.median(first) <= at_most


def test_the_complement_shows_that_nothing_is_lost() -> None:
    """Unhelpful answers fall from 40% to 15%: soon shown to be within the margin; at 50% they are not."""
    votes, before = 80, (400, 1_000)
    mended = float(log_e_value(before[1] - before[0], before[1], votes - 12, votes, -0.05))
    worse = float(log_e_value(before[1] - before[0], before[1], votes - 40, votes, -0.05))
    assert mended > math.log(1 / BUDGET)
    assert worse < 0


def test_sides_without_observations_say_nothing() -> None:
    for counts in ((0, 0, 50, 50), (0, 1_000, 0, 0), (0, 0, 0, 0)):
        assert float(log_e_value(*counts, 0.05)) <= 1e-9
    assert np.isfinite(log_e_value(0, 10**9, 10**9, 10**9, 0.05))
