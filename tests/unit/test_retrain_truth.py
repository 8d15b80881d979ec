"""Truth discovery on one question with many votes."""

import random
import time
from datetime import datetime, timedelta

import pytest

from retuned.retrain.data.truth import Independence, Kind, Question, Verdict, Vote, discover

START = datetime(2026, 1, 1)


def contested(votes: int, claims: int) -> Question:
    """A question with claims that contradict each other, each with votes at any time."""
    rng = random.Random(1)
    given = [
        Vote(f"v{number}", f"a{number}", rng.randrange(claims), START + timedelta(hours=number), "correction")
        for number in range(votes)
    ]
    return Question(given, [frozenset(range(claims)) - {claim} for claim in range(claims)])


def seconds(question: Question) -> float:
    began = time.process_time()
    discover([question], Independence())
    return time.process_time() - began


def test_four_times_the_votes_and_claims_of_a_question_take_at_most_sixteen_times_as_long() -> None:
    few = min(seconds(contested(1_500, 25)) for _ in range(3))
    assert seconds(contested(6_000, 100)) < 20 * few


def test_an_expert_among_thousands_of_votes_costs_no_more() -> None:
    question = contested(6_000, 2)
    usual = min(seconds(contested(6_000, 2)) for _ in range(3))
    votes = [*question.votes, Vote("e", "expert", 0, START, "correction", trusted=True)]
    decided = Question(votes, question.rivals)
    assert discover([decided], Independence()).verdicts[0].by_expert
    assert min(seconds(Question(votes, question.rivals)) for _ in range(3)) < 1.5 * usual


Said = tuple[int, str, int, Kind]
"""The day, the account, the claim and the kind of a vote."""


def decided(*said: Said) -> Verdict:
    """The verdict on one question with two claims."""
    votes = [
        Vote(str(number), account, claim, START + timedelta(days=day), kind)
        for number, (day, account, claim, kind) in enumerate(said)
    ]
    (verdict,) = discover([Question(votes, [frozenset({1}), frozenset({0})])], Independence()).verdicts
    return verdict


def test_the_last_word_of_an_account_on_an_answer_counts() -> None:
    liked: Said = (1, "ann", 0, "accepted")
    assert decided(liked).claim == 0
    assert decided(liked, (2, "ann", 0, "declined")).claim is None
    again = decided(liked, (2, "ann", 0, "declined"), (3, "ann", 0, "accepted"))
    assert again == decided(liked)
    # It calls an answer wrong, and likes another one: both count.
    both = decided((0, "ben", 0, "accepted"), liked, (2, "ann", 1, "accepted"), (3, "ann", 0, "declined"))
    assert both.claim == 1


@pytest.mark.parametrize("accounts", [1, 3])
def test_of_answers_that_are_given_at_the_same_time_none_has_replaced_the_other(accounts: int) -> None:
    said: list[Said] = [(0, f"a{claim}{number}", claim, "correction") for claim in (0, 1) for number in range(accounts)]
    assert decided(*said).claim is None
    assert decided(*reversed(said)).claim is None


def test_denials_of_the_old_answer_before_the_first_new_one_speak_for_a_change() -> None:
    before: list[Said] = [(0, "ann", 0, "accepted"), (1, "ben", 0, "accepted")]
    denied: list[Said] = [(40 + number, f"c{number}", 0, "declined") for number in range(4)]
    after: list[Said] = [(50, "dan", 1, "correction"), (51, "eve", 1, "correction"), (52, "fay", 1, "accepted")]
    changed = decided(*before, *denied, *after)
    assert (changed.claim, changed.before) == (1, 0)
    assert changed.probability >= decided(*before, *after).probability


def test_denials_of_the_new_answer_count_against_the_change_once_it_is_given() -> None:
    before: list[Said] = [(0, "ann", 0, "accepted"), (1, "ben", 0, "accepted")]
    after: list[Said] = [(50, "dan", 1, "correction"), (51, "eve", 1, "correction")]
    early: list[Said] = [(2, f"c{number}", 1, "declined") for number in range(4)]
    late: list[Said] = [(60, f"c{number}", 1, "declined") for number in range(4)]
    usual = decided(*before, *after)
    assert usual.claim == decided(*before, *early, *after).claim == 1
    assert decided(*before, *early, *after).probability == pytest.approx(usual.probability, abs=0.05)
    assert decided(*before, *after, *late).claim == 0
