"""Search over the stored answers."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.daemon.console", "answers.sql")
RATINGS = ("helpful", "unhelpful", "invented", "corrected", "unrated", "alarm")
DAYS = 7
"""So many days are searched unless dates are given."""
PAGE = 50


@dataclass(frozen=True)
class Search:
    """Filters of answers; empty: any.

    Attributes:
        text: what the question, an earlier turn or the answer contains, in any case.
        segment: `name=value` of an attribute of the event.
        since, until: first and last day, ISO 8601, UTC.
    """

    workload: str = ""
    text: str = ""
    model: str = ""
    user: str = ""
    rating: str = ""
    segment: str = ""
    since: str = ""
    until: str = ""
    page: int = 0

    def times(self, now: datetime) -> tuple[datetime, datetime]:
        """Returns the beginning of the stretch of time that is searched, and its end, which is exclusive."""
        until = (datetime.fromisoformat(self.until) if self.until else now) + timedelta(days=1)
        return datetime.fromisoformat(self.since) if self.since else min(until, now) - timedelta(days=DAYS), until


def found(
    warehouse: Warehouse, search: Search, now: datetime, workloads: list[str] | None = None
) -> list[dict[str, Any]]:
    """Returns at most PAGE + 1 answers, the newest first; the last one only tells that there are more.

    Args:
        workloads: those that may be read; None: all.

    Raises:
        RetunedError: a filter is malformed.
    """
    name, equals, value = search.segment.partition("=")
    if search.segment and not (name and equals):
        raise RetunedError(f"segment: expected name=value, got {search.segment!r}")
    if search.rating not in ("", *RATINGS):
        raise RetunedError(f"rating: expected one of {', '.join(RATINGS)}, got {search.rating!r}")
    since, until = search.times(now)
    wanted = [search.workload] if search.workload else None
    if workloads is not None:
        wanted = [one for one in workloads if wanted is None or one in wanted]
    return warehouse.rows(
        QUERIES["answers"],
        {
            "workloads": wanted,
            "model": search.model or None,
            "user": search.user or None,
            "text": search.text or None,
            "rating": search.rating or None,
            "segment": f"/{name.replace('~', '~0').replace('/', '~1')}" if search.segment else None,
            "segment_value": value,
            "since": since,
            "until": until,
            "limit": PAGE + 1,
            "offset": search.page * PAGE,
        },
    )
