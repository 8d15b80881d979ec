"""Reads the segments of a cluster for what a selection chooses."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice

from retuned.consumers.settings import StoreSettings
from retuned.consumers.warehouse.choosing import SEGMENT_TABLES


def files(settings: StoreSettings) -> Iterator[tuple[str, str, bytes]]:
    """Yields the files of segments with events, but for those that were lost: table, key, content. Some are read at
    once.

    Raises:
        StoreUnavailable: the database or the storage does not answer.
    """
    from retuned.consumers.cluster.database import Database, File
    from retuned.consumers.cluster.erasing import AT_ONCE
    from retuned.consumers.cluster.objects import Objects

    objects = Objects(settings)

    def get(file: File) -> bytes | None:
        try:
            return objects.get(file.key)
        except FileNotFoundError:
            return None

    with closing(Database(settings)) as database:
        found = database.files_of_segments()
    remaining = iter([file for file in found if file.table_name in SEGMENT_TABLES])
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while some := list(islice(remaining, AT_ONCE)):
            for file, content in zip(some, pool.map(get, some), strict=True):
                if content is not None:
                    yield file.table_name, file.key, content
