"""Deletes archived events once `retention.delete_days` of their workload have passed, and old dead letters.

A file of the archive may hold events of several workloads. `archives` names them, so that a file is read only when some
of its events are due. A killed run is repeated: a file is changed first, and its record then.

Feedback has no workload of its own: it is found by the interactions of the same day. So these are deleted last, and
only once all feedback of their day was handled in the same run.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from retuned.consumers.common.durable import fsync, replaced, sha256
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import ArchiveError
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.archive import folder_of
from retuned.consumers.warehouse.audit import by_rule
from retuned.consumers.warehouse.connection import Warehouse, literal, named_queries, parameters_of
from retuned.consumers.warehouse.holds import holds
from retuned.consumers.warehouse.rewriting import rows_in
from retuned.consumers.warehouse.tombstones import QUERIES as RECORDS

log = logging.getLogger(__name__)
QUERIES = named_queries("retuned.consumers.warehouse", "expiry.sql")

NO_WORKLOAD = ""


def expire(warehouse: Warehouse, settings: Settings, now: datetime, *, is_audited: bool) -> Iterator[tuple[str, int]]:
    """Deletes what is due, except what a legal hold covers. Yields the table and the number of rows of each deletion.

    Args:
        now: naive UTC.
        is_audited: whether this daemon writes the audit.

    Raises:
        ArchiveError: files cannot be read or written, all others are done. The next call tries again.
        WarehouseError: the warehouse cannot be written.
    """
    run = _Run(warehouse, settings, now)
    run.read_workloads()
    for row in warehouse.rows(QUERIES["files"]):
        if row["table_name"] == "interactions" and row["day"] in run.feedback_left:
            continue
        if due := [one for one in row["workloads"] if run.is_due(one, row["table_name"], row["day"])]:
            with run.one(row):
                rows = run.delete(row, due, is_audited=is_audited)
                log.info("retention: %d rows of %s are deleted", rows, row["file"])
                yield row["table_name"], rows
    if before := run.before(NO_WORKLOAD, "dead_letters"):
        yield "dead_letters", warehouse.delete(QUERIES["expired_letters"], {"before": before})
    if run.failed:
        raise ArchiveError(
            f"retention: {'; '.join(run.failed)}; what is due in them stays, and with feedback the answers of its day; "
            "all else is deleted: repair these files, or move them away"
        )


class _Run:
    """One run.

    Attributes:
        failed: the files that failed, each with the reason.
        feedback_left: the days with feedback that could not be read or changed.
    """

    def __init__(self, warehouse: Warehouse, settings: Settings, now: datetime) -> None:
        self._warehouse, self._settings, self._now = warehouse, settings, now
        self._folder, self._holds = folder_of(warehouse, settings), holds(warehouse)
        self._bounds: dict[tuple[str, str], datetime | None] = {}
        self.failed: list[str] = []
        self.feedback_left: set[date] = set()

    @contextmanager
    def one(self, row: Mapping[str, Any]) -> Iterator[None]:
        """Handles one file, by its row. Its failure is noted, so that the others are handled, too."""
        try:
            yield
        except duckdb.FatalException:
            raise
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            self.failed.append(f"{self._folder / row['file']} ({first_line(error)})")
            if row["table_name"] == "feedback":
                self.feedback_left.add(row["day"])

    def before(self, workload: str, table: str) -> datetime | None:
        """Returns the midnight before which events of a workload are due; None: they are kept."""
        if any(workload == NO_WORKLOAD or hold.workload in (None, workload) for hold in self._holds):
            return None
        settings = self._settings.for_workload(workload) if workload else self._settings
        kept = settings.retention
        days = kept.dead_letter_days if table == "dead_letters" else kept.delete_days
        return None if days is None else datetime.combine(self._now, datetime.min.time()) - timedelta(days=days)

    def is_due(self, workload: str, table: str, day: date) -> bool:
        if (workload, table) not in self._bounds:
            self._bounds[workload, table] = self.before(workload, table)
        before = self._bounds[workload, table]
        return before is not None and day < before.date()

    def read_workloads(self) -> None:
        """Records the workloads of the files that were archived since the last run."""
        for row in self._warehouse.rows(QUERIES["unread"]):
            path = self._folder / row["file"]
            if not path.exists():  # a person moved it away
                continue
            with self.one(row):
                workloads = [NO_WORKLOAD]
                if row["table_name"] != "dead_letters":
                    with self._warehouse.cursor() as cursor:
                        source, given = self._rows(path, row["table_name"])
                        sql = f"SELECT DISTINCT workload FROM ({source}) ORDER BY ALL"
                        workloads = [workload for (workload,) in cursor.execute(sql, given).fetchall()]
                self._warehouse.execute(QUERIES["record_workloads"], {"file": row["file"], "workloads": workloads})

    def delete(self, row: Mapping[str, Any], due: list[str], *, is_audited: bool) -> int:
        """Deletes the rows of some workloads from a file, and the file with its last row. Returns how many."""
        path, left = self._folder / row["file"], [one for one in row["workloads"] if one not in due]
        if left and path.exists():
            self._write_without(path, row["table_name"], due)
        else:
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                fsync(path.parent)
        rows = rows_in(path) if path.exists() else 0
        with self._warehouse.transaction() as cursor:
            if rows:
                about = {"file": row["file"], "rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)}
                cursor.execute(RECORDS["renew_archive"], about)
                cursor.execute(QUERIES["record_workloads"], {"file": row["file"], "workloads": left})
            else:
                cursor.execute(RECORDS["drop_archive"], {"file": row["file"]})
            if is_audited:
                gone = {"rows": row["rows"] - rows, "workloads": due}
                self._warehouse.trail.note(cursor, by_rule("retention", "removed", subject=row["file"], details=gone))
        return int(row["rows"] - rows)

    def _write_without(self, path: Path, table: str, due: list[str]) -> None:
        source, given = self._rows(path, table)
        with replaced(path) as aside, self._warehouse.cursor() as cursor:
            kept = f"SELECT unnest(row) FROM ({source}) WHERE workload NOT IN (SELECT unnest($due::VARCHAR[]))"
            sql = f"COPY ({kept}) TO {literal(aside)} (FORMAT parquet, COMPRESSION zstd)"
            cursor.execute(sql, given | {"due": due})

    def _rows(self, path: Path, table: str) -> tuple[str, dict[str, Any]]:
        """Returns a query of the rows of a file with their workloads, and its parameters."""
        day = sorted((self._folder / "interactions" / path.parent.name).glob("*.parquet"))
        query = QUERIES[f"of_{table}" if day else "of_feedback_alone"]
        return query, parameters_of(query, {"file": str(path), "interactions": [str(one) for one in day]})
