"""The helpful rate of answers that nobody rated, estimated from the votes on a few."""

from dataclasses import dataclass, replace
from unittest.mock import ANY

import numpy as np
import pytest

from retuned.monitors.quality.estimate import Lacking, Rated, Rows, estimate, lacking

SHARES, RATES = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.9, 0.8, 0.6, 0.3])
NAMES = np.array(["refund", "delivery", "account", "billing"])


@dataclass
class World:
    """Answers of a window to four topics, of which some are rated; the topic is known, and a number that tells nothing.

    Attributes:
        rated: chance of a vote, by topic.
    """

    rng: np.random.Generator
    rates: np.ndarray  # type: ignore[type-arg]
    rated: np.ndarray  # type: ignore[type-arg]
    count: int = 4_000

    def windows(self) -> tuple[Rows, Rated]:
        topics = self.rng.choice(4, self.count, p=SHARES)
        features = self.rng.normal(size=(self.count, 1))
        voted = self.rng.random(self.count) < self.rated[topics]
        helpful = (self.rng.random(self.count) < self.rates[topics]).astype(float)
        named = NAMES[topics]
        return (
            Rows(features, {"topic": named.tolist()}),
            Rated(features[voted], {"topic": named[voted].tolist()}, helpful[voted]),
        )


@pytest.mark.full
def test_an_estimate_holds_the_truth_though_some_topics_are_rated_more_than_others() -> None:
    """Who asks about billing votes nine times as often: the rate of the votes is far below that of the answers."""
    truth, rated = float(SHARES @ RATES), np.array([0.01, 0.02, 0.04, 0.09])
    held, segments, raw = 0, 0, []
    for seed in range(10):
        world = World(np.random.default_rng(seed), RATES, rated)
        before, now = world.windows(), world.windows()
        found = estimate(*now, *before)
        assert found is not None
        held += found.low <= truth <= found.high
        segments += sum(one.low <= RATES[NAMES.tolist().index(one.value)] <= one.high for one in found.segments)
        raw.append(float(now[1].helpful.mean()))
        assert [found.segments[0].value, len(found.segments)] == ["billing", 4]
    assert np.mean(raw) < truth - 0.1
    assert held >= 9
    assert segments >= 36  # of 40


@pytest.mark.full
def test_what_moved_it_is_named_and_nothing_where_nothing_moved() -> None:
    rated = np.full(4, 0.05)
    world = World(np.random.default_rng(1), RATES, rated)
    before, same = world.windows(), world.windows()
    worse = replace(world, rates=RATES * np.array([0.6, 1, 1, 1])).windows()
    quiet, fallen = estimate(*same, *before), estimate(*worse, *before)
    assert quiet is not None
    assert fallen is not None
    assert quiet.moved is None
    assert fallen.moved is not None
    assert fallen.moved.value == "refund"
    assert fallen.moved.before == pytest.approx(0.9, abs=0.1)
    assert fallen.high < fallen.before


def test_without_votes_of_both_kinds_there_is_no_estimate() -> None:
    world = World(np.random.default_rng(2), RATES, np.full(4, 0.05))
    (answers, votes), before = world.windows(), world.windows()
    few = Rated(votes.features[:29], {"topic": votes.segments["topic"][:29]}, votes.helpful[:29])
    assert estimate(answers, few, *before) is None
    assert estimate(*before, answers, few) is None
    for given in ((few, before[1]), (before[1], few)):
        assert lacking(*(votes.helpful for votes in given)) == Lacking(29, 30, ANY)
    content = replace(votes, helpful=np.ones(len(votes.helpful)))
    assert estimate(answers, content, before[0], replace(before[1], helpful=np.ones(len(before[1].helpful)))) is None


@pytest.mark.full
def test_votes_of_one_account_are_worth_little_more_than_one() -> None:
    world = World(np.random.default_rng(3), RATES, np.full(4, 0.03))
    before, (answers, votes) = world.windows(), world.windows()

    def width(now: Rated, then: Rated) -> float:
        found = estimate(answers, now, before[0], then)
        assert found is not None
        return found.high - found.low

    def five_times(rated: Rated, window: str) -> Rated:
        places = np.repeat(np.arange(len(rated.helpful)), 5)
        topics = [rated.segments["topic"][place] for place in places]
        units = [(window, place) for place in places.tolist()]
        return Rated(rated.features[places], {"topic": topics}, rated.helpful[places], units)

    once = width(votes, before[1])
    assert width(five_times(votes, "now"), five_times(before[1], "before")) > 0.8 * once
    independent = [replace(five_times(rated, ""), units=None) for rated in (votes, before[1])]
    assert width(*independent) < 0.7 * once
