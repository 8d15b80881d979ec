"""Opens the warehouse: creates the file, migrates it, refuses one that is in use or being restored, and deletes what
killed processes left beside it."""

import re
import textwrap
from contextlib import suppress
from pathlib import Path

import duckdb

from retuned.consumers.common import durable
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import WarehouseError, out_of_files
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import schema
from retuned.consumers.warehouse.connection import COPY, NAME, Warehouse, literal, utc_now

ROW_GROUP_ROWS = 10_240
"""The rows that DuckDB compresses together. Each checkpoint rewrites the unfinished group, while all writers wait.

Measured with DuckDB 2.0.1 on two busy cores, batches of 1,000 events of 1 KB added to 3 million, `make bench`: with
these groups, zstd for texts and a log of 32 MB the longest batch took 0.16 s (median 20 ms); with DuckDB's groups of
122,880, its default compression (FSST) and a log of 128 MB it took 2.6 s (median 38 ms). The file is half as large. A
CHECKPOINT from another thread blocks writers just as long. A start after a crash reads the log: 0.2 s for 32 MB, 1.5 s
for 128 MB. The price: reading a sample of full rows is up to four times slower. DuckDB also frees space by groups: a
group is freed once none of its rows is left, or two neighbours fit into one.

A transaction that appends a whole group or more writes it directly into the file, bypassing the log: a batch of 10,240
events takes 26 ms; one of 10,000 takes 31 ms and, because of checkpoints, every fourth 85 ms (hence
`ingest.batch_events`).
"""


def open_warehouse(settings: WarehouseSettings) -> Warehouse:
    """Opens the file, creates it if it does not exist, and migrates its schema; see `schema`.

    Raises:
        WarehouseError: another process has the file open, it is not a DuckDB file, it cannot be written, a newer
            release wrote it, or a migration failed.
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
            warehouse.close()  # locks belong to the process: closing the copied file would release DuckDB's lock
            schema.keep_copy(path, version)
            warehouse = attach(settings, create=False)
        schema.migrate(warehouse, utc_now())
        _sweep_reports(warehouse)
    except BaseException:
        warehouse.close()
        raise
    return warehouse


def open_existing(settings: WarehouseSettings) -> Warehouse:
    """Opens an existing file without migrating its schema.

    Raises:
        WarehouseError: as `open_warehouse`; also if the file does not exist, or its schema is older.
    """
    warehouse = attach(settings, create=False)
    try:
        if schema.pending(warehouse):
            raise WarehouseError(f"warehouse {settings.path}: {schema.outdated(warehouse)}")
        _sweep_reports(warehouse)
    except BaseException:
        warehouse.close()
        raise
    return warehouse


def attach(settings: WarehouseSettings, *, create: bool) -> Warehouse:
    """Opens the file with any schema.

    Raises:
        WarehouseError: another process has the file open, it is not a DuckDB file, it cannot be written, it does not
            exist, or a restore into it is running or was interrupted.
    """
    path = settings.path
    _refuse_restoring(path)
    if not create and not path.exists():
        raise WarehouseError(
            f"warehouse {path}: does not exist yet; check warehouse.path and --config, or start the daemon"
        )

    def connect() -> duckdb.DuckDBPyConnection:
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
                _refuse_restoring(path)  # a restore that began meanwhile either finds DuckDB's lock or is found here
            except BaseException:
                connection.close()
                raise
        except (duckdb.Error, OSError) as error:
            raise _not_opened(path, error) from error
        return connection

    spilled = _spilled(path)
    warehouse = Warehouse(connect, path, settings.memory_limit)
    # DuckDB's lock is held from here on: files from before are of processes that have ended.
    for file, changed in _spilled(path).items():
        if spilled.get(file) == changed:  # DuckDB may have spilled while it read its log
            file.unlink(missing_ok=True)
    for suffix in (COPY, f"{COPY}.wal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return warehouse


def _spilled(path: Path) -> dict[Path, int]:
    """Returns DuckDB's files for what does not fit into memory, each with the time of its last change."""
    files = dict[Path, int]()
    for file in path.with_name(path.name + ".tmp").glob("duckdb_temp_*"):
        with suppress(FileNotFoundError):  # of a process that has just ended
            files[file] = file.stat().st_ctime_ns
    return files


def _sweep_reports(warehouse: Warehouse) -> None:
    """Deletes what killed drift checks and killed reports left. Checks run in the process that has the warehouse open
    and in its children, which die with it."""
    folder = warehouse.path.parent / "reports"
    named = {
        Path(row["report"]).stem for row in warehouse.rows("SELECT report FROM drift_checks WHERE report IS NOT NULL")
    }
    for stray in list(folder.glob("????????T??????-????????.*")):
        if stray.suffix == ".parquet" or stray.stem not in named:  # the compared rows, or a report without a check
            stray.unlink(missing_ok=True)
    durable.sweep(folder)


def restoring(path: Path) -> Path:
    """Returns the file that marks a warehouse while a backup replaces it."""
    return path.with_name(path.name + ".restoring")


def _refuse_restoring(path: Path) -> None:
    if restoring(path).exists():
        raise WarehouseError(
            f"warehouse {path}: a restore into it is running or was interrupted ({restoring(path).name} exists): wait "
            "until it ends, or run the same `retuned restore` again"
        )


def _not_opened(path: Path, error: Exception) -> WarehouseError:
    text = str(error)
    if advice := out_of_files(error):
        return WarehouseError(f"warehouse {path}: cannot be opened: {advice}")
    if "lock" in text:
        owner = re.search(r"PID (\d+)", text)
        by = f" by process {owner[1]}{_command(owner[1])}" if owner else ""
        return WarehouseError(
            f"warehouse {path}: in use{by}; only one process can open a DuckDB file: wait until it ends, or use the "
            "daemon over HTTP (http.port)"
        )
    return WarehouseError(f"warehouse {path}: cannot be opened ({first_line(error)}); check warehouse.path")


def _command(process: str) -> str:
    """Returns the command of a process on this machine, for a message; empty if it is not visible."""
    try:
        words = Path("/proc", process, "cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
    except OSError:
        return ""
    return f" ({textwrap.shorten(' '.join(Path(word).name for word in words), 80, placeholder=' …')})"
