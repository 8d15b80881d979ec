"""The age of events that are on the broker and not yet read."""

from collections.abc import Iterable

from retuned.consumers.kafka.contract import Partition


class Backlog:
    """Bounds the age of the oldest unread event of each topic.

    The event arrived after the last time at which everything was read, by our clock, and not before the last event that
    was read, by the timestamp that Kafka keeps (the producer's, unless the topic has
    `message.timestamp.type=LogAppendTime`). The later of the two gives the age.
    """

    def __init__(self) -> None:
        self._read_at: dict[Partition, float] = {}
        self._caught_up_at: dict[Partition, float] = {}

    def read(self, partition: Partition, timestamp: float | None) -> None:
        """Records the timestamp (Unix seconds) of the last event read from a partition."""
        if timestamp is not None:
            self._read_at[partition] = timestamp

    def ages(self, places: Iterable[tuple[Partition, int | None, int | None]], now: float) -> dict[str, float]:
        """Returns the age in seconds by topic: 0 if everything is read; topics with an unknown age are absent.

        Args:
            places: each partition with its position and its end; None: unknown.
            now: Unix seconds.
        """
        ages: dict[str, float] = {}
        unknown = set()
        for partition, reached, end in places:
            topic = partition[0]
            if reached is not None and end is not None and reached >= end:
                self._caught_up_at[partition] = now
            since = [known[partition] for known in (self._read_at, self._caught_up_at) if partition in known]
            if reached is None or end is None or not since:
                unknown.add(topic)
            else:
                ages[topic] = max(ages.get(topic, 0.0), now - max(since) if reached < end else 0.0)
        return {topic: age for topic, age in ages.items() if topic not in unknown}
