"""The archive: moves whole days of old events from the warehouse to Parquet files without losing any.

Files are `archive/<table>/day=<day>/<hash>.parquet`, compressed with zstd, which DuckDB and pandas read directly. The
day is the one on which an event was received; feedback is filed under the day of its interaction, whenever it arrives,
so that both are deleted together.

A file is written under another name, fsynced and renamed. Then one transaction deletes its rows and records the file. A
file that is not recorded (the run was killed in between, or the warehouse is an older copy) gets this transaction in
the next run. So each event is always in the warehouse or in the archive, and in both only until the next run.
"""

import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from retuned.consumers.common.durable import fsync, sha256
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import ArchiveError
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse import answer_minutes, judgements
from retuned.consumers.warehouse.connection import Warehouse, insert, literal, named_queries, parameters_of

log = logging.getLogger(__name__)
QUERIES = named_queries("retuned.consumers.warehouse", "archive.sql")

TABLES = ("interactions", "feedback", "dead_letters")
PART_ROWS = 100_000
"""The most rows moved at once. With 3 million rows on two cores it moves 74,000 rows a second, and the longest
concurrent batch of 1,000 events takes 0.6 s (median 25 ms; 20 ms without)."""
FREE_BYTES = 2**30
"""The bytes left free on the archive's disk, which may also hold the warehouse and its new events."""


@dataclass(frozen=True)
class Span:
    """Interactions of a workload with start ≤ timestamp < end (UTC)."""

    workload: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Kept:
    """Interactions that must stay, however old: spans of time, and ids. Their feedback stays with them."""

    spans: Sequence[Span] = ()
    interactions: Sequence[str] = ()


@dataclass(frozen=True)
class Archived:
    """The totals of one run."""

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
    """Moves events older than retention.keep_days, then the oldest days until the warehouse uses retention.keep_bytes.

    Args:
        now: naive UTC.
        stop: ends the run early, between two files; the next run continues.
        tables: the tables to archive, from `TABLES`.

    Raises:
        ArchiveError: a file cannot be written or read, or keep_bytes cannot be met. Events not moved stay; if only
            answers of late feedback cannot be read, all other events are moved first.
        WarehouseError: the warehouse cannot be written.
    """
    retention = settings.retention
    run = _Run(warehouse, settings, kept, now, stop, tables)
    run.finish()
    run.move()
    if retention.keep_bytes is not None:
        run.shrink(retention.keep_bytes)
    if run.failed is not None:
        raise run.failed
    return run.done


def folder_of(warehouse: Warehouse, settings: Settings) -> Path:
    """Returns the folder of the archive."""
    return settings.retention.archive or warehouse.path.parent / "archive"


def strays(folder: Path) -> list[Path]:
    """Returns the files that killed processes left while they wrote or rewrote files of an archive. One thread writes
    to the archive, in the process that has the warehouse open: only that thread may delete them."""
    return sorted([*folder.glob("*/*.tmp"), *folder.glob("*/day=*/.*.tmp")])


def archived(warehouse: Warehouse) -> list[dict[str, Any]]:
    """Returns the content of the archive by table: table_name, files, rows, bytes, last_archived_at."""
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
        self._settings = settings
        self._keeps_ids = settings.store.kind == "cluster"
        self._distance = timedelta(seconds=2 * settings.ingest.deduplicate_seconds)
        self.done = Archived(0, 0, 0)
        self.failed: ArchiveError | None = None
        self._answers: pa.Table | None = None

    def finish(self) -> None:
        """Records files that were written but not recorded, and deletes their rows from the warehouse."""
        for stray in strays(self._folder):
            stray.unlink(missing_ok=True)
        known = {row["file"] for row in self._warehouse.rows(QUERIES["known_files"])}
        for table in self._tables:
            for path in sorted((self._folder / table).glob("day=*/*.parquet")):
                if self._name(path) not in known:
                    deleted = self._take_over([_File(path, table)])
                    log.warning("archive: %s was not recorded; %d of its rows were in the warehouse", path, deleted)

    def move(self) -> None:
        """Moves events older than retention.keep_days, of each workload its own, and feedback on archived answers."""
        answer_minutes.follow(self._warehouse)
        known = [None, *(row["workload"] for row in self._warehouse.rows(QUERIES["workloads"]))]
        moving = [before for workload in known if (before := self._before(workload)) is not None]
        for (day, table), workloads in self._days(max(moving)) if moving else ():
            bounds = {workload: self._before(workload) for workload in workloads}
            for before in sorted(one for one in set(bounds.values()) if one is not None and _midnight(day) < one):
                self._move_day(table, day, [one for one in workloads if bounds[one] == before], before)
        for day in self._late_days():
            self._move_day("feedback", day, [None], _midnight(day))

    def _before(self, workload: str | None) -> datetime | None:
        settings = self._settings if workload is None else self._settings.for_workload(workload)
        days = settings.retention.keep_days
        return None if days is None else _midnight(self._now) - timedelta(days=days)

    def _days(self, before: datetime) -> Iterator[tuple[tuple[date, str], list[str | None]]]:
        """Yields the days and tables with rows from before a midnight, and the workloads of the rows."""
        rows = self._warehouse.rows(QUERIES["days"], {"before": before, "tables": self._tables})
        for key, group in groupby(rows, itemgetter("day", "table_name")):
            yield key, [row["workload"] for row in group]

    def shrink(self, keep_bytes: int) -> None:
        """Moves the oldest days, never today, until the warehouse uses at most `keep_bytes`."""
        for day, tables in groupby(self._days(_midnight(self._now)), lambda one: one[0][0]):
            if self._stop.is_set() or self._warehouse.size().used <= keep_bytes:
                return
            for (_, table), workloads in tables:
                self._move_day(table, day, workloads, _midnight(day) + timedelta(days=1))
            self._warehouse.checkpoint()  # frees the space of deleted rows
        used = self._warehouse.size().used
        if used > keep_bytes and not self._stop.is_set():
            raise ArchiveError(
                f"warehouse {self._warehouse.path}: uses {used:,} bytes although everything possible is archived; the "
                f"rest is from today or still needed: raise retention.keep_bytes ({keep_bytes:,})"
            )

    def _move_day(self, table: str, day: date, workloads: Sequence[str | None], before: datetime) -> None:
        while not self._stop.is_set() and self._move_part(table, day, workloads, before):
            pass

    def _move_part(self, table: str, day: date, workloads: Sequence[str | None], before: datetime) -> bool:
        """Moves some rows of a day and table with their feedback; returns False if there are none."""
        files: list[_File] = []
        with self._warehouse.cursor() as cursor:
            try:
                cursor.register("kept_spans", _spans(self._kept.spans))
                cursor.register("kept_interactions", pa.table({"id": pa.array(self._kept.interactions, pa.string())}))
                distance = self._distance // timedelta(microseconds=1)
                wanted = {"day": day, "before": before, "distance": distance, "rows": PART_ROWS}
                wanted |= {"workloads": workloads}
                if table == "feedback":
                    if (answered := self._answered(cursor)) is None:
                        return False
                    cursor.register("answered", answered)
                leaving = QUERIES[f"leaving_{table}"]
                count = cursor.execute(leaving, parameters_of(leaving, wanted)).fetchone()
                if count is None or not count[0]:
                    return False
                if table == "feedback":
                    for (filed,) in cursor.execute(QUERIES["filed"]).fetchall():
                        files += self._write(cursor, table, day, table, filed)
                else:
                    files += self._write(cursor, table, day, table)
                if table == "interactions":
                    files += self._write(cursor, "feedback_with_interactions", day, "feedback")
            except (duckdb.IOException, duckdb.OutOfMemoryException, OSError) as error:
                for file in files:  # an interaction and its feedback are archived together
                    file.path.unlink()
                raise self._not_written(error) from error
        if not self._take_over(files):
            raise ArchiveError(f"archive {self._folder}: rows of {day} in {table} were written but not deleted")
        return True

    def _late_days(self) -> list[date]:
        """Returns the days with feedback on archived answers: it does not wait, as it is deleted with its answer."""
        with self._warehouse.cursor() as cursor:
            if "feedback" not in self._tables or (answered := self._answered(cursor)) is None:
                return []
            cursor.register("answered", answered)
            return [day for (day,) in cursor.execute(QUERIES["late_days"]).fetchall()]

    def _answered(self, cursor: duckdb.DuckDBPyConnection) -> pa.Table | None:
        """Returns the archived answers on which there is feedback in the warehouse, found once in a run. None if a file
        cannot be read: the feedback stays, and the run fails in the end."""
        if self._answers is None and self.failed is None:
            files = [str(path) for path in sorted((self._folder / "interactions").glob("day=*/*.parquet"))]
            unanswered = cursor.execute(QUERIES["unanswered"]).fetchall()
            try:
                rows = (
                    cursor.execute(QUERIES["answered"], {"archived": files}).fetchall() if files and unanswered else []
                )
                ids, days = zip(*rows, strict=True) if rows else ((), ())
                self._answers = pa.table({"id": pa.array(ids, pa.string()), "day": pa.array(days, pa.date32())})
            except duckdb.FatalException:
                raise
            except duckdb.Error as error:
                self.failed = ArchiveError(
                    f"archive {self._folder}: {first_line(error)}; feedback on archived answers stays in the "
                    "warehouse: repair the file, or move it away"
                )
        return self._answers

    def _write(
        self, cursor: duckdb.DuckDBPyConnection, query: str, day: date, table: str, filed: date | None = None
    ) -> list[_File]:
        """Writes and fsyncs the rows of a query as a file of the archive; no file if there are no rows.

        Args:
            day: on which the rows were received, or those that they belong to.
            filed: the day under which they lie; default: the same.
        """
        folder = self._folder / table / f"day={filed or day}"
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < FREE_BYTES:
            raise OSError(f"{free / 2**20:.0f} MiB are free, and {FREE_BYTES / 2**20:.0f} MiB must stay free")
        aside = folder.parent / "writing.tmp"
        try:
            sql = f"COPY ({QUERIES[query]}) TO {literal(aside)} (FORMAT parquet, COMPRESSION zstd)"
            written = cursor.execute(sql, parameters_of(sql, {"day": day, "filed": filed})).fetchone()
            if written is None or not written[0]:
                return []
            fsync(aside)
            path = folder / f"{sha256(aside)[:16]}.parquet"
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
        for place in (folder, folder.parent, self._folder, self._folder.parent):
            fsync(place)
        return [_File(path, table)]

    def _take_over(self, files: Sequence[_File]) -> int:
        """Records files and deletes their rows from the warehouse, in one transaction; returns how many."""
        try:
            held = [(file, str(file.path), self._record(file)) for file in files]
        except (duckdb.Error, OSError) as error:
            names = ", ".join(str(file.path) for file in files)
            raise ArchiveError(
                f"archive: {names} cannot be read ({first_line(error)}); move it away if it is not an archive file"
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
        except duckdb.TransactionException as error:  # rows were changed meanwhile, such as dead letters by a replay
            raise ArchiveError(
                f"archive {self._folder}: {first_line(error)}; the next run deletes the archived rows"
            ) from error
        for _, _, record in held:
            done = self.done
            self.done = Archived(done.rows + record["rows"], done.bytes + record["bytes"], done.files + 1)
        return deleted

    def _record(self, file: _File) -> dict[str, Any]:
        """Returns the file's row in `archives`."""
        with self._warehouse.cursor() as cursor:
            rows, first, last = _row(cursor.execute(QUERIES["held"], {"file": str(file.path)}))
        return {
            "file": self._name(file.path),
            "table_name": file.table,
            "rows": rows,
            "bytes": file.path.stat().st_size,
            "first_received_at": first,
            "last_received_at": last,
            "sha256": sha256(file.path),
            "archived_at": self._now,
        }

    def _name(self, path: Path) -> str:
        return path.relative_to(self._folder).as_posix()

    def _not_written(self, error: Exception) -> ArchiveError:
        return ArchiveError(
            f"archive {self._folder}: cannot be written ({first_line(error)}); the events stay in the warehouse: free "
            "disk space, or set retention.archive to another folder"
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
