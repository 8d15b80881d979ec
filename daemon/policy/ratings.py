"""Users' ratings since the champion's promotion, counted by period; those of a period that is over are kept."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors.settings import WindowsSettings
from retuned.monitors.windows import in_service_since

QUERIES = named_queries("retuned.daemon.policy", "ratings.sql")
YEAR = 365
"""So many periods are looked back on: a year, where a period is a day."""
counting = threading.Lock()


@dataclass(frozen=True)
class Ratings:
    """Independent ratings of users, and how many of them call the answer helpful."""

    helpful: int
    total: int

    @property
    def rate(self) -> float:
        """Share of helpful answers; 0 when nobody rated."""
        return self.helpful / self.total if self.total else 0.0

    def __add__(self, other: "Ratings") -> "Ratings":
        return Ratings(self.helpful + other.helpful, self.total + other.total)


UNRATED = Ratings(0, 0)


def by_period(warehouse: Warehouse, windows: WindowsSettings, workload: str, now: datetime) -> tuple[Ratings, ...]:
    """Ratings of the model in service, the oldest period first; call `judgements.follow` before.

    A period has the length of the current window; at most YEAR of the latest ones, of which the last may be under way.
    Answers count that are older than such a length, with the votes of that length: all had the same time to be rated.
    What is over is counted once and kept.
    """
    length = timedelta(seconds=windows.current_seconds)
    since = in_service_since(warehouse, windows, workload, now)
    mature = now - length
    if since is None or mature <= since:
        return ()
    begun = -(-(mature - since) // length)
    wanted = range(max(begun - YEAR, 0), begun)
    key = {"workload": workload, "since": since, "seconds": length.total_seconds()}
    with counting:
        known = {row["period"]: Ratings(row["helpful"], row["total"]) for row in warehouse.rows(QUERIES["known"], key)}
        # What waits on the broker is still to come: time is what the newest answer says, not the clock.
        newest = (warehouse.row(QUERIES["newest"], {"workload": workload}) or {})["answered_at"]
        over = []
        with warehouse.cursor() as cursor:
            for period in sorted(set(wanted) - known.keys()):
                start = since + period * length
                judgements.comparable_votes(cursor, workload, start, start + length, now=now, mature_after=length)
                helpful, total = cursor.execute(QUERIES["count"]).fetchall()[0]
                known[period] = Ratings(helpful, total)
                if newest is not None and start + 2 * length <= newest:
                    over.append({**key, "period": period, "helpful": helpful, "total": total})
        if over:
            with warehouse.transaction() as cursor:
                cursor.execute(QUERIES["forget"], key)
                cursor.execute(QUERIES["keep"], {"rows": over})
    return tuple(known[period] for period in wanted)


def latest(periods: Sequence[Ratings], enough: int) -> Ratings:
    """The sum of as many of the latest periods as hold so many ratings; of all, where they hold fewer."""
    found = UNRATED
    for period in reversed(periods):
        found += period
        if found.total >= enough:
            break
    return found
