"""What the sources and publishers of all clients have in common: batches of records, offsets, what was lost."""

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
    """Kafka's own ids of a topic and of the cluster that it is on; None: the broker has none (before 2.8)."""

    cluster_id: str | None
    topic_id: str | None


Identities = dict[Partition, Identity]
"""Of which topic each stored offset is, where that is known."""


class Record(Protocol):
    """One message, as it lies in a partition."""

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
        """When it came to its topic, as Kafka keeps it, in Unix seconds; None: not known."""

    @property
    def problem(self) -> str | None:
        """Why it is no event, where the reader knows better than the decoder."""


@dataclass(frozen=True)
class Batch:
    """What one poll brought.

    Attributes:
        records: in order within each partition; a batch that nobody can unpack is one, a `BrokenBatch`.
        starts: the stored offset that each moved partition is read from; absent for one that was never stored.
        nexts: where to go on with each moved partition. Offsets have gaps, so it is not the last record's plus one,
            and a partition can move without a record.
        lost: events that the broker deleted before they were read, by topic.
        identities: of the topics of the moved partitions.
        remade: topics that were found to be others of that name than those of the stored offsets.
    """

    records: Sequence[Record] = ()
    starts: Offsets = field(default_factory=dict)
    nexts: Offsets = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    identities: dict[str, Identity] = field(default_factory=dict)
    remade: Sequence[str] = ()


class Source(Protocol):
    """Where events come from: Kafka, or memory.

    Attributes:
        before_assignment: called with the partitions before stored offsets are asked for, so that a write under way can
            end, and partitions that others of the group had can be claimed.
        missing: topics that are not on the broker, as far as is known.
        waiting_for: what reading waits for although the broker answers, in words; empty: nothing.
    """

    before_assignment: Callable[[Sequence[Partition]], None]
    missing: frozenset[str]

    @property
    def waiting_for(self) -> str: ...

    def poll(self, max_records: int, timeout_seconds: float) -> Batch:
        """Wait for at most so long and return what is there.

        Raises:
            BrokerUnavailable: worth another try.
            BrokerRefused, Unreadable: it is not.
            ConfigurationError: it is not the cluster that the stored offsets are of.
            EventsLost: the next event was deleted, and the settings say to stop then.
            Fenced: another consumer of the group reads a part of the events.
        """

    def rewind(self) -> None:
        """Read on from the stored offsets, as after an assignment: what was polled and not stored comes again.

        Raises:
            Whatever `before_assignment` and the stored offsets raise; then nothing may be polled before another try.
        """

    def commit(self, nexts: Offsets) -> None:
        """Tell the broker how far we are, for lag tools only. Never blocks, never fails."""

    def lag(self) -> int:
        """Events on the assigned partitions that were not polled yet, as far as known."""

    def lag_seconds(self, now: float) -> dict[str, float]:
        """How long the oldest event that was not polled has waited, at most, by topic; see `Backlog`. `now`: Unix time.

        A topic of which it is not known is absent.
        """

    def caught_up(self) -> bool:
        """Whether partitions are assigned and all of their events were polled."""

    def close(self) -> None:
        """Leave the group; safe to repeat."""


class Publisher(Protocol):
    """Where our own messages go."""

    def publish(self, topic: str, key: str, value: dict[str, Any]) -> None:
        """Returns once the broker has the message.

        Raises:
            BrokerUnavailable, BrokerRefused: it does not have it.
        """

    def publish_all(self, topic: str, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Returns once the broker has all messages; raises as `publish` does."""

    def close(self) -> None:
        """Safe to repeat."""


def from_beginning(topic: str, start: str, stored: Offsets) -> bool:
    """Where a partition that was never stored is begun: what was added to a topic that is being read, at its start."""
    return start == "earliest" or any(topic == known for known, _ in stored)


def lost_events(offset: int, first: int, end: int, choice: str) -> int:
    """How many events from `offset` on will never be read, where the broker holds those from `first` up to `end`."""
    if offset > end:  # of another topic of that name: nothing of this one was read
        return end - first if choice == "latest" else 0
    return (end if choice == "latest" else first) - offset


def lost_text(topic: str, partition: int, offset: int, first: int, end: int, choice: str) -> str:
    """The same in words."""
    where = f"kafka topic {topic} partition {partition}"
    if offset > end:
        return f"{where}: offset {offset} is beyond its end {end}: the topic was made anew"
    lost = lost_events(offset, first, end, choice)
    return f"{where}: {lost} events from offset {offset} on were deleted before they were read"


def is_another(known: Identity | None, found: Identity) -> bool:
    """Whether a topic is another one than that of the same name which is known; not, as far as ids are not known."""
    if known is None:
        return False
    return any(None not in ids and ids[0] != ids[1] for ids in zip(known, found, strict=True))


def remade_text(topic: str, partition: int, offset: int) -> str:
    """In words, what is found of a partition whose stored offset is of another topic of that name."""
    return (
        f"kafka topic {topic} partition {partition}: the topic was made anew: its id is another one than that of the "
        f"topic of which the stored offset {offset} is"
    )


def check_cluster(settings: KafkaSettings, stored: Identities, found: str | None) -> None:
    """`stored` are the identities of the partitions that were read, `found` is the id of the cluster that answers.

    Raises:
        ConfigurationError: it is another one than those were on, or than the configured one.
    """
    expected = {settings.cluster_id} if settings.cluster_id else {known.cluster_id for known in stored.values()}
    others = sorted(id for id in expected if id is not None)
    if found is not None and others and found not in others:
        expectation = "that kafka.cluster_id names" if settings.cluster_id else "that the warehouse was filled from"
        # Without the ids, which look like keys: what is logged is redacted.
        raise ConfigurationError(
            f"kafka {settings.bootstrap_servers}: this is another cluster than the one {expectation}: check "
            "kafka.bootstrap_servers and warehouse.path. If the topics have moved to this cluster, set "
            "kafka.cluster_id to its id (retuned check shows it): they are read from their beginning, and what is "
            "stored stays"
        )
