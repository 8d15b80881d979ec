"""Retention: removes old versions with their evaluations, datasets that no remaining version needs, and the folders of
failed runs. Datasets that a remaining version needs only through its ancestors are reduced to the rows that later
datasets are built from.

The rows in `models`, `datasets` and `runs` stay, with the time in `removed_at`, so that promotions, lineage and exports
still name them. Rows are updated first, in one transaction, and folders are deleted afterwards. So nothing that counts
as present is ever partly deleted, and the next pass deletes what a crash left. The rows also mark the files in a
cluster's storage, which `Artifacts.delete_removed` deletes.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.audit import by_rule
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.retrain.data.dataset import REDUCED, Dataset, load
from retuned.retrain.data.examples import restored
from retuned.retrain.release.exclusive import one_at_a_time
from retuned.retrain.settings import Settings
from retuned.retrain.versions import workload_folder

QUERIES = named_queries("retuned.retrain.release", "retention.sql")

_MARK = "regression.parquet"
"""A dataset without this file is reduced."""


@dataclass(frozen=True)
class Removed:
    """The numbers of removed objects."""

    versions: int = 0
    datasets: int = 0
    reduced: int = 0
    run_folders: int = 0


def workloads(warehouse: Warehouse) -> list[str]:
    """Returns the workloads that were ever trained."""
    return [row["workload"] for row in warehouse.rows(QUERIES["workloads"])]


def remove(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    now: datetime,
    keep_versions: int | None,
    failed_run_days: int | None,
) -> Removed:
    """Applies retention to a workload.

    Args:
        keep_versions: the number of newest versions to keep, besides those that an alias or a current run needs; None
            keeps all.
        failed_run_days: the age in days from which folders of ended runs are deleted; None keeps them.

    Raises:
        RetunedError: a folder cannot be deleted. The next pass tries again.
        StoreUnavailable: the cluster's storage does not accept a reduced dataset. The next pass tries again.
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
    """Deletes the folders of removed versions and datasets of a workload.

    Raises:
        RetunedError: a folder cannot be deleted.
    """
    home, given = workload_folder(settings.models.directory, workload), {"workload": workload}
    _delete(home, (row["version"] for row in warehouse.rows(QUERIES["removed_versions"], given)))
    _delete(home / "datasets", (row["version"] for row in warehouse.rows(QUERIES["removed_datasets"], given)))


@one_at_a_time
def remove_versions(
    warehouse: Warehouse, settings: Settings, workload: str, unwanted: Sequence[str], now: datetime
) -> list[str]:
    """Removes versions with their evaluations, except those that an alias, a server, an approval or a current run
    needs. Returns the removed ones.

    Raises:
        RetunedError: a folder cannot be deleted. The next pass tries again.
    """
    home, given = workload_folder(settings.models.directory, workload), {"workload": workload}
    removable = {row["version"] for row in warehouse.rows(QUERIES["removable_versions"], given | {"keep": 0})}
    going = sorted(removable.intersection(unwanted))
    if going:
        _remove(warehouse, workload, home, now, going, "erasure")
        delete_removed(warehouse, settings, workload)
    return going


def _remove(warehouse: Warehouse, workload: str, home: Path, now: datetime, versions: Sequence[str], rule: str) -> None:
    given = {"workload": workload, "versions": versions}
    with warehouse.transaction() as cursor:
        cursor.execute(QUERIES["remove_versions"], given | {"now": now})
        cursor.execute(QUERIES["remove_evaluations"], given)
        warehouse.artifacts.remove(cursor, "version", [home / version for version in versions])
        gone = {"versions": versions}
        warehouse.trail.note(cursor, by_rule(rule, "removed", workload=workload, details=gone))


@one_at_a_time
def _mark(warehouse: Warehouse, workload: str, home: Path, now: datetime, keep: int) -> tuple[int, int]:
    """Marks versions and datasets as removed, and returns how many. The champion cannot change meanwhile."""
    given = {"workload": workload}
    versions = [row["version"] for row in warehouse.rows(QUERIES["removable_versions"], given | {"keep": keep})]
    if versions:
        _remove(warehouse, workload, home, now, versions, "retention")
    datasets = [row["version"] for row in warehouse.rows(QUERIES["removable_datasets"], given)]
    if datasets:
        with warehouse.transaction() as cursor:
            cursor.execute(QUERIES["remove_datasets"], given | {"now": now, "versions": datasets})
            cursor.execute(QUERIES["remove_rows"], {"versions": datasets})
            warehouse.artifacts.remove(cursor, "dataset", [home / "datasets" / version for version in datasets])
            gone = {"datasets": datasets}
            warehouse.trail.note(cursor, by_rule("retention", "removed", workload=workload, details=gone))
    return len(versions), len(datasets)


def _reduce(warehouse: Warehouse, workload: str, most: int) -> int:
    """Reduces the datasets that remaining versions need only through their ancestors. Returns how many.

    `train` keeps the newest answer to each question, of the newest `most` questions: the next dataset repeats some of
    them, and holds out none that is related to them. `holdout` stays complete, because its rows stay held out.
    """
    datasets = {True: list[Dataset](), False: list[Dataset]()}
    for row in warehouse.rows(QUERIES["reducible_datasets"], {"workload": workload}):
        if dataset := load(warehouse, workload, row["version"]):
            datasets[row["whole"]].append(dataset)
    older = [dataset for dataset in datasets[False] if dataset.path.is_dir()]
    going = [dataset for dataset in older if not dataset.reduced]
    if not going:
        return 0
    asked = {_question(row) for dataset in datasets[True] for row in dataset.split("train")}
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
        # Remove the mark last, so that a marked dataset is completely reduced.
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
    """Keeps the first `most` rows with new questions, adds all questions to `asked`, and returns how many rows stay."""
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
    """Returns the hash of a row's question."""
    return restored(values).prompt_hash


def _delete(folder: Path, names: Iterable[str]) -> int:
    """Deletes the sub-folders with these names, and returns how many there were."""
    if not folder.is_dir():
        return 0
    present = {entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)}
    going = sorted(present.intersection(names))
    for name in going:
        aside = folder / f".{name}.{os.getpid()}.tmp"  # the next start removes it if this process is killed
        try:
            (folder / name).rename(aside)
            shutil.rmtree(aside)
        except FileNotFoundError:
            continue  # another thread that follows the cluster's rows deletes folders, too
        except OSError as error:
            raise RetunedError(
                f"retention: {folder / name} cannot be deleted ({error.strerror}); correct its permissions, the next "
                "pass tries again"
            ) from error
    return len(going)
