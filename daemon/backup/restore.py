"""Restores a generation of a backup to the paths of the configuration.

1. A file beside the warehouse, the marker, is created. While it exists, no process opens the warehouse: `attach` checks
   for it before and after it takes DuckDB's lock, and a restore takes that lock after it created the marker. So if a
   daemon and a restore start together, at least one is refused.
2. Everything is checked, copied beside its place, and renamed into place, the warehouse last.
3. An interrupted restore leaves the marker, and the next restore resumes it.
"""

import fcntl
import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import msgspec

from retuned.consumers.common.durable import fsync, sha256
from retuned.consumers.errors import BackupError
from retuned.consumers.warehouse import schema
from retuned.consumers.warehouse.connection import named_queries
from retuned.consumers.warehouse.opening import restoring
from retuned.daemon.backup import manifest
from retuned.daemon.backup.manifest import CHUNK_BYTES, KEY, WAREHOUSE, File, Manifest
from retuned.daemon.settings import Settings

log = logging.getLogger(__name__)
QUERIES = named_queries("retuned.daemon.backup", "backup.sql")


class UnderWay(msgspec.Struct, frozen=True):
    """The content of the marker. The marker is empty until everything is checked.

    Attributes:
        copied: everything was copied beside its place; a copy that is gone is in place.
        held: names of the files and folders in the generation.
        aside: suffix for the files and folders that are replaced.
    """

    generation: str
    copied: bool
    held: frozenset[str]
    aside: str


@dataclass(frozen=True)
class Restored:
    """The result of a restore.

    Attributes:
        set_aside: the replaced files and folders.
        missing_key: path for the key of pseudonyms, if neither the backup nor the configuration has it.
    """

    generation: Path
    manifest: Manifest
    set_aside: list[Path]
    missing_key: Path | None


def choose(folder: Path, name: str | None) -> Path:
    """Returns the generation of that name, or the newest one that no person has renamed.

    Raises:
        BackupError: there is none.
    """
    generations = {generation.name: generation for generation in manifest.complete(folder)}
    if not generations:
        raise BackupError(f"backup {folder}: no backup is there; name the folder that `retuned backup` wrote to")
    if name is None:
        if newest := manifest.generations(folder)[-1:]:
            return newest[0]
        known = ", ".join(generations)
        raise BackupError(f"backup {folder}: no name there is a time; choose one by --generation: {known}")
    if name not in generations:
        raise BackupError(f"backup {folder}: no generation {name}; there are {', '.join(generations)}")
    return generations[name]


def restore(settings: Settings, generation: Path, *, replace: bool, now: datetime) -> Restored:
    """Restore a generation. No process may have the warehouse open.

    Args:
        replace: rename existing files and folders; without it, they are an error.
        now: becomes part of their new names.

    Raises:
        BackupError: the generation is damaged or of a newer retuned, a place is taken, or a file cannot be written.
    """
    about = manifest.read(generation)
    if about.schema > schema.latest():
        raise BackupError(
            f"backup {generation}: its schema ({about.schema}) is newer than this retuned knows ({schema.latest()}); "
            f"install retuned {about.version}"
        )
    run = _Restore(settings, generation.resolve(), about)
    with _naming(generation):
        set_aside = run.run(replace, now)
    key = manifest.places(settings)[KEY]
    is_known = key.exists() or settings.privacy.user_key or settings.privacy.user_key_file
    return Restored(generation, about, set_aside, None if is_known else key)


class _Restore:
    def __init__(self, settings: Settings, generation: Path, about: Manifest) -> None:
        self._generation, self._about = generation, about
        self._is_alone = settings.store.kind != "cluster"  # a cluster's database has the memory's sequences
        named = manifest.places(settings)
        self._reports = str(named["reports"])
        self._places = {name: place.resolve() for name, place in named.items()}  # links to places stay links
        self._warehouse = self._places[WAREHOUSE]
        self._marker = restoring(named[WAREHOUSE])
        self._held = frozenset(Path(file.path).parts[0] for file in about.files)

    def run(self, replace: bool, now: datetime) -> list[Path]:
        """Restore everything, after an interrupted restore is finished. Returns the replaced files and folders."""
        set_aside: list[Path] = []
        with self._marked(), _locked(self._warehouse):
            interrupted = self._under_way()
            if interrupted is not None and interrupted.copied:
                set_aside = self._put_in_place(interrupted)
                self._note(None)
            if interrupted is None or not interrupted.copied or interrupted.generation != str(self._generation):
                set_aside += self._put_in_place(self._prepared(replace, now))
        return set_aside

    @contextmanager
    def _marked(self) -> Iterator[None]:
        """Hold the marker, which only one restore may. A restore that fails before anything is moved removes it."""
        self._marker.parent.mkdir(parents=True, exist_ok=True)
        with self._marker.open("ab") as marker:
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BackupError(
                    f"restore: another restore into {self._warehouse} is under way; wait for it"
                ) from error
            if os.fstat(marker.fileno()).st_nlink == 0:
                raise BackupError(f"restore: another restore into {self._warehouse} has just ended; check its result")
            fsync(self._marker.parent)
            try:
                yield
            except BaseException:
                if (left := self._under_way()) is None or not left.copied:
                    self._remove_copies()
                    self._marker.unlink()
                raise
            self._marker.unlink()
            fsync(self._marker.parent)

    def _under_way(self) -> UnderWay | None:
        """Returns the last complete line of the marker; None: it is empty."""
        *lines, _ = self._marker.read_bytes().split(b"\n")
        notes = [line for line in lines if line]
        try:
            return msgspec.json.decode(notes[-1], type=UnderWay | None) if notes else None
        except msgspec.MsgspecError as error:
            raise BackupError(
                f"restore: {self._marker}: another version of retuned wrote it ({error}); finish that restore with it"
            ) from error

    def _note(self, under_way: UnderWay | None) -> None:
        with self._marker.open("ab") as marker:
            marker.write(b"\n" + msgspec.json.encode(under_way) + b"\n")  # a crash may have left half a line before
        fsync(self._marker)

    def _prepared(self, replace: bool, now: datetime) -> UnderWay:
        """Check that everything can be restored, and copy it beside its place."""
        for place in self._places.values():
            if place.is_mount():
                raise BackupError(f"restore: {place} is a mount point; have the configuration name a folder below it")
        if problems := list(manifest.verify(self._generation)):
            raise BackupError(f"backup {'; '.join(problems)}: choose another generation")
        if not replace and (taken := [str(path) for path in self._taken()]):
            raise BackupError(
                f"restore: {', '.join(taken)} would be replaced; move them away, or add --replace, which renames them"
            )
        self._need_space()
        under_way = UnderWay(
            str(self._generation), copied=False, held=self._held, aside=f"replaced-{now:%Y-%m-%dT%H-%M-%SZ}"
        )
        self._note(under_way)
        self._copy()
        under_way = msgspec.structs.replace(under_way, copied=True)
        self._note(under_way)
        return under_way

    def _targets(self, held: frozenset[str]) -> dict[str, Path]:
        """Returns all places, the warehouse last, and its log before it: DuckDB would apply it to the restored file."""
        write_ahead_log = self._warehouse.with_name(self._warehouse.name + ".wal")
        others = {name: place for name, place in self._places.items() if name not in (WAREHOUSE, KEY)}
        if KEY in held:  # else the existing key stays
            others[KEY] = self._places[KEY]
        return others | {"wal": write_ahead_log, WAREHOUSE: self._warehouse}

    def _taken(self) -> list[Path]:
        return [place for place in self._targets(self._held).values() if _is_taken(place)]

    def _need_space(self) -> None:
        needed: Counter[Path] = Counter()
        devices: dict[int, Path] = {}
        for file in self._about.files:
            here = next(parent for parent in self._place(file.path).resolve().parents if parent.exists())
            needed[devices.setdefault(here.stat().st_dev, here)] += file.bytes
        for here, size in needed.items():
            if (free := shutil.disk_usage(here).free) < size:
                raise BackupError(f"restore: {free:,} bytes are free at {here}, and {size:,} are needed; free space")

    def _place(self, path: str) -> Path:
        """Returns the path to which a file of the generation is copied, beside its place."""
        name, *below = Path(path).parts
        if name not in self._places:
            raise BackupError(f"backup {self._generation}: {path} has no place; upgrade retuned")
        return _beside(self._places[name]).joinpath(*below)

    def _remove_copies(self) -> None:
        for place in self._places.values():
            _remove(_beside(place))

    def _copy(self) -> None:
        self._remove_copies()
        for file in self._about.files:
            target = self._place(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(self._generation, target, file)
        self._move_paths(_beside(self._warehouse))
        for name in self._held:
            _fsync_folders(_beside(self._places[name]))

    def _move_paths(self, warehouse: Path) -> None:
        """Adapt the paths of versions, datasets and reports in the warehouse to this machine. Gateways, which may know
        more of the memory than the backup, start over with it."""
        moves = {
            "move_models": ("models", str(self._places["models"])),
            "move_datasets": ("models", str(self._places["models"])),
            "move_reports": ("reports", self._reports),
        }
        with duckdb.connect(str(warehouse)) as connection:
            for query, (folder, new) in moves.items():
                if (old := self._about.folders[folder]) != new:
                    connection.execute(QUERIES[query], {"old": old, "new": new})
            if self._is_alone:
                connection.execute(QUERIES["renew_memory_epoch"])
            connection.execute("CHECKPOINT")
        fsync(warehouse)

    def _put_in_place(self, under_way: UnderWay) -> list[Path]:
        """Rename the copies into place. Returns the replaced files and folders under their new names."""
        held, aside, targets = under_way.held, under_way.aside, self._targets(under_way.held)
        for name, place in targets.items():
            copied = _beside(place)
            if name in held and not (copied.exists() or copied.is_symlink()):
                continue  # already in place
            if _is_taken(place):
                place.rename(place.with_name(f"{place.name}.{aside}"))
            if name in held:
                copied.rename(place)
            if place.parent.exists():
                fsync(place.parent)
        replaced = (place.with_name(f"{place.name}.{aside}") for place in targets.values())
        return [path for path in replaced if path.exists()]


@contextmanager
def _locked(warehouse: Path) -> Iterator[None]:
    """Hold the lock that DuckDB takes on an open file, so that no process opens the warehouse meanwhile."""
    if not warehouse.is_file():
        yield
        return
    with warehouse.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise BackupError(f"restore: {warehouse} is in use; stop the daemon first") from error
        yield


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.restored")


def _is_taken(place: Path) -> bool:
    return any(place.iterdir()) if place.is_dir() else place.exists()


def _copy(generation: Path, target: Path, file: File) -> None:
    """Copy a file and read it again: both contents must have the manifest's hash."""
    digest = hashlib.sha256()
    with manifest.opened(generation, file.path) as original, target.open("xb") as copy:
        while piece := original.read(CHUNK_BYTES):
            digest.update(piece)
            copy.write(piece)
        copy.flush()
        os.fsync(copy.fileno())
    os.utime(target, ns=(file.modified_ns, file.modified_ns))  # so that the next backup links it
    if not digest.hexdigest() == sha256(target) == file.sha256:
        raise BackupError(
            f"backup {generation / file.path}: its content changed during the copy; check the disks, and restore again"
        )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _fsync_folders(top: Path) -> None:
    for folder, _, _ in os.walk(top):
        fsync(Path(folder))


@contextmanager
def _naming(generation: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, duckdb.Error) as error:
        where = getattr(error, "filename", None) or generation
        what = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise BackupError(f"restore: {where}: {what}; fix it and run the same restore again") from error
