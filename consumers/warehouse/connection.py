"""The warehouse: one DuckDB file, open in one process. Connection, transactions, named queries.

`opening` opens one.
"""

import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import duckdb

from retuned.consumers.common.durable import fsync, sha256
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import Busy, MemoryLimit, WarehouseError, out_of_files
from retuned.consumers.warehouse.artifacts import Artifacts
from retuned.consumers.warehouse.audit import Trail
from retuned.consumers.warehouse.turns import Turns

NAME = "retuned"  # the name of the attached database
COPY = ".erasing"  # what the name of a copy ends with that takes the file's place
CHECKPOINT_SECONDS = 30.0
CLOSE_SECONDS = 10.0  # the wait for running statements
_NO_MEMORY = re.compile(r"failed to pin block|could not allocate block|Out of Memory")
_NO_SPACE = re.compile(r"Could not \w+( all bytes to)? file|Too many open files")


@dataclass(frozen=True)
class Size:
    """The bytes of the file, of its used part (the rest is free for new rows), and of its write-ahead log."""

    file: int
    used: int
    log: int


def rows_of(cursor: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """Returns the remaining rows of a result as dictionaries."""
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


class Journal(Protocol):
    """Records the transactions of a warehouse for its followers."""

    @property
    def leads(self) -> bool:
        """Whether this process may change recorded tables."""

    @property
    def recorded(self) -> Collection[str]:
        """The tables whose changes are recorded."""

    def recording(self, cursor: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        """Returns a cursor that records the changes of its statements."""

    def commit(self, recording: duckdb.DuckDBPyConnection) -> None:
        """Commits a transaction of such a cursor. After an error, nothing was written."""


class Warehouse:
    """An open warehouse. It is thread-safe; each thread uses its own cursor (`cursor()`).

    Attributes:
        journal: records transactions for followers; None: there are none.
        artifacts: the files named by its rows.
        turns: the threads that have cursors.
        trail: the audit.
    """

    def __init__(self, connect: Callable[[], duckdb.DuckDBPyConnection], path: Path, memory_limit: str) -> None:
        self._connect, self._memory_limit = connect, memory_limit
        self._connection = connect()
        self._closed = False
        self._thread = threading.local()
        self.turns = Turns(f"warehouse {path}")
        self.path = path
        self.journal: Journal | None = None
        self.artifacts = Artifacts()
        self.trail = Trail(self)

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Returns a new connection to the database, for one thread and one transaction at a time."""

        def make() -> duckdb.DuckDBPyConnection:
            if self._closed:
                raise duckdb.ConnectionException(f"warehouse {self.path}: already closed")
            return self._connection.cursor()

        cursor = self.turns.tracked(make)
        cursor.execute(f"USE {NAME}")
        return cursor

    def exchange(self, path: Path) -> str:
        """Replaces the file by another one, within `turns.alone` and without an open cursor. Returns the SHA-256 of the
        old file.

        Raises:
            WarehouseError: the file cannot be replaced.
        """
        self._connection.close()
        try:
            old = sha256(self.path)  # not before: closing a file releases the locks of the process on it
            # DuckDB has written the log into the old file. A log beside the new one would be applied to it.
            log = self.path.with_name(self.path.name + ".wal")
            if log.exists():
                raise WarehouseError(f"warehouse {self.path}: {log.name} is left of the old file; start again")
            shutil.rmtree(self.path.with_name(self.path.name + ".tmp"), ignore_errors=True)
            path.replace(self.path)
            fsync(self.path.parent)
        except OSError as error:
            raise WarehouseError(f"warehouse {self.path}: cannot be replaced ({error}); free disk space") from error
        finally:
            self._connection = self._connect()
        return old

    def rows(self, sql: str, parameters: dict[str, Any] | list[Any] | None = None) -> list[dict[str, Any]]:
        """Returns the result of a query as dictionaries."""
        if (snapshot := getattr(self._thread, "snapshot", None)) is not None:
            return rows_of(snapshot.execute(sql, parameters))
        with self.cursor() as cursor:
            return rows_of(cursor.execute(sql, parameters))

    def row(self, sql: str, parameters: dict[str, Any] | list[Any] | None = None) -> dict[str, Any] | None:
        """Returns the first row of a query; None: it has no rows."""
        rows = self.rows(sql, parameters)
        return rows[0] if rows else None

    def execute(self, sql: str, parameters: dict[str, Any] | list[Any] | None = None) -> None:
        """Runs one statement in its own transaction."""
        with self.transaction() as cursor:
            cursor.execute(sql, parameters)

    def delete(self, sql: str, parameters: dict[str, Any] | list[Any] | None = None) -> int:
        """Runs one DELETE in its own transaction, and returns the number of deleted rows."""
        with self.transaction() as cursor:
            (deleted,) = cursor.execute(sql, parameters).fetchall()[0]
        return int(deleted)

    def insert(self, table: str, **values: Any) -> None:
        """Inserts one row in its own transaction."""
        with self.transaction() as cursor:
            insert(cursor, table, **values)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Within the block, `rows` and `row` of this thread read one state of the warehouse."""
        with self.cursor() as cursor:
            cursor.begin()
            self._thread.snapshot = cursor
            try:
                yield
            finally:
                del self._thread.snapshot
                cursor.rollback()

    @contextmanager
    def transaction(self, *, recorded: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yields a cursor whose changes are written together, or not at all.

        Args:
            recorded: whether the journal, if there is one, and the audit have the transaction; not so for tables that
                each process derives by itself. The journal may raise its own errors.

        Raises:
            MemoryLimit: `memory_limit` is too small for this and concurrent queries; nothing was written.
            WarehouseError: the disk is full or the file cannot be written; nothing was written.
        """
        cursor = self.cursor()
        try:
            cursor.begin()
            journal = self.journal if recorded else None
            changing = journal.recording(cursor) if journal else cursor
            try:
                yield changing
                # Commit only if no statement failed: DuckDB silently writes nothing for an aborted transaction.
                with self.trail.committing(changing) if recorded else nullcontext():
                    journal.commit(changing) if journal else cursor.commit()
            except BaseException:
                self.trail.drop(changing)
                with suppress(duckdb.Error):  # the error may already have rolled back
                    cursor.rollback()
                raise
        except (
            duckdb.IOException, duckdb.FatalException, duckdb.OutOfMemoryException, duckdb.TransactionException,
        ) as error:  # fmt: skip
            # A full disk or too little memory at the commit raises the type of a transaction conflict.
            conflict = isinstance(error, duckdb.TransactionException)
            if conflict and not _NO_SPACE.search(str(error)) and not _NO_MEMORY.search(str(error)):
                raise
            raise self._not_written(error) from error
        finally:
            cursor.close()

    def size(self) -> "Size":
        """Returns the size of the file and its write-ahead log."""
        blocks = self.row(
            "SELECT block_size, total_blocks, used_blocks FROM pragma_database_size() WHERE database_name = $1", [NAME]
        )
        assert blocks is not None
        log = self.path.with_name(self.path.name + ".wal")
        return Size(
            file=blocks["block_size"] * blocks["total_blocks"],
            used=blocks["block_size"] * blocks["used_blocks"],
            log=log.stat().st_size if log.exists() else 0,
        )

    def checkpoint(self) -> None:
        """Writes the log into the file, and frees the space of deleted rows.

        DuckDB does this at the end of a transaction once the log is long enough, but never while another transaction is
        open, even a reading one. This method waits for a gap between transactions.

        Raises:
            Busy: there is no gap for CHECKPOINT_SECONDS.
            WarehouseError: the disk is full or the file cannot be written.
        """
        deadline = time.monotonic() + CHECKPOINT_SECONDS
        while True:
            try:
                with self.cursor() as cursor:
                    cursor.execute("CHECKPOINT")
                return
            except duckdb.TransactionException as error:
                if time.monotonic() > deadline:
                    raise Busy(
                        f"warehouse {self.path}: no checkpoint within {CHECKPOINT_SECONDS:g} s, because a query runs "
                        "for longer; it is tried again"
                    ) from error
                time.sleep(0.01)
            except (duckdb.IOException, duckdb.FatalException, duckdb.OutOfMemoryException) as error:
                raise self._not_written(error) from error

    def close(self) -> None:
        """Closes the file; safe to repeat, and while threads use cursors: new cursors are refused.

        Raises:
            duckdb.ResourceInUseException: a statement runs for longer than CLOSE_SECONDS.
        """
        self._closed = True
        deadline = time.monotonic() + CLOSE_SECONDS
        while True:
            try:
                return self._connection.close()
            except duckdb.ResourceInUseException:  # a cursor is being opened, or a statement is running
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _not_written(self, error: Exception) -> WarehouseError:
        if advice := out_of_files(error):
            return WarehouseError(f"warehouse {self.path}: cannot write: {advice}")
        if isinstance(error, duckdb.OutOfMemoryException) or _NO_MEMORY.search(str(error)):
            return MemoryLimit(
                f"warehouse {self.path}: DuckDB needs more memory than warehouse.memory_limit ({self._memory_limit}) "
                f"({first_line(error)}); raise it and start again"
            )
        return WarehouseError(
            f"warehouse {self.path}: cannot write ({first_line(error)}); free disk space and start again"
        )


def insert(cursor: duckdb.DuckDBPyConnection, table: str, **values: Any) -> None:
    """Inserts one row within a transaction. Names of tables and columns must not come from input."""
    columns = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join("?" for _ in values)
    cursor.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", list(values.values()))


def named_queries(package: str, file: str) -> dict[str, str]:
    """Reads the queries of an .sql file in a package, each after a line `-- name: some_name`."""
    text = (files(package) / file).read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def parameters_of(sql: str, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the values that a query names: DuckDB rejects others."""
    named = set(re.findall(r"\$(\w+)", sql))
    return {name: value for name, value in values.items() if name in named}


def utc_now() -> datetime:
    """Returns the time in the form of the warehouse: naive UTC."""
    return datetime.now(UTC).replace(tzinfo=None)


def literal(text: object) -> str:
    """Quotes a text for SQL statements that take no parameters."""
    return "'" + str(text).replace("'", "''") + "'"
