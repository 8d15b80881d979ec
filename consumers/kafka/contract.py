"""The interfaces of sources and publishers: batches of records, offsets, lost events."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from retuned.consumers.errors import ConfigurationError
from retuned.consumers.settings import KafkaSettings

Partition = tuple[str, int]
Offsets = dict[Partition, int]
Headers = Sequence[tuple[str, bytes | None]]

AWAY_SECONDS = 2.0
LOOK_SECONDS = 5.0
BATCH_BYTES = 64 * 2**20
FIRST_RECORDS = 100

CHOICES = {"earliest": "oldest", "latest": "next new"}


class Identity(NamedTuple):
    """Kafka's ids of a topic and its cluster; None: the broker has none (before 2.8)."""

    cluster_id: str | None
    topic_id: str | None


Identities = dict[Partition, Identity]
"""The topic that each stored offset belongs to, if known."""


class Record(Protocol):
    """One message of a partition."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def timestamp(self) -> float | None:
        """Kafka's timestamp in Unix seconds; None: unknown."""

    @property
    def problem(self) -> str | None:
        """Why the record is not an event, if the reader already knows."""


@dataclass(frozen=True)
class Batch:
    """The result of a poll.

    Attributes:
        records: in order within each partition; a batch that cannot be unpacked is one record, a `BrokenBatch`.
        starts: the stored offset that each moved partition was read from; absent if it has none.
        nexts: the next offset of each moved partition. Offsets have gaps, so it is not the last record's plus one, and
            a partition can move without a record.
        lost: the number of events by topic that the broker deleted before they were read.
        identities: the ids of the moved partitions' topics.
        remade: topics that were recreated since their offsets were stored.
    """

    records: Sequence[Record] = ()
    starts: Offsets = field(default_factory=dict)
    nexts: Offsets = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    identities: dict[str, Identity] = field(default_factory=dict)
    remade: Sequence[str] = ()


class Source(Protocol):
    """A source of events: Kafka or memory.

    Attributes:
        before_assignment: called with the partitions before stored offsets are read, on any thread, so that a running
            write can end and partitions of other members can be claimed.
        missing: topics known not to exist on the broker.
        waiting_for: why reading waits although the broker answers, for a person; empty: it does not wait.
    """

    before_assignment: Callable[[Sequence[Partition]], None]
    missing: frozenset[str]

    @property
    def waiting_for(self) -> str: ...

    def poll(self, max_records: int, timeout_seconds: float) -> Batch:
        """Returns the records that arrive within the timeout.

        Raises:
            BrokerUnavailable: a retry may help.
            BrokerRefused, Unreadable: a retry does not help.
            ConfigurationError: the stored offsets belong to another cluster.
            EventsLost: the next event was deleted, and the settings require to stop.
            Fenced: another consumer of the group reads a part of the events.
        """

    def rewind(self) -> None:
        """Restarts from the stored offsets, like an assignment: records that were polled but not stored come again.

        Raises:
            Whatever `before_assignment` and the stored offsets raise; then rewind again before the next poll.
        """

    def commit(self, nexts: Offsets) -> None:
        """Commits offsets to the broker, for lag tools only. Never blocks, never fails."""

    def lag(self) -> int:
        """Returns the number of events on the assigned partitions that were not polled, as far as known."""

    def lag_seconds(self, now: float) -> dict[str, float]:
        """Returns an upper bound of the age of the oldest event not polled, by topic; see `Backlog`.

        Topics with an unknown age are absent.

        Args:
            now: Unix seconds.
        """

    def caught_up(self) -> bool:
        """Whether partitions are assigned and all of their events were polled."""

    def close(self) -> None:
        """Leaves the group; safe to repeat."""


class Publisher(Protocol):
    """Publishes our own messages."""

    def publish(self, topic: str, key: str, value: dict[str, Any]) -> None:
        """Returns once the broker has the message.

        Raises:
            BrokerUnavailable, BrokerRefused: the broker may not have the message.
        """

    def publish_all(self, topic: str, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Returns once the broker has all messages; raises like `publish`."""

    def close(self) -> None:
        """Disconnects; safe to repeat."""


def from_beginning(topic: str, start: str, stored: Offsets) -> bool:
    """Whether a partition without a stored offset is read from its beginning.

    It is if `start` is earliest, or if the partition was added to a topic that is already read.
    """
    return start == "earliest" or any(topic == known for known, _ in stored)


def lost_events(offset: int, first: int, end: int, choice: str) -> int:
    """Returns how many events from `offset` on are never read if the broker holds `first` up to `end`."""
    if offset > end:  # the offset belongs to another topic of that name, so no event of this one was read
        return end - first if choice == "latest" else 0
    return (end if choice == "latest" else first) - offset


def lost_text(topic: str, partition: int, offset: int, first: int, end: int, choice: str) -> str:
    """Describes lost events for a person."""
    where = f"kafka topic {topic} partition {partition}"
    if offset > end:
        return f"{where}: offset {offset} is beyond its end {end}: the topic was recreated"
    lost = lost_events(offset, first, end, choice)
    return f"{where}: {lost} events from offset {offset} on were deleted before they were read"


def is_another(known: Identity | None, current: Identity) -> bool:
    """Whether a topic was replaced by another one of the same name; False if that is unknown."""
    if known is None:
        return False
    return any(None not in ids and ids[0] != ids[1] for ids in zip(known, current, strict=True))


def remade_text(topic: str, partition: int, offset: int) -> str:
    """Describes a recreated topic for a person."""
    return (
        f"kafka topic {topic} partition {partition}: the topic was recreated: its id differs from that of the topic "
        f"that the stored offset {offset} belongs to"
    )


def check_cluster(settings: KafkaSettings, stored: Identities, current: str | None) -> None:
    """Checks that the broker belongs to the expected cluster.

    Args:
        stored: the topics that were read.
        current: the id of the broker's cluster.

    Raises:
        ConfigurationError: it is not the cluster of these topics, or not the configured one.
    """
    expected = {settings.cluster_id} if settings.cluster_id else {known.cluster_id for known in stored.values()}
    others = sorted(id for id in expected if id is not None)
    if current is not None and others and current not in others:
        expectation = "in kafka.cluster_id" if settings.cluster_id else "that the warehouse was filled from"
        # The text has no ids: they look like keys, and the log redacts those.
        raise ConfigurationError(
            f"kafka {settings.bootstrap_servers}: this is not the cluster {expectation}: check "
            "kafka.bootstrap_servers and warehouse.path. If the topics have moved to this cluster, set "
            "kafka.cluster_id to its id (shown by retuned check): they are then read from their beginning, and stored "
            "events are kept"
        )
