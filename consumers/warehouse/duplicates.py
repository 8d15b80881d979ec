"""Which ids of a batch may be stored already? A Bloom filter answers for nearly all of them: surely not.

Asking the table costs a scan of every row within the deduplication distance, for each batch: at a thousand events a
second, millions. The filter costs the same whatever is stored. It never says no to an id that is stored, and what it
says maybe to is looked up in the table, so deduplication stays exact.
Source: B. H. Bloom, "Space/time trade-offs in hash coding with allowable errors", CACM 13 (7), 1970; two hashes give
all positions as in A. Kirsch and M. Mitzenmacher, "Less hashing, same performance", ESA 2006.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from retuned.consumers.warehouse.connection import Warehouse, named_queries

POSITIONS = 6
BITS_PER_ID = 32  # with six positions, at most one id in 40,000 is looked up for nothing
SMALLEST = 2**18  # ids
LARGEST = 2**24  # ids: 64 MB
QUERIES = named_queries("retuned.consumers.warehouse", "ingest.sql")


class BloomFilter:
    """A set of strings that says "surely not" or "maybe"."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: ids up to which mistakes stay as rare as promised; rounded up to a power of two."""
        self.capacity = 1 << max(capacity - 1, 1).bit_length()
        self.count = 0
        self._mask = np.uint64(self.capacity * BITS_PER_ID - 1)
        self._words = np.zeros(self.capacity * BITS_PER_ID // 64, np.uint64)

    def add(self, ids: Sequence[str]) -> Any:
        """Add all. Returns a boolean array: False where the id was surely not added before."""
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids)).view(np.uint64)
        step = (hashes >> np.uint64(32)) | np.uint64(1)
        positions = (hashes + np.arange(POSITIONS, dtype=np.uint64)[:, None] * step) & self._mask
        words, bits = positions >> np.uint64(6), np.uint64(1) << (positions & np.uint64(63))
        found = (self._words[words] & bits != 0).all(axis=0)
        np.bitwise_or.at(self._words, words.ravel(), bits.ravel())
        self.count += len(ids)
        return found


class Stored:
    """The ids in one table of events. Used by the one thread that writes there."""

    def __init__(self, warehouse: Warehouse, table: str, distance: timedelta) -> None:
        self._warehouse, self._table, self._distance = warehouse, table, distance
        self._filter: BloomFilter | None = None
        self._from: datetime | None = None  # from when on every stored id is in the filter; None: all of them

    def may_have(self, ids: Sequence[str], low: datetime) -> Any:
        """A boolean array: False where no row from `low` on has the id, surely. Adds the ids.

        Add before they are stored: when that fails, the filter says maybe for nothing, and nothing else.
        """
        if self._filter is None or self._filter.count + len(ids) > self._filter.capacity:
            self._load(len(ids))
        assert self._filter is not None
        maybe = self._filter.add(ids)
        return maybe if self._from is None or low >= self._from else np.ones(len(ids), bool)

    def _load(self, more: int) -> None:
        """Make the filter anew, with the newest ids: as many as new events are likely to come near to."""
        reach = {"distance": 2 * self._distance // timedelta(microseconds=1), "most": LARGEST // 2}
        found = self._warehouse.row(QUERIES[f"reach_{self._table}"], reach)
        assert found is not None
        self._filter = None  # two would take more memory, and of one half full, "surely not" would be a lie
        self._from = found["since"]
        made = BloomFilter(min(LARGEST, max(SMALLEST, 4 * (found["ids"] + more))))
        with self._warehouse.cursor() as cursor:
            cursor.execute(QUERIES[f"ids_{self._table}"], {"since": self._from})
            while rows := cursor.fetchmany(10_000):
                made.add([id for (id,) in rows])
        self._filter = made
