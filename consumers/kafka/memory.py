"""In-memory source and publisher with the same contract as Kafka's, for tests and for replaying a day."""

import threading
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from retuned.consumers.errors import EventsLost
from retuned.consumers.kafka.backlog import Backlog
from retuned.consumers.kafka.contract import (
    Batch,
    Headers,
    Identities,
    Identity,
    Offsets,
    Partition,
    Record,
    from_beginning,
    is_another,
    lost_events,
    lost_text,
    remade_text,
)
from retuned.consumers.kafka.records import FetchedRecord, unix_seconds


class MemoryLog:
    """Topics in memory, in place of a broker; thread-safe."""

    def __init__(self) -> None:
        self._records: dict[Partition, list[FetchedRecord]] = defaultdict(list)
        self._firsts: Offsets = {}
        self._ends: Offsets = {}
        self._changed = threading.Condition()
        self._remade: Counter[str] = Counter()

    def append(
        self,
        topic: str,
        value: bytes | None,
        partition: int = 0,
        headers: Headers = (),
        milliseconds: int | None = None,
    ) -> int:
        """Adds a message and returns its offset.

        Args:
            milliseconds: the producer's time of the message; None: now.
        """
        now = time.time()
        timestamp = now if milliseconds is None else unix_seconds(milliseconds, now)
        with self._changed:
            offset = self._ends.get((topic, partition), 0)
            self._records[topic, partition].append(
                FetchedRecord(topic, partition, offset, value, headers, timestamp=timestamp)
            )
            self._ends[topic, partition] = offset + 1
            self._changed.notify_all()
            return offset

    def skip(self, topic: str) -> None:
        """Leaves a gap of one offset in partition 0, like the end of a transaction or compaction."""
        with self._changed:
            self._ends[topic, 0] = self._ends.get((topic, 0), 0) + 1
            self._changed.notify_all()

    def delete(self, topic: str, before: int, partition: int = 0) -> None:
        """Deletes the records before an offset, like retention."""
        with self._changed:
            kept = self._records[topic, partition]
            self._firsts[topic, partition] = before
            self._records[topic, partition] = [record for record in kept if record.offset >= before]

    def truncate(self, topic: str, end: int, partition: int = 0) -> None:
        """Deletes the records from an offset on, like an unclean election of a leader."""
        with self._changed:
            kept = self._records[topic, partition]
            self._records[topic, partition] = [record for record in kept if record.offset < end]
            self._ends[topic, partition] = end

    def remake(self, topic: str) -> None:
        """Deletes and recreates a topic, with the same name and partitions and another id."""
        with self._changed:
            self._remade[topic] += 1
            for key in [key for key in self._ends if key[0] == topic]:
                self._records[key], self._firsts[key], self._ends[key] = [], 0, 0
            self._changed.notify_all()

    def identity(self, topic: str) -> Identity:
        """Returns the present ids of a topic."""
        with self._changed:
            return Identity("memory", f"{topic} {self._remade[topic]}")

    def read(self, starts: Offsets, limit: int) -> tuple[list[Record], Offsets]:
        """Returns records from the given offsets on, and the next offsets."""
        with self._changed:
            records: list[Record] = []
            nexts: Offsets = {}
            for key, start in starts.items():
                kept = self._records[key]
                first = bisect_left(kept, start, key=lambda record: record.offset)
                taken = kept[first : first + limit - len(records)]
                records += taken
                if first + len(taken) == len(kept):
                    nexts[key] = self._ends.get(key, 0)
                else:
                    nexts[key] = taken[-1].offset + 1 if taken else start
            return records, nexts

    def ends(self) -> Offsets:
        """Returns the end of each partition."""
        with self._changed:
            return dict(self._ends)

    def firsts(self) -> Offsets:
        """Returns the first offset of each partition."""
        with self._changed:
            return {key: self._firsts.get(key, 0) for key in self._ends}

    def wait(self, seconds: float) -> None:
        """Waits until a message is added, or the time is over."""
        with self._changed:
            self._changed.wait(seconds)


class MemorySource:
    """A source that reads a `MemoryLog`; see `retuned.consumers.kafka.contract.Source`."""

    def __init__(
        self,
        log: MemoryLog,
        topics: Sequence[str],
        stored: Callable[[], Offsets],
        start: str = "earliest",
        on_lost_offset: str = "earliest",
        identities: Callable[[], Identities] = dict,
    ) -> None:
        self._log, self._topics, self._start, self._on_lost = log, set(topics), start, on_lost_offset
        self._stored, self._stored_identities = stored, identities
        self._identities: dict[str, Identity] = {}
        self._remade: set[Partition] = set()
        self.before_assignment: Callable[[Sequence[Partition]], None] = lambda _: None
        self.missing: frozenset[str] = frozenset()
        self.waiting_for = ""
        self._assigned: Offsets | None = None
        self._positions: Offsets = {}
        self._reached: Offsets = {}
        self._backlog = Backlog()
        self.committed: Offsets = {}

    def poll(self, max_records: int, timeout_seconds: float) -> Batch:
        deadline = time.monotonic() + timeout_seconds
        while True:
            remade = self._assign()
            lost = self._restart()
            records, positions = self._log.read(self._positions, max_records)
            self._positions |= positions
            for record in records:
                self._backlog.read((record.topic, record.partition), record.timestamp)
            moved = {key: end for key, end in positions.items() if key in self._remade or self._reached.get(key) != end}
            self._remade.clear()
            left = deadline - time.monotonic()
            if moved or left <= 0:
                starts = {key: self._reached[key] for key in moved if key in self._reached}
                self._reached |= moved
                return Batch(records, starts, moved, lost, dict(self._identities), remade)
            self._log.wait(left)

    def rewind(self) -> None:
        self._assigned = None

    def commit(self, nexts: Offsets) -> None:
        self.committed |= nexts

    def lag(self) -> int:
        ends = self._log.ends()
        return sum(ends.get(key, 0) - position for key, position in self._positions.items())

    def lag_seconds(self, now: float) -> dict[str, float]:
        ends = self._log.ends()
        return self._backlog.ages(((key, reached, ends.get(key, 0)) for key, reached in self._positions.items()), now)

    def caught_up(self) -> bool:
        return self._assigned is not None and self.lag() == 0

    def close(self) -> None:
        self._positions.clear()
        self._assigned = None

    def _restart(self) -> dict[str, int]:
        lost: Counter[str] = Counter()
        ends = self._log.ends()
        for key, first in self._log.firsts().items():
            offset, end = self._positions.get(key), ends[key]
            if offset is None or first <= offset <= end:
                continue
            count = lost_events(offset, first, end, self._on_lost)
            if self._on_lost == "stop":
                raise EventsLost(lost_text(*key, offset, first, end, self._on_lost))
            self._positions[key] = first if self._on_lost == "earliest" else end
            lost[key[0]] += count
        return dict(lost)

    def _assign(self) -> list[str]:
        """Assigns all partitions if needed, and returns the topics that were recreated."""
        now = {topic: self._log.identity(topic) for topic in sorted(self._topics)}
        if self._assigned is None or any(is_another(self._identities[topic], now[topic]) for topic in now):
            self.before_assignment([])
            self._positions.clear()
            self._assigned, self._identities = self._stored(), now
            self._reached = dict(self._assigned)
            known = self._stored_identities()
            for key in list(self._assigned):
                if key[0] in now and is_another(known.get(key), now[key[0]]):
                    if self._on_lost == "stop":
                        raise EventsLost(remade_text(*key, self._assigned[key]))
                    self._remade.add(key)
                    self._assigned[key] = 0 if self._on_lost == "earliest" else self._log.ends()[key]
        ends = self._log.ends()
        if new := [key for key in ends if key[0] in self._topics and key not in self._positions]:
            self.before_assignment(new)
        for key in new:
            begin = 0 if from_beginning(key[0], self._start, self._reached) else ends[key]
            self._positions[key] = self._assigned.get(key, begin)
        return sorted({topic for topic, _ in self._remade})


class MemoryPublisher:
    """Keeps published messages in `messages`: topic, key, value."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, str, dict[str, Any]]] = []

    def publish(self, topic: str, key: str, value: dict[str, Any]) -> None:
        self.publish_all(topic, [(key, value)])

    def publish_all(self, topic: str, messages: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.messages += [(topic, key, value) for key, value in messages]

    def close(self) -> None:
        pass
