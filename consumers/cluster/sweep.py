"""Deletes files that no segment has and none can get any more: of ingesters that were killed, stopped or overtaken, and
of segments that have expired or were erased.

No clock decides what goes. Files are listed first, and the database is asked afterwards: what it has not recorded by
then, of a partition that is another's since or has moved on, cannot be recorded later. Files are listed by the day in
their keys, from the day before the last sweep on, or from that of the oldest file of which it was not known yet. What
an ingester puts there that wakes up later than that, it deletes itself.
"""

import logging
from collections.abc import Iterator
from datetime import date, timedelta

from retuned.consumers.cluster import segments
from retuned.consumers.cluster.database import Database
from retuned.consumers.cluster.objects import Objects

log = logging.getLogger(__name__)


def sweep(database: Database, objects: Objects) -> int:
    """Returns how many files were deleted. Several processes may do it at once.

    Raises:
        StoreUnavailable: the database or the storage does not answer; the next one does the rest.
    """
    deleted = 0
    while keys := database.gone_files():
        objects.delete(keys)
        database.note_deleted(keys)
        deleted += len(keys)
    swept_on, today = database.swept_on()
    unknown = today
    for prefix in _prefixes(swept_on, today):
        for keys in objects.list(prefix):
            found = [listed for key in keys if (listed := segments.listed(key)) is not None]
            unrecorded = database.unrecorded(found)
            dead = [key for key, is_dead in unrecorded.items() if is_dead]
            objects.delete(dead)
            deleted += len(dead)
            unknown = min([unknown, *(listed.day for listed in found if unrecorded.get(listed.key) is False)])
    database.note_sweep(unknown)
    if deleted:
        log.info("store: %d files that are in no segment are deleted", deleted)
    return deleted


def _prefixes(swept_on: date | None, today: date) -> Iterator[str]:
    """Of the keys that may have come since a sweep; of all, where there was none. A day is over once it was swept on
    the next one; the clock of an ingester may be a day ahead."""
    for table in segments.TABLES:
        if swept_on is None:
            yield f"{table}/"
            continue
        day = swept_on if swept_on == today else swept_on - timedelta(days=1)
        while day <= today + timedelta(days=1):
            yield f"{table}/day={day}/"
            day += timedelta(days=1)
