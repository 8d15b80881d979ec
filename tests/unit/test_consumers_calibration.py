"""How many labels a rate takes, and of which answers: simulated."""

import random
from collections import Counter

import pytest

from retuned.consumers.common.calibration import MINIMUM, Stratum, draws
from retuned.monitors.statistics import stratified_rate


def drawn_labels(
    rng: random.Random, alarms: int, others: int, right: float, missed: float, most: int
) -> tuple[Counter[bool], Counter[bool]]:
    """Labels and inventions by kind, four labels at a time; of alarms and others such shares are invented."""
    left, asked, invented = Counter({True: alarms, False: others}), Counter[bool](), Counter[bool]()
    while asked.total() < most:
        strata = [Stratum(alarm, left[alarm], asked[alarm], invented[alarm]) for alarm in (True, False)]
        for alarm, count in draws(strata, 4).items():
            left[alarm] -= count
            asked[alarm] += count
            invented[alarm] += sum(rng.random() < (right if alarm else missed) for _ in range(count))
    return asked, invented


def test_what_a_rate_lacks_is_drawn_first() -> None:
    asked, _ = drawn_labels(random.Random(1), 200, 2_000, 0.5, 0.05, sum(MINIMUM.values()))
    assert asked == MINIMUM


def test_further_labels_go_where_the_rate_is_least_known() -> None:
    few = drawn_labels(random.Random(1), 60, 1_940, 0.9, 0.05, 100)[0]
    many = drawn_labels(random.Random(1), 600, 1_400, 0.5, 0.02, 100)[0]
    assert few[True] == MINIMUM[True]  # three in a hundred answers: what they are hardly moves the rate
    assert many[True] > many[False]


def test_no_more_are_drawn_than_there_are() -> None:
    assert draws([Stratum(True, 3), Stratum(False, 2)], 9) == {True: 3, False: 2}
    assert draws([], 9) == {}


def test_few_alarms_need_as_many_labels_and_other_answers_always_thirty() -> None:
    assert (Stratum(True, 3, 1).needed, Stratum(True, 3, 1).missing) == (3, 2)
    assert (Stratum(False, 5, 5).needed, Stratum(False, 5, 5).missing) == (30, 25)


@pytest.mark.parametrize(
    ("share", "right", "missed"), [(0.03, 0.6, 0.04), (0.01, 0.5, 0.1), (0.2, 0.9, 0.05), (0.02, 0.8, 0.2)]
)
@pytest.mark.parametrize("labels", [40, 100])
def test_the_interval_holds_the_truth(share: float, right: float, missed: float, labels: int) -> None:
    """In at least 93% of cases, though the next label depends on those before it; and the rate is unbiased."""
    rng, truth = random.Random(7), share * right + (1 - share) * missed
    held, total, times = 0, 0.0, 400
    for _ in range(times):
        alarms = sum(rng.random() < share for _ in range(3_000))
        asked, invented = drawn_labels(rng, alarms, 3_000 - alarms, right, missed, labels)
        sample = sum(rng.random() < share for _ in range(500))
        sizes = {True: sample, False: 500 - sample}
        found = stratified_rate([(sizes[alarm], asked[alarm], invented[alarm]) for alarm in sizes])
        assert found is not None
        held += found[1] <= truth <= found[2]
        total += found[0]
    assert held >= 0.93 * times
    assert total / times == pytest.approx(truth, abs=0.012)
