"""The warehouse: one DuckDB file, opened by one process. Connection, transactions, named queries."""

import re
import secrets
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import duckdb

from retuned.consumers.common.text import first_line
from retuned.consumers.errors import BackupError, Busy, Cancelled, MemoryLimit, WarehouseError, out_of_files
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import schema
from retuned.consumers.warehouse.artifacts import Artifacts

NAME = "retuned"  # of the database within DuckDB
CHECKPOINT_SECONDS = 30.0
CLOSE_SECONDS = 10.0  # for statements that still run
_NOT_WRITTEN = re.compile(r"Could not \w+( all bytes to)? file|Too many open files")
ROW_GROUP_ROWS = 10_240
"""Rows that DuckDB compresses together. It writes the unfinished group anew at each checkpoint, and all writers wait.

Measured with DuckDB 2.0.1 on two busy cores, batches of 1,000 events of 1 KB onto 3 million, `make bench`: the longest
batch took 0.16 s at a median of 20 ms with these groups, texts as zstd and a log of 32 MB; 2.6 s at 38 ms with DuckDB's
groups of 122,880, its own choice of compression (FSST) and a log of 128 MB. With longer texts and a busier machine it
was 1.0 against 12 s. The file is half as large. Nothing else helped: a CHECKPOINT from another thread makes writers
wait just as long, and half of the tries fail when they are busy; with the large groups a log of 16 MB is no better than
one of 128 MB. A start after a crash reads the log: 0.2 s for 32 MB, 1.5 s for 128, 4 s for 512. The price: a sample of
full rows is read up to four times slower. Groups are also what is given back when rows are deleted: one is free when
none of its rows is left, or when two neighbours fit into one.

A transaction that appends a whole group or more writes it straight into the file, past the log: a batch of 10,240
events takes 26 ms, one of 10,000 takes 31 and, for a checkpoint, every fourth 85 (hence `ingest.batch_events`).
"""

_HELD = """
SELECT many.n FROM range(1_000_000_000) AS many(n)
JOIN (SELECT n + 0.5 AS key FROM range(65_537) AS few(n)) AS keys ON keys.key = many.n % 65_537 + 0.5
"""
"""A query whose open result holds a hash table, 2 MiB of pointers and 4 MiB of pages, pinned while it is looked into.

It reads no table, so checkpoints do not wait for it.
"""


@dataclass(frozen=True)
class Size:
    """Bytes: of the file, of what is used in it (the rest is free for what comes), and of its write-ahead log."""

    file: int
    used: int
    log: int


def rows_of(cursor: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """What is left of a query's result, as dictionaries."""
    names = [column[0] for column in cursor.description or []]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


class Journal(Protocol):
    """Takes part in the transactions of a warehouse that others follow."""

    def recording(self, cursor: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        """A cursor that keeps what its statements change."""

    def commit(self, recording: duckdb.DuckDBPyConnection) -> None:
        """Commit a transaction of such a cursor. After an error nothing was written."""


class Warehouse:
    """An open warehouse. Threads share it; each thread works on a cursor of its own (`cursor()`).

    Attributes:
        journal: what others follow it by; None: nobody does.
        artifacts: the files that its rows name.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: Path, memory_limit: str) -> None:
        self._connection, self._memory_limit = connection, memory_limit
        self._held: duckdb.DuckDBPyConnection | None = None
        self._closed = False
        self.path = path
        self.journal: Journal | None = None
        self.artifacts = Artifacts()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same database, for one thread and one transaction at a time."""
        if self._closed:
            raise duckdb.ConnectionException(f"warehouse {self.path}: already closed")
        cursor = self._connection.cursor()
        cursor.execute(f"USE {NAME}")
        return cursor

    def rows(self, sql: str, parameters: dict[str, Any] | list[Any] | None = None) -> list[dict[str, Any]]:
        """The result of a query as dictionaries."""
        with self.cursor() as cursor:
            return rows_of(cursor.execute(sql, parameters))

    def row(self, sql: str, parameters: dict[str, Any] | list[Any] | None = None) -> dict[str, Any] | None:
        """The first row of a query, or None."""
        found = self.rows(sql, parameters)
        return found[0] if found else None

    def execute(self, sql: str, parameters: dict[str, Any] | list[Any] | None = None) -> None:
        """Run one statement in a transaction of its own."""
        with self.transaction() as cursor:
            cursor.execute(sql, parameters)

    def delete(self, sql: str, parameters: dict[str, Any] | list[Any] | None = None) -> int:
        """Run one DELETE in a transaction of its own; how many rows it deleted."""
        with self.transaction() as cursor:
            (deleted,) = cursor.execute(sql, parameters).fetchall()[0]
        return int(deleted)

    def insert(self, table: str, **values: Any) -> None:
        """Insert one row, in a transaction of its own."""
        with self.transaction() as cursor:
            insert(cursor, table, **values)

    @contextmanager
    def transaction(self, *, recorded: bool = True) -> Iterator[duckdb.DuckDBPyConnection]:
        """Everything done on the cursor is written together, or not at all.

        Args:
            recorded: whether the journal takes part, where there is one; it may raise errors of its own.

        Raises:
            MemoryLimit: `memory_limit` is too small, for this or for what goes on beside it; nothing was written.
            WarehouseError: the disk is full or the file cannot be written; nothing was.
        """
        cursor = self.cursor()
        try:
            cursor.begin()
            try:
                # Commits come only when no statement failed: DuckDB's COMMIT of an aborted transaction writes nothing,
                # silently.
                if recorded and self.journal is not None:
                    recording = self.journal.recording(cursor)
                    yield recording
                    self.journal.commit(recording)
                else:
                    yield cursor
                    cursor.commit()
            except BaseException:
                with suppress(duckdb.Error):  # the failure that is being raised may have rolled back already
                    cursor.rollback()
                raise
        except (
            duckdb.IOException, duckdb.FatalException, duckdb.OutOfMemoryException, duckdb.TransactionException,
        ) as error:  # fmt: skip
            # A disk that is full at the commit shows as a conflict of transactions, by its type.
            if isinstance(error, duckdb.TransactionException) and not _NOT_WRITTEN.search(str(error)):
                raise
            raise self._not_written(error) from error
        finally:
            cursor.close()

    def size(self) -> "Size":
        """What the file and its write-ahead log take."""
        found = self.row(
            "SELECT block_size, total_blocks, used_blocks FROM pragma_database_size() WHERE database_name = $1", [NAME]
        )
        assert found is not None
        log = self.path.with_name(self.path.name + ".wal")
        return Size(
            file=found["block_size"] * found["total_blocks"],
            used=found["block_size"] * found["used_blocks"],
            log=log.stat().st_size if log.exists() else 0,
        )

    def checkpoint(self) -> None:
        """Write the log into the file and make the space of what was deleted free for what comes.

        DuckDB does it by itself at the end of a transaction, once the log is long enough. It never does while another
        transaction is open, not even one that only reads: this waits for a gap between them.

        Raises:
            Busy: there is none for half a minute.
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
                        f"warehouse {self.path}: no checkpoint within {CHECKPOINT_SECONDS:g} s, a query goes on for "
                        "longer; it is tried again"
                    ) from error
                time.sleep(0.01)
            except (duckdb.IOException, duckdb.FatalException, duckdb.OutOfMemoryException) as error:
                raise self._not_written(error) from error

    def copy_to(self, path: Path, stop: threading.Event) -> None:
        """Write all that is committed at one moment into a new file. Others go on writing meanwhile.

        The copy is one transaction that reads, so no checkpoint is made until it ends: the log grows. A disk that is
        full fails the copy alone; DuckDB gives up the new file, and not this one.

        Args:
            stop: ends it early.

        Raises:
            BackupError: the new file cannot be written.
            Cancelled: it was stopped.
        """
        self._write(path, stop, lambda cursor, name: cursor.execute(f"COPY FROM DATABASE {NAME} TO {name}"))

    def extract_to(
        self, path: Path, tables: Mapping[str, str], parameters: Mapping[str, Any], stop: threading.Event
    ) -> None:
        """Write the results of queries as tables into a new file, all of one moment; as `copy_to` in all else.

        Args:
            tables: name to query.
            parameters: of all queries; each gets those that it names.
        """

        def extract(cursor: duckdb.DuckDBPyConnection, name: str) -> None:
            for table, query in tables.items():
                own = {key: value for key, value in parameters.items() if f"${key}" in query}
                cursor.execute(f"CREATE TABLE {name}.{table} AS {query}", own)

        self._write(path, stop, extract)

    def _write(
        self, path: Path, stop: threading.Event, fill: Callable[[duckdb.DuckDBPyConnection, str], object]
    ) -> None:
        name = f"copy_{secrets.token_hex(4)}"
        with self.cursor() as cursor, _interrupted_by(stop, cursor):
            try:
                cursor.execute(f"ATTACH {literal(path)} AS {name} (ROW_GROUP_SIZE {ROW_GROUP_ROWS})")
                try:
                    cursor.begin()
                    fill(cursor, name)
                    cursor.commit()
                    cursor.execute(f"CHECKPOINT {name}")
                finally:
                    with suppress(duckdb.Error):
                        cursor.rollback()
                    with suppress(duckdb.Error):
                        cursor.execute(f"DETACH {name}")
            except duckdb.InterruptException as error:
                raise Cancelled(f"warehouse {self.path}: the copy was stopped") from error
            except duckdb.Error as error:
                raise BackupError(
                    f"{path}: cannot be written ({first_line(error)}); free space and try again"
                ) from error

    def drop_cache(self) -> None:
        """Give back the memory of blocks that are on disk too: DuckDB keeps what it wrote, up to its limit.

        It has no statement for this. But before it refuses a limit that it cannot keep, it drops all that it can, and
        one byte it cannot keep while something is held. That has to be large: DuckDB counts memory in up to 64 places,
        and the sum may be wrong by 2 MiB. What other queries have put aside goes to `temp_directory`, as it would if
        memory were short.
        """
        with suppress(duckdb.Error), self._connection.cursor() as cursor:
            if self._held is None:
                held = self._connection.cursor()
                held.execute(_HELD).fetchone()
                self._held = held
            with suppress(duckdb.OutOfMemoryException):
                cursor.execute("SET memory_limit = '1B'")
            # Sets what is set already, and has the allocator return to the system what was freed.
            cursor.execute(f"SET memory_limit = {literal(self._memory_limit)}")

    def close(self) -> None:
        """Close the file; safe to repeat, and while threads work on cursors: their next one is refused.

        Raises:
            duckdb.ResourceInUseException: a statement goes on for CLOSE_SECONDS.
        """
        self._closed = True
        given_up = time.monotonic() + CLOSE_SECONDS
        while True:
            try:
                return self._connection.close()
            except duckdb.ResourceInUseException:  # a cursor is being opened, or a statement runs on one
                if time.monotonic() > given_up:
                    raise
                time.sleep(0.01)

    def _not_written(self, error: Exception) -> WarehouseError:
        if advice := out_of_files(error):
            return WarehouseError(f"warehouse {self.path}: cannot write: {advice}")
        if isinstance(error, duckdb.OutOfMemoryException):
            return MemoryLimit(
                f"warehouse {self.path}: DuckDB needs more memory than warehouse.memory_limit ({self._memory_limit}) "
                f"({first_line(error)}); raise it and start again"
            )
        return WarehouseError(
            f"warehouse {self.path}: cannot write ({first_line(error)}); free disk space and start again"
        )


def open_warehouse(settings: WarehouseSettings) -> Warehouse:
    """Open the file, create it when it is not there, and bring its schema up to date; see `schema`.

    Raises:
        WarehouseError: another process has it open, it is not a DuckDB file, it cannot be written, it was made by a
            newer retuned, or a migration failed.
    """
    path = settings.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_opened(path, error) from error
    warehouse = attach(settings, create=True)
    try:
        if schema.pending(warehouse) and (version := schema.version(warehouse)):
            warehouse.checkpoint()
            warehouse.close()  # closing the copied file would release DuckDB's lock on it: locks are the process's
            schema.keep_copy(path, version)
            warehouse = attach(settings, create=False)
        schema.migrate(warehouse, utc_now())
    except BaseException:
        warehouse.close()
        raise
    return warehouse


def open_existing(settings: WarehouseSettings) -> Warehouse:
    """Open the file as it is: none is created, and its schema is not changed.

    Raises:
        WarehouseError: as `open_warehouse`; also when there is no file, or its schema is an older one.
    """
    warehouse = attach(settings, create=False)
    try:
        if schema.pending(warehouse):
            raise WarehouseError(f"warehouse {settings.path}: {schema.outdated(warehouse)}")
    except BaseException:
        warehouse.close()
        raise
    return warehouse


def attach(settings: WarehouseSettings, *, create: bool) -> Warehouse:
    """Open the file, whatever its schema is.

    Raises:
        WarehouseError: another process has it open, it is not a DuckDB file, it cannot be written, a restore into it
            is under way or was cut off, or there is none to open.
    """
    path = settings.path
    _refuse_restoring(path)
    if not create and not path.exists():
        raise WarehouseError(
            f"warehouse {path}: nothing here yet; check warehouse.path and --config, or start the daemon"
        )
    try:
        connection = duckdb.connect(
            config={
                "memory_limit": settings.memory_limit,
                "threads": settings.threads,
                "checkpoint_threshold": settings.checkpoint_threshold,
                "temp_directory": str(path) + ".tmp",
            },
        )
        try:
            connection.execute(f"ATTACH {literal(path)} AS {NAME} (ROW_GROUP_SIZE {ROW_GROUP_ROWS})")
            _refuse_restoring(path)  # again: one that began meanwhile either meets DuckDB's lock or is seen here
        except BaseException:
            connection.close()
            raise
    except (duckdb.Error, OSError) as error:
        raise _not_opened(path, error) from error
    return Warehouse(connection, path, settings.memory_limit)


def restoring(path: Path) -> Path:
    """The file that is beside a warehouse while a backup is put in its place."""
    return path.with_name(path.name + ".restoring")


def _refuse_restoring(path: Path) -> None:
    if restoring(path).exists():
        raise WarehouseError(
            f"warehouse {path}: a restore into it is under way, or was cut off ({restoring(path).name} is there): let "
            "it end, or run the same `retuned restore` again"
        )


def insert(cursor: duckdb.DuckDBPyConnection, table: str, **values: Any) -> None:
    """Insert one row inside a transaction. Table and column names are the code's own, never input."""
    columns = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join("?" for _ in values)
    cursor.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", list(values.values()))


def named_queries(package: str, file: str) -> dict[str, str]:
    """The queries of an .sql file beside the modules of a package, each under a line `-- name: some_name`."""
    text = (files(package) / file).read_text(encoding="utf-8")
    parts = re.split(r"^-- name: (\w+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def parameters_of(sql: str, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that a query asks for by name: DuckDB refuses the others."""
    asked = set(re.findall(r"\$(\w+)", sql))
    return {name: value for name, value in values.items() if name in asked}


def utc_now() -> datetime:
    """The time as the warehouse keeps it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def literal(text: object) -> str:
    """A text as SQL writes it, for statements that take no parameters."""
    return "'" + str(text).replace("'", "''") + "'"


@contextmanager
def _interrupted_by(stop: threading.Event, cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Ends the cursor's statements once `stop` is set."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            if stop.is_set():
                cursor.interrupt()

    thread = threading.Thread(target=watch, name="interrupt")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _not_opened(path: Path, error: Exception) -> WarehouseError:
    text = str(error)
    if advice := out_of_files(error):
        return WarehouseError(f"warehouse {path}: cannot be opened: {advice}")
    if "lock" in text:
        owner = re.search(r"PID (\d+)", text)
        by = f" by process {owner[1]}{_command(owner[1])}" if owner else ""
        return WarehouseError(
            f"warehouse {path}: in use{by}; DuckDB lets one process in: wait until that one is done; a daemon is asked "
            "over HTTP instead (http.port)"
        )
    return WarehouseError(f"warehouse {path}: cannot be opened ({first_line(error)}); check warehouse.path")


def _command(process: str) -> str:
    """What a process of this machine runs, for a message; nothing where that is not to be seen."""
    try:
        words = Path("/proc", process, "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return ""
    return f" ({textwrap.shorten(' '.join(Path(word).name for word in words), 80, placeholder=' …')})"
