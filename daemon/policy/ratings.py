"""Counts users' ratings since the champion's promotion by period. The counts of closed periods are stored."""

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors.rates.estimate import evidence_effect
from retuned.monitors.rates.votes import read_votes
from retuned.monitors.settings import WindowsSettings
from retuned.monitors.windows import in_service_since

QUERIES = named_queries("retuned.daemon.policy", "ratings.sql")
YEAR = 365
"""Number of periods that are counted: a year, if a period is a day."""
counting = threading.Lock()


@dataclass(frozen=True)
class Ratings:
    """Users' votes, and how many of them call the answer helpful.

    Attributes:
        effect: the design effect of votes of one account: this many are worth one independent vote.
    """

    helpful: int
    total: int
    effect: float = 1.0

    @property
    def rate(self) -> float:
        """Share of helpful answers; 0 without votes."""
        return self.helpful / self.total if self.total else 0.0

    def __add__(self, other: "Ratings") -> "Ratings":
        total = self.total + other.total
        effect = (self.total * self.effect + other.total * other.effect) / total if total else 1.0
        return Ratings(self.helpful + other.helpful, total, effect)


UNRATED = Ratings(0, 0)


def by_period(warehouse: Warehouse, windows: WindowsSettings, workload: str, now: datetime) -> tuple[Ratings, ...]:
    """Returns the ratings of the model in service by period, oldest first. Call `judgements.follow` before.

    A period has the length of the current window. At most YEAR of the latest ones are returned; the last may be open.
    Answers older than one length count, with the votes of their first such length, so that all had the same time to be
    rated. Closed periods are counted once and stored, and periods after the newest answer are empty, so the cost does
    not grow with time.
    """
    length = timedelta(seconds=windows.current_seconds)
    since = in_service_since(warehouse, windows, workload, now)
    mature = now - length
    if since is None or mature <= since:
        return ()
    begun = -(-(mature - since) // length)
    wanted = range(max(begun - YEAR, 0), begun)
    standing = warehouse.row(QUERIES["standing"], {"workload": workload})
    assert standing is not None
    key = {"workload": workload, "since": since, "seconds": length.total_seconds()} | standing
    with counting:
        known = {row.pop("period"): Ratings(**row) for row in warehouse.rows(QUERIES["known"], key)}
        unknown = sorted(set(wanted) - known.keys())
        # Events may still wait on the broker, so the newest answer is the time, not the clock.
        begins = {"workload": workload, "start": since + unknown[0] * length if unknown else now}
        newest = (warehouse.row(QUERIES["newest"], begins) or {})["answered_at"]
        closed = []
        with warehouse.cursor() as cursor:
            for period in unknown:
                start = since + period * length
                if newest is None or start > newest:
                    known[period] = UNRATED
                    continue
                judgements.comparable_votes(cursor, workload, start, start + length, now=now, mature_after=length)
                known[period] = _rated(cursor, standing["version"])
                if start + 2 * length <= newest:
                    closed.append({**key, "period": period, **asdict(known[period])})
        if closed:
            with warehouse.transaction() as cursor:
                cursor.execute(QUERIES["forget"], key)
                cursor.execute(QUERIES["keep"], {"rows": closed})
    return tuple(known[period] for period in wanted)


def _rated(cursor: duckdb.DuckDBPyConnection, version: str) -> Ratings:
    cursor.execute(QUERIES["votes"], {"version": version})
    for votes in read_votes(cursor).values():
        helpful, total, _, _ = votes.sums
        return Ratings(round(helpful), round(total), evidence_effect(votes))
    return UNRATED


def latest(periods: Sequence[Ratings], enough: int) -> Ratings:
    """Returns the sum of the latest periods that together hold `enough` ratings; of all, if they hold fewer."""
    total = UNRATED
    for period in reversed(periods):
        total += period
        if total.total >= enough:
            break
    return total
