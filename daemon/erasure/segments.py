"""Reads the segments of a cluster for what a selection chooses."""

from collections.abc import Iterator
from contextlib import closing

from retuned.consumers.settings import StoreSettings
from retuned.consumers.warehouse.choosing import SEGMENT_TABLES


def files(settings: StoreSettings) -> Iterator[tuple[str, str, bytes]]:
    """Yields the files of segments with events: table, key, content (see `contents`).

    Raises:
        StoreUnavailable: the database or the storage does not answer.
    """
    from retuned.consumers.cluster.database import Database
    from retuned.consumers.cluster.erasing import contents
    from retuned.consumers.cluster.objects import Objects

    with closing(Database(settings)) as database:
        found = database.files_of_segments()
    with_events = [file for file in found if file.table_name in SEGMENT_TABLES]
    for file, content in contents(Objects(settings), with_events):
        yield file.table_name, file.key, content
