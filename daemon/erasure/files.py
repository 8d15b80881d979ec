"""The files that contain erased rows, or quote them: found, rewritten or deleted."""

import glob
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from retuned.consumers.common.durable import fsync, sha256
from retuned.consumers.common.text import first_line
from retuned.consumers.privacy.pseudonyms import UserKeys
from retuned.consumers.warehouse import archive, rewriting
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.consumers.warehouse.tombstones import QUERIES as ARCHIVES
from retuned.consumers.warehouse.tombstones import Tombstones
from retuned.daemon.reports import reports
from retuned.daemon.settings import Settings
from retuned.retrain.data import topics
from retuned.retrain.versions import workload_folder

QUERIES = named_queries("retuned.daemon.erasure", "erasure.sql")


@dataclass(frozen=True)
class Place:
    """A file or folder with erased content.

    Attributes:
        action: rewrite: its other rows stay; delete: it is derived, and is made again where it is needed.
        rows: the number of erased rows; None: unknown.
        sha256: of the file before; None: a folder, or it cannot be read.
    """

    path: str
    action: Literal["rewrite", "delete"]
    rows: int | None = None
    sha256: str | None = None


class Files:
    """The files beside one warehouse.

    Attributes:
        left: the places that could not be read, rewritten or deleted, each with the reason.
    """

    def __init__(self, warehouse: Warehouse, settings: Settings, tombstones: Tombstones) -> None:
        self._warehouse, self._settings, self._tombstones = warehouse, settings, tombstones
        self._archive = archive.folder_of(warehouse, settings).absolute()
        self.left: dict[str, str] = {}

    @classmethod
    def stored(cls, warehouse: Warehouse, settings: Settings, keys: UserKeys) -> "Files":
        """Returns the files with the tombstones that the warehouse has now."""
        with warehouse.cursor() as cursor:
            return cls(warehouse, settings, Tombstones.stored(keys, cursor))

    def find(self, workloads: Sequence[str], first: datetime | None, *, shared: bool = True) -> list[Place]:
        """Returns the places with erased content, and files that cannot be read.

        Args:
            workloads: those of the erased events.
            first: the time of the first erased event.
            shared: with datasets and reports, which the leader of a cluster keeps for all daemons.
        """
        datasets = (path for _, path in files_of_datasets(self._warehouse)) if shared else ()
        files = [*self._archive.glob("*/day=*/*.parquet"), *datasets]
        derived = [*self._derived(workloads), *(self._reports(workloads, first) if shared else ())]
        return [*self._with_rows(files), *(place_of(path, "delete") for path in derived)]

    def erase(self, place: Place) -> None:
        """Removes the erased content from a place. Safe to repeat."""
        try:
            self._erase(place)
        except rewriting.UNREADABLE as error:
            self.left[place.path] = first_line(error)

    def try_again(self, place: Place) -> None:
        """Finds out whether a place that was left can be read and changed now. Its rows stay, because events are
        chosen by them first."""
        path = Path(place.path)
        if place.action == "delete" or not path.exists():
            self.erase(place)
        elif problem := rewriting.problem_of(path) or rewriting.problem_of_writing(path):
            self.left[place.path] = problem
        elif self._archive not in path.parents and not rewriting.erased_rows(path, self._tombstones).any():
            self.erase(place)  # what is beside its rows, such as topics

    def _erase(self, place: Place) -> None:
        path = Path(place.path)
        if place.action == "delete":
            if path.parent.name == "datasets" and path.name in self._datasets():
                return  # its run has stored the row since it was found
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if path.parent.is_dir():
                fsync(path.parent)
            return
        in_archive = self._archive in path.parents
        if path.exists() and (erased := rewriting.erased_rows(path, self._tombstones)).any():
            if in_archive:
                self._warehouse.execute(ARCHIVES["forget_archived_ids"], {"ids": rewriting.ids(path, erased)})
            rewriting.without(path, erased)
        if in_archive:
            self._record_archive(path)
        elif path.parent.is_dir():
            self._clean_dataset(path.parent)

    def _with_rows(self, files: Iterable[Path]) -> Iterator[Place]:
        for file in sorted(files):
            try:
                rows = int(rewriting.erased_rows(file, self._tombstones).sum())
            except FileNotFoundError:
                continue
            except rewriting.UNREADABLE as error:
                place = place_of(file, "rewrite")
                self.left[place.path] = first_line(error)
                yield place
                continue
            if rows:
                yield place_of(file, "rewrite", rows)

    def _derived(self, workloads: Sequence[str]) -> Iterator[Path]:
        path = self._warehouse.path
        copy = f"{glob.escape(path.name)}.schema-[0-9][0-9][0-9]"  # from before migrations
        yield from (*path.parent.glob(copy), *path.parent.glob(f".{copy}.*.tmp"), *archive.strays(self._archive))
        for file in {one.labels.file for one in self._settings.variants({"labels"}).values()}:
            if file is None:
                continue
            strays = file.parent.glob(f".{glob.escape(file.name)}.*.tmp")  # of killed processes, unless it is this one
            yield from (one for one in strays if one.suffixes[-2:] != [f".{os.getpid()}", ".tmp"])
        models = self._settings.models.directory
        for workload in workloads:  # caches of answers and verdicts, folders of runs and of other children
            home = workload_folder(models, workload)
            kept = {
                "datasets",
                *(row["version"] for row in self._warehouse.rows(QUERIES["versions"], {"workload": workload})),
            }
            yield from (one for one in sorted(home.glob("*")) if one.name not in kept and not one.is_symlink())
            yield from self._stray_datasets(workload)
        yield from (one for one in sorted(reports.folder_of(self._warehouse).glob("*")) if workloads and one.is_dir())

    def _stray_datasets(self, workload: str) -> Iterator[Path]:
        """Yields the datasets that no row names: their run was killed or stopped before it stored the row."""
        folder, named = workload_folder(self._settings.models.directory, workload) / "datasets", self._datasets()
        own = [f".{os.getpid()}", ".tmp"]  # this process may be fetching one from the storage of a cluster
        yield from (
            one
            for one in sorted(folder.glob("*"))
            if one.name not in named and one.suffixes[-2:] != own and not one.is_symlink()
        )

    def _datasets(self) -> set[str]:
        return {row["version"] for row in self._warehouse.rows(QUERIES["dataset_versions"])}

    def _reports(self, workloads: Sequence[str], first: datetime | None) -> Iterator[Path]:
        for workload in workloads:
            for row in self._warehouse.rows(QUERIES["reports"], {"workload": workload, "first": first}):
                yield from _pages(Path(row["report"]))
            folder = reports.folder_of(self._warehouse)
            for name in reports.reports(folder, workload):
                if first is None or reports.ends_after(name, first):
                    yield from _pages(folder / f"{name}.json")

    def _record_archive(self, path: Path) -> None:
        """Updates the record of an archived file, which is deleted with its last row."""
        name = path.relative_to(self._archive).as_posix()
        rows = rewriting.rows_in(path) if path.exists() else 0
        if not rows:
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                fsync(path.parent)
            self._warehouse.execute(ARCHIVES["drop_archive"], {"file": name})
        else:
            about = {"file": name, "rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)}
            self._warehouse.execute(ARCHIVES["renew_archive"], about)

    def _clean_dataset(self, folder: Path) -> None:
        """Removes words that are left in no row of a dataset from its topics, and stores its files."""
        known = topics.Topics.load(folder)
        if known != topics.Topics() and (questions := _questions(folder)) is not None:
            known.only(questions).save(folder)
        self._warehouse.artifacts.renew("dataset", folder)


def files_of_datasets(warehouse: Warehouse) -> list[tuple[str, Path]]:
    """Returns the files with rows of datasets, each with its workload."""
    datasets = warehouse.rows(QUERIES["dataset_paths"])
    return [(row["workload"], file) for row in datasets for file in sorted(Path(row["path"]).glob("*.parquet"))]


def deleted_reports(warehouse: Warehouse, workload: str) -> list[reports.Period]:
    """Returns the periods whose report of a workload was deleted by an erasure."""
    names = {row["name"] for row in warehouse.rows(QUERIES["deleted_reports"])}
    return [period for name in sorted(names) if (period := reports.period_of(name, workload)) is not None]


def after(places: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the places of a receipt: with their hashes before and after; null: the file does not exist."""
    return [
        {
            "path": place["path"],
            "action": place["action"],
            "rows": place["rows"],
            "sha256_before": place["sha256"],
            "sha256_after": _hash(Path(place["path"])),
        }
        for place in places
    ]


def why(left: Mapping[str, str]) -> str:
    """Returns what an operator does about places that could not be read, rewritten or deleted."""
    files = ", ".join(f"{path} ({problem})" for path, problem in sorted(left.items()))
    return (
        f"these files could not be read or changed, and may hold erased events: {files}; restore each from a backup, "
        "or delete it: the erasure then continues, and is complete after that"
    )


def place_of(path: Path, action: Literal["rewrite", "delete"] = "rewrite", rows: int | None = None) -> Place:
    """Returns a place with the hash that it has now."""
    return Place(str(path.absolute()), action, rows, _hash(path))


def _hash(path: Path) -> str | None:
    """Returns the SHA-256 of a file; None: it is none, or cannot be read."""
    try:
        return sha256(path) if path.is_file() else None
    except OSError:
        return None


def _questions(dataset: Path) -> list[str] | None:
    """Returns the texts of a dataset that topics are made of; None: one of its files cannot be read, and is left."""
    try:
        files = [pq.ParquetFile(file).read(columns=["question"]) for file in sorted(dataset.glob("*.parquet"))]
    except rewriting.UNREADABLE:
        return None
    return [question for file in files for question in file["question"].to_pylist()]


def _pages(report: Path) -> Iterator[Path]:
    """Yields the files of a report that exist."""
    yield from (page for page in (report, report.with_suffix(".html")) if page.exists())


def time_of(text: str | None) -> datetime | None:
    """Returns a time that was kept as text."""
    return datetime.fromisoformat(text) if text else None
