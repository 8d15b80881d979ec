"""The paired comparison of a shadow: its errors by simulation, and what is decided from it."""

import math
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from retuned.consumers.settings import RolloutSettings
from retuned.monitors.rates.sequential import log_e_value_of_mean
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.shadow import Shadow, compare, decide

WATCH = WatchSettings(false_rollback_rate=0.0125)
ROLLOUT = RolloutSettings(shadow=0.1)
DAY = timedelta(days=1)
LOOKS = range(30, 1501, 30)


def drawn(rng: np.random.Generator, worse: float, wins: float, runs: int = 300) -> Any:
    """Losses of the candidate: it wins some conversations, and loses so many more."""
    return rng.choice([-1.0, 0.0, 1.0], (runs, LOOKS[-1]), p=[wins, 1 - 2 * wins - worse, wins + worse])


@pytest.mark.parametrize("wins", [0.0, 0.05, 0.3])
def test_hardly_one_that_uses_up_the_margin_is_shown_to_be_worse_however_often_it_is_looked_at(wins: float) -> None:
    losses = drawn(np.random.default_rng(1), WATCH.margin, wins)
    needed = math.log(1 / WATCH.false_rollback_rate)
    shown = [any(log_e_value_of_mean(one[:n], WATCH.margin) >= needed for n in LOOKS) for one in losses]
    assert np.mean(shown) <= WATCH.false_rollback_rate


def test_one_that_is_20_points_worse_is_shown_to_be_and_never_to_be_as_good() -> None:
    losses = drawn(np.random.default_rng(2), 0.2, 0.05, runs=100)
    rows = [[scored(0.5 + loss / 2, 0.5 - loss / 2) for loss in one] for one in losses]
    found = [compare(one, WATCH).comparison for one in rows]
    assert all(one is not None and one.worse >= 1 for one in found)
    early = [compare(one[:400], WATCH).comparison for one in rows]
    assert np.mean([one is not None and one.worse >= 1 for one in early]) > 0.9
    assert np.mean([one is not None and one.as_good >= 1 for one in found]) <= WATCH.false_rollback_rate


def scored(champion: float, candidate: float, scorer: str = "metric") -> dict[str, Any]:
    return {"scorer": scorer, "champion": champion, "candidate": candidate}


UNKNOWN: dict[str, Any] = {"scorer": "unknown", "champion": None, "candidate": None}


def decided(rows: list[dict[str, Any]], age: timedelta = DAY) -> tuple[str, list[str]]:
    return decide(compare(rows, WATCH), age, ROLLOUT, WATCH)


def test_equal_answers_go_on_once_they_are_enough() -> None:
    rows = [scored(1.0, 1.0, "alike")] * 190 + [scored(0.0, 1.0)] * 5 + [scored(1.0, 0.0)] * 5
    verdict, reasons = decided(rows)
    assert verdict == "advance"
    figures = "bad by scorers: 2% of 200 conversations, to the same questions 2% of 200 conversations"
    assert reasons == [
        "not shown to be worse by more than 5 points",
        f"{figures} (conversations by scorer: alike 190, metric 10)",
    ]
    verdict, reasons = decided(rows, timedelta(hours=3))
    assert (verdict, reasons[0]) == ("hold", "the shadow has lasted 3 hours of 24 hours")
    verdict, reasons = decided(rows[:150])
    assert (verdict, reasons[0]) == ("hold", "150 of 200 conversations are judged")


def test_a_worse_one_is_taken_back_with_the_figures() -> None:
    verdict, reasons = decided([scored(1.0, 0.0, "judge")] * 30 + [scored(1.0, 1.0, "alike")] * 70)
    assert verdict == "roll_back"
    (reason,) = reasons
    assert reason == (
        "bad by scorers: 30% of 100 conversations, to the same questions 0% of 100 conversations: worse by more than "
        "5 points"
    )
    few = [scored(1.0, 0.0)] * (WATCH.minimum_votes - 1)
    assert decided(few)[0] == "hold"


def test_what_nobody_can_judge_counts_against_whatever_it_is_asked_for() -> None:
    alike = [scored(1.0, 1.0, "alike")] * 300
    assert decided(alike)[0] == "advance"
    verdict, reasons = decided([*alike, *[UNKNOWN] * 80])
    assert verdict == "hold"
    assert reasons[0] == "too few are judged to show that it is not 20 points worse"
    assert reasons[-1] == "in 80 more the two differ, and no scorer could decide which is better"
    worse = [scored(1.0, 0.0)] * 30 + [scored(1.0, 1.0)] * 70
    assert decided(worse)[0] == "roll_back"
    assert decided([*worse, *[UNKNOWN] * 500])[0] != "roll_back"


def test_the_time_ends_a_shadow_that_nothing_came_of() -> None:
    verdict, reasons = decided([], timedelta(days=7))
    assert verdict == "advance"
    assert reasons[0].startswith("the time of the shadow is over (7 days, rollout.maximum_seconds)")
    assert reasons[1].startswith("it has given no answer yet: `retuned gateway`")
    assert decided([], timedelta(days=6))[0] == "hold"
    assert compare([], WATCH) == Shadow(None, {})


def test_one_that_leans_to_harm_when_its_time_is_over_meets_no_user() -> None:
    rows = [scored(1.0, 0.0)] * 12 + [scored(1.0, 1.0, "alike")] * 50
    leaning = compare(rows, WATCH).comparison
    assert leaning is not None
    assert 0 < leaning.worse < 1
    assert decided(rows, timedelta(days=6))[0] == "hold"
    verdict, reasons = decided(rows, timedelta(days=7))
    assert verdict == "roll_back"
    assert reasons[0] == (
        "the time of the shadow is over (7 days, rollout.maximum_seconds), and it leans towards worse by more than 5 "
        "points, without proof:"
    )


def test_one_that_gave_no_answer_at_all_beside_a_busy_champion_meets_no_user() -> None:
    def verdict(days: int, champion_answers: int, rows: list[dict[str, Any]] | None = None) -> str:
        return decide(compare(rows or [], WATCH), days * DAY, ROLLOUT, WATCH, champion_answers)[0]

    assert verdict(7, 2_000) == "roll_back"
    assert verdict(7, 1_999) == "advance"  # of which a tenth is to be asked: too few to tell
    assert verdict(6, 1_000_000) == "hold"
    assert verdict(7, 2_000, [scored(1.0, 1.0)]) == "advance"
    _, reasons = decide(compare([], WATCH), 7 * DAY, ROLLOUT, WATCH, 2_000)
    assert reasons[:2] == [
        "the champion gave 2,000 answers meanwhile",
        "it has given no answer yet: `retuned gateway`, or apps that send shadow_answer, have to ask it",
    ]
