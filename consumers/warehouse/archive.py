"""The archive: whole days of old events leave the warehouse for Parquet files, and nothing is lost on the way.

`archive/<table>/day=<day>/<hash>.parquet`, zstd, as DuckDB and pandas read them by themselves. The day is the one on
which an event was received, so that it is over once and for all; feedback lies under the day of its interaction.

A file is written under another name, fsynced and renamed; then one transaction deletes what the file holds and records
the file. Whoever finds a file that is not recorded (a run was killed in between, or the warehouse is an older copy)
does that transaction then, so each event is in the warehouse or in the archive, at no time in neither, and in both
only until the next run.
"""

import hashlib
import logging
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from retuned.consumers.common.durable import fsync
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import ArchiveError
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse import answer_minutes, judgements
from retuned.consumers.warehouse.connection import Warehouse, insert, literal, named_queries, parameters_of

log = logging.getLogger(__name__)
QUERIES = named_queries("retuned.consumers.warehouse", "archive.sql")

TABLES = ("interactions", "feedback", "dead_letters")
PART_ROWS = 100_000
"""Most rows moved at once. With 3 million stored, on two cores, 74,000 rows a second leave so, and the longest batch of
1,000 events that came in beside it took 0.6 s (median 25 ms; 20 ms without)."""
FREE_BYTES = 2**30
"""Left free on the disk of the archive: it may be the warehouse's, and events need room to come in."""


@dataclass(frozen=True)
class Span:
    """Interactions of a workload with start ≤ timestamp < end (UTC)."""

    workload: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Kept:
    """What must not leave, however old: spans of time, and ids of interactions (their feedback stays with them)."""

    spans: Sequence[Span] = ()
    interactions: Sequence[str] = ()


@dataclass(frozen=True)
class Archived:
    """What one run moved."""

    rows: int
    bytes: int
    files: int


@dataclass(frozen=True)
class _File:
    path: Path
    table: str


def archive(
    warehouse: Warehouse,
    settings: Settings,
    kept: Kept,
    now: datetime,
    stop: threading.Event,
    tables: Sequence[str] = TABLES,
) -> Archived:
    """Move what is older than retention.keep_days, then the oldest days until the warehouse uses retention.keep_bytes.

    Args:
        now: naive UTC.
        stop: ends the run early, between two files; the next one goes on.
        tables: what may leave, of `TABLES`.

    Raises:
        ArchiveError: a file cannot be written or read, or keep_bytes cannot be kept. What was not moved stays.
        WarehouseError: the warehouse cannot be written.
    """
    retention = settings.retention
    run = _Run(warehouse, settings, kept, now, stop, tables)
    run.finish()
    if retention.keep_days is not None:
        run.move(_midnight(now) - timedelta(days=retention.keep_days))
    if retention.keep_bytes is not None:
        run.shrink(retention.keep_bytes)
    return run.done


def folder_of(warehouse: Warehouse, settings: Settings) -> Path:
    """The folder of the archive."""
    return settings.retention.archive or warehouse.path.parent / "archive"


def archived(warehouse: Warehouse) -> list[dict[str, Any]]:
    """What the archive holds, by table: table_name, files, rows, bytes, last_archived_at."""
    return warehouse.rows(QUERIES["archived"])


class _Run:
    def __init__(
        self,
        warehouse: Warehouse,
        settings: Settings,
        kept: Kept,
        now: datetime,
        stop: threading.Event,
        tables: Sequence[str],
    ) -> None:
        self._warehouse, self._kept, self._now, self._stop, self._tables = warehouse, kept, now, stop, tables
        self._folder = folder_of(warehouse, settings)
        self._keeps_ids = settings.store.kind == "cluster"
        self._distance = timedelta(seconds=2 * settings.ingest.deduplicate_seconds)
        self.done = Archived(0, 0, 0)

    def finish(self) -> None:
        """Delete from the warehouse what files hold that were written and not recorded."""
        for half in self._folder.glob("*/*.tmp"):
            half.unlink()
        known = {row["file"] for row in self._warehouse.rows(QUERIES["known_files"])}
        for table in self._tables:
            for path in sorted((self._folder / table).glob("day=*/*.parquet")):
                if self._name(path) not in known:
                    deleted = self._take_over([_File(path, table)])
                    log.warning("archive: %s was not recorded; %d of its rows were in the warehouse", path, deleted)

    def move(self, before: datetime) -> None:
        """Move what was received before that midnight."""
        for row in self._warehouse.rows(QUERIES["days"], {"before": before}):
            self._move_day(row["day"], before)

    def shrink(self, keep_bytes: int) -> None:
        """Move the oldest days, never today, until the warehouse uses no more than so many bytes."""
        for row in self._warehouse.rows(QUERIES["days"], {"before": _midnight(self._now)}):
            if self._stop.is_set() or self._warehouse.size().used <= keep_bytes:
                return
            self.move(_midnight(row["day"]) + timedelta(days=1))
            self._warehouse.checkpoint()  # what was deleted is free only now
        used = self._warehouse.size().used
        if used > keep_bytes and not self._stop.is_set():
            raise ArchiveError(
                f"warehouse {self._warehouse.path}: uses {used:,} bytes, and all that can be archived was; the rest is "
                f"of today or still needed: raise retention.keep_bytes ({keep_bytes:,})"
            )

    def _move_day(self, day: date, before: datetime) -> None:
        for table in self._tables:
            while not self._stop.is_set() and self._move_part(table, day, before):
                pass

    def _move_part(self, table: str, day: date, before: datetime) -> bool:
        """Move some rows of a day and table, with the feedback on them; False when there are none."""
        files: list[_File] = []
        with self._warehouse.cursor() as cursor:
            try:
                cursor.register("kept_spans", _spans(self._kept.spans))
                cursor.register("kept_interactions", pa.table({"id": pa.array(self._kept.interactions, pa.string())}))
                distance = self._distance // timedelta(microseconds=1)
                wanted = {"day": day, "before": before, "distance": distance, "rows": PART_ROWS}
                leaving = QUERIES[f"leaving_{table}"]
                found = cursor.execute(leaving, parameters_of(leaving, wanted)).fetchone()
                if found is None or not found[0]:
                    return False
                files += self._write(cursor, table, day, table)
                if table == "interactions":
                    files += self._write(cursor, "feedback_with_interactions", day, "feedback")
            except (duckdb.IOException, duckdb.OutOfMemoryException, OSError) as error:
                for file in files:  # an interaction does not leave without its feedback
                    file.path.unlink()
                raise self._not_written(error) from error
        if not self._take_over(files):
            raise ArchiveError(f"archive {self._folder}: rows of {day} in {table} were written, and not found again")
        return True

    def _write(self, cursor: duckdb.DuckDBPyConnection, query: str, day: date, table: str) -> list[_File]:
        """The rows of a query as a file of the archive, on the disk for good; no file when there are none."""
        folder = self._folder / table / f"day={day}"
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < FREE_BYTES:
            raise OSError(f"{free / 2**20:.0f} MiB are free, and {FREE_BYTES / 2**20:.0f} must stay so")
        aside = folder.parent / "writing.tmp"
        try:
            sql = f"COPY ({QUERIES[query]}) TO {literal(aside)} (FORMAT parquet, COMPRESSION zstd)"
            written = cursor.execute(sql, parameters_of(sql, {"day": day})).fetchone()
            if written is None or not written[0]:
                return []
            fsync(aside)
            path = folder / f"{_sha256(aside)[:16]}.parquet"
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
        for place in (folder, folder.parent, self._folder, self._folder.parent):
            fsync(place)
        return [_File(path, table)]

    def _take_over(self, files: Sequence[_File]) -> int:
        """Delete from the warehouse what the files hold and record them, in one transaction; how many were deleted."""
        try:
            held = [(file, str(file.path), self._record(file)) for file in files]
        except (duckdb.Error, OSError) as error:
            names = ", ".join(str(file.path) for file in files)
            raise ArchiveError(
                f"archive: {names} cannot be read ({first_line(error)}); move it away if it is none of the archive's"
            ) from error
        deleted = 0
        try:
            with judgements.changing, answer_minutes.changing, self._warehouse.transaction() as cursor:
                for file, path, record in held:
                    bounds = {"file": path, "first": record["first_received_at"], "last": record["last_received_at"]}
                    deleted += _row(cursor.execute(QUERIES[f"delete_{file.table}"], bounds))[0]
                    if file.table == "feedback":
                        judged = cursor.execute(QUERIES["judged"], {"file": path}).fetchall()
                        judgements.renew(cursor, [interaction for (interaction,) in judged])
                    if file.table == "interactions":
                        answer_minutes.renew(cursor, cursor.execute(QUERIES["answered_in"], {"file": path}).fetchall())
                    insert(cursor, "archives", **record)
                    if self._keeps_ids and file.table != "dead_letters":
                        cursor.execute(QUERIES["keep_ids"], {"table": file.table, "file": path})
        except duckdb.TransactionException as error:  # the rows were changed by another, as dead letters by a replay
            raise ArchiveError(
                f"archive {self._folder}: {first_line(error)}; the next run deletes what was written there"
            ) from error
        for _, _, record in held:
            done = self.done
            self.done = Archived(done.rows + record["rows"], done.bytes + record["bytes"], done.files + 1)
        return deleted

    def _record(self, file: _File) -> dict[str, Any]:
        """The file's row in `archives`."""
        with self._warehouse.cursor() as cursor:
            rows, first, last = _row(cursor.execute(QUERIES["held"], {"file": str(file.path)}))
        return {
            "file": self._name(file.path),
            "table_name": file.table,
            "rows": rows,
            "bytes": file.path.stat().st_size,
            "first_received_at": first,
            "last_received_at": last,
            "sha256": _sha256(file.path),
            "archived_at": self._now,
        }

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _not_written(self, error: Exception) -> ArchiveError:
        return ArchiveError(
            f"archive {self._folder}: cannot be written ({first_line(error)}); what it was to hold stays in the "
            "warehouse: free disk space, or set retention.archive to a folder elsewhere"
        )


def _midnight(when: date) -> datetime:
    return datetime.combine(when, time())


def _spans(spans: Sequence[Span]) -> Any:
    return pa.table(
        {
            "workload": pa.array([span.workload for span in spans], pa.string()),
            "start_at": pa.array([span.start for span in spans], pa.timestamp("us")),
            "end_at": pa.array([span.end for span in spans], pa.timestamp("us")),
        }
    )


def _row(cursor: duckdb.DuckDBPyConnection) -> Any:
    row = cursor.fetchone()
    assert row is not None
    return row


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
