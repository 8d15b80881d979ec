from dataclasses import replace
from datetime import datetime

import pytest

from retuned.daemon.policy.decision import Evidence, decide
from retuned.daemon.policy.payoff import Money, PastRun, payoff
from retuned.daemon.policy.ratings import Ratings
from retuned.daemon.settings import PolicySettings

NOW = datetime(2026, 3, 1, 12)
SETTINGS = PolicySettings(new_corrections=100, payback_days=10)
# 1,000 answers in 10 days, 800 of them right, earned 40: 0.05 each.
MONEY = Money(
    currency="EUR",
    gains=40.0,
    days=10.0,
    answers=1_000,
    ratings=Ratings(80, 100),
    hourly_rate=2.0,
    runs=(PastRun(corrections=100, seconds=3_600.0, promoted=True, before=0.2, after=0.8),),
)


def evidence(money: Money | None = MONEY, **changes: object) -> Evidence:
    asked: dict[str, object] = {"corrections_to_learn": 100, "new_corrections": 100, "untried_corrections": 100}
    return Evidence(money=money, **(asked | changes))  # type: ignore[arg-type]


def test_the_formula() -> None:
    found = payoff(MONEY, Ratings(0, 0), 100, days=10.0, minimum_ratings=30)
    assert found is not None
    assert found.value_of_answer == pytest.approx(40 / 800)
    assert found.rise == pytest.approx(0.2 * (0.75 + 0.5) / 2)  # three quarters were mended; the prior is a half
    assert found.chance == pytest.approx(2 / 3)
    assert found.gain == pytest.approx(100 * 0.125 * 0.05 * 10 * 2 / 3)
    assert (found.hours, found.cost) == (1.0, 2.0)
    assert found.pays


def test_the_latest_ratings_tell_how_much_is_wrong_where_there_are_enough() -> None:
    for latest, wrong in ((Ratings(15, 30), 0.5), (Ratings(0, 29), 0.2)):
        found = payoff(MONEY, latest, 100, days=10.0, minimum_ratings=30)
        assert found is not None
        assert found.rise == pytest.approx(wrong * 0.625)


def test_the_time_follows_the_trend_of_past_runs() -> None:
    def hours(corrections: int, *runs: tuple[int, float]) -> float:
        past = tuple(PastRun(learned, seconds, promoted=False) for learned, seconds in runs)
        found = payoff(replace(MONEY, runs=past), Ratings(0, 0), corrections, days=10.0, minimum_ratings=30)
        assert found is not None
        return found.hours

    assert hours(200, (100, 3_600.0)) == 2.0
    assert hours(10, (100, 3_600.0)) == 1.0  # loading and evaluation take their time whatever there is to learn
    assert hours(400, (100, 3_600.0), (200, 5_400.0)) == pytest.approx(2.5)
    assert hours(0, (100, 3_600.0), (200, 5_400.0)) == 1.0
    assert hours(400, (100, 5_400.0), (200, 3_600.0)) == pytest.approx(1.25)  # no trend: the mean


def test_the_policy_refuses_what_does_not_pay_and_says_why_in_figures() -> None:
    dear = replace(MONEY, hourly_rate=20.0)
    decision = decide(evidence(dear), SETTINGS, NOW)
    assert not decision.retrain
    assert decision.reasons == (
        "100 new corrections",
        "but it does not pay: a gain of 4.17 EUR is expected within 10 days (100 answers a day, 12.5% more of them "
        "right, each worth 0.0500, promoted with a chance of 67%) at a cost of 20.00 (1.00 hours)",
    )
    assert decision.payoff is not None
    longer = SETTINGS.model_copy(update={"payback_days": 50.0})
    assert decide(evidence(dear), longer, NOW).retrain


@pytest.mark.parametrize(
    ("changes", "enabled"),
    [({}, True), ({}, False), ({"new_corrections": 0}, True), ({"running": True}, True), ({"asked_by": "anna"}, True)],
)
def test_every_decision_has_what_a_run_would_bring(changes: dict[str, object], enabled: bool) -> None:
    expected = payoff(MONEY, Ratings(0, 0), 100, days=10.0, minimum_ratings=30)
    settings = SETTINGS.model_copy(update={"enabled": enabled})
    assert decide(evidence(MONEY, **changes), settings, NOW).payoff == expected


def test_what_pays_is_told_too() -> None:
    decision = decide(evidence(), SETTINGS, NOW)
    assert decision.retrain
    assert decision.reasons[-1].startswith("it pays: a gain of 4.17 EUR is expected within 10 days")


def test_runs_that_were_never_promoted_make_the_next_one_a_worse_bet() -> None:
    failed = PastRun(corrections=100, seconds=3_600.0, promoted=False, before=0.5, after=0.4)
    assert decide(evidence(), SETTINGS, NOW).retrain
    assert not decide(evidence(replace(MONEY, runs=(failed,) * 8)), SETTINGS, NOW).retrain


def test_a_person_outranks_the_money_and_is_told() -> None:
    decision = decide(evidence(replace(MONEY, hourly_rate=20.0), asked_by="an operator"), SETTINGS, NOW)
    assert decision.retrain
    assert decision.reasons[-1].startswith("though it does not pay: a gain of 4.17 EUR")


@pytest.mark.parametrize(
    "silent",
    [
        None,
        replace(MONEY, hourly_rate=0.0),  # no hour costs
        replace(MONEY, gains=0.0, hourly_rate=1e6),  # no answer earns, or no rate is configured
        replace(MONEY, runs=(), hourly_rate=1e6),  # what a run costs, the first one tells
        replace(MONEY, ratings=Ratings(29, 29), hourly_rate=1e6),
        replace(MONEY, ratings=Ratings(0, 100), hourly_rate=1e6),  # what a right answer is worth, nobody knows
        replace(MONEY, answers=0, hourly_rate=1e6),
    ],
)
def test_where_money_tells_nothing_it_stands_against_nothing(silent: Money | None) -> None:
    decision = decide(evidence(silent), SETTINGS, NOW)
    assert (decision.retrain, decision.reasons, decision.payoff) == (True, ("100 new corrections",), None)
