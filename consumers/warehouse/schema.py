"""The schema of a warehouse: its version and its migrations.

The version is the number of the last of the `migrations/` that was applied to the file.
"""

import glob
import logging
import re
import shutil
from datetime import datetime
from importlib.abc import Traversable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from retuned.consumers.common.durable import replaced
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import WarehouseError

if TYPE_CHECKING:
    from retuned.consumers.warehouse.connection import Warehouse

log = logging.getLogger(__name__)

MIGRATIONS = files("retuned.consumers.warehouse") / "migrations"
COPIES = 2
"""The number of copies from before migrations that are kept."""


def latest() -> int:
    """Returns the version that this release requires."""
    return max(_known())


def version(warehouse: "Warehouse") -> int:
    """Returns the version of a file; 0: it has no tables of retuned."""
    return max(_applied(warehouse), default=0)


def pending(warehouse: "Warehouse") -> list[int]:
    """Returns the numbers of the migrations that were not applied to the file.

    Raises:
        WarehouseError: a newer release wrote the file.
    """
    known, applied = _known(), _applied(warehouse)
    if newer := applied - known.keys():
        raise WarehouseError(
            f"warehouse {warehouse.path}: its schema ({max(newer)}) is newer than this retuned knows ({max(known)}); "
            "upgrade retuned"
        )
    return sorted(known.keys() - applied)


def outdated(warehouse: "Warehouse") -> str:
    """Describes how to migrate a file, for a person."""
    return (
        f"its schema is version {version(warehouse)} and this retuned requires {latest()}; `retuned migrate` or a "
        "start of the daemon migrates it, and keeps a copy of the present file"
    )


def migrate(warehouse: "Warehouse", now: datetime) -> None:
    """Applies the pending migrations, each in its own transaction.

    Raises:
        WarehouseError: a migration failed and was rolled back, or a newer release wrote the file.
    """
    numbers, known = pending(warehouse), _known()
    if not numbers:
        return
    warehouse.execute(
        "CREATE TABLE IF NOT EXISTS schema_migrations "
        "(number INTEGER NOT NULL, name VARCHAR NOT NULL, applied_at TIMESTAMP NOT NULL)"
    )
    for number in numbers:
        name = known[number].name
        try:
            with warehouse.transaction() as cursor:
                cursor.execute(known[number].read_text(encoding="utf-8"))
                cursor.execute("INSERT INTO schema_migrations VALUES (?, ?, ?)", [number, name, now])
        except duckdb.Error as error:
            raise WarehouseError(
                f"warehouse {warehouse.path}: migration {name} failed ({first_line(error)}) and was rolled back: "
                "continue with the previous release of retuned"
            ) from error
    for old in _copies(warehouse.path)[:-COPIES]:
        old.unlink()


def keep_copy(path: Path, version: int) -> None:
    """Copies and fsyncs a file before its migration. No process may have it open.

    Raises:
        WarehouseError: the copy cannot be written.
    """
    copy = path.with_name(f"{path.name}.schema-{version:03d}")
    size, free = path.stat().st_size, shutil.disk_usage(path.parent).free
    try:
        if free < size:
            raise OSError(f"{free:,} bytes are free, and {size:,} are needed")
        with replaced(copy) as aside:
            shutil.copyfile(path, aside)
    except OSError as error:
        older = ", or delete copies from earlier migrations (*.schema-*)" if _copies(path) else ""
        raise WarehouseError(
            f"warehouse {path}: not migrated: the file cannot be copied before ({error.strerror or error}); "
            f"free space in {path.parent}{older}"
        ) from error
    log.info("warehouse %s: migrating from schema %d to %d; the old file is %s", path, version, latest(), copy)


def _copies(path: Path) -> list[Path]:
    """Returns the copies from before migrations, the oldest schema first."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.schema-[0-9][0-9][0-9]"))


def _known() -> dict[int, Traversable]:
    return {int(file.name[:3]): file for file in MIGRATIONS.iterdir() if re.match(r"\d{3}_.*\.sql$", file.name)}


def _applied(warehouse: "Warehouse") -> set[int]:
    with warehouse.cursor() as cursor:
        try:
            return {number for (number,) in cursor.execute("SELECT number FROM schema_migrations").fetchall()}
        except duckdb.CatalogException:  # a new file
            return set()
