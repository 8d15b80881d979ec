"""Imports of files and replays of dead letters in a cluster: any daemon writes them as segments, which all follow.

A file is a partition, and each of its batches is claimed like a batch of Kafka, so a frozen or killed process that
claimed it earlier can no longer record anything.

Letters are read from the warehouse of the daemon that gets the request. The segment has their events and the letters
themselves: each daemon stores the events and deletes the letters in one transaction. Replays are a partition whose
offset counts them. A replay starts at the count that this warehouse has followed, so it cannot include letters that
another daemon has replayed.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import pyarrow as pa

from retuned.consumers import replay
from retuned.consumers.cluster.database import Database
from retuned.consumers.cluster.follower import Follower
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.cluster.segment_writer import SegmentWriter
from retuned.consumers.counting import Counting
from retuned.consumers.dead_letter_topic import DeadLetterTopic
from retuned.consumers.decoding import Decoder
from retuned.consumers.errors import Busy, Reassigned, RetunedError, StoreUnavailable
from retuned.consumers.file_import import EVER_SECONDS, Position, Taken, out_of_step, taken
from retuned.consumers.kafka.contract import Batch, Partition, Publisher
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.dead_letters import refused_rows
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.writer import stored_offsets

FOLLOW_SECONDS = 20.0
REPLAYS: Partition = ("replay:dead-letters", 0)


class SegmentIntake:
    """See `intake.Intake`."""

    def __init__(
        self,
        database: Database,
        objects: Objects,
        follower: Follower,
        settings: Settings,
        metrics: Metrics,
        publisher: Publisher,
    ) -> None:
        """Creates an intake; raises like `SegmentWriter`."""
        self._database, self._follower = database, follower
        self._distance_seconds = settings.ingest.deduplicate_seconds
        self._writer, self._decoder = SegmentWriter(database, objects, settings), Decoder(settings)
        self._counting = Counting(metrics, ())
        self._dead_letter_topic = DeadLetterTopic(publisher, settings.kafka.dead_letter_topic, metrics)
        self._lock = threading.Lock()

    def position(self, topic: str) -> Position:
        """See `file_import.position`: the next row in the cluster, and the refused rows by this daemon's dead letters.

        Raises:
            StoreUnavailable: the database does not answer.
            RetunedError: this daemon does not follow the stored rows in time.
        """
        partition = (topic, 0)
        reached = self._database.offsets().get(partition)
        if reached is None:
            return Position(None, 0)
        with self._follower.awaiting(partition, reached) as followed:
            if (stored_offsets(self._follower.warehouse).get(partition) or 0) < reached:
                self._followed(followed, "import", "import the file again")
        return Position(reached, refused_rows(self._follower.warehouse, topic))

    def take(self, batch: Batch) -> Taken:
        """See `file_import.take`.

        Raises:
            OutOfStep: as there, or another import of the file continued from here. Nothing was stored.
            StoreUnavailable: the database or the storage does not answer. The batch may be stored or not.
            RetunedError: the batch is stored, but this daemon does not follow the segments in time.
        """
        ((partition, end),) = batch.nexts.items()
        start = batch.starts.get(partition)
        with self._follower.awaiting(partition, end) as followed:
            try:
                with self._claimed(partition, start) as epoch:
                    rows = self._decoder.rows(batch, EVER_SECONDS, self._writer.keys.pseudonym_or_stored)
                    self._writer.redact(rows)
                    self._writer.write(rows, {partition: epoch})
                    self._counting.stored(rows)
                    self._dead_letter_topic.copy(rows.dead)
            except Reassigned as error:
                raise out_of_step(self._database.offsets().get(partition)) from error
            pa.default_memory_pool().release_unused()
            result = taken(self._followed(followed, "import", "import the file again to continue"))
        return replace(
            result,
            duplicates=result.duplicates + rows.duplicates,
            passed_over=dict(rows.passed_over),
            erased=result.erased + rows.erased,
        )

    def replay(self) -> dict[str, int]:
        """See `replay.replay`.

        Raises:
            Busy: letters are being replayed elsewhere; earlier ones were replayed here.
            StoreUnavailable: the database or the storage does not answer, or a segment is missing. Some letters may be
                replayed or not.
            RetunedError: the letters are replayed, but this daemon does not follow the segments in time.
        """
        if problem := self._follower.broker_problem:
            raise StoreUnavailable(f"dead letters: this daemon may not know all of them: {problem}")
        total = Counter(tried=0, replayed=0, stored=0)
        pieces = replay.pieces(self._follower.warehouse)
        while True:
            # Read before the letters, because a replay may be followed in between.
            start = stored_offsets(self._follower.warehouse).get(REPLAYS)
            letters = next(pieces, None)
            if letters is None:
                return dict(total)
            end = (start or 0) + 1
            batch = Batch(starts={} if start is None else {REPLAYS: start}, nexts={REPLAYS: end})
            total["tried"] += len(letters)
            with self._follower.awaiting(REPLAYS, end) as followed:
                try:
                    with self._claimed(REPLAYS, start) as epoch:
                        pseudonym = self._writer.keys.pseudonym_or_stored
                        rows = replay.decoded(letters, self._decoder, batch, self._distance_seconds, pseudonym)
                        self._writer.redact(rows)
                        rows.keep_bad_letters()
                        if not (rows.replayed or rows.tables):
                            continue
                        self._writer.write(rows, {REPLAYS: epoch})
                except Reassigned as error:
                    raise Busy(
                        "dead letters: another command or daemon is replaying them, or has and this daemon does not "
                        "know it yet; nothing is replayed twice; try again in some seconds"
                    ) from error
                stored = self._followed(followed, "dead letters", "try again for the rest")
            total.update(replayed=len(stored.replayed), stored=sum(stored.stored.values()))

    def resume(self) -> None:
        raise RetunedError(
            "dead-letters resume: nothing is stopped: dead letters never stop a process of a cluster (store.kind); "
            "correct the producers, then run retuned dead-letters replay"
        )

    @contextmanager
    def _claimed(self, partition: Partition, start: int | None) -> Iterator[int]:
        """Claims the partition of a batch, one batch at a time in this process, and yields the epoch.

        Raises:
            Reassigned: the stored offset of the partition is not the start of the batch.
        """
        with self._lock:
            self._writer.share_keys()
            # Checked before the claim, so that an outdated process does not stop a current one.
            if self._database.offsets().get(partition) != start:
                raise Reassigned(f"{partition[0]}: does not continue from {start}")
            yield self._database.claim([partition])[partition]

    def _followed(self, rows: "Future[Rows]", what: str, advice: str) -> Rows:
        try:
            return rows.result(FOLLOW_SECONDS)
        except TimeoutError as error:
            reason = self._follower.broker_problem or "earlier segments come first"
            raise RetunedError(
                f"{what}: stored in a segment, which this daemon has not followed after {FOLLOW_SECONDS:g} s "
                f"({reason}); nothing is lost: {advice}"
            ) from error
