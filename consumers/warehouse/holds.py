"""Legal holds: what they cover is neither deleted by retention nor erased."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries

QUERIES = named_queries("retuned.consumers.warehouse", "holds.sql")


@dataclass(frozen=True)
class Hold:
    """A hold.

    Attributes:
        workload: what it covers; None: all workloads.
        user_id: the pseudonym of the user whose data it covers; None: all users.
        released_at: naive UTC; None: it is in force.
    """

    id: str
    workload: str | None
    user_id: str | None
    reason: str
    placed_by: str
    placed_at: datetime
    released_by: str | None = None
    released_at: datetime | None = None
    release_reason: str | None = None

    def __str__(self) -> str:
        covers = "all workloads" if self.workload is None else f"workload {self.workload}"
        of = f", user {self.user_id}" if self.user_id else ""
        return f"hold {self.id} ({covers}{of}) by {self.placed_by} since {self.placed_at:%Y-%m-%d}: {self.reason}"


def holds(warehouse: Warehouse, workload: str | None = None, user_id: str | None = None) -> list[Hold]:
    """Returns the holds in force that keep data from being deleted, oldest first.

    Args:
        workload: the workload of the data; None: data of any, which every hold may cover.
        user_id: the pseudonym of the user whose data it is; None: data of any.
    """
    return [Hold(**row) for row in warehouse.rows(QUERIES["in_force"], {"workload": workload, "user_id": user_id})]


def listed(warehouse: Warehouse) -> list[Hold]:
    """Returns all holds: those in force first, then the latest."""
    return [Hold(**row) for row in warehouse.rows(QUERIES["listed"])]


def place(
    warehouse: Warehouse, workload: str | None, users: Sequence[str | None], reason: str, by: str, now: datetime
) -> list[Hold]:
    """Places a hold for each of some users, in one transaction.

    Args:
        users: the pseudonyms of one user, one for each key; or None: all users.
    """
    placed = [Hold(uuid.uuid4().hex[:8], workload, user, reason, by, now) for user in users]
    with warehouse.transaction() as cursor:
        for hold in placed:
            insert(cursor, "holds", **vars(hold))
    return placed


def release(warehouse: Warehouse, id: str, reason: str, by: str, now: datetime) -> Hold:
    """Releases a hold; its row stays.

    Raises:
        RetunedError: there is no such hold, or it is released already.
    """
    with warehouse.transaction() as cursor:
        given = {"id": id, "reason": reason, "by": by, "now": now}
        if not cursor.execute(QUERIES["release"], given).fetchall()[0][0]:
            raise RetunedError(f"hold {id}: none of this id is in force; `retuned hold list` shows those that are")
    return next(one for one in listed(warehouse) if one.id == id)
