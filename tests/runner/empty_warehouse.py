"""A new warehouse in tests is a copy of an empty one, made once for the run: its migrations take ten times as long."""

import os
import tempfile
from functools import cache
from pathlib import Path

from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import opening
from retuned.consumers.warehouse.connection import Warehouse

EMPTY = "RETUNED_EMPTY_WAREHOUSE"
"""In the environment: the file, for all processes of the run. Without it, each new warehouse is migrated."""

_attach = opening.attach


def use() -> None:
    """From here on `open_warehouse` copies the file."""
    opening.attach = _copied


def _copied(settings: WarehouseSettings, *, create: bool) -> Warehouse:
    path = settings.path
    if create and EMPTY in os.environ and not path.exists() and not opening.restoring(path).exists():
        empty = _empty(Path(os.environ[EMPTY]))
        try:
            path.write_bytes(empty)
        except OSError:  # `attach` finds what prevents it, and no part of a file
            path.unlink(missing_ok=True)
    if "threads" not in settings.model_fields_set:  # the workers share the cores
        settings = settings.model_copy(update={"threads": 1})
    return _attach(settings, create=create)


@cache
def _empty(file: Path) -> bytes:
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            made = WarehouseSettings(path=Path(folder) / file.name, memory_limit="512MB")
            with_tables = _attach(made, create=True)
            opening.schema.migrate(with_tables, opening.utc_now())
            with_tables.close()
            made.path.rename(file)
    return file.read_bytes()
