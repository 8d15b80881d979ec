from datetime import datetime, timedelta

import numpy as np
import pytest

from retuned.daemon.policy.decision import Decision, Evidence, decide
from retuned.daemon.policy.fall import find_fall
from retuned.daemon.policy.ratings import YEAR, Ratings
from retuned.daemon.settings import PolicySettings

NOW = datetime(2026, 3, 1, 12)
SETTINGS = PolicySettings(drift_checks=2, helpful_rate_drop=0.1, minimum_ratings=30, new_corrections=100)


def evidence(**changes: object) -> Evidence:
    quiet: dict[str, object] = {"corrections_to_learn": 60, "untried_corrections": 60, "new_corrections": 60}
    return Evidence(**(quiet | changes))  # type: ignore[arg-type]


def test_quiet_is_a_no() -> None:
    assert decide(evidence(), SETTINGS, NOW) == Decision(False, ("no reason to retrain",))
    running = evidence(running=True)
    assert decide(running, SETTINGS, NOW) == Decision(False, ("a run is under way or queued",))


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
        once = decide(evidence(drifted=drifted), SETTINGS.model_copy(update={"drift_checks": 1}), NOW)
        assert once.reasons == ("drift in the latest check",)


@pytest.mark.parametrize(
    ("before", "now", "retrain"),
    [
        (Ratings(180, 200), Ratings(120, 200), True),
        (Ratings(1_800, 2_000), Ratings(1_650, 2_000), False),  # a smaller drop than the configured one
        (Ratings(24, 30), Ratings(20, 30), False),  # a drop that chance explains
        (Ratings(29, 29), Ratings(0, 100), False),  # too few ratings before
        (Ratings(100, 100), Ratings(0, 29), False),  # too few ratings now
        (Ratings(60, 100), Ratings(90, 100), False),  # a rise
        (Ratings(0, 100), Ratings(0, 100), False),
        (Ratings(30, 30), Ratings(0, 30), True),  # as few ratings as may be
        (Ratings(9_000, 10_000), Ratings(8_500, 10_000), False),  # beyond chance, and too small a drop
        (Ratings(90, 100), Ratings(77, 100), False),  # once in 140 looks by chance, and there are many looks
        (Ratings(320, 400), Ratings(60, 100), False),  # evidence enough for one beginning, and there are 365
        (Ratings(320, 400), Ratings(120, 200), False),  # a fall for sure, and not surely by more than days differ
        (Ratings(320, 400), Ratings(170, 300), True),
    ],
)
def test_a_fall_of_the_helpful_rate_counts_beyond_chance(before: Ratings, now: Ratings, retrain: bool) -> None:
    decision = decide(evidence(ratings=(before, now)), SETTINGS, NOW)
    assert decision.retrain is retrain
    assert len(decision.reasons) == 1
    if retrain:
        then, latest = f"{before.rate:.0%} ({before.total} ratings)", f"{now.rate:.0%} ({now.total} ratings)"
        assert decision.reasons == (f"the helpful rate fell from {then} to {latest}",)


def test_a_fall_is_counted_from_its_beginning() -> None:
    good, bad = Ratings(48, 60), Ratings(36, 60)
    decision = decide(evidence(ratings=(*[good] * 300, *[bad] * 5)), SETTINGS, NOW)
    assert decision.reasons == ("the helpful rate fell from 80% (18000 ratings) to 60% (300 ratings)",)


def test_a_small_fall_is_not_made_a_large_one_by_its_latest_day() -> None:
    known = (Ratings(8_000, 10_000), Ratings(7_150, 10_000), Ratings(30, 60))
    assert not decide(evidence(ratings=known), SETTINGS, NOW).retrain


def test_a_fall_that_is_over_is_no_reason() -> None:
    good, bad = Ratings(48, 60), Ratings(36, 60)
    assert not decide(evidence(ratings=(*[good] * 30, *[bad] * 5, *[good] * 15)), SETTINGS, NOW).retrain


def test_the_configured_drop_is_enough() -> None:
    fell = evidence(ratings=(Ratings(750, 1_000), Ratings(500, 1_000)))
    assert decide(fell, SETTINGS.model_copy(update={"helpful_rate_drop": 0.25}), NOW).retrain
    assert not decide(fell, SETTINGS.model_copy(update={"helpful_rate_drop": 0.26}), NOW).retrain
    same = evidence(ratings=(Ratings(100, 100), Ratings(100, 100)))
    assert not decide(same, SETTINGS.model_copy(update={"helpful_rate_drop": 0.0}), NOW).retrain


@pytest.mark.full
@pytest.mark.parametrize("per_day", [40, 75])
def test_ratings_that_did_not_fall_are_found_to_have_fallen_in_few_years(per_day: int) -> None:
    """Looked at each day; the weeks have a cycle of 3 points either way, and days differ by 2 points."""
    luck, found = np.random.default_rng(per_day), 0
    for _ in range(5):
        totals = luck.poisson(per_day, YEAR)
        rates = 0.8 + 0.03 * np.cos(2 * np.pi * np.arange(YEAR) / 7) + luck.normal(0, 0.02, YEAR)
        year = [Ratings(int(luck.binomial(n, rate)), int(n)) for n, rate in zip(totals, rates, strict=True)]
        found += any(find_fall(year[:day], 0.1, 30) for day in range(2, YEAR + 1))
    assert not found


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
    assert decide(evidence(drifted=(True, True), corrections_to_learn=40), SETTINGS, NOW).retrain
    decision = decide(evidence(drifted=(True, True), corrections_to_learn=39), SETTINGS, NOW)
    assert decision.retrain is False
    assert decision.reasons[-1] == "but there is too little to learn: 39 new corrections of 40 needed"


def test_the_same_corrections_are_not_tried_twice() -> None:
    decision = decide(evidence(drifted=(True, True), new_corrections=0, untried_corrections=0), SETTINGS, NOW)
    assert not decision.retrain
    assert decision.reasons[-1] == "but nothing new was learned since the last run"
    assert decision.lacks_labels


def test_after_a_version_was_taken_back_as_much_must_be_new_as_for_a_first_run() -> None:
    few = evidence(drifted=(True, True), taken_back=True, untried_corrections=39, corrections_to_learn=200)
    decision = decide(few, SETTINGS, NOW)
    assert not decision.retrain
    assert decision.reasons[-1].endswith("too little is new since: 39 corrections of 40 needed")
    assert decide(evidence(drifted=(True, True), taken_back=True, untried_corrections=50), SETTINGS, NOW).retrain
    assert decide(
        evidence(drifted=(True, True), untried_corrections=1, corrections_to_learn=200), SETTINGS, NOW
    ).retrain


@pytest.mark.parametrize(("refused", "times"), [(1, 1), (2, 2), (3, 4), (9, 16)])
def test_each_run_that_is_not_promoted_doubles_what_must_be_new(refused: int, times: int) -> None:
    needed = times * SETTINGS.minimum_corrections
    worn = {"drifted": (True, True), "refused_runs": refused, "corrections_to_learn": 5_000}
    decision = decide(evidence(untried_corrections=needed - 1, **worn), SETTINGS, NOW)
    assert not decision.retrain
    assert decision.lacks_labels
    assert f"too little is new since: {needed - 1} corrections of {needed} needed" in decision.reasons[-1]
    assert decide(evidence(untried_corrections=needed, **worn), SETTINGS, NOW).retrain
    asked = decide(evidence(untried_corrections=0, asked_by="an operator", **worn), SETTINGS, NOW)
    assert asked.retrain


@pytest.mark.parametrize(("refused", "hours"), [(0, 1), (1, 2), (3, 8), (20, 7 * 24), (5_000, 7 * 24)])
def test_each_run_that_is_not_promoted_doubles_the_cool_down(refused: int, hours: int) -> None:
    many = {"drifted": (True, True), "refused_runs": refused, "untried_corrections": 5_000}
    ended = NOW - timedelta(hours=hours)
    early = decide(evidence(last_run_finished_at=ended + timedelta(seconds=1), **many), SETTINGS, NOW)
    assert "cool-down" in early.reasons[-1]
    assert not early.lacks_labels
    assert decide(evidence(last_run_finished_at=ended, **many), SETTINGS, NOW).retrain


@pytest.mark.parametrize(
    ("refused", "failed", "hours", "after"),
    [
        (0, 1, 2, "the last run failed"),
        (0, 3, 8, "the last 3 runs failed"),
        (1, 2, 8, "the last run was not promoted, and 2 failed since"),
        (0, 5_000, 7 * 24, "the last 5000 runs failed"),
    ],
)
def test_each_run_that_fails_doubles_the_cool_down_and_not_what_must_be_new(
    refused: int, failed: int, hours: int, after: str
) -> None:
    worn = {"drifted": (True, True), "refused_runs": refused, "failed_runs": failed, "untried_corrections": 40}
    ended = NOW - timedelta(hours=hours)
    early = decide(evidence(last_run_finished_at=ended + timedelta(seconds=1), **worn), SETTINGS, NOW)
    assert early.reasons[-1].endswith(f", after {after}")
    assert decide(evidence(last_run_finished_at=ended, **worn), SETTINGS, NOW).retrain


def test_an_erasure_asks_at_once_and_again_after_the_cool_down_of_a_run_since() -> None:
    hour = timedelta(seconds=SETTINGS.cooldown_seconds)
    off = SETTINGS.model_copy(update={"enabled": False})
    for finished, retrain in ((-hour, True), (timedelta(), True), (timedelta(seconds=1), False), (hour, False)):
        asked = evidence(erased_at=NOW, last_run_finished_at=NOW + finished)
        decision = decide(asked, off, NOW + max(finished, timedelta()))
        assert (decision.retrain, decision.postponed) == (retrain, not retrain), finished
        assert decision.reasons[0] == "the champion learned rows that were erased on 2026-03-01"
        assert decide(asked, off, NOW + finished + hour).retrain
    paused = decide(evidence(erased_at=NOW, paused="retraining is paused"), off, NOW)
    assert (paused.retrain, paused.reasons[1:]) == (False, ("but retraining is paused",))


def test_a_version_that_may_replace_the_erased_champion_holds_further_runs_back() -> None:
    answer = "support@2, which did not learn them, waits for approval"
    asked = evidence(erased_at=NOW, erased_answer=answer, scheduled=True)
    decision = decide(asked, SETTINGS, NOW)
    assert not decision.retrain
    assert decision.postponed  # so that the scheduled time is not missed
    assert decision.reasons[-1] == f"but {answer}"
    assert decide(evidence(erased_answer=answer, drifted=(True, True)), SETTINGS, NOW).retrain
    assert decide(evidence(erased_at=NOW, erased_answer=answer, asked_by="anna"), SETTINGS, NOW).retrain
    left = decide(evidence(erased_at=NOW, erased_left=True), SETTINGS, NOW)
    assert left.reasons == ("the champion before, which left service, learned rows that were erased on 2026-03-01",)


def test_a_run_has_an_erasure_as_its_cause_only_where_nothing_else_asks_for_it() -> None:
    def cause(**found: object) -> str:
        decision = decide(evidence(**found), SETTINGS, NOW)
        assert decision.retrain
        return decision.cause

    assert cause(erased_at=NOW) == "erasure"
    assert cause(erased_at=NOW, drifted=(True, True)) == cause(drifted=(True, True)) == "policy"
    assert cause(erased_at=NOW, asked_by="ann") == "person"


def test_cool_down_ends_at_its_time() -> None:
    ended = NOW - timedelta(seconds=SETTINGS.cooldown_seconds)
    early = evidence(drifted=(True, True), last_run_finished_at=ended + timedelta(seconds=1))
    assert f"the cool-down lasts until {NOW:%Y-%m-%d %H:%M} UTC" in decide(early, SETTINGS, NOW).reasons[-1]
    assert decide(evidence(drifted=(True, True), last_run_finished_at=ended), SETTINGS, NOW).retrain


def test_never_two_runs_at_once() -> None:
    assert decide(evidence(drifted=(True, True), running=True), SETTINGS, NOW).reasons[-1] == "but a run is under way"
    assert not decide(evidence(drifted=(True, True), running=True, untried_corrections=0), SETTINGS, NOW).lacks_labels


def test_switched_off_it_never_retrains_by_itself() -> None:
    off = SETTINGS.model_copy(update={"enabled": False})
    decision = decide(evidence(drifted=(True, True), new_corrections=500), off, NOW)
    assert decision.retrain is False
    assert len(decision.reasons) == 1
    assert decide(evidence(asked_by="an operator"), off, NOW).retrain


def test_a_person_outranks_cool_down_and_counts() -> None:
    asked = evidence(asked_by="an operator", corrections_to_learn=0, last_run_finished_at=NOW)
    assert decide(asked, SETTINGS, NOW) == Decision(True, ("asked for by an operator",), cause="person")
