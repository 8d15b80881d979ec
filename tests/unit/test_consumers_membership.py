"""Who of several members of a consumer group gives way."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from kafka.errors import CoordinatorNotAvailableError

from retuned.consumers.errors import BrokerUnavailable, Fenced
from retuned.consumers.kafka import membership as membership_module
from retuned.consumers.kafka.member_file import MemberFile
from retuned.consumers.kafka.membership import (
    ENDED_SECONDS,
    LATE_SECONDS,
    LOOK_SECONDS,
    LOWER_SECONDS,
    OWNER_SECONDS,
    Membership,
)
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


def test_nobody_joins_a_group_in_which_somebody_is(membership: Membership) -> None:
    patience = membership._settings.session_timeout_seconds + ENDED_SECONDS
    assert not membership.is_free(ALONE, 0)
    assert "'g': another consumer (at 10.0.0.1)" in membership.waiting_for
    assert not membership.is_free(BOTH, patience - 1)
    with pytest.raises(Fenced, match=r"'g': another consumer \(at 10.0.0.1\).*one daemon for each group"):
        membership.is_free(ALONE, patience)


def test_a_group_is_joined_once_the_session_of_one_who_was_killed_has_ended(membership: Membership) -> None:
    assert not membership.is_free(ALONE, 0)
    assert membership.is_free({}, 31)
    assert membership.waiting_for == ""
    assert not membership.is_free(ALONE, 100)  # counted anew
    assert not membership.is_free(ALONE, 131)


class Group:
    """The broker's answers, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.members: dict[str, str] | None = ALONE
        self.now, self.asked = 100.0, 0
        monkeypatch.setattr(membership_module, "group_members", self.answer)
        monkeypatch.setattr(membership_module.time, "monotonic", lambda: self.now)

    def answer(self, settings: KafkaSettings) -> dict[str, str] | None:
        assert settings.group_id == "g"
        self.asked += 1
        if self.members is None:
            raise BrokerUnavailable("away")
        return self.members


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Group:
    return Group(monkeypatch)


def test_the_broker_is_asked_once_after_each_assignment(membership: Membership, group: Group) -> None:
    membership.check("a")
    assert group.asked == 0
    for asked in (1, 2):
        membership.assigned()
        group.now += LOOK_SECONDS
        for _ in range(3):
            membership.check("a")
            group.now += LOOK_SECONDS
        assert group.asked == asked


@pytest.mark.parametrize("members", [BOTH, None])
def test_it_is_asked_again_until_this_one_is_alone_and_not_too_often(
    membership: Membership, group: Group, members: dict[str, str] | None
) -> None:
    membership.assigned()
    group.members = members
    for asked, seconds in ((1, 0.0), (1, LOOK_SECONDS - 0.25), (2, 0.25), (3, LOOK_SECONDS)):
        group.now += seconds
        membership.check("b")
        assert group.asked == asked
    group.members = ALONE
    for _ in range(3):
        group.now += LOOK_SECONDS
        membership.check("a")
    assert group.asked == 4


def test_who_is_not_alone_for_too_long_gives_way(membership: Membership, group: Group) -> None:
    membership.assigned()
    group.members = BOTH
    membership.check("b")
    group.now += LATE_SECONDS
    with pytest.raises(Fenced):
        membership.check("b")


def test_an_assignment_while_the_broker_answers_is_looked_at_too(
    membership: Membership, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    membership.assigned()
    answer = group.answer

    def assigned_meanwhile(settings: KafkaSettings) -> dict[str, str]:
        membership.assigned()
        return answer(settings)

    monkeypatch.setattr(membership_module, "group_members", assigned_meanwhile)
    membership.check("a")
    monkeypatch.setattr(membership_module, "group_members", answer)
    group.now += LOOK_SECONDS
    membership.check("a")
    assert group.asked == 2


def test_the_log_names_who_is_there_once_and_when_it_has_gone(
    membership: Membership, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        for members in (ALONE, ALONE, BOTH, BOTH, ALONE, ALONE):
            membership.is_alone("a", members, 0)
    warned, gone = caplog.messages
    assert "'g'" in warned
    assert "10.0.0.2" in warned
    assert "'g'" in gone


def test_the_member_of_the_process_before_is_known_by_the_file_that_it_had_locked(tmp_path: Path) -> None:
    locked = tmp_path / "w.duckdb"
    locked.write_bytes(b"1")
    assert MemberFile(locked).read() is None
    MemberFile(locked).write("a")
    assert MemberFile(locked).read() == "a"
    MemberFile(locked).write("b")
    assert MemberFile(locked).read() == "b"
    # A copy is another file, of which somebody else may be at work.
    copied = tmp_path / "copy"
    shutil.copytree(tmp_path, copied)
    assert (copied / "w.duckdb.member").exists()
    assert MemberFile(copied / "w.duckdb").read() is None
    for broken in ("", "[]", "{", '{"member": "a"}'):
        (tmp_path / "w.duckdb.member").write_text(broken)
        assert MemberFile(locked).read() is None


def test_what_a_killed_daemon_left_in_the_group_is_removed(
    tmp_path: Path, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []

    def remove(settings: KafkaSettings, member: str) -> None:
        assert settings.group_id == "g"
        removed.append(member)

    monkeypatch.setattr(membership_module, "remove_member", remove)
    file = MemberFile(tmp_path)
    first = Membership(KafkaSettings(group_id="g"), file)
    first.check("a")
    assert file.read() == "a"
    group.members = dict(ALONE)
    again = Membership(KafkaSettings(group_id="g"), file)
    assert again.may_join()
    assert removed == ["a"]
    again.check("c")
    assert file.read() == "c"
    # Anybody else in it is somebody else.
    group.members = {"b": "/10.0.0.2", "c": "/10.0.0.1"}
    third = Membership(KafkaSettings(group_id="g"), file)
    assert not third.may_join()
    assert removed == ["a", "c"]
    assert "10.0.0.2" in third.waiting_for
    assert "10.0.0.1" not in third.waiting_for


def test_a_broker_that_does_not_know_the_group_yet_is_asked_again(
    membership: Membership, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[dict[str, str] | None] = [None, {}]
    monkeypatch.setattr(membership_module, "group_members", lambda _: answers.pop(0))
    assert not membership.may_join()
    assert not membership.may_join()  # not before a second is over
    group.now += LOOK_SECONDS
    assert membership.may_join()
    assert membership.waiting_for == ""


def test_who_waits_to_join_asks_once_a_second(membership: Membership, group: Group) -> None:
    for asked, seconds in ((1, 0.0), (1, LOOK_SECONDS - 0.25), (2, 0.25)):
        group.now += seconds
        assert not membership.may_join()
        assert group.asked == asked
    group.now += LOOK_SECONDS
    group.members = {}
    assert membership.may_join()
    assert membership.may_join()  # nothing to wait for any more
    assert group.asked == 4


def test_a_cluster_without_groups_is_joined_and_one_that_is_away_is_not(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(cause: Exception | None) -> None:
        def answer(_: KafkaSettings) -> None:
            raise BrokerUnavailable("no coordinator") from cause

        monkeypatch.setattr(membership_module, "group_members", answer)

    refuse(CoordinatorNotAvailableError())
    assert membership.may_join()
    refuse(TimeoutError())
    with pytest.raises(BrokerUnavailable, match="no coordinator"):
        membership.may_join()


@pytest.mark.parametrize(
    ("error", "known"),
    [
        ("[Error 14] CoordinatorLoadInProgressError: None", None),
        ("[Error 16] NotCoordinatorError: None", None),
        ("[Error 69] GroupIdNotFoundError: None", {}),
        (None, {"m1": "/10.0.0.1"}),
    ],
)
def test_a_broker_that_has_just_started_does_not_know_the_group_yet(
    error: str | None, known: dict[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Admin:
        def describe_groups(self, groups: list[str]) -> dict[str, Any]:
            members = [{"member_id": "m1", "client_host": "/10.0.0.1"}]
            return {group: {"error": error, "members": members} for group in groups}

        def close(self) -> None:
            """Nothing is open."""

    monkeypatch.setattr(membership_module, "connect", lambda *_: Admin())
    assert membership_module.group_members(KafkaSettings()) == known
