"""Satisfaction where votes come late: the newest answers are not yet voted on by those who take their time."""

import pytest
from drift_traffic import late_votes_alarm


@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_who_votes_late_is_no_fall_of_satisfaction(seed: int) -> None:
    """Votes against an answer come after an hour, votes for it after six: a look each eight hours of a quiet day, and
    a look after two days of 20 points less."""
    assert not late_votes_alarm(seed, 6, 1, looks=3)
    assert late_votes_alarm(seed, 6, 1, fall=0.2, looks=1)
