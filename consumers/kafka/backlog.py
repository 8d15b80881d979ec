"""For how long what is on the broker and was not read has been waiting there."""

from collections.abc import Iterable

from retuned.consumers.kafka.contract import Partition


class Backlog:
    """The age of the oldest unread event of each topic, by two bounds, of which the lower one holds.

    It came after the last moment at which everything was read, by our clock; and not before the event read last, by
    the time that Kafka keeps with that (the producer's, unless the topic has `message.timestamp.type=LogAppendTime`).
    """

    def __init__(self) -> None:
        self._read_at: dict[Partition, float] = {}
        self._caught_up_at: dict[Partition, float] = {}

    def read(self, partition: Partition, timestamp: float | None) -> None:
        """The last event that was read of a partition; Unix seconds."""
        if timestamp is not None:
            self._read_at[partition] = timestamp

    def ages(self, places: Iterable[tuple[Partition, int | None, int | None]], now: float) -> dict[str, float]:
        """Seconds, by topic: 0 when everything is read; a topic of which that is not known is absent.

        Args:
            places: of each partition, how far it is read and where it ends; None: not known.
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
