"""Removes old versions with their evaluations, datasets that no version which stays learned from, and the folders of
runs that failed; of datasets that such a version learned from only by way of those before it, leaves what later ones
are made from.

The rows in `models`, `datasets` and `runs` stay: `removed_at` is when the rest was removed, so that promotions, lineage
and exports still name what there was. Rows are changed first, in one transaction, and folders are deleted then: nothing
that counts as present is ever half-deleted, and what a crash left is deleted by the next pass. What a cluster has of it
in its storage is marked with the rows; `Artifacts.delete_removed` deletes it there.
"""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.data.dataset import REDUCED, Dataset, load
from retuned.retrain.data.examples import restored
from retuned.retrain.release.rollout import one_at_a_time
from retuned.retrain.settings import Settings
from retuned.retrain.versions import workload_folder

QUERIES = named_queries("retuned.retrain.release", "retention.sql")

_MARK = "regression.parquet"
"""A dataset without this file is known as reduced."""


@dataclass(frozen=True)
class Removed:
    """How many of each kind were removed."""

    versions: int = 0
    datasets: int = 0
    reduced: int = 0
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
        StoreUnavailable: the storage of the cluster does not take a reduced dataset; the next pass tries again.
    """
    home = workload_folder(settings.models.directory, workload)
    versions, datasets = (0, 0) if keep_versions is None else _mark(warehouse, workload, home, now, keep_versions)
    delete_removed(warehouse, settings, workload)
    given = {"workload": workload}
    reduced = 0 if keep_versions is None else _reduce(warehouse, workload, settings.dataset.maximum_rows)
    run_folders = 0
    if failed_run_days is not None:
        before = now - timedelta(days=failed_run_days)
        ended = warehouse.rows(QUERIES["ended_runs"], given | {"before": before})
        run_folders = _delete(home / "runs", (row["version"] for row in ended))
    return Removed(versions, datasets, reduced, run_folders)


def delete_removed(warehouse: Warehouse, settings: Settings, workload: str) -> None:
    """Delete the folders of what was removed of a workload.

    Raises:
        RetunedError: one cannot be deleted.
    """
    home, given = workload_folder(settings.models.directory, workload), {"workload": workload}
    _delete(home, (row["version"] for row in warehouse.rows(QUERIES["removed_versions"], given)))
    _delete(home / "datasets", (row["version"] for row in warehouse.rows(QUERIES["removed_datasets"], given)))


@one_at_a_time
def _mark(warehouse: Warehouse, workload: str, home: Path, now: datetime, keep: int) -> tuple[int, int]:
    """The rows of what goes; how many versions and datasets that are. No champion changes meanwhile."""
    given = {"workload": workload}
    versions = [row["version"] for row in warehouse.rows(QUERIES["removable_versions"], given | {"keep": keep})]
    if versions:
        with warehouse.transaction() as cursor:
            cursor.execute(QUERIES["remove_versions"], given | {"now": now, "versions": versions})
            cursor.execute(QUERIES["remove_evaluations"], given | {"versions": versions})
            warehouse.artifacts.remove(cursor, "version", [home / version for version in versions])
    datasets = [row["version"] for row in warehouse.rows(QUERIES["removable_datasets"], given)]
    if datasets:
        with warehouse.transaction() as cursor:
            cursor.execute(QUERIES["remove_datasets"], given | {"now": now, "versions": datasets})
            cursor.execute(QUERIES["remove_rows"], {"versions": datasets})
            warehouse.artifacts.remove(cursor, "dataset", [home / "datasets" / version for version in datasets])
    return len(versions), len(datasets)


def _reduce(warehouse: Warehouse, workload: str, most: int) -> int:
    """Reduce the datasets from before all that a version which is there learned from itself; how many there were.

    Of `train` stays what no newer dataset among them holds: the newest answer to each question, of the newest `most`
    questions. From these the next dataset repeats some, and what it holds out is kept apart from them. `holdout` stays:
    once judged on, always judged on.
    """
    found = {True: list[Dataset](), False: list[Dataset]()}
    for row in warehouse.rows(QUERIES["reducible_datasets"], {"workload": workload}):
        if dataset := load(warehouse, workload, row["version"]):
            found[row["whole"]].append(dataset)
    older = [dataset for dataset in found[False] if dataset.path.is_dir()]
    going = [dataset for dataset in older if not dataset.reduced]
    if not going:
        return 0
    asked = {_question(row) for dataset in found[True] for row in dataset.split("train")}
    left = most
    kept = {f"{name}.parquet" for name in REDUCED} | {"card.json", _MARK}
    try:
        for dataset in older:
            left -= _reduce_train(dataset.path / "train.parquet", asked, left)
            if dataset in going:
                warehouse.execute(QUERIES["reduce_rows"], {"workload": workload, "version": dataset.version})
                for file in dataset.path.iterdir():
                    if file.name not in kept:
                        file.unlink()
        # What is marked is done, everywhere.
        for dataset in older:
            warehouse.artifacts.renew("dataset", dataset.path, but=_MARK)
        for dataset in going:
            (dataset.path / _MARK).unlink()
    except OSError as error:
        raise RetunedError(
            f"retention: dataset {error.filename or workload} cannot be reduced ({error.strerror}); correct its "
            "permissions, the next pass tries again"
        ) from error
    return len(going)


def _reduce_train(path: Path, asked: set[str], most: int) -> int:
    """Keep the first `most` rows whose question was not `asked`, and add all questions to these; how many stay."""
    table = pq.read_table(path)
    stays, count = [], 0
    for question in map(_question, table.to_pylist()):
        stays.append(question not in asked and count < most)
        count += stays[-1]
        asked.add(question)
    if not all(stays):
        with replaced(path) as aside:
            pq.write_table(table.filter(pa.array(stays)), aside)
    return count


def _question(values: dict[str, Any]) -> str:
    """The hash of a row's question."""
    return restored({name: value for name, value in values.items() if name != "replay"}).prompt_hash


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
