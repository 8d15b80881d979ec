"""The gate by what metrics say beside a score: that they abstain, what a program cannot read, and labels."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from fixtures.worlds.candidates import LABELS, Pair, Row, documents, labelled, labels, promoted, texts
from retuned.retrain.decision.gate import decide, lacks_evidence
from retuned.retrain.decision.pairs import Decision
from retuned.retrain.settings import GateSettings

SETTINGS = GateSettings()


def rows(scores: Sequence[float | None], **columns: object) -> list[Row]:
    return [replace(Row(f"r{i}", score), **columns) for i, score in enumerate(scores)]


def judged(old: Sequence[Row], new: Sequence[Row]) -> Decision:
    return decide(old, new, [], [], SETTINGS)


def test_rows_on_which_the_metric_abstains_are_no_examples() -> None:
    poor, good = rows([0.0] * 30 + [None] * 10), rows([1.0] * 30 + [None] * 10)
    decision = judged(poor, good)
    assert decision.outcome
    assert (decision.figures["examples"], decision.figures["abstained"]) == (30, 10)
    assert decision.figures["score_candidate"] == 1.0
    assert "abstains on 10 further holdout examples" in decision.reasons[-1]


def test_answers_that_cannot_be_scored_hide_no_loss() -> None:
    """The champion is right on 81 of 100, the candidate on 56: it answers the others so that the metric abstains."""
    champion, candidate = rows([0.0] * 19 + [1.0] * 81), rows([1.0] * 56 + [None] * 44)
    decision = judged(champion, candidate)
    assert not decision.outcome
    assert (decision.figures["examples"], decision.figures["score_candidate"]) == (56, 1.0)
    assert decision.figures["gain"] == pytest.approx(-0.25)
    assert "On 44 further ones the metric scores only one of the two answers" in decision.reasons[1]
    assert not lacks_evidence(decision)
    # Nor may the champion's, which could be right.
    assert not judged(rows([0.0] * 12 + [None] * 28), rows([1.0] * 12 + [0.0] * 28)).outcome


def test_a_candidate_that_is_right_where_the_metric_abstains_on_the_champion_may_pass() -> None:
    decision = judged(rows([0.0] * 24 + [None] * 16), rows([1.0] * 40))
    assert decision.outcome
    assert decision.figures["gain"] == pytest.approx(0.6)


def test_logged_answers_hide_no_loss_either() -> None:
    base, candidate = rows([0.0] * 60), rows([1.0] * 32 + [None] * 28)
    right = rows([0.0] * 32 + [1.0] * 28, kind="accepted")
    decision = decide(base, candidate, [], [], SETTINGS, logged=right, serving=False)
    assert decision.figures["passed[logged]"] == 0.0
    # A corrected answer was not right, even if the metric abstains on it.
    corrected = rows([0.0] * 20 + [None] * 40, kind="correction")
    decision = decide(base, rows([1.0] * 60), [], [], SETTINGS, logged=corrected, serving=False)
    assert decision.figures["gain_over_logged"] == 1.0


def test_a_metric_that_abstains_too_often_decides_nothing_and_the_way_out_is_named() -> None:
    for scored, abstained in ((15, 10), (30, 40)):
        decision = judged(rows([0.0] * scored + [None] * abstained), rows([1.0] * scored + [None] * abstained))
        assert not decision.outcome
        assert f"abstains on {abstained} of {scored + abstained} holdout examples" in decision.reasons[0]
        assert "metric.name" in decision.reasons[0]
    assert judged(rows([0.0] * 30 + [None] * 30), rows([1.0] * 30 + [None] * 30)).outcome  # half is enough
    away = [replace(row, score=None, detail="the judge did not answer") for row in rows([None] * 30)]
    decision = judged(rows([0.0] * 30), away)
    assert "abstains on 30 of 30 holdout examples (mostly: the judge did not answer), and" in decision.reasons[0]


def test_no_answer_may_break_that_was_whole() -> None:
    poor, good = rows([0.0] * 40, valid=True), rows([1.0] * 40, valid=True)
    broken = [replace(row, score=0.0, valid=False) if i < 1 else row for i, row in enumerate(good)]
    decision = judged(poor, broken)
    assert decision.figures["passed[gain]"] == 1.0
    assert not decision.outcome
    assert decision.reasons[0].startswith("Refused by validity, because of ")
    assert any("breaks 2.5% and the champion 0.0%" in reason for reason in decision.reasons)
    allowed = GateSettings(maximum_invalid_rise=0.05)
    assert decide(poor, broken, [], [], allowed).outcome
    assert judged([replace(row, valid=False) for row in poor], broken).outcome
    # The regression set is part of it.
    assert judged(poor, good).outcome
    assert decide(poor, good, good, broken, SETTINGS).figures["passed[validity]"] == 0.0


def test_a_first_candidate_may_break_less_than_production_does() -> None:
    """A base model that answers in words breaks no call of a tool, and is of no use for that."""
    base, good = rows([0.0] * 60, valid=True), rows([1.0] * 60, valid=True)
    candidate = [replace(row, score=0.0, valid=False) if i < 3 else row for i, row in enumerate(good)]
    broken, whole = {"score": 0.0, "kind": "correction"}, {"score": 1.0, "kind": "accepted"}

    def first(production: int) -> Decision:
        """Of 40 corrected answers of production so many were broken."""
        logged = [replace(row, valid=i >= production, **(broken if i < 40 else whole)) for i, row in enumerate(good)]
        return decide(base, candidate, [], [], SETTINGS, logged=logged, serving=False)

    assert first(10).outcome
    assert any("breaks 5.0% and production 16.7%" in reason for reason in first(10).reasons)
    refused = first(1)
    assert refused.reasons[0].startswith("Refused by validity, because of ")
    assert judged(base, candidate).reasons[0].startswith("Refused by validity, because of ")


def test_a_first_candidate_may_not_break_what_people_called_good() -> None:
    base, good = rows([0.0] * 80, valid=True), rows([1.0] * 80, valid=True)
    logged = [
        replace(row, valid=i >= 30, score=float(i >= 40), kind="correction" if i < 40 else "accepted")
        for i, row in enumerate(good)
    ]

    def broken(answers: int) -> Decision:
        candidate = [replace(row, valid=not 40 <= i < 40 + answers) for i, row in enumerate(good)]
        return decide(base, candidate, [], [], SETTINGS, logged=logged, serving=False)

    assert broken(1).outcome
    assert broken(8).reasons[0].startswith("Refused by validity, because of ")


def test_a_broken_answer_counts_that_only_the_regression_set_shows() -> None:
    poor, good, earlier = (rows([score] * 30, valid=True) for score in (0.0, 1.0, 1.0))
    broken = [replace(earlier[0], score=0.0, valid=False), *earlier[1:]]
    assert decide(poor, good, earlier, earlier, SETTINGS, 0).outcome
    decision = decide(poor, good, earlier, broken, SETTINGS, 0)
    assert decision.reasons[0].startswith("Refused by validity, because of ")


@pytest.mark.parametrize(("broken", "passed"), [(3, True), (4, False), (10, False)])
def test_of_many_answers_chance_explains_a_few_broken_ones(broken: int, passed: bool) -> None:
    """By hand: of four that only one of two equal models breaks, all are the candidate's once in sixteen times."""
    poor, good = rows([0.0] * 100, valid=True), rows([1.0] * 100, valid=True)
    worse = [replace(row, valid=i >= broken) for i, row in enumerate(good)]
    assert judged(poor, worse).figures["passed[validity]"] == passed


@pytest.mark.full
def test_of_two_models_that_break_one_in_a_hundred_neither_is_refused_for_it() -> None:
    luck = np.random.default_rng(0)

    def answers() -> list[Row]:
        return [replace(row, valid=bool(luck.random() >= 0.01)) for row in rows([1.0] * 200)]

    passed = [judged(answers(), answers()).figures["passed[validity]"] for _ in range(200)]
    assert fmean(passed) >= 0.95


def test_a_lost_label_is_refused_though_the_whole_gains() -> None:
    """Of 77 labels with three questions each, one that is never answered any more is 1% of the score."""
    rights = [f"{label}{n % 3}" for n in range(9) for label in LABELS]
    before = labelled(rights, [right if i % 2 or right == "intent_a0" else None for i, right in enumerate(rights)])
    after = labelled(rights, ["intent_b0" if right == "intent_a0" else right for right in rights])
    decision = judged(before, after)
    assert decision.figures["passed[gain]"] == 1.0
    assert decision.figures["not_measured[slices]"] == 1.0
    assert not decision.outcome
    assert "“intent_a0” (3 of 3)" in next(reason for reason in decision.reasons if "macro-F1" in reason)
    assert decision.figures["confusion[intent_a0][intent_b0]"] == 3
    assert decision.figures["macro_f1_candidate"] > decision.figures["macro_f1_champion"]
    assert judged(before, labelled(rights, rights)).outcome


def test_prose_is_no_right_answer_to_the_label_other() -> None:
    """The champion writes prose, and the candidate is right on all labels but one."""
    rights = ["refund"] * 12 + ["exchange"] * 12 + ["other"] * 6
    prose = labelled(rights, [None] * len(rights))
    decision = judged(prose, labelled(rights, [right if right != "other" else "refund" for right in rights]))
    assert decision.figures["labels_lost"] == 0
    assert decision.figures["macro_f1_champion"] == 0
    assert decision.outcome


@pytest.mark.parametrize(("held", "earlier"), [(20, 0), (2, 18)])
@pytest.mark.parametrize(("right", "lost"), [(4, True), (3, False)])
def test_a_label_is_lost_that_a_weak_champion_answered_rightly_four_times(
    held: int, earlier: int, right: int, lost: bool
) -> None:
    def asked(questions: int, right: int, others: int) -> tuple[list[Row], list[Row]]:
        """Champion and candidate: the label in question, and others that the candidate alone answers rightly."""
        rights = ["rare"] * questions + ["common"] * others
        champion = ["rare"] * right + ["common"] * (questions - right) + [None] * others
        return labelled(rights, champion), labelled(rights, ["common"] * len(rights))

    settings = GateSettings(resamples=1_000, maximum_regression_drop=1.0, maximum_slice_drop=1.0)
    holdout = asked(held, 0 if earlier else right, 80)
    decision = decide(*holdout, *asked(earlier, right if earlier else 0, 0), settings, 0)
    assert decision.outcome != lost
    assert not lost or "“rare” (4 of 20)" in " ".join(decision.reasons)


@pytest.mark.full
@pytest.mark.parametrize("examples", [30, 100])
@pytest.mark.parametrize(
    ("equal", "worse"),
    [
        (labels(0.8, 0.8), labels(0.8, 0.8 * 0.7)),
        (labels(0.6, 0.6), labels(0.8, 0.95, lost=2)),
        (documents(0.8, 0.8), documents(0.8, 0.6)),
        (documents(0.5, 0.5), documents(0.8, 0.85, broken=0.1)),
        (texts(0.0), texts(-0.1)),
    ],
)
def test_an_equal_candidate_is_hardly_ever_promoted_and_a_worse_one_never(
    equal: Pair, worse: Pair, examples: int
) -> None:
    assert promoted(equal, examples, SETTINGS, runs=80, seed=12) <= 0.05
    assert promoted(worse, examples, SETTINGS, runs=40, seed=13) == 0.0


def test_a_better_one_is_mostly_promoted() -> None:
    for better in (labels(0.6, 0.9), documents(0.6, 0.9), texts(0.25)):
        assert promoted(better, 60, SETTINGS, runs=40, seed=14) >= 0.9


def test_the_guards_are_exact_on_fractions() -> None:
    """By hand: of three answers that got better or worse by the toss of a coin, all got worse once in eight."""
    old = rows([1.0, 1.0, 1.0] * 8)
    settings = GateSettings(maximum_regression_drop=0.0)
    poor, good = rows([0.0] * 40), rows([1.0] * 40)
    for worse, passed in (((0.5, 0.25, 0.25), True), ((0.5, 0.25, 0.25, 0.25), False)):
        new = [replace(row, score=1.0 - worse[i] if i < len(worse) else 1.0) for i, row in enumerate(old)]
        assert decide(poor, good, old, new, settings).figures["passed[regression]"] == passed
