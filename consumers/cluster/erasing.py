"""Removes erased rows from the segments of a cluster, and keeps late copies out of new ones."""

import hashlib
import io
import re
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice

from retuned.consumers.cluster.database import Database, File
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.cluster.sweep import delete_gone
from retuned.consumers.common.text import first_line
from retuned.consumers.privacy.pseudonyms import UserKeys
from retuned.consumers.warehouse import rewriting
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.tombstones import Tombstones
from retuned.consumers.warehouse.writer import QUERIES, number_in

AT_ONCE = 8
"""The files that are read at once. With a storage that answers in 20 ms, 2,000 of them with 100 events each
took 10 s on two busy cores, and 49 s one after the other."""


@dataclass(frozen=True)
class Rewritten:
    """A file of a segment before and after."""

    before: File
    after: File


@dataclass(frozen=True)
class Unreadable:
    """A file of a segment that cannot be read, and why."""

    file: File
    problem: str


def erase(database: Database, objects: Objects, tombstones: Tombstones) -> Iterator[Rewritten | Unreadable]:
    """Writes the files of segments with erased rows again, and yields them, and those that cannot be read. Safe to
    repeat, and to run twice at once.

    All segments are read: they may hold events that the warehouse has deleted, or has not followed yet.

    Raises:
        StoreUnavailable: the database or the storage does not answer.
        StandsBy: another daemon leads.
    """
    clean = False
    while not clean:
        clean, missing = True, list[File]()
        for file, content in contents(objects, database.files_of_segments()):
            if not content:
                missing.append(file)
                continue
            try:
                erased = rewriting.erased_rows(io.BytesIO(content), tombstones)
                if not erased.any():
                    continue
                left = rewriting.left(io.BytesIO(content), erased)
            except rewriting.UNREADABLE as error:
                yield Unreadable(file, first_line(error))
                continue
            key = re.sub(r"[0-9a-f]+\.parquet$", f"{secrets.token_hex(8)}.parquet", file.key)
            sha256 = hashlib.sha256(left).hexdigest()
            new = replace(file, key=key, rows=file.rows - int(erased.sum()), bytes=len(left), sha256=sha256)
            database.announce_file(new.key)
            objects.put(new.key, left)
            if database.exchange_file(file, new):
                yield Rewritten(file, new)
            else:
                database.announce_file(new.key)  # a sweep may have deleted it before it was there
                clean = False
        if missing:
            recorded = {file.key for file in database.files_of_segments()}
            for file in missing:
                if file.key in recorded:  # it may be restored later, with the erased rows
                    yield Unreadable(file, _lost(file.sha256))
                else:  # replaced meanwhile, maybe by a process with fewer tombstones
                    clean = False
    delete_gone(database, objects)


def problem_of(postgres: Postgres, objects: Objects, key: str) -> str | None:
    """Returns why a file of a segment cannot be read; None: it can, or no segment has it any more.

    Raises:
        StoreUnavailable: the database or the storage does not answer.
    """
    try:
        return rewriting.problem_of(io.BytesIO(objects.get(key)))
    except FileNotFoundError:
        with postgres.transaction() as connection:
            query = "SELECT sha256 FROM retuned.segment_files WHERE key = %s"
            recorded = connection.execute(query, [key]).fetchone()
        return _lost(recorded[0]) if recorded else None


def _lost(sha256: str) -> str:
    return f"does not exist, or is empty; its SHA-256 was {sha256}"


def contents(objects: Objects, files: Iterable[File]) -> Iterator[tuple[File, bytes]]:
    """Yields the contents of files: an empty one of a file that does not exist, because it was lost, or replaced
    meanwhile."""

    def get(file: File) -> bytes:
        try:
            return objects.get(file.key)
        except FileNotFoundError:
            return b""

    remaining = iter(files)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        while some := list(islice(remaining, AT_ONCE)):
            yield from zip(some, pool.map(get, some), strict=True)


def take_requests(postgres: Postgres, warehouse: Warehouse) -> int:
    """Takes over the requests that ingesters left, each once; returns how many.

    Raises:
        RetunedError: this daemon does not lead, or PostgreSQL does not answer. The next call goes on.
    """
    requests = dict(postgres.rows("erasure_requests"))
    if not requests:
        return 0
    new = 0
    with warehouse.transaction() as cursor:
        for row in requests.values():
            given = row | {"requested_at": datetime.fromisoformat(row["requested_at"])}
            # Known are those of a call that was killed between the two databases.
            new += number_in(cursor.execute(QUERIES["insert_erasure"], given))
    postgres.rows("take_erasure_requests", {"ids": [*requests]})
    return new


class SharedTombstones:
    """The tombstones of a cluster, for a process without a warehouse. For one thread at a time.

    Attributes:
        number: the last change of those that `take_out` used.
    """

    def __init__(self, database: Database, keys: UserKeys) -> None:
        self._database, self._tombstones = database, Tombstones(keys)
        self._read: int | None = None

    @property
    def number(self) -> int:
        return self._read or 0

    def take_out(self, rows: Rows) -> None:
        """Removes events that have a tombstone; see `Tombstones.take_out`.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        if (changed := self._database.tombstones(self._read)) is not None:
            self._read, found = changed
            self._tombstones.use(found)
        self._tombstones.take_out(rows)
