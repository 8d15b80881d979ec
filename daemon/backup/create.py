"""Creates a generation of a backup while the daemon runs: the warehouse as of one transaction, then the files."""

import fcntl
import hashlib
import importlib.metadata
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import duckdb
import msgspec

from retuned.consumers.common.durable import fsync, sha256
from retuned.consumers.errors import BackupError, Busy, Cancelled
from retuned.consumers.warehouse import schema
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.consumers.warehouse.copying import copy_to
from retuned.daemon.backup import manifest
from retuned.daemon.backup.manifest import CHUNK_BYTES, KEY, MANIFEST, MARKER, WAREHOUSE, File, Manifest, Offset
from retuned.daemon.settings import Settings

log = logging.getLogger(__name__)
QUERIES = named_queries("retuned.daemon.backup", "backup.sql")

RUNS = "runs"
"""Folder of each workload in `models` that is left out: a restored run trains again without its checkpoints."""


@dataclass(frozen=True)
class Created:
    """A new generation: its folder, its files, the files that were copied rather than linked, and the deleted
    generations."""

    generation: str
    files: int
    bytes: int
    copied_files: int
    copied_bytes: int
    deleted: list[str]


def back_up(
    warehouse: Warehouse,
    settings: Settings,
    folder: Path,
    keep: int,
    now: datetime,
    stop: threading.Event,
    *,
    with_key: bool = True,
) -> Created:
    """Create a generation in `folder`, then delete the oldest ones until `keep` are left.

    Files are copied after the warehouse, so the copy has every file that the warehouse names. Events that were archived
    in between are in both; the next run of the archive removes them from a restored warehouse.

    Args:
        now: naive UTC.
        stop: cancels the backup, which leaves nothing behind.
        with_key: include the key of pseudonyms; key and warehouse together identify users.

    Raises:
        BackupError: the folder cannot be used or written.
        Busy: another backup is under way there.
        Cancelled: stop was set.
    """
    try:
        with _exclusive(folder, settings):
            places = manifest.places(settings)
            if not with_key:
                del places[KEY]
            return _Generation(warehouse, places, folder, now, stop).create(keep)
    except OSError as error:
        raise BackupError(
            f"backup {error.filename or folder}: {error.strerror or error}; earlier backups are unchanged"
        ) from error


class _Generation:
    def __init__(
        self, warehouse: Warehouse, places: dict[str, Path], folder: Path, now: datetime, stop: threading.Event
    ) -> None:
        self._warehouse, self._places, self._folder, self._stop = warehouse, places, folder, stop
        name = _new_name(folder, now)
        self._now, self._path, self._aside = now, folder / name, folder / f".{name}.tmp"
        self._earlier, self._known = _newest(folder)
        self._files: list[File] = []
        self._copied: list[File] = []

    def create(self, keep: int) -> Created:
        for unfinished in self._folder.glob(".*.tmp"):
            shutil.rmtree(unfinished)
        try:
            self._write()
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)
        deleted = [_delete(old) for old in manifest.generations(self._folder)[:-keep]]
        total = sum(file.bytes for file in self._files)
        copied = sum(file.bytes for file in self._copied)
        log.info("backup %s: %d files, %d bytes, of which %d are new", self._path, len(self._files), total, copied)
        return Created(str(self._path), len(self._files), total, len(self._copied), copied, deleted)

    def _write(self) -> None:
        self._aside.mkdir()
        size = self._warehouse.size()
        self._need(size.used + size.log)
        offsets = self._copy_warehouse()
        for name, place in self._places.items():
            if place.is_dir():
                for path in _walk(place, without=RUNS if name == "models" else None):
                    self._add(path, f"{name}/{path.relative_to(place).as_posix()}")
            elif name != WAREHOUSE and place.exists():
                self._add(place, name)
        about = Manifest(
            format=manifest.FORMAT,
            version=importlib.metadata.version("retuned"),
            schema=schema.version(self._warehouse),
            created_at=self._now.replace(tzinfo=UTC),
            offsets=offsets,
            folders={"models": str(self._places["models"].resolve()), "reports": str(self._places["reports"])},
            files=self._files,
        )
        (self._aside / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(about), indent=1))
        fsync(self._aside / MANIFEST)
        for place in (*(path for path in self._aside.rglob("*") if path.is_dir()), self._aside):
            fsync(place)
        self._aside.rename(self._path)
        fsync(self._folder)

    def _copy_warehouse(self) -> list[Offset]:
        """Copy the warehouse. Returns the offsets in the copy."""
        path = self._aside / WAREHOUSE
        copy_to(self._warehouse, path, self._stop)
        with duckdb.connect(str(path), read_only=True) as copy:
            rows = copy.execute(QUERIES["offsets"]).fetchall()
        fsync(path)
        stat = path.stat()
        self._add_file(File(WAREHOUSE, stat.st_size, sha256(path), stat.st_mtime_ns), copied=True)
        return [Offset(*row) for row in rows]

    def _add(self, source: Path, name: str) -> None:
        """Add a file, unless it was deleted meanwhile."""
        if self._stop.is_set():
            raise Cancelled(f"backup {self._folder}: stopped; it left nothing behind")
        target = self._aside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            stat = source.stat()
            known = self._known.get(name)
            if known and (known.bytes, known.modified_ns) == (stat.st_size, stat.st_mtime_ns) and self._linked(known):
                self._add_file(known, copied=False)
                return
            original = source.open("rb")
        except FileNotFoundError:
            return
        self._need(stat.st_size)
        with original:
            size, content = _copy(original, target)
        self._add_file(File(name, size, content, stat.st_mtime_ns), copied=True)

    def _linked(self, file: File) -> bool:
        """Link a file to the previous generation. Returns whether that worked."""
        assert self._earlier is not None
        try:
            source = self._earlier / file.path
            if source.stat().st_size != file.bytes:
                return False
            os.link(source, self._aside / file.path)
        except OSError:  # some file systems have no hard links
            return False
        return True

    def _add_file(self, file: File, *, copied: bool) -> None:
        self._files.append(file)
        if copied:
            self._copied.append(file)

    def _need(self, size: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < size:
            raise BackupError(
                f"backup {self._folder}: {free:,} bytes are free and the next file takes {size:,}; free space or keep "
                "fewer backups; earlier backups are unchanged"
            )


@contextmanager
def _exclusive(folder: Path, settings: Settings) -> Iterator[None]:
    """Lock the folder of backups, and create it if needed."""
    marker = folder / MARKER
    for name, place in manifest.places(settings).items():
        if folder.resolve().is_relative_to(place.resolve()):
            raise BackupError(f"backup {folder}: lies in a folder that is backed up ({name}: {place}); choose another")
    if folder.is_dir() and not marker.exists() and any(folder.iterdir()):
        raise BackupError(f"backup {folder}: holds other files; choose an empty or a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with marker.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"backup {folder}: another backup is under way there; wait for it") from error
        yield


def _newest(folder: Path) -> tuple[Path | None, dict[str, File]]:
    """Returns the newest generation and its files by path; none if it cannot be read, and everything is copied."""
    existing = manifest.generations(folder)
    if not existing:
        return None, {}
    try:
        return existing[-1], {file.path: file for file in manifest.read(existing[-1]).files}
    except BackupError as error:
        log.warning("%s; everything is copied", error)
        return None, {}


def _new_name(folder: Path, now: datetime) -> str:
    """Returns the name of a new generation: the time, or one that is later than all existing names, so that names rise
    even if the clock does not."""
    for earlier in manifest.generations(folder):
        now = max(now, manifest.named_at(earlier) + timedelta(seconds=1))
    while (folder / now.strftime(manifest.NAME)).exists():
        now += timedelta(seconds=1)
    return now.strftime(manifest.NAME)


def _walk(folder: Path, without: str | None) -> Iterator[Path]:
    """Yields the files below a folder, except temporary ones.

    A link that leads out of the folder stands for its content. One within it is left out, such as `champion` of a
    workload, which the daemon makes.

    Args:
        without: name of a folder that is skipped in each direct subfolder.

    Raises:
        OSError: a folder cannot be listed.
    """
    roots = [folder.resolve()]

    def is_inner_link(path: Path) -> bool:
        if not path.is_symlink():
            return False
        target = path.resolve()
        if not target.exists() or any(target.is_relative_to(root) for root in roots):
            return True
        if target.is_dir():
            roots.append(target)
        return False

    for place, folders, files in os.walk(folder, onerror=_unless_gone, followlinks=True):
        here = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if here.parent == folder and without in folders:
            folders.remove(without)
        folders[:] = [name for name in folders if not is_inner_link(here / name)]
        for name in sorted(files):
            if not name.startswith(".") and not name.endswith(".tmp") and not is_inner_link(here / name):
                yield here / name


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _copy(original: IO[bytes], target: Path) -> tuple[int, str]:
    """Copy a file and sync it to disk. Returns its size and hash."""
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as copy:
        while piece := original.read(CHUNK_BYTES):
            digest.update(piece)
            size += copy.write(piece)
        copy.flush()
        os.fsync(copy.fileno())
    return size, digest.hexdigest()


def _delete(generation: Path) -> str:
    """Delete a generation. It is renamed first, so that an interrupted deletion leaves no damaged backup."""
    aside = generation.with_name(f".{generation.name}.tmp")
    generation.rename(aside)
    shutil.rmtree(aside)
    return generation.name
