"""What a watched champion is compared with, at which age of the answers, and what that can find."""

import random
from collections.abc import Callable

import numpy as np
import pytest

from fixtures.feedback.traffic import MINUTE, interactions, store
from fixtures.feedback.votes import Service, draw, stored
from fixtures.feedback.votes import counted as counted_in_simulation
from fixtures.feedback.watched import (
    HOUR,
    NEW,
    NOW,
    OLD,
    SETTINGS,
    SINCE,
    Said,
    compared,
    counted,
    promote,
    rated,
    regulars_and_others,
    seen,
    voted,
)
from retuned.consumers.warehouse.connection import Warehouse
from retuned.monitors.settings import Settings, WatchSettings
from retuned.monitors.watch.check import check, latest
from retuned.monitors.watch.counts import Watched, count
from retuned.retrain.data import overrides


def test_what_is_compared_with_what(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 40, 10)
    rated(warehouse, OLD, 1, 2, start=SINCE + HOUR)  # by apps that were slow to change over
    rated(warehouse, OLD, 0, 50, start=SINCE - 40 * 24 * HOUR)  # too long ago
    rated(warehouse, "support@v0", 0, 7)
    rated(warehouse, NEW, 30, 3)
    rated(warehouse, NEW, 0, 5, start=SINCE - 2 * HOUR)  # before it was the champion
    rated(warehouse, NEW, 0, 9, start=NOW + HOUR)  # not yet
    rated(warehouse, NEW, 0, 13, source="expert", start=SINCE + HOUR)  # another source
    rated(warehouse, NEW, 0, 11, start=SINCE, workload="other")
    found = seen(warehouse)
    assert counted(compared(found)) == (10, 50, 3, 33)
    assert ("helpful", "expert") not in {(each.metric, each.source) for each in found.comparisons}


def test_days_do_not_differ_by_the_votes_of_a_banned_account(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, NEW, 30, 3)
    for day in range(1, 15):
        rated(warehouse, OLD, 16, 4, start=SINCE - 24 * day * HOUR)

    def reference() -> list[tuple[float, float, float]]:
        counts = count(warehouse, WatchSettings(), Watched("p", "support", "v2", "v1", SINCE, NOW))["helpful", "user"]
        found = [one.baseline for one in counts if one.baseline is not None]
        return [(one.votes, one.per_day, one.between_days) for one in found]

    usual = reference()
    assert usual
    rated(warehouse, OLD, 0, 400, start=SINCE - 24 * HOUR, user="vandal")
    assert reference() != usual
    overrides.decide_account(warehouse, "ban", "vandal", None, "a bot", "anna", NOW)
    assert reference() == usual


@pytest.mark.parametrize(("days_before", "looks"), [(9, (6, 12, 20)), (2, (6, 20, 60))])
def test_both_sides_have_had_the_same_time_to_be_voted_on(
    warehouse: Warehouse, days_before: int, looks: tuple[int, ...]
) -> None:
    """The angry vote at once, the content much later: so all fresh answers look bad, with either version."""
    promote(warehouse)
    times = [(OLD if hour < 0 else NEW, SINCE + hour * HOUR) for hour in range(-24 * days_before, 72)]
    voted(warehouse, *((model, True, when, MINUTE, 1) for model, when in times))
    voted(warehouse, *((model, False, when, 18 * HOUR, 3) for model, when in times))
    for hour in looks:
        found = compared(seen(warehouse, SINCE + (hour + 0.5) * HOUR))
        assert found.bad_before / found.n_before == pytest.approx(found.bad_after / found.n_after)
        assert found.n_after >= hour
        if hour < 18:
            assert found.bad_after == found.n_after


def test_a_vote_counts_when_it_comes_in_time(warehouse: Warehouse) -> None:
    promote(warehouse)
    for model, when in ((OLD, SINCE - 47 * HOUR), (NEW, SINCE)):
        voted(warehouse, (model, False, when, MINUTE, 40), (model, True, when, 25 * HOUR, 40))
    assert counted(compared(seen(warehouse, SINCE + 60 * HOUR))) == (0, 40, 0, 40)
    patient = Settings(watch=WatchSettings(vote_seconds=30 * 3600))
    # No longer than the period of the reference: nobody waits for the next one.
    assert counted(compared(seen(warehouse, SINCE + 60 * HOUR, patient))) == (0, 40, 0, 40)


def every_hour(warehouse: Warehouse, days: range, bad: Callable[[int, int], float], n: int = 2) -> None:
    """Votes of each hour: of the champion before, then of the version that is watched. `bad(day, hour)` is a share."""
    said = list[Said]()
    for day in days:
        for hour in range(24):
            many, when, model = round(n * bad(day, hour)), SINCE + (24 * day + hour) * HOUR, OLD if day < 0 else NEW
            said += [(model, True, when, MINUTE, many), (model, False, when, 30 * MINUTE, n - many)]
    voted(warehouse, *said)


@pytest.mark.parametrize(
    ("answers_a_day", "holdback", "looks"),
    [(3_000, 0.0, (1, 7, 30, 170, 192, 200, 336)), (10_000, 0.3, (30, 170, 336))],
)
def test_counts_are_those_of_the_simulation(
    warehouse: Warehouse, answers_a_day: float, holdback: float, looks: tuple[int, ...]
) -> None:
    """What tests/benchmarks/watch.py says of error and power holds for what the watch counts."""
    watches = draw(Service(answers_a_day, fall=0.1, holdback=holdback), 1, np.random.default_rng(4))
    answers, votes = stored(watches, 0, SINCE, "support")
    store(warehouse, "interactions", answers)
    store(warehouse, "feedback", votes)
    expected = list(counted_in_simulation(watches))
    for hour in looks:
        watched = Watched("p", "support", "v2", "v1", SINCE, SINCE + hour * HOUR)
        found = count(warehouse, SETTINGS.watch, watched)["helpful", "user"]
        assert {(c.bad_before, c.n_before, c.bad_after, c.n_after) for c in found} == {
            tuple(int(numbers[0, hour - 1]) for numbers in (before.bad, before.n, after.bad, after.n))
            for before, after, _ in expected
        }


@pytest.mark.parametrize("shares", [(0.1, 0.5), (0.5, 0.1)])
def test_the_length_of_the_reference_does_not_change_whose_votes_count(
    warehouse: Warehouse, shares: tuple[float, float]
) -> None:
    """Of the accounts of two days most are regulars, of those of four weeks most are not."""
    promote(warehouse)
    expected = regulars_and_others(warehouse, range(-14, 3), lambda day, _: NEW if day >= 0 else OLD, *shares)
    for days in (1, 3):
        found = compared(seen(warehouse, SINCE + days * 24 * HOUR))
        for bad, n in (counted(found)[:2], counted(found)[2:]):
            assert bad / n == pytest.approx(expected, abs=0.06)
        assert found.worse < 0.2


def test_nights_and_weekends_are_compared_with_nights_and_weekends(warehouse: Warehouse) -> None:
    """At night half of the answers are bad, at the weekend all, with either version; it comes on a Saturday."""

    def bad(day: int, hour: int) -> float:
        return 1.0 if day % 7 in (0, 1) else 0.5 if hour < 8 else 0.0

    promote(warehouse)
    every_hour(warehouse, range(-8, 3), bad)
    for hour in (6, 12, 40, 71):
        found = seen(warehouse, SINCE + hour * HOUR)
        assert (found.verdict, compared(found).worse) == ("go_on", 0), hour


def test_what_had_changed_before_the_promotion_is_no_harm(warehouse: Warehouse) -> None:
    """The world changed three days ago, and that was why a new version came, which is better than the old one was."""
    promote(warehouse)
    every_hour(warehouse, range(-10, 2), lambda day, _: 0.0 if day < -3 else 1.0 if day < 0 else 0.5, n=12)
    found = seen(warehouse, SINCE + 47 * HOUR)
    assert (compared(found).against, compared(found).worse, found.verdict) == ("day", 0, "go_on")


def test_what_is_worse_than_yesterday_and_than_a_week_ago_is_taken_back(warehouse: Warehouse) -> None:
    promote(warehouse)
    every_hour(warehouse, range(-8, 1), lambda day, _: 0.0 if day < 0 else 0.5, n=8)
    assert seen(warehouse, SINCE + 23 * HOUR).verdict == "roll_back"


def test_a_champion_of_a_few_hours_is_compared_as_a_whole(warehouse: Warehouse) -> None:
    promote(warehouse)
    rated(warehouse, OLD, 40, 10, start=SINCE - 3 * HOUR)
    rated(warehouse, NEW, 30, 3)
    found = compared(seen(warehouse))
    assert (found.against, counted(found)) == ("all", (10, 50, 3, 33))


def test_a_small_service_is_compared_with_weeks_and_a_large_one_with_what_is_nearest(warehouse: Warehouse) -> None:
    promote(warehouse)
    promote(warehouse, workload="large")
    days = [SINCE + day * 24 * HOUR for day in range(-20, 0)]
    voted(warehouse, *((OLD, False, day, MINUTE, 3) for day in days), (NEW, False, SINCE, MINUTE, 3))
    large = [("large@v1", False, day, MINUTE, 600) for day in days]
    voted(warehouse, *large, ("large@v2", False, SINCE, MINUTE, 600), workload="large")
    found = check(warehouse, SETTINGS, "large", NOW)
    assert found is not None
    assert compared(found).n_before in (600, 7 * 600)  # of one week, of seven days
    assert compared(seen(warehouse)).n_before in (2 * 3, 20 * 3)  # of two weeks, of twenty days


def test_traffic_that_is_split_is_compared_at_the_same_time(warehouse: Warehouse) -> None:
    """The world changed with the promotion: both are worse than what was before, and equal."""
    promote(warehouse)
    rated(warehouse, OLD, 450, 50, start=SINCE - 3 * HOUR)
    rated(warehouse, NEW, 100, 100)
    look = SINCE + 2 * HOUR
    assert seen(warehouse, look).verdict == "roll_back"  # as before and after
    warehouse.execute("DELETE FROM watch_checks")
    rated(warehouse, OLD, 50, 50, start=SINCE)
    found = seen(warehouse, look)
    assert (compared(found).against, counted(compared(found))) == ("same_time", (50, 100, 100, 200))
    assert found.verdict == "go_on"
    rated(warehouse, NEW, 0, 250, start=SINCE + HOUR)
    assert seen(warehouse, look).verdict == "roll_back"


def test_what_is_compared_with_is_settled_once(warehouse: Warehouse) -> None:
    """Half of the traffic is split for two days, then the champion before answers nobody: the reference stays."""
    promote(warehouse)
    for day in range(-8, 6):
        when = SINCE + day * 24 * HOUR
        hours = [when + hour * HOUR for hour in range(24)]
        sides = [OLD] if day < 0 else [OLD, NEW] if day < 2 else [NEW]
        voted(warehouse, *((side, bad, hour, MINUTE, n) for side in sides for hour in hours for bad, n in BOTH))
    against = [compared(seen(warehouse, SINCE + hours * HOUR)).against for hours in (13, 40, 60, 100, 140)]
    assert against == ["same_time"] * 5


def test_a_champion_that_nobody_asked_while_it_was_settled_is_taken_back(warehouse: Warehouse) -> None:
    """Apps change over after twenty hours, and experts label answers for the first time in the first hours."""
    promote(warehouse)
    votes = [(OLD if hour < 20 else NEW, hour >= 20, SINCE + hour * HOUR) for hour in range(-48, 68)]
    voted(warehouse, *((model, bad, when, MINUTE, 4) for model, bad, when in votes))
    rated(warehouse, OLD, 10, 0, name="hallucination", source="expert", start=SINCE + HOUR)
    found = seen(warehouse, SINCE + 68 * HOUR)
    assert found.verdict == "roll_back"
    assert latest(warehouse, "support") == found


def test_votes_a_day_are_those_on_all_traffic(warehouse: Warehouse) -> None:
    """The former champion, which had no votes before the promotion, answers a third of the traffic for two days."""
    promote(warehouse)
    hours = [(SINCE + hour * HOUR, hour < 48) for hour in range(96)]
    voted(warehouse, *((OLD, False, when, MINUTE, 2) for when, split in hours if split))
    voted(warehouse, *((NEW, False, when, MINUTE, 4 if split else 6) for when, split in hours))
    assert seen(warehouse, SINCE + 96 * HOUR).votes_per_day == pytest.approx(6 * 24)


def test_until_it_is_settled_the_weaker_evidence_counts(warehouse: Warehouse) -> None:
    """The new version is worse than before, and no worse than the other half of the traffic."""
    promote(warehouse)
    rated(warehouse, OLD, 450, 50, start=SINCE - 3 * HOUR)
    for hour in range(4):
        rated(warehouse, NEW, 50, 50, start=SINCE + hour * HOUR)
        rated(warehouse, OLD, 50, 50, start=SINCE + hour * HOUR)
        found = seen(warehouse, SINCE + (hour + 1) * HOUR)
        assert (found.verdict, compared(found).against) == ("go_on", "same_time")


BOTH = ((True, 1), (False, 4))


@pytest.mark.parametrize(
    ("a_day", "first", "before"),
    [(1, 0, True), (60, 0, False), (60, 1, True)],
    ids=["too few to find a fall", "half", "half, but only once it was settled"],
)
def test_a_few_who_still_ask_the_champion_before_are_too_few_to_compare_with(
    warehouse: Warehouse, a_day: int, first: int, before: bool
) -> None:
    promote(warehouse)
    days = [(day, SINCE + day * 24 * HOUR + 8 * HOUR) for day in range(-28, 3)]
    voted(warehouse, *((OLD if day < 0 else NEW, day % 5 == 0, when, MINUTE, 60) for day, when in days))
    voted(warehouse, *((OLD, True, when, MINUTE, a_day) for day, when in days if day >= first))
    found = compared(seen(warehouse, SINCE + 60 * HOUR))
    assert (found.against != "same_time") == before
    counts = (2 * 180, 9 * 60) if before else (180,)  # two weeks hold 500 votes, and nine days do
    assert found.n_before in counts
    assert found.n_after == 180


@pytest.mark.parametrize(
    ("a_day", "text", "has_power"),
    [
        (0, "nobody votes on the answers: the watch can find nothing but slow ones", False),
        (2, "and the watch ends after 14 days (watch.duration_seconds): it would not be found", False),
        (60, "at 60 votes a day a fall of 20 points shows after", True),
    ],
)
def test_it_is_said_from_the_first_hour_what_can_be_found(
    warehouse: Warehouse, a_day: int, text: str, has_power: bool
) -> None:
    promote(warehouse)
    interactions(warehouse, ["?"], random.Random(0), start=SINCE - HOUR, model=OLD, offset=10_000)
    if a_day:
        fifth = max(a_day // 5, 1)
        for bad, n in ((True, fifth), (False, a_day - fifth)):
            voted(warehouse, *((OLD, bad, SINCE + day * 24 * HOUR, MINUTE, n) for day in range(-28, 0)))
    found = seen(warehouse, SINCE + HOUR)
    assert (found.verdict, found.has_power) == ("go_on", has_power)
    assert text in found.reasons[1]
    assert found.votes_per_day == pytest.approx(a_day)
    assert latest(warehouse, "support") == found


def test_what_can_be_found_follows_the_votes_that_come(warehouse: Warehouse) -> None:
    """Sixty votes a day before the promotion, and one a day since."""
    promote(warehouse)
    days = [(day, SINCE + day * 24 * HOUR) for day in range(-28, 5)]
    for bad, n in ((True, 12), (False, 48)):
        voted(warehouse, *((OLD, bad, when, MINUTE, n) for day, when in days if day < 0))
    voted(warehouse, *((NEW, False, when, MINUTE, 1) for day, when in days if day >= 0))
    assert seen(warehouse, SINCE + 20 * HOUR).has_power
    found = seen(warehouse, SINCE + 5 * 24 * HOUR)
    assert not found.has_power
    assert found.votes_per_day == pytest.approx(1)
