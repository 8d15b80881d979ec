"""Finds ids of a batch that may already be stored, with a Bloom filter.

A query would scan every row within the deduplication distance for each batch: millions at a thousand events a second.
The cost of the filter does not depend on the stored rows. It never misses a stored id, and its positives are looked up
in the table, so deduplication is exact.
Source: B. H. Bloom, "Space/time trade-offs in hash coding with allowable errors", CACM 13 (7), 1970; two hashes give
all positions as in A. Kirsch and M. Mitzenmacher, "Less hashing, same performance", ESA 2006.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from retuned.consumers.warehouse.connection import Warehouse, named_queries

POSITIONS = 6
BITS_PER_ID = 32  # with six positions, at most one id in 40,000 is a false positive
SMALLEST = 2**18  # ids
LARGEST = 2**24  # ids: 64 MB
QUERIES = named_queries("retuned.consumers.warehouse", "ingest.sql")


class BloomFilter:
    """A probabilistic set of strings: no false negatives, few false positives."""

    def __init__(self, capacity: int) -> None:
        """Creates an empty filter.

        Args:
            capacity: the number of ids up to which false positives stay rare; rounded up to a power of two.
        """
        self.capacity = 1 << max(capacity - 1, 1).bit_length()
        self.count = 0
        self._mask = np.uint64(self.capacity * BITS_PER_ID - 1)
        self._words = np.zeros(self.capacity * BITS_PER_ID // 64, np.uint64)

    def add(self, ids: Sequence[str]) -> Any:
        """Adds ids, and returns a boolean array: False if an id was certainly not added before."""
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids)).view(np.uint64)
        step = (hashes >> np.uint64(32)) | np.uint64(1)
        positions = (hashes + np.arange(POSITIONS, dtype=np.uint64)[:, None] * step) & self._mask
        words, bits = positions >> np.uint64(6), np.uint64(1) << (positions & np.uint64(63))
        found = (self._words[words] & bits != 0).all(axis=0)
        np.bitwise_or.at(self._words, words.ravel(), bits.ravel())
        self.count += len(ids)
        return found


class Stored:
    """The ids stored in one table of events; for its writing thread."""

    def __init__(self, warehouse: Warehouse, table: str, distance: timedelta) -> None:
        self._warehouse, self._table, self._distance = warehouse, table, distance
        self._filter: BloomFilter | None = None
        self._from: datetime | None = None  # all ids stored since then are in the filter; None: all ids

    def may_have(self, ids: Sequence[str], low: datetime) -> Any:
        """Adds ids, and returns a boolean array: False if certainly no row since `low` has the id.

        Call it before the ids are stored: if storing fails, they only become false positives.
        """
        if self._filter is None or self._filter.count + len(ids) > self._filter.capacity:
            self._load(len(ids))
        assert self._filter is not None
        maybe = self._filter.add(ids)
        return maybe if self._from is None or low >= self._from else np.ones(len(ids), bool)

    def _load(self, more: int) -> None:
        """Rebuilds the filter with the newest ids, those within reach of new events."""
        parameters = {"distance": 2 * self._distance // timedelta(microseconds=1), "most": LARGEST // 2}
        reach = self._warehouse.row(QUERIES["remembered_since"].format(table=self._table), parameters)
        assert reach is not None
        self._filter = None  # saves memory, and a partly filled filter would have false negatives
        self._from = reach["since"]
        rebuilt = BloomFilter(min(LARGEST, max(SMALLEST, 4 * (reach["ids"] + more))))
        with self._warehouse.cursor() as cursor:
            cursor.execute(QUERIES["remembered_ids"].format(table=self._table), {"since": self._from})
            while rows := cursor.fetchmany(10_000):
                rebuilt.add([id for (id,) in rows])
        self._filter = rebuilt
