"""Copies a warehouse, or the results of queries on it, into a new file."""

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from retuned.consumers.common.text import first_line
from retuned.consumers.errors import BackupError, Cancelled
from retuned.consumers.warehouse.connection import NAME, Warehouse, literal, parameters_of
from retuned.consumers.warehouse.opening import ROW_GROUP_ROWS

_MACROS = """
SELECT function_name, parameters, macro_definition FROM duckdb_functions()
WHERE function_type = 'macro' AND NOT internal AND database_name = $1
"""


def copy_to(warehouse: Warehouse, path: Path, stop: threading.Event) -> None:
    """Writes everything committed at one moment into a new file. Other threads continue to write meanwhile.

    The copy is one reading transaction, so no checkpoint is made until it ends, and the log grows. A full disk fails
    only the copy: DuckDB gives up the new file, not the warehouse.

    Args:
        stop: cancels the copy.

    Raises:
        BackupError: the new file cannot be written.
        Cancelled: `stop` was set.
    """
    _write(warehouse, path, stop, lambda cursor, name: cursor.execute(f"COPY FROM DATABASE {NAME} TO {name}"))


def extract_to(
    warehouse: Warehouse, path: Path, tables: Mapping[str, str], parameters: dict[str, Any], stop: threading.Event
) -> None:
    """Writes the results of queries as tables into a new file, all of one moment; otherwise like `copy_to`.

    The file also has the warehouse's macros.

    Args:
        tables: queries by the name of the table.
        parameters: the parameters of all queries; each query gets those that it names.
    """

    def extract(cursor: duckdb.DuckDBPyConnection, name: str) -> None:
        for macro, arguments, body in cursor.execute(_MACROS, [NAME]).fetchall():
            cursor.execute(f"CREATE MACRO {name}.{macro}({', '.join(arguments)}) AS {body}")
        for table, query in tables.items():
            cursor.execute(f"CREATE TABLE {name}.{table} AS {query}", parameters_of(query, parameters))

    _write(warehouse, path, stop, extract)


def _write(
    warehouse: Warehouse, path: Path, stop: threading.Event, fill: Callable[[duckdb.DuckDBPyConnection, str], object]
) -> None:
    name = f"copy_{secrets.token_hex(4)}"
    with warehouse.cursor() as cursor, _interrupted_by(stop, cursor):
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
            raise Cancelled(f"warehouse {warehouse.path}: the copy was stopped") from error
        except duckdb.Error as error:
            raise BackupError(f"{path}: cannot be written ({first_line(error)}); free space and try again") from error


@contextmanager
def _interrupted_by(stop: threading.Event, cursor: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Interrupts the cursor's statements once `stop` is set."""
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
