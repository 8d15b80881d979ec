"""Whether a daemon is alone in its consumer group. Two of them would each store a part of the events."""

import logging
import time
from collections.abc import Mapping
from typing import Any

from kafka.admin import KafkaAdminClient, MemberToRemove
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    GroupIdNotFoundError,
    NotCoordinatorError,
)

from retuned.consumers.errors import BrokerUnavailable, Fenced
from retuned.consumers.kafka.connection import client_config, connect, translated
from retuned.consumers.kafka.member_file import MemberFile
from retuned.consumers.settings import KafkaSettings

log = logging.getLogger(__name__)

_STARTING = (CoordinatorLoadInProgressError, NotCoordinatorError)
"""What a broker answers that has just started, or has just got the group from another one."""

# Who came last gives way first. Of two that came at once, the one with the lower id stays. A foreign consumer never
# gives way, and then even who was here first has to be heard.
LATE_SECONDS, LOWER_SECONDS, OWNER_SECONDS = 6.0, 12.0, 60.0
LOOK_SECONDS = 1.0
# One that was killed is in the group until its session ends; whoever is there for longer is alive.
ENDED_SECONDS = 5.0


class Membership:
    """A source's place in its group: whether it may join, and, after each assignment, whether it is alone there.

    Attributes:
        waiting_for: who has to leave the group before it is joined, in words; empty when nobody has.
    """

    def __init__(self, settings: KafkaSettings, file: MemberFile | None = None) -> None:
        """`file` names the member of the process before this one, which is dead, and then this one's."""
        self._settings, self._file = settings, file
        self._written = file.read() if file else None
        self._assignments = self._looked_at = 0
        self._next_look = 0.0
        self._owner: str | None = None
        self._company_since: float | None = None
        self._waiting_since: float | None = None
        self.waiting_for = ""

    def may_join(self) -> bool:
        """Whether nobody is in the group. One who joined it would take a part of the events from who is there.

        Asked again and again until it is so; the broker is asked at most once a second.

        Raises:
            Fenced: somebody is there for longer than one who was killed would be.
            BrokerUnavailable, BrokerRefused: the broker does not say.
        """
        now = time.monotonic()
        if now < self._next_look:
            return False
        try:
            members = group_members(self._settings)
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, CoordinatorNotAvailableError):
                return (
                    True  # as in a cluster that has had no group yet; who is there is asked after the assignment, too
                )
            raise
        if members is None:
            self._next_look = time.monotonic() + LOOK_SECONDS
            return False
        if self._written in members:
            members.pop(self._written)
            remove_member(self._settings, self._written)
        self._next_look = time.monotonic() + LOOK_SECONDS
        return self.is_free(members, now)

    def is_free(self, members: Mapping[str, str], now: float) -> bool:
        """The decision alone, as `is_alone` is."""
        if not members:
            self._waiting_since, self.waiting_for = None, ""
            self._next_look = 0.0
            return True
        hosts = ", ".join(sorted(_host(host) for host in members.values()))
        name = f"consumer group {self._settings.group_id!r}"
        if self._waiting_since is None:
            self._waiting_since = now
            self.waiting_for = f"{name}: another consumer (at {hosts}) is in it; joining when it has left"
            log.warning("%s", self.waiting_for)
        if now - self._waiting_since >= self._settings.session_timeout_seconds + ENDED_SECONDS:
            raise Fenced(
                f"{name}: another consumer (at {hosts}) is at work in it, and was left alone; run one daemon for each "
                "group: stop the other one, or give this one a kafka.group_id of its own"
            )
        return False

    def assigned(self) -> None:
        """There was an assignment. By any thread."""
        self._assignments += 1

    def check(self, member: str) -> None:
        """Ask the broker who is in the group, if there was an assignment; `member` is our id there.

        Raises:
            Fenced: another member is there, and this one has to give way.
            BrokerRefused: the broker does not say.
        """
        if self._file and member and member != self._written:
            self._file.write(member)
            self._written = member
        assignments, now = self._assignments, time.monotonic()
        if assignments == self._looked_at or now < self._next_look:
            return
        try:
            members = group_members(self._settings)
        except BrokerUnavailable:
            members = None  # the poll that follows tells; this is asked again
        self._next_look = time.monotonic() + LOOK_SECONDS
        if members is not None and self.is_alone(member, members, now):
            self._looked_at = assignments

    def is_alone(self, member: str, members: Mapping[str, str], now: float) -> bool:
        """The decision alone: `members` are ids with their hosts, `now` is in monotonic seconds.

        A member that was away for longer than its session comes back under another id, as the last one.

        Raises:
            Fenced: as in `check`.
        """
        others = sorted(_host(host) for id, host in members.items() if id != member)
        name = f"consumer group {self._settings.group_id!r}"
        if not others:
            if self._company_since is not None:
                log.info("%s: this daemon is alone again", name)
            self._owner, self._company_since = member, None
            return True
        if self._company_since is None:
            self._company_since = now
            log.warning("%s: another consumer (at %s) is in it; one of the two has to stop", name, ", ".join(others))
        patience = LOWER_SECONDS if member < min(id for id in members if id != member) else LATE_SECONDS
        if now - self._company_since >= (OWNER_SECONDS if member == self._owner else patience):
            raise Fenced(
                f"{name}: another consumer (at {', '.join(others)}) reads a part of the events, which would not be "
                "stored here; run one daemon for each group: stop the other one, or give this one a kafka.group_id of "
                "its own"
            )
        return False


class SharedMembership:
    """A place in a group whose members share its partitions: others are no reason to wait or to give way."""

    waiting_for = ""

    def may_join(self) -> bool:
        """Whether the group may be joined: always."""
        return True

    def assigned(self) -> None:
        """There was an assignment."""

    def check(self, member: str) -> None:
        """Nobody has to give way."""


def _host(host: str) -> str:
    return host.lstrip("/") or "an unknown host"


def group_members(settings: KafkaSettings) -> dict[str, str] | None:
    """Who is in the consumer group: ids and hosts. None: the broker, which has just started, does not know yet.

    Raises:
        BrokerUnavailable, BrokerRefused: the broker does not say.
    """
    admin = connect(_Admin, settings, client_config(settings))
    try:
        with translated(settings, f"consumer group {settings.group_id!r}: "):
            group = admin.describe_groups([settings.group_id])[settings.group_id]
            if GroupIdNotFoundError.__name__ in (group["error"] or ""):
                return {}  # since Kafka 4.0; before, an unknown group was one without members
            if any(kind.__name__ in (group["error"] or "") for kind in _STARTING):
                return None
            if group["error"]:
                raise BrokerUnavailable(f"consumer group {settings.group_id!r}: {group['error']}")
            return {member["member_id"]: member["client_host"] for member in group["members"]}
    finally:
        admin.close()


def remove_member(settings: KafkaSettings, member: str) -> None:
    """Take a member that is dead out of the group, which else waits for the end of its session.

    Raises:
        BrokerUnavailable, BrokerRefused: the broker does not do it.
    """
    admin = connect(_Admin, settings, client_config(settings))
    try:
        with translated(settings, f"consumer group {settings.group_id!r}: "):
            admin.remove_group_members(settings.group_id, [MemberToRemove(member_id=member)])
        log.info("consumer group %r: what a killed daemon left there is removed", settings.group_id)
    finally:
        admin.close()


class _Admin(KafkaAdminClient):  # type: ignore[misc]
    def _process_acl_operations(self, described: Any) -> Any:
        return described  # what we may do is not asked; the library refuses an answer that it does not know
