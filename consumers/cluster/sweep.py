"""Deletes files that no segment has and none can get any more: of ingesters that were killed, stopped or overtaken.

No clock decides. Files are listed first, and the database is asked afterwards: what it has not recorded by then, of a
partition that is another's since or has moved on, cannot be recorded later.
"""

import logging

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
    for table in segments.TABLES:
        for keys in objects.list(f"{table}/"):
            found = [listed for key in keys if (listed := segments.listed(key)) is not None]
            dead = database.dead_files(found)
            objects.delete(dead)
            deleted += len(dead)
    if deleted:
        log.info("store: %d files that are in no segment are deleted", deleted)
    return deleted
