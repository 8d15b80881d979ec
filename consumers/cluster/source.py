"""The segments of a cluster as a source of batches for its daemons.

Segments are numbered without gaps in the order of their commits, so all followers store the same rows, even if an id is
in several partitions.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from retuned.consumers.cluster.database import Database, Expired, File, Segment
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.errors import Fenced, StoreUnavailable
from retuned.consumers.kafka.contract import Batch, Identity, Offsets, Partition

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""The interval between queries for the next segment."""


@dataclass(frozen=True)
class SegmentBatch(Batch):
    """A segment as a batch; its events are in files.

    Attributes:
        content: the content of its files, in order.
        expired: instead of a segment, all expired segments up to a number.
    """

    segment: Segment | None = None
    content: Sequence[bytes] = ()
    expired: Expired | None = None


class SegmentSource:
    """Reads segments in order. For one thread; connects on the first poll."""

    def __init__(self, database: Database, objects: Objects, topics: Sequence[str], stored: Callable[[], int]) -> None:
        """Creates a source.

        Args:
            stored: returns the number of the last stored segment; called at the start and after rewinding.
        """
        self._database, self._objects, self._topics, self._stored = database, objects, topics, stored
        self.before_assignment: Callable[[Sequence[Partition]], None] = lambda _: None
        self.missing: frozenset[str] = frozenset()
        self.waiting_for = ""
        self._position: int | None = None
        self._waiting_events = 0
        self._next_at: datetime | None = None
        self._caught_up = False

    def poll(self, max_records: int, timeout_seconds: float) -> Batch:  # noqa: ARG002  (a segment is one batch)
        """Returns the next segment; see `Source`.

        Raises:
            StoreUnavailable: in place of BrokerUnavailable.
            Fenced: the database was reset to an older state.
        """
        deadline = time.monotonic() + timeout_seconds
        if self._position is None:
            self.before_assignment([])
            self._position = self._stored()
        while (segment := self._database.segment(self._position + 1)) is None:
            if (expired := self._database.expired(self._position)) is not None:
                return self._passed(expired)
            if (last := self._database.last_segment()) < self._position:
                raise Fenced(
                    f"store.postgres_url: the last segment is {last}, but the warehouse has {self._position}: the "
                    "database was reset; restore the warehouses of all daemons from earlier backups (retuned restore), "
                    "or start with new ones"
                )
            self._caught_up, self._waiting_events, self._next_at = True, 0, None
            left = deadline - time.monotonic()
            if left <= 0:
                return Batch()
            time.sleep(min(left, LOOK_SECONDS))
        content = [self._verified(file, segment.number) for file in segment.files]
        self._position = segment.number
        self._waiting_events, self._next_at = segment.messages_after, segment.next_received_at
        self._caught_up = segment.next_received_at is None
        starts: Offsets = {}
        nexts: Offsets = {}
        identities = {}
        for move in segment.moves:
            nexts[move.topic, move.partition] = move.next_offset
            identities[move.topic] = Identity(move.cluster_id, move.topic_id)
            if move.start_offset is not None:
                starts[move.topic, move.partition] = move.start_offset
        return SegmentBatch((), starts, nexts, {}, identities, (), segment, content)

    def _passed(self, expired: Expired) -> Batch:
        self._position, self._next_at = expired.number, expired.next_received_at
        self._caught_up = expired.next_received_at is None
        nexts = {(move.topic, move.partition): move.next_offset for move in expired.moves}
        identities = {move.topic: Identity(move.cluster_id, move.topic_id) for move in expired.moves}
        return SegmentBatch((), {}, nexts, {}, identities, (), expired=expired)

    def rewind(self) -> None:
        self._position = None

    def commit(self, nexts: Offsets) -> None:
        """Does nothing: the ingesters commit offsets to Kafka."""

    def lag(self) -> int:
        """Returns the number of messages in segments that were not polled yet."""
        return self._waiting_events

    def lag_seconds(self, now: float) -> dict[str, float]:
        """Returns the age of the next segment, for all topics."""
        if self._next_at is None:
            return dict.fromkeys(self._topics, 0.0) if self._caught_up else {}
        return dict.fromkeys(self._topics, max(0.0, now - self._next_at.timestamp()))

    def caught_up(self) -> bool:
        return self._caught_up

    def close(self) -> None:
        self._position = None
        self._database.close()

    def _verified(self, file: File, number: int) -> bytes:
        try:
            content = self._objects.get(file.key)
            problem = "does not have the recorded content"
        except FileNotFoundError:
            content, problem = b"", "does not exist"
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise StoreUnavailable(
                f"store.objects_url: {file.key} {problem}; restore the file with sha256 {file.sha256}, or skip it by "
                f"SELECT retuned.forget_segment({number}, 'the reason') in the database"
            )
        return content
