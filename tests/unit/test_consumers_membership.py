"""Who of several members of a consumer group gives way."""

import pytest

from retuned.consumers.errors import Fenced
from retuned.consumers.kafka.membership import LATE_SECONDS, LOWER_SECONDS, OWNER_SECONDS, Membership
from retuned.consumers.settings import KafkaSettings

ALONE, BOTH = {"a": "/10.0.0.1"}, {"a": "/10.0.0.1", "b": "/10.0.0.2"}


@pytest.fixture
def membership() -> Membership:
    return Membership(KafkaSettings(group_id="g"))


def test_a_daemon_that_is_alone_stays(membership: Membership) -> None:
    assert membership.is_alone("a", ALONE, 0)
    assert membership.is_alone("a", ALONE, 1_000)


def test_who_comes_later_gives_way(membership: Membership) -> None:
    assert not membership.is_alone("b", BOTH, 0)
    assert not membership.is_alone("b", BOTH, LATE_SECONDS - 1)
    with pytest.raises(Fenced, match=r"'g': another consumer \(at 10.0.0.1\).*run one daemon for each group: stop the"):
        membership.is_alone("b", BOTH, LATE_SECONDS)


def test_of_two_that_come_at_once_the_one_with_the_lower_id_stays(membership: Membership) -> None:
    assert not membership.is_alone("a", BOTH, 0)
    assert not membership.is_alone("a", BOTH, LATE_SECONDS + 1)
    assert membership.is_alone("a", ALONE, LATE_SECONDS + 2)
    assert not membership.is_alone("a", BOTH, 100)  # and then another one comes
    assert not membership.is_alone("a", BOTH, 100 + LOWER_SECONDS)


def test_who_was_here_first_stays_for_long_but_not_for_ever(membership: Membership) -> None:
    assert membership.is_alone("b", {"b": ""}, 0)
    assert not membership.is_alone("b", BOTH, 10)
    assert not membership.is_alone("b", BOTH, 10 + LOWER_SECONDS)
    with pytest.raises(Fenced):
        membership.is_alone("b", BOTH, 10 + OWNER_SECONDS)


def test_who_was_away_comes_back_as_the_last(membership: Membership) -> None:
    assert membership.is_alone("a", ALONE, 0)
    back = {"b": "/10.0.0.2", "c": "/10.0.0.1"}
    assert not membership.is_alone("c", back, 100)
    with pytest.raises(Fenced):
        membership.is_alone("c", back, 100 + LATE_SECONDS)
