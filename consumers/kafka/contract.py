"""What the sources and publishers of all clients have in common: batches of records, offsets, what was lost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Partition = tuple[str, int]
Offsets = dict[Partition, int]
Headers = Sequence[tuple[str, bytes | None]]

AWAY_SECONDS = 2.0
LOOK_SECONDS = 5.0
BATCH_BYTES = 64 * 2**20
FIRST_RECORDS = 100

CHOICES = {"earliest": "oldest", "latest": "next new"}


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
    """

    records: Sequence[Record] = ()
    starts: Offsets = field(default_factory=dict)
    nexts: Offsets = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)


class Source(Protocol):
    """Where events come from: Kafka, or memory.

    Attributes:
        before_assignment: called before stored offsets are asked for, so that a write under way can end.
        missing: topics that are not on the broker, as far as is known.
    """

    before_assignment: Callable[[], None]
    missing: frozenset[str]

    def poll(self, max_records: int, timeout_seconds: float) -> Batch:
        """Wait for at most so long and return what is there.

        Raises:
            BrokerUnavailable: worth another try.
            BrokerRefused, Unreadable: it is not.
            EventsLost: the next event was deleted, and the settings say to stop then.
            Fenced: another consumer of the group reads a part of the events.
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
