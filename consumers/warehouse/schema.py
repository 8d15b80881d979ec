"""The schema of a warehouse: which one a file has, and how it becomes today's.

Its version is the number of the last of the `migrations/` that were applied to the file.
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
"""Copies of the file from before a migration that are kept."""


def latest() -> int:
    """The version that this retuned works with."""
    return max(_known())


def version(warehouse: "Warehouse") -> int:
    """The version of a file; 0: it has no table of retuned's."""
    return max(_applied(warehouse), default=0)


def pending(warehouse: "Warehouse") -> list[int]:
    """Numbers of the migrations that the file has not seen.

    Raises:
        WarehouseError: the file is of a newer retuned.
    """
    known, applied = _known(), _applied(warehouse)
    if newer := applied - known.keys():
        raise WarehouseError(
            f"warehouse {warehouse.path}: its schema ({max(newer)}) is newer than this retuned knows ({max(known)}); "
            "upgrade retuned"
        )
    return sorted(known.keys() - applied)


def outdated(warehouse: "Warehouse") -> str:
    """What is to be done about a file with pending migrations, for a person."""
    return (
        f"its schema is version {version(warehouse)} and this retuned works with {latest()}; `retuned migrate` or a "
        "start of the daemon migrates it, and keeps a copy of the file as it is"
    )


def migrate(warehouse: "Warehouse", now: datetime) -> None:
    """Apply the pending migrations, each in a transaction of its own.

    Raises:
        WarehouseError: one failed, and the file is as it was before that one; or the file is of a newer retuned.
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
                f"warehouse {warehouse.path}: migration {name} failed ({first_line(error)}); nothing of it was done: "
                "go on with the retuned before this one"
            ) from error
    for old in _copies(warehouse.path)[:-COPIES]:
        old.unlink()


def keep_copy(path: Path, version: int) -> None:
    """Copy a file that is about to be migrated, on the disk for good. Nothing may have it open.

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
            f"warehouse {path}: not migrated: no copy of the file as it is can be made ({error.strerror or error}); "
            f"free space in {path.parent}{older}"
        ) from error
    log.info("warehouse %s: migrating from schema %d to %d; the file as it was is %s", path, version, latest(), copy)


def _copies(path: Path) -> list[Path]:
    """Copies from before migrations, oldest schema first."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.schema-[0-9][0-9][0-9]"))


def _known() -> dict[int, Traversable]:
    return {int(file.name[:3]): file for file in MIGRATIONS.iterdir() if re.match(r"\d{3}_.*\.sql$", file.name)}


def _applied(warehouse: "Warehouse") -> set[int]:
    with warehouse.cursor() as cursor:
        try:
            return {number for (number,) in cursor.execute("SELECT number FROM schema_migrations").fetchall()}
        except duckdb.CatalogException:  # a new file
            return set()
