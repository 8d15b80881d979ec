"""Writes batches as segments: redacts and encodes them, puts them into object storage, and records them.

One statement in the database records each segment: it moves the partitions and names the files, so events are stored
exactly once. A batch is dropped if another process has its partitions by then. If events were erased since they were
removed from the batch, it is not recorded, but written again without them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from retuned.consumers.cluster import segments
from retuned.consumers.cluster.conversations import SharedConversations
from retuned.consumers.cluster.database import NO_KEY, Database, File, Move
from retuned.consumers.cluster.erasing import SharedTombstones
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.errors import ConfigurationError, ErasedMeanwhile, Reassigned, StoreUnavailable
from retuned.consumers.kafka.contract import Partition
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.rows import Rows


class SegmentWriter:
    """Writes segments; for one thread at a time.

    Attributes:
        keys: the keys of pseudonyms.
    """

    def __init__(
        self, database: Database, objects: Objects, settings: Settings, progress: Callable[[], None] = lambda: None
    ) -> None:
        """Creates a writer.

        Args:
            progress: called while a batch is redacted.

        Raises:
            ConfigurationError: the key of the user hash is not set or cannot be read, or privacy.names lacks its extra.
        """
        privacy = settings.privacy
        if privacy.user_key is None and privacy.user_key_file is None:
            raise ConfigurationError(NO_KEY)
        self._database, self._objects = database, objects
        self.keys = load_user_keys(privacy, settings.warehouse.path)
        conversations = SharedConversations(database, self.keys)
        self._redactor = Redactor(privacy, conversations=conversations, progress=progress)
        self._tombstones = SharedTombstones(database, self.keys)
        self._shares_keys = False

    def share_keys(self) -> None:
        """Checks the keys before the first segment; raises like `Database.share_user_keys`."""
        if not self._shares_keys:
            self._database.share_user_keys(self.keys.ids)
            self._shares_keys = True

    def redact(self, rows: Rows) -> None:
        """Removes personal data.

        Raises:
            StoreUnavailable: the database, which assigns placeholder numbers, does not answer.
        """
        started = time.perf_counter()
        rows.redact(self._redactor, self.keys.pseudonym_or_stored, self.keys.seal_key)
        self._tombstones.take_out(rows)
        rows.seconds += time.perf_counter() - started

    def write(self, rows: Rows, epochs: Mapping[Partition, int]) -> int:
        """Stores a redacted batch, and returns the bytes of its files.

        Args:
            epochs: the epochs of the claims of its partitions.

        Raises:
            Reassigned: another process has claimed or moved a partition; nothing of the batch was stored.
            StoreUnavailable: the storage or the database does not answer; the batch may be stored or not.
        """
        started = time.perf_counter()
        requests = rows.erasures(self.keys)
        moves = segments.moves(rows, epochs)
        while (files := self._stored(rows, moves, requests)) is None:
            self._tombstones.take_out(rows)
        rows.seconds += time.perf_counter() - started
        return sum(file.bytes for file in files)

    def _stored(self, rows: Rows, moves: Sequence[Move], requests: Sequence[dict[str, Any]]) -> list[File] | None:
        """Writes and records the files of a batch, and returns them; None: events were erased since `take_out`."""
        encoded = segments.encode(rows, moves[0])
        for file, content in encoded:
            self._objects.put(file.key, content)
        files = [file for file, _ in encoded]
        counts, tombstones = segments.counts(rows), self._tombstones.number
        try:
            self._database.record(moves, files, rows.received_at, counts, tombstones, requests)
        except (Reassigned, ErasedMeanwhile) as error:
            with suppress(StoreUnavailable):
                self._objects.delete([file.key for file in files])
            if isinstance(error, Reassigned):
                raise
            return None
        return files
