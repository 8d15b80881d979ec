"""Counts of votes by unit (an account, else a conversation) and by block of time."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from retuned.consumers.warehouse.connection import named_queries

Array = npt.NDArray[np.float64]
QUERIES = named_queries("retuned.monitors.rates", "rates.sql")


@dataclass(frozen=True)
class Votes:
    """The votes of one or two arms: yes votes before, all before, yes votes after, all after (columns 0 to 3).

    A yes vote is one that the rate counts: helpful, unhelpful or invented. A sample of one arm has its votes in
    `before`.

    Counts are fractional if a unit gave more than a tenth of the votes of an arm (see rates.sql). The cap biases the
    rate towards those who vote less, and prevents one account from deciding alone.

    Attributes:
        units: shape (distinct counts, 5): the votes of a unit, and the number of units with these counts.
        blocks: shape (blocks, 4): the votes of each block (a day, a step) in order of time.
    """

    units: Array
    blocks: Array

    @property
    def sums(self) -> tuple[float, float, float, float]:
        """The votes of all units."""
        yes_before, n_before, yes_after, n_after = (self.units[:, :4] * self.units[:, 4:]).sum(axis=0).tolist()
        return yes_before, n_before, yes_after, n_after

    @property
    def voters(self) -> tuple[int, int]:
        """The number of units that voted, before and after."""
        before, after = (int(((self.units[:, column] > 0) * self.units[:, 4]).sum()) for column in (1, 3))
        return before, after


def of_units(units: Iterable[tuple[float, float]]) -> Votes:
    """Returns a sample of one arm and one block, from the yes votes and all votes of each unit."""
    rows = np.array([(yes, n, 0.0, 0.0, 1.0) for yes, n in units], dtype=np.float64).reshape(-1, 5)
    return Votes(rows, rows[:, :4].sum(axis=0, keepdims=True))


def read_votes(cursor: duckdb.DuckDBPyConnection) -> dict[tuple[str, str, Any], Votes]:
    """Reads the temporary table `arm_votes` of this cursor, by name, source and part."""
    units, blocks = defaultdict[Any, list[Any]](list), defaultdict[Any, list[Any]](list)
    for name, source, part, block, *counts in cursor.execute(QUERIES["cells"]).fetchall():
        if block is None:
            units[name, source, part].append(counts)
        else:
            blocks[name, source, part].append(counts[:4])
    return {
        key: Votes(np.array(rows, dtype=np.float64), np.array(blocks[key], dtype=np.float64).reshape(-1, 4))
        for key, rows in units.items()
    }
