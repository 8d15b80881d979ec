"""Ensures that a daemon is alone in its consumer group. Two daemons would each store a part of the events."""

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
"""The errors of a broker that has just started, or has just become the group's coordinator."""

# The latest member leaves first. Of two that join at the same time, the one with the lower id stays. A foreign consumer
# never leaves, so after a while even the first member stops with an error.
LATE_SECONDS, LOWER_SECONDS, OWNER_SECONDS = 6.0, 12.0, 60.0
LOOK_SECONDS = 1.0
# A killed member stays in the group until its session ends; a member that stays this much longer is alive.
ENDED_SECONDS = 5.0


class Membership:
    """A source's membership of its group: whether it may join and, after each assignment, whether it is alone.

    Attributes:
        waiting_for: the consumers that have to leave before this one joins, for a person; empty: none.
    """

    def __init__(self, settings: KafkaSettings, file: MemberFile | None = None) -> None:
        """Creates a membership.

        Args:
            file: has the member id of the previous process, which is dead, and then of this one.
        """
        self._settings, self._file = settings, file
        self._written = file.read() if file else None
        self._assignments = self._looked_at = 0
        self._next_look = 0.0
        self._owner: str | None = None
        self._company_since: float | None = None
        self._waiting_since: float | None = None
        self.waiting_for = ""

    def may_join(self) -> bool:
        """Whether the group is empty: a second member would take a part of the events.

        Call it until it returns True; it asks the broker at most once a second.

        Raises:
            Fenced: a member has been there for longer than a killed one would be.
            BrokerUnavailable, BrokerRefused: the broker does not answer.
        """
        now = time.monotonic()
        if now < self._next_look:
            return False
        try:
            members = group_members(self._settings)
        except BrokerUnavailable as error:
            if isinstance(error.__cause__, CoordinatorNotAvailableError):
                return True  # the cluster has no groups yet; `check` asks again after the assignment
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
        """Decides whether the group may be joined, see `may_join`.

        Args:
            members: ids and hosts.
            now: monotonic seconds.
        """
        if not members:
            self._waiting_since, self.waiting_for = None, ""
            self._next_look = 0.0
            return True
        hosts = ", ".join(sorted(_host(host) for host in members.values()))
        name = f"consumer group {self._settings.group_id!r}"
        if self._waiting_since is None:
            self._waiting_since = now
            self.waiting_for = f"{name}: another consumer (at {hosts}) is a member; waiting until it leaves"
            log.warning("%s", self.waiting_for)
        if now - self._waiting_since >= self._settings.session_timeout_seconds + ENDED_SECONDS:
            raise Fenced(
                f"{name}: another consumer (at {hosts}) is active; run one daemon for each group: stop the other one, "
                "or set another kafka.group_id for this one"
            )
        return False

    def assigned(self) -> None:
        """Records an assignment; may be called by any thread."""
        self._assignments += 1

    def check(self, member: str) -> None:
        """Asks the broker for the members of the group, if there was an assignment.

        Args:
            member: the id of this member.

        Raises:
            Fenced: there is another member, and this one has to leave.
            BrokerRefused: the broker refuses the request.
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
            members = None  # the next poll reports the error, and the next check retries
        self._next_look = time.monotonic() + LOOK_SECONDS
        if members is not None and self.is_alone(member, members, now):
            self._looked_at = assignments

    def is_alone(self, member: str, members: Mapping[str, str], now: float) -> bool:
        """Decides whether this member is alone, see `check`.

        A member that was away for longer than its session returns with a new id, as the latest member.

        Args:
            members: ids and hosts.
            now: monotonic seconds.

        Raises:
            Fenced: this member has to leave.
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
            log.warning("%s: another consumer (at %s) is a member; one of them has to stop", name, ", ".join(others))
        patience = LOWER_SECONDS if member < min(id for id in members if id != member) else LATE_SECONDS
        if now - self._company_since >= (OWNER_SECONDS if member == self._owner else patience):
            raise Fenced(
                f"{name}: another consumer (at {', '.join(others)}) reads a part of the events, which would not be "
                "stored here; run one daemon for each group: stop the other one, or set another kafka.group_id for "
                "this one"
            )
        return False


class SharedMembership:
    """Membership of a group whose members share its partitions: it never waits or leaves because of others."""

    waiting_for = ""

    def may_join(self) -> bool:
        """Returns True: the group may always be joined."""
        return True

    def assigned(self) -> None:
        """Does nothing."""

    def check(self, member: str) -> None:
        """Does nothing: no member has to leave."""


def _host(host: str) -> str:
    return host.lstrip("/") or "an unknown host"


def group_members(settings: KafkaSettings) -> dict[str, str] | None:
    """Returns the ids and hosts of the group's members; None: the broker has just started and does not know them yet.

    Raises:
        BrokerUnavailable, BrokerRefused: the broker does not answer.
    """
    admin = connect(_Admin, settings, client_config(settings))
    try:
        with translated(settings, f"consumer group {settings.group_id!r}: "):
            group = admin.describe_groups([settings.group_id])[settings.group_id]
            if GroupIdNotFoundError.__name__ in (group["error"] or ""):
                return {}  # since Kafka 4.0; before, an unknown group was an empty one
            if any(kind.__name__ in (group["error"] or "") for kind in _STARTING):
                return None
            if group["error"]:
                raise BrokerUnavailable(f"consumer group {settings.group_id!r}: {group['error']}")
            return {member["member_id"]: member["client_host"] for member in group["members"]}
    finally:
        admin.close()


def remove_member(settings: KafkaSettings, member: str) -> None:
    """Removes a dead member from the group, which otherwise waits for the end of its session.

    Raises:
        BrokerUnavailable, BrokerRefused: the member may not be removed.
    """
    admin = connect(_Admin, settings, client_config(settings))
    try:
        with translated(settings, f"consumer group {settings.group_id!r}: "):
            admin.remove_group_members(settings.group_id, [MemberToRemove(member_id=member)])
        log.info("consumer group %r: removed the member of a killed daemon", settings.group_id)
    finally:
        admin.close()


class _Admin(KafkaAdminClient):  # type: ignore[misc]
    def _process_acl_operations(self, described: Any) -> Any:
        return described  # unused here; the library rejects operations that it does not know
