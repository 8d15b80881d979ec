"""The schema of a warehouse: its version and its migrations.

The version is the number of the last of the `migrations/` that was applied to the file. The first of them is the schema
of retuned 1.0, in which a new file begins.
"""

import glob
import logging
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from importlib.abc import Traversable
from importlib.resources import files
from pathlib import Path

import duckdb

from retuned.consumers.common.durable import replaced
from retuned.consumers.common.text import first_line
from retuned.consumers.errors import WarehouseError
from retuned.consumers.warehouse.connection import Warehouse, literal

log = logging.getLogger(__name__)

MIGRATIONS = files("retuned.consumers.warehouse") / "migrations"
COPIES = 2
"""The number of copies from before migrations that are kept."""


def latest() -> int:
    """Returns the version that this release requires."""
    return max(_known())


def version(warehouse: Warehouse) -> int:
    """Returns the version of a file; 0: it has no tables of retuned."""
    with warehouse.cursor() as cursor:
        try:
            return int(cursor.execute("SELECT coalesce(max(number), 0) FROM schema_migrations").fetchall()[0][0])
        except duckdb.CatalogException:  # a new file
            return 0


def pending(warehouse: Warehouse) -> list[int]:
    """Returns the numbers of the migrations that were not applied to the file.

    Raises:
        WarehouseError: a newer release wrote the file, or one before 1.0.
    """
    known, now = sorted(_known()), version(warehouse)
    if now > known[-1]:
        raise WarehouseError(
            f"warehouse {warehouse.path}: its schema ({now}) is newer than this retuned knows ({known[-1]}); "
            "upgrade retuned"
        )
    if 0 < now < known[0]:
        raise WarehouseError(
            f"warehouse {warehouse.path}: its schema ({now}) is from before retuned 1.0; migrate it with retuned 1.0 "
            "first (`retuned migrate`)"
        )
    return [number for number in known if number > now]


def outdated(warehouse: Warehouse) -> str:
    """Describes how to migrate a file, for a person."""
    return (
        f"its schema is version {version(warehouse)} and this retuned requires {latest()}; `retuned migrate` or a "
        "start of the daemon migrates it, and keeps a copy of the present file"
    )


def migrate(warehouse: Warehouse, now: datetime) -> None:
    """Applies the pending migrations, each in its own transaction.

    Raises:
        WarehouseError: a migration failed and was rolled back, or a newer release wrote the file.
    """
    numbers, known = pending(warehouse), _known()
    if not numbers:
        return
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
    with warehouse.transaction() as cursor:
        cursor.execute("\n".join(_comments()))
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


def _comments() -> Iterator[str]:
    """Yields a COMMENT ON for each table, view and column that a migration explains.

    A comment above CREATE TABLE or CREATE VIEW explains what a row is, one beside a column the column.
    """
    about: list[str] = []
    kind = name = column = ""
    comments = dict[str, str]()
    for number in sorted(_known()):
        for line in _known()[number].read_text(encoding="utf-8").splitlines():
            code, _, comment = (part.strip() for part in line.partition("-- "))
            if created := re.match(r"(?:CREATE|ALTER) (TABLE|VIEW) (\w+)", code):
                kind, name = created.groups()
                if code.startswith("CREATE"):
                    comments[f"{kind} {name}"] = " ".join(about)
            if kind == "TABLE" and (
                defined := re.match(r'(?:ALTER TABLE \w+ ADD COLUMN )?("?[a-z_\d]+"?) [A-Z]', code)
            ):
                column = f"COLUMN {name}.{defined[1]}"
                comments[column] = comment
            elif not code and comment and line.startswith(" "):
                comments[column] += f" {comment}"
            about = [*about, comment] if line.startswith("--") else []
            kind = "" if code == ");" else kind
    return (f"COMMENT ON {what} IS {literal(comment)};" for what, comment in comments.items() if comment)
