"""Scores of memorised answers, on answers whose scores are known."""

import pytest
from membership import Scores, figures, scores


def test_an_answer_that_the_model_repeats_from_its_middle_on_is_half_extracted() -> None:
    found = scores([-1.0, -2.0, -4.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, -0.5], [True] * 4 + [False] + [True] * 5)
    assert found == Scores(-0.8, -3.0, 0.9, 0.5)


@pytest.mark.parametrize(
    ("is_first", "strength"), [([True, True, True, True], 1.0), ([True, True, True, False], 0.25), ([False] * 4, 0.25)]
)
def test_no_prefix_is_the_whole_answer(is_first: list[bool], strength: float) -> None:
    assert scores([-1.0] * 4, is_first).extraction_strength == strength


def test_answers_that_cannot_be_told_apart_are_at_chance_and_others_are_not() -> None:
    def person(level: float) -> list[Scores]:
        return [Scores(level + n / 100, level + n / 100, 0.5, 0.25) for n in range(4)]

    alike = figures([person(0.0), person(0.1)], [person(0.0), person(0.1)])
    assert alike["membership_auc"] == alike["min_k_auc"] == 0.5
    assert alike["membership_auc_low"] < 0.5 < alike["membership_auc_high"]
    assert (alike["exact_memorisation"], alike["extraction_strength"]) == (0.5, 0.25)
    apart = figures([person(2.0), person(2.1)], [person(0.0), person(0.1)])
    assert (apart["membership_auc"], apart["membership_auc_low"]) == (1.0, 1.0)
