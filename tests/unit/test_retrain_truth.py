"""Truth discovery on one question with many votes."""

import random
import time
from datetime import datetime, timedelta

from retuned.retrain.data.truth import Independence, Question, Vote, discover

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
