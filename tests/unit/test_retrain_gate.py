from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from retuned.retrain.gate import bootstrap, decide
from retuned.retrain.settings import GateSettings


@dataclass(frozen=True)
class Row:
    row_id: str
    score: float
    hallucinated: bool | None = False
    latency_seconds: float = 1.0


def rows(
    scores: Sequence[float], *, hallucinated: Sequence[bool | None] | None = None, latency: float = 1.0, name: str = "r"
) -> list[Row]:
    told = hallucinated or [False] * len(scores)
    return [Row(f"{name}{i}", value, told[i], latency) for i, value in enumerate(scores)]


SETTINGS = GateSettings()
POOR, GOOD = rows([0.0] * 30 + [1.0] * 10), rows([0.0] * 4 + [1.0] * 36)


def test_a_clear_gain_passes_with_a_reason_for_each_condition() -> None:
    decision = decide(POOR, GOOD, [], [], SETTINGS, 0)
    assert decision.outcome
    assert len(decision.reasons) == 4
    assert all(reason.endswith(".") for reason in decision.reasons)
    assert "0.900" in decision.reasons[0]
    assert "0.250" in decision.reasons[0]
    assert decision.figures["gain"] == pytest.approx(0.65)


def test_too_few_examples() -> None:
    decision = decide(POOR[:19], GOOD[-19:], [], [], SETTINGS, 0)
    assert not decision.outcome
    assert "20 are needed" in decision.reasons[0]


def test_only_rows_that_both_answered_count() -> None:
    decision = decide(POOR, rows([1.0] * 40, name="other"), [], [], SETTINGS, 0)
    assert decision.figures == {"examples": 0}


def test_a_gain_that_chance_explains_is_refused() -> None:
    lucky = rows([0.0] * 28 + [1.0] * 12)
    wobble = [Row(row.row_id, 1.0 if i % 3 == 0 else 0.0) for i, row in enumerate(lucky)]
    decision = decide(POOR, wobble, [], [], SETTINGS, 0)
    assert decision.figures["gain"] > 0
    assert not decision.outcome
    assert "not surely above" in decision.reasons[0]


def test_the_minimum_gain_is_asked_of_the_lower_end() -> None:
    assert decide(POOR, GOOD, [], [], GateSettings(minimum_gain=0.4), 0).outcome
    assert not decide(POOR, GOOD, [], [], GateSettings(minimum_gain=0.6), 0).outcome


def test_more_hallucinations_are_refused() -> None:
    inventing = rows([row.score for row in GOOD], hallucinated=[True] * 6 + [False] * 34)
    decision = decide(POOR, inventing, [], [], SETTINGS, 0)
    assert not decision.outcome
    assert "hallucinates in 15.0%" in decision.reasons[1]
    assert "+15.0%, surely above the allowed rise of 2.0%" in decision.reasons[1]
    assert decide(POOR, inventing, [], [], GateSettings(maximum_hallucination_rise=0.15), 0).outcome


def test_a_single_hallucination_among_few_is_chance_and_said_so() -> None:
    inventing = rows([row.score for row in GOOD], hallucinated=[True] + [False] * 39)
    decision = decide(POOR, inventing, [], [], SETTINGS, 0)
    assert decision.outcome
    assert "+2.5%, which chance explains, beside the allowed rise of 2.0%" in decision.reasons[1]


def test_rows_where_hallucination_cannot_be_told_do_not_count() -> None:
    unknown = rows([row.score for row in GOOD], hallucinated=[None] * 40)
    decision = decide(POOR, unknown, [], [], SETTINGS, 0)
    assert decision.outcome
    assert "could not be told" in decision.reasons[1]


def test_a_slower_candidate_is_refused() -> None:
    slow = rows([row.score for row in GOOD], latency=1.3)
    decision = decide(POOR, slow, [], [], SETTINGS, 0)
    assert not decision.outcome
    assert "ratio of 1.30, above the allowed 1.25" in decision.reasons[2]


def test_forgetting_is_refused() -> None:
    kept, forgot = rows([1.0] * 20), rows([0.0] * 5 + [1.0] * 15)
    decision = decide(POOR, GOOD, kept, forgot, SETTINGS, 0)
    assert not decision.outcome
    assert "drop of +0.250, surely above the allowed 0.050" in decision.reasons[3]
    assert decide(POOR, GOOD, forgot, kept, SETTINGS, 0).outcome
    one = rows([0.0] * 2 + [1.0] * 18)
    assert "+0.100, which chance explains, beside the allowed" in decide(POOR, GOOD, kept, one, SETTINGS, 0).reasons[3]


def test_one_lost_example_of_one_proves_nothing() -> None:
    kept, forgot = rows([1.0]), rows([0.0])
    decision = decide(POOR, GOOD, kept, forgot, SETTINGS, 0)
    assert decision.outcome
    assert "+1.000, which chance explains, beside the allowed 0.050" in decision.reasons[3]
    four, five = rows([0.0] * 4), rows([0.0] * 5)
    assert decide(POOR, GOOD, rows([1.0] * 4), four, SETTINGS, 0).outcome
    assert not decide(POOR, GOOD, rows([1.0] * 5), five, SETTINGS, 0).outcome


def test_the_bootstrap_covers_the_true_gain_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for i in range(200):
        sample = rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.5, 0.4], size=60)
        low, high = bootstrap(sample, 0.9, 400, i)
        covered += low <= 0.3 <= high
    assert 0.82 <= covered / 200 <= 0.97


def test_the_same_rows_give_the_same_decision() -> None:
    assert decide(POOR, GOOD, [], [], SETTINGS, 3) == decide(POOR, GOOD, [], [], SETTINGS, 3)
