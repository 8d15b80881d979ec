"""Deletes stray files in object storage: of killed or replaced ingesters, and of expired or erased segments.

No clock decides what is deleted. Files are listed first, and the database is asked afterwards: a file that is not
recorded by then cannot be recorded later if its partition has moved or belongs to another ingester. Files are listed by
the day in their keys, from the day before the last sweep on, or from the day of the oldest undecided file. A file that
an ingester stores even later is deleted by the ingester itself.
"""

import logging
from collections.abc import Iterator
from datetime import date, timedelta

from retuned.consumers.cluster import segments
from retuned.consumers.cluster.database import Database
from retuned.consumers.cluster.objects import Objects

log = logging.getLogger(__name__)

SEGMENTS_AT_ONCE = 10_000
"""The most segments that expire in one statement, which has to end long before `postgres.STATEMENT_SECONDS`."""


def sweep(database: Database, objects: Objects) -> int:
    """Deletes stray files, and returns how many. Several processes may sweep at the same time.

    Raises:
        StoreUnavailable: the database or the storage does not answer; the next sweep continues.
    """
    deleted = delete_gone(database, objects)
    swept_on, today = database.swept_on()
    undecided = today
    for prefix in _prefixes(swept_on, today):
        for keys in objects.list(prefix):
            files = [listed for key in keys if (listed := segments.listed(key)) is not None]
            unrecorded = database.unrecorded(files)
            dead = [key for key, is_dead in unrecorded.items() if is_dead]
            objects.delete(dead)
            deleted += len(dead)
            undecided = min([undecided, *(file.day for file in files if unrecorded.get(file.key) is False)])
    database.note_sweep(undecided)
    if deleted:
        log.info("store: deleted %d files without a segment", deleted)
    return deleted


def expire(database: Database, days: int, up_to: int) -> int:
    """Expires segments older than `days`, up to a number, and returns how many; raises like `sweep`.

    What has expired before an error stays expired: the next call continues after it.
    """
    expired = 0
    while part := database.expire(days, min(up_to, _last_expired(database) + SEGMENTS_AT_ONCE)):
        expired += part
    return expired


def _last_expired(database: Database) -> int:
    expired = database.expired(0)
    return expired.number if expired else 0


def delete_gone(database: Database, objects: Objects) -> int:
    """Deletes the files of expired and erased segments, and returns how many; raises like `sweep`."""
    deleted = 0
    while keys := database.gone_files():
        objects.delete(keys)
        database.note_deleted(keys)
        deleted += len(keys)
    return deleted


def _prefixes(swept_on: date | None, today: date) -> Iterator[str]:
    """Yields the prefixes of keys that may be new since the last sweep; all keys if there was none.

    A day is complete once it was swept on the next day; an ingester's clock may be a day ahead.
    """
    for table in segments.TABLES:
        if swept_on is None:
            yield f"{table}/"
            continue
        day = swept_on if swept_on == today else swept_on - timedelta(days=1)
        while day <= today + timedelta(days=1):
            yield f"{table}/day={day}/"
            day += timedelta(days=1)
