"""Rates of votes: each vote counts once, and those of one account or one day are alike."""

import numpy as np
import numpy.typing as npt
import pytest

from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.rates.days import variance_between
from retuned.monitors.rates.estimate import design_effect, difference, evidence_effect, rate
from retuned.monitors.rates.votes import Votes, of_units, read_votes
from retuned.monitors.statistics import wilson


@pytest.mark.parametrize("alike", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("accounts", [20, 100, 500])  # of 1,000 answers, 1% to 50% rated
def test_an_interval_of_votes_covers_the_rate_however_alike_those_of_an_account_are(
    accounts: int, alike: float
) -> None:
    luck, covered, naive, sharp = np.random.default_rng(accounts), 0, 0, 0.0
    runs, share = 600, 0.8
    for _ in range(runs):
        votes = luck.choice([1, 1, 2, 5], accounts)
        rates = luck.beta(share * (1 / alike - 1), (1 - share) * (1 / alike - 1), accounts) if alike else share
        helpful = luck.binomial(votes, rates)
        _, low, high = rate(of_units(zip(helpful.tolist(), votes.tolist(), strict=True)))
        _, narrow, wide = wilson(int(helpful.sum()), int(votes.sum()))
        covered += low <= share <= high
        naive += narrow <= share <= wide
        sharp += (high - low) / (wide - narrow) / runs
    assert covered / runs >= 0.92
    if alike == 0.7:
        assert naive / runs < 0.9  # what a plain interval would do
    assert sharp < 1.8


def test_an_interval_of_units_of_one_vote_is_wilsons() -> None:
    assert rate(of_units([(1, 1)] * 30 + [(0, 1)] * 10)) == wilson(30, 40)
    assert rate(of_units([])) == (0.0, 0.0, 1.0)


def test_votes_that_say_the_same_tell_as_much_as_there_are_units_or_a_little_less() -> None:
    for good, bad in ((10, 0), (30, 10)):
        found, units = rate(of_units([(5, 5)] * good + [(0, 5)] * bad)), wilson(good, good + bad)
        assert found == pytest.approx(units, abs=0.05)
        assert found[1] < units[1]


@pytest.mark.parametrize("accounts", [12, 60])
def test_an_interval_is_no_wider_than_it_need_be_where_few_accounts_give_most_votes(accounts: int) -> None:
    luck, covered, runs = np.random.default_rng(accounts), 0, 1_000
    for _ in range(runs):
        votes = luck.poisson(20 * (luck.pareto(1.5, accounts) + 0.3))
        weights = np.minimum(1.0, max(5.0, votes.sum() / 10) / np.maximum(votes, 1))  # as rates.sql weighs them
        bad = luck.binomial(votes, luck.beta(0.2 * 49, 0.8 * 49, accounts))
        _, low, high = rate(of_units(zip((bad * weights).tolist(), (votes * weights).tolist(), strict=True)))
        covered += low <= 0.2 <= high
    assert 0.925 <= covered / runs <= 0.98


def two_arms(rng: np.random.Generator, accounts: int, votes: float, share: float, days: npt.ArrayLike = 0.0) -> Votes:
    """Votes of the same accounts in both arms, a day after the other; the first days are before, the last one after."""
    own = rng.beta(share * 3, (1 - share) * 3, accounts)[:, None]
    worse = np.atleast_1d(np.asarray(days, dtype=np.float64))
    n = rng.poisson(votes, (accounts, len(worse)))
    yes = rng.binomial(n, np.clip(own + worse, 0, 1))
    units = np.column_stack(
        [yes[:, :-1].sum(axis=1), n[:, :-1].sum(axis=1), yes[:, -1], n[:, -1], np.ones(accounts)]
    ).astype(np.float64)
    blocks = [(y, m, 0, 0) for y, m in zip(yes[:, :-1].sum(axis=0), n[:, :-1].sum(axis=0), strict=True)]
    return Votes(units, np.array([*blocks, (0, 0, yes[:, -1].sum(), n[:, -1].sum())], dtype=np.float64))


def test_a_difference_is_covered_and_what_accounts_vote_in_both_arms_cancels() -> None:
    rng, covered, cancelled, runs = np.random.default_rng(5), 0, 0, 400
    for _ in range(runs):
        votes = two_arms(rng, 150, 3.0, 0.3, [0.0, 0.0])
        found = difference(votes)
        assert found is not None
        covered += found[1] <= 0 <= found[2]
        alone = Votes(votes.units * (1, 1, 0, 0, 1), votes.blocks)
        cancelled += design_effect(votes) < design_effect(alone)
        assert evidence_effect(votes) >= 1
    assert 0.93 <= covered / runs <= 0.98
    assert cancelled / runs > 0.9


def test_before_and_after_days_count_as_far_as_they_differ() -> None:
    rng, covered, ignored, runs = np.random.default_rng(6), 0, 0, 300
    for _ in range(runs):
        votes = two_arms(rng, 150, 3.0, 0.5, rng.normal(0, 0.05, 21))
        between = variance_between((votes.blocks[:20, :2],), design_effect(votes))
        found, without = difference(votes, between), difference(votes)
        assert found is not None
        assert without is not None
        covered += found[1] <= 0 <= found[2]
        ignored += without[1] <= 0 <= without[2]
    assert 0.92 <= covered / runs <= 0.98
    assert ignored / runs < 0.75


def test_without_votes_of_one_arm_there_is_no_difference() -> None:
    assert difference(of_units([(1, 2)])) is None


def test_the_query_counts_each_vote_and_no_account_for_more_than_a_tenth(warehouse: Warehouse) -> None:
    with warehouse.cursor() as cursor:
        cursor.execute(
            "CREATE TEMP TABLE arm_votes AS "
            "SELECT 'helpful' AS name, 'user' AS source, 'p' AS part, n >= 300 AS after, "
            "CASE WHEN n < 200 THEN 'often' ELSE 'unit ' || n END AS unit, n // 100 AS block, n % 2 = 0 AS yes "
            "FROM range(400) AS of (n)"
        )
        ((key, votes),) = read_votes(cursor).items()
    assert key == ("helpful", "user", "p")
    assert votes.sums == pytest.approx((15 + 50, 30 + 100, 50, 100))
    assert votes.voters == (101, 100)
    assert votes.blocks[:, 1].tolist() == pytest.approx([15, 15, 100, 0])
