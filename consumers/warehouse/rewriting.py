"""Removes erased rows from the bytes of files: of Parquet files, and of the warehouse itself.

DuckDB marks deleted rows and reuses their blocks later; it never overwrites them. So what is left is copied into a new
file, which takes the place of the old one.
"""

import io
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.common.durable import fsync, replaced, sha256
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import BackupError
from retuned.consumers.warehouse.connection import COPY, Warehouse
from retuned.consumers.warehouse.copying import copy_to
from retuned.consumers.warehouse.tombstones import Tombstones

UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""Errors of reading a damaged Parquet file."""


@dataclass(frozen=True)
class Swapped:
    """The SHA-256 of the warehouse's file before and after, and how long ingestion paused."""

    before: str
    after: str
    seconds: float


def swap(warehouse: Warehouse, stop: threading.Event) -> Swapped:
    """Replaces the warehouse's file by a copy of what is left. All other threads wait meanwhile.

    Raises:
        Busy: another thread uses the warehouse for long.
        BackupError: the copy cannot be written.
        Cancelled: `stop` was set.
        WarehouseError: the file cannot be replaced.
    """
    copy = warehouse.path.with_name(warehouse.path.name + COPY)
    needed, free = warehouse.size().used, shutil.disk_usage(warehouse.path.parent).free
    if free < needed:
        raise BackupError(f"{copy}: {free:,} bytes are free, and up to {needed:,} are needed; free space")
    with warehouse.turns.alone():
        started = time.monotonic()
        copy.unlink(missing_ok=True)
        warehouse.checkpoint()
        copy_to(warehouse, copy, stop)
        fsync(copy)
        after = sha256(copy)
        before = warehouse.exchange(copy)
        return Swapped(before, after, time.monotonic() - started)


def erased_rows(source: Path | BinaryIO, tombstones: Tombstones) -> Any:
    """Returns a boolean array of the rows of a Parquet file: True if a row has a tombstone."""
    file = pq.ParquetFile(source)
    table = file.read(columns=tombstones.columns(file.schema_arrow.names))
    erased = np.zeros(file.metadata.num_rows, bool)
    erased[tombstones.erased(table)] = True
    return erased


def problem_of(source: Path | BinaryIO) -> str | None:
    """Returns why a Parquet file cannot be read; None: all of it can."""
    return _problem(lambda: [batch.validate(full=True) for batch in pq.ParquetFile(source).iter_batches()])


def problem_of_writing(path: Path) -> str | None:
    """Returns why a file cannot be replaced, by replacing it by itself; None: it can."""

    def replace() -> None:
        with replaced(path) as aside:
            shutil.copyfile(path, aside)

    return _problem(replace)


def _problem(work: Callable[[], object]) -> str | None:
    try:
        work()
    except UNREADABLE as error:
        return first_line(error)
    return None


def without(path: Path, erased: Any) -> None:
    """Writes a Parquet file again without some of its rows."""
    with replaced(path) as aside:
        aside.write_bytes(left(path, erased))


def left(source: Path | BinaryIO, erased: Any) -> bytes:
    """Returns the content of a Parquet file without some of its rows."""
    sink = io.BytesIO()
    pq.write_table(pq.ParquetFile(source).read().filter(pa.array(~erased)), sink, compression="zstd")
    return sink.getvalue()


def rows_in(path: Path) -> int:
    """Returns the number of rows of a Parquet file."""
    return int(pq.ParquetFile(path).metadata.num_rows)


def ids(path: Path, erased: Any) -> list[str]:
    """Returns the ids of some rows of a Parquet file of events; none of dead letters, which have no id."""
    file = pq.ParquetFile(path)
    if "id" not in file.schema_arrow.names:
        return []
    found: list[str] = file.read(columns=["id"])["id"].filter(pa.array(erased)).to_pylist()
    return found
