"""Help and harm of the memory of corrections: votes on answers with an entry's help, beside those that were held out.

Units are held out at random, so both arms get the same questions at the same time. The comparison is the watch's
(`comparison.py`): votes are clustered by account, and the evidence of harm is valid however often it is examined. The
chance that an entry within the margin is withdrawn is `watch.false_rollback_rate`, for each entry.
"""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import duckdb

from retuned.consumers.warehouse import following, judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors.rates.estimate import evidence_effect
from retuned.monitors.rates.votes import Votes, read_votes
from retuned.monitors.settings import WatchSettings
from retuned.monitors.watch.comparison import COMPARED, Comparison, Counts, compare, shown_worse

QUERIES = named_queries("retuned.monitors.watch", "memory.sql")
changing = threading.Lock()
"""Held while the table changes: the second of two concurrent transactions would fail."""
ALL = ""
"""The part with the votes on all entries."""


@dataclass(frozen=True)
class Effect:
    """The effect of an entry, or of all entries of a workload.

    Attributes:
        comparisons: the shares of bad answers; before: held out, after: helped.
        harm: the comparisons that show harm beyond the margin; empty: not shown.
    """

    comparisons: Sequence[Comparison]
    harm: Sequence[Comparison]

    @property
    def helpful(self) -> Comparison | None:
        """The votes of users, if there are any on both sides."""
        of_users = (one for one in self.comparisons if (one.metric, one.source) == ("helpful", "user"))
        return next((one for one in of_users if one.low is not None), None)


def follow(warehouse: Warehouse) -> None:
    """Adds the look-ups of everything stored since the last call; call it before reading `memory_uses`."""
    following.follow(warehouse, changing, QUERIES, _update)


def _update(cursor: duckdb.DuckDBPyConnection, since: int) -> None:
    if cursor.execute(QUERIES["has_entries"]).fetchall():  # without entries there are no look-ups to read
        cursor.execute(QUERIES["added"], {"since": since})
        cursor.execute(QUERIES["add"])
        cursor.execute(QUERIES["count"])


def effects(
    warehouse: Warehouse, settings: WatchSettings, workload: str, entries: Mapping[str, datetime], now: datetime
) -> dict[str, Effect]:
    """Returns the effect of each entry that has votes, and under `ALL` that of all entries of the workload.

    Args:
        entries: by id, the time since which an entry applies; answers before are not counted.
    """
    follow(warehouse)
    judgements.follow(warehouse)
    since = now - timedelta(seconds=settings.compare_seconds)
    span = warehouse.row(QUERIES["span"], {"workload": workload, "since": since})
    if span is None or span["start"] is None:
        return {}
    with warehouse.cursor() as cursor:
        judgements.comparable_votes(cursor, workload, span["start"], now, now=now)
        applied = {"entries": list(entries), "applied": list(entries.values())}
        cursor.execute(QUERIES["votes"], {"workload": workload, "since": span["start"]} | applied)
        votes = read_votes(cursor)
    return compared(votes, settings)


def compared(votes: Mapping[tuple[str, str, Any], Votes], settings: WatchSettings) -> dict[str, Effect]:
    """Returns the effects of parts, from their votes by name, source and part."""
    found: dict[str, list[Comparison]] = defaultdict(list)
    for (name, source, part), own in votes.items():
        if (name, source) in COMPARED:
            bad_before, n_before, bad_after, n_after = own.sums
            counts = Counts("same_time", bad_before, n_before, bad_after, n_after, evidence_effect(own), own)
            found[part].append(compare(name, source, [counts], settings))
    return {part: Effect(own, shown_worse(own, settings)) for part, own in found.items()}


def uses(warehouse: Warehouse, workload: str, entries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns how often entries `helped` and were `held_out`, and when each was `last_used`; unused ones are absent."""
    follow(warehouse)
    rows = warehouse.rows(QUERIES["uses"], {"workload": workload, "entries": list(entries)})
    return {row.pop("id"): row for row in rows}


def totals(warehouse: Warehouse) -> dict[str, dict[str, int]]:
    """Returns the numbers of all answers so far that entries `helped`, and that were `held_out`, by workload."""
    follow(warehouse)
    return {row.pop("workload"): row for row in warehouse.rows(QUERIES["totals"])}


def forget(warehouse: Warehouse, workloads: Sequence[str], before: datetime) -> int:
    """Deletes look-ups of answers before a time, and returns how many."""
    with changing:
        return warehouse.delete(QUERIES["forget"], {"workloads": workloads, "before": before})
