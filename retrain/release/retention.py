"""Removes old versions with their evaluations, datasets that no version which stays learned from, and the folders of
runs that failed.

The rows in `models`, `datasets` and `runs` stay: `removed_at` is when the rest was removed, so that promotions, lineage
and exports still name what there was. Rows are changed first, in one transaction, and folders are deleted then: nothing
that counts as present is ever half-deleted, and what a crash left is deleted by the next pass.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.release.rollout import one_at_a_time
from retuned.retrain.settings import Settings
from retuned.retrain.versions import workload_folder

QUERIES = named_queries("retuned.retrain.release", "retention.sql")


@dataclass(frozen=True)
class Removed:
    """How many of each kind were removed."""

    versions: int = 0
    datasets: int = 0
    run_folders: int = 0


def workloads(warehouse: Warehouse) -> list[str]:
    """The workloads that were ever trained."""
    return [row["workload"] for row in warehouse.rows(QUERIES["workloads"])]


def remove(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    now: datetime,
    keep_versions: int | None,
    failed_run_days: int | None,
) -> Removed:
    """Remove what is older than what is to be kept of a workload.

    Args:
        keep_versions: the newest so many stay, and whatever an alias names or a run under way needs; None: all.
        failed_run_days: folders of runs that ended longer ago are deleted; None: none.

    Raises:
        RetunedError: a folder cannot be deleted; the next pass tries again.
    """
    versions, datasets = (0, 0) if keep_versions is None else _mark(warehouse, workload, now, keep_versions)
    home = workload_folder(settings.models.directory, workload)
    given = {"workload": workload}
    _delete(home, (row["version"] for row in warehouse.rows(QUERIES["removed_versions"], given)))
    _delete(home / "datasets", (row["version"] for row in warehouse.rows(QUERIES["removed_datasets"], given)))
    run_folders = 0
    if failed_run_days is not None:
        before = now - timedelta(days=failed_run_days)
        ended = warehouse.rows(QUERIES["ended_runs"], given | {"before": before})
        run_folders = _delete(home / "runs", (row["version"] for row in ended))
    return Removed(versions, datasets, run_folders)


@one_at_a_time
def _mark(warehouse: Warehouse, workload: str, now: datetime, keep: int) -> tuple[int, int]:
    """The rows of what goes; how many versions and datasets that are. No champion changes meanwhile."""
    given = {"workload": workload}
    versions = [row["version"] for row in warehouse.rows(QUERIES["removable_versions"], given | {"keep": keep})]
    if versions:
        with warehouse.transaction() as cursor:
            cursor.execute(QUERIES["remove_versions"], given | {"now": now, "versions": versions})
            cursor.execute(QUERIES["remove_evaluations"], given | {"versions": versions})
    datasets = [row["version"] for row in warehouse.rows(QUERIES["removable_datasets"], given)]
    if datasets:
        with warehouse.transaction() as cursor:
            cursor.execute(QUERIES["remove_datasets"], given | {"now": now, "versions": datasets})
            cursor.execute(QUERIES["remove_rows"], {"versions": datasets})
    return len(versions), len(datasets)


def _delete(folder: Path, names: Iterable[str]) -> int:
    """Delete those of the folders in a folder that have one of these names; how many there were."""
    if not folder.is_dir():
        return 0
    there = {entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)}
    going = sorted(there.intersection(names))
    for name in going:
        aside = folder / f".{name}.{os.getpid()}.tmp"  # swept up at the next start, if this process is killed here
        try:
            (folder / name).rename(aside)
            shutil.rmtree(aside)
        except OSError as error:
            raise RetunedError(
                f"retention: {folder / name} cannot be deleted ({error.strerror}); correct its permissions, the next "
                "pass tries again"
            ) from error
    return len(going)
