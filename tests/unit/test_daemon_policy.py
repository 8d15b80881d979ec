from datetime import datetime, timedelta

import pytest

from retuned.daemon.policy.decision import Decision, Evidence, decide
from retuned.daemon.policy.payoff import Ratings
from retuned.daemon.settings import PolicySettings

NOW = datetime(2026, 3, 1, 12)
SETTINGS = PolicySettings(drift_checks=2, helpful_rate_drop=0.1, minimum_ratings=30, new_corrections=100)


def evidence(**changes: object) -> Evidence:
    quiet: dict[str, object] = {"corrections_to_learn": 60, "untried_corrections": 60, "new_corrections": 60}
    return Evidence(**(quiet | changes))  # type: ignore[arg-type]


def test_quiet_is_a_no() -> None:
    assert decide(evidence(), SETTINGS, NOW) == Decision(False, ("no reason to retrain",))


@pytest.mark.parametrize(
    ("drifted", "retrain"),
    [
        ((True, True), True),
        ((True, True, False), True),
        ((True, False), False),
        ((True,), False),
        ((True, None), False),
    ],
)
def test_drift_counts_when_it_holds(drifted: tuple[bool | None, ...], retrain: bool) -> None:
    decision = decide(evidence(drifted=drifted), SETTINGS, NOW)
    assert decision.retrain is retrain
    if retrain:
        assert decision.reasons == ("drift in each of the latest 2 checks",)


@pytest.mark.parametrize(
    ("before", "now", "retrain"),
    [
        (Ratings(90, 100), Ratings(60, 100), True),
        (Ratings(90, 100), Ratings(85, 100), False),  # a smaller drop than the configured one
        (Ratings(24, 30), Ratings(20, 30), False),  # a drop that chance explains
        (Ratings(29, 29), Ratings(0, 100), False),  # too few ratings before
        (Ratings(100, 100), Ratings(0, 29), False),  # too few ratings now
        (Ratings(60, 100), Ratings(90, 100), False),  # a rise
        (Ratings(0, 100), Ratings(0, 100), False),
        (Ratings(30, 30), Ratings(0, 30), True),  # as few ratings as may be
        (Ratings(9_000, 10_000), Ratings(8_500, 10_000), False),  # beyond chance, and too small a drop
        (Ratings(90, 100), Ratings(77, 100), True),  # a chance of 0.7%
        (Ratings(90, 100), Ratings(78, 100), False),  # of 1.05%
    ],
)
def test_a_fall_of_the_helpful_rate_counts_beyond_chance(before: Ratings, now: Ratings, retrain: bool) -> None:
    decision = decide(evidence(ratings_before=before, ratings_now=now), SETTINGS, NOW)
    assert decision.retrain is retrain
    assert len(decision.reasons) == 1
    if retrain:
        then, latest = f"{before.rate:.0%} ({before.total} ratings)", f"{now.rate:.0%} ({now.total} ratings)"
        assert decision.reasons == (f"the helpful rate fell from {then} to {latest}",)


def test_the_configured_drop_is_enough() -> None:
    fell = evidence(ratings_before=Ratings(75, 100), ratings_now=Ratings(50, 100))
    assert decide(fell, SETTINGS.model_copy(update={"helpful_rate_drop": 0.25}), NOW).retrain
    same = evidence(ratings_before=Ratings(100, 100), ratings_now=Ratings(100, 100))
    assert not decide(same, SETTINGS.model_copy(update={"helpful_rate_drop": 0.0}), NOW).retrain


def test_corrections_count_by_themselves_unless_switched_off() -> None:
    many = evidence(new_corrections=100, corrections_to_learn=100)
    assert decide(many, SETTINGS, NOW).reasons == ("100 new corrections",)
    never = SETTINGS.model_copy(update={"new_corrections": None})
    assert not decide(many, never, NOW).retrain


def test_every_reason_is_told() -> None:
    decision = decide(evidence(drifted=(True, True), new_corrections=200, scheduled=True), SETTINGS, NOW)
    assert decision.reasons == (
        "drift in each of the latest 2 checks",
        "200 new corrections",
        "the scheduled time has come",
    )


def test_a_reason_waits_for_something_to_learn() -> None:
    assert decide(evidence(drifted=(True, True), corrections_to_learn=50), SETTINGS, NOW).retrain
    decision = decide(evidence(drifted=(True, True), corrections_to_learn=39), SETTINGS, NOW)
    assert decision.retrain is False
    assert decision.reasons[-1] == "but there is too little to learn: 39 new corrections of 40 needed"


def test_the_same_corrections_are_not_tried_twice() -> None:
    decision = decide(evidence(drifted=(True, True), new_corrections=0, untried_corrections=0), SETTINGS, NOW)
    assert not decision.retrain
    assert decision.reasons[-1] == "but nothing new was learned since the last run"


def test_after_a_version_was_taken_back_as_much_must_be_new_as_for_a_first_run() -> None:
    few = evidence(drifted=(True, True), taken_back=True, untried_corrections=39, corrections_to_learn=200)
    decision = decide(few, SETTINGS, NOW)
    assert not decision.retrain
    assert decision.reasons[-1].endswith("too little is new since: 39 corrections of 40 needed")
    assert decide(evidence(drifted=(True, True), taken_back=True, untried_corrections=50), SETTINGS, NOW).retrain
    assert decide(
        evidence(drifted=(True, True), untried_corrections=1, corrections_to_learn=200), SETTINGS, NOW
    ).retrain


def test_cool_down_ends_at_its_time() -> None:
    ended = NOW - timedelta(seconds=SETTINGS.cooldown_seconds)
    early = evidence(drifted=(True, True), last_run_finished_at=ended + timedelta(seconds=1))
    assert "cool-down" in decide(early, SETTINGS, NOW).reasons[-1]
    assert decide(evidence(drifted=(True, True), last_run_finished_at=ended), SETTINGS, NOW).retrain


def test_never_two_runs_at_once() -> None:
    assert decide(evidence(drifted=(True, True), running=True), SETTINGS, NOW).reasons[-1] == "but a run is under way"


def test_switched_off_it_never_retrains_by_itself() -> None:
    off = SETTINGS.model_copy(update={"enabled": False})
    decision = decide(evidence(drifted=(True, True), new_corrections=500), off, NOW)
    assert decision.retrain is False
    assert len(decision.reasons) == 1
    assert decide(evidence(asked_by="an operator"), off, NOW).retrain


def test_a_person_outranks_cool_down_and_counts() -> None:
    asked = evidence(asked_by="an operator", corrections_to_learn=0, last_run_finished_at=NOW)
    assert decide(asked, SETTINGS, NOW) == Decision(True, ("asked for by an operator",))
