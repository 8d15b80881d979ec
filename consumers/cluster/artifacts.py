"""Artifacts of a cluster: what one daemon writes, all have, by way of object storage.

A file is put under `artifacts/<epoch>/<sha256>-<random>`, and never changes. Once all files of an artifact are there, a
row in `artifacts` names them, in the same transaction as the row that names the artifact: whoever sees one finds the
other. Removal goes the other way: first the row is marked, then its files are deleted, then it is.

No clock decides which files are left over. A leader deletes those of epochs before its own that no row names: no row of
an earlier leader can come any more. Of its own epoch, and of later ones, it deletes what it removed, and nothing else.
No two puts share a key, so what a leader that was overtaken still deletes, nobody has named since.
"""

import hashlib
import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

import duckdb

from retuned.consumers.cluster.objects import PART_BYTES, Objects
from retuned.consumers.common.durable import replaced, written_aside
from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import RetunedError, StoreUnavailable
from retuned.consumers.warehouse.artifacts import Artifacts, Kind, Record
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries, utc_now

log = logging.getLogger(__name__)

SQL = named_queries("retuned.consumers.cluster", "artifacts.sql")
PREFIX = "artifacts/"
RETRY_SECONDS = 60.0
"""After so long what is damaged or missing in the storage is fetched again."""
_KEY = re.compile(rf"{PREFIX}(\d+)/[0-9a-f]{{64}}-[0-9a-f]+")

Place = tuple[Kind, str]
"""Of an artifact: its kind, and its path below the folder of that."""
Files = Mapping[str, Mapping[str, Any]]
"""Of an artifact: by name, `key`, `bytes` and `sha256`."""


class _Unfit(Exception):
    """A file in the storage is not the one that a row names."""


class StoredArtifacts(Artifacts):
    """The artifacts of one warehouse, in a storage and on this machine. Threads may share it."""

    def __init__(
        self, warehouse: Warehouse, objects: Objects, folders: Mapping[Kind, Path], lead: Lead = alone
    ) -> None:
        """
        Args:
            folders: where the artifacts of each kind are on this machine.
            lead: see `common.lead`; of what no daemon leads yet, the epoch is 0.
        """
        self._warehouse, self._objects, self._lead = warehouse, objects, lead
        self._folders = {kind: folder.resolve() for kind, folder in folders.items()}
        self._renewing, self._following = threading.Lock(), threading.Lock()
        # The ids of the rows that the files on this machine are those of: two, while one takes the other's place.
        self._here: dict[Place, set[str]] = {}
        self._live: set[Place] = set()  # at the last look
        self._failed: dict[str, tuple[float, str]] = {}  # ids of rows whose files cannot be had: since when, and why
        self._problems: list[str] = []  # of this machine
        self._lost: list[str] = []  # by the storage

    def put(self, kind: Kind, path: Path) -> Record:
        return self._put(kind, path, "")

    def renew(self, kind: Kind, path: Path, but: str = "") -> None:
        with self._renewing:
            if self._row(kind, self._name(kind, path)):
                record = self._put(kind, path, but)
                with self._warehouse.transaction() as cursor:
                    record(cursor)

    def stored(self, kind: Kind) -> set[Path]:
        return {self._folders[kind] / row["name"] for row in self._warehouse.rows(SQL["live"]) if row["kind"] == kind}

    def remove(self, cursor: duckdb.DuckDBPyConnection, kind: Kind, paths: Iterable[Path]) -> None:
        names = [self._name(kind, path) for path in paths]
        cursor.execute(SQL["remove"], {"kind": kind, "names": names, "now": utc_now()})
        for name in names:
            self._here.pop((kind, name), None)

    def delete_removed(self) -> None:
        rows = self._warehouse.rows(SQL["removed"])
        if rows:
            self._objects.delete(
                sorted({key for row in rows for key in _keys(row["files"]) - _keys(row["kept"] or "{}")})
            )
            self._warehouse.execute(SQL["delete"], {"ids": [row["id"] for row in rows]})
            log.info("store: the files of %d artifacts are deleted that were removed, or replaced", len(rows))
        self._sweep()

    def follow(self) -> bool:
        with self._following:
            live: dict[Place, str] = {
                (row["kind"], row["name"]): row["id"] for row in self._warehouse.rows(SQL["live"])
            }
            gone = (self._live - live.keys()) & self._here.keys()  # what was never live may be about to be
            problems = self._delete_here(gone)
            self._live = live.keys() | (gone & self._here.keys())
            problems += self._bring({place: id for place, id in live.items() if id not in self._here.get(place, ())})
            for problem in problems:
                if problem not in self._problems:
                    log.warning("%s", problem)
            self._problems = problems
            return not problems

    def problems(self) -> list[str]:
        return self._problems + self._lost

    # Inside

    def _put(self, kind: Kind, path: Path, but: str) -> Record:
        place: Place = (kind, self._name(kind, path))
        files: dict[str, Mapping[str, Any]] = {}
        row = self._row(*place)
        before: Files = json.loads(row["files"]) if row else {}
        for file in _files(kind, path):
            if file.name == but:
                continue
            files[file.name] = self._stored(file, before.get(file.name))
        identity = row["id"] if row and files == before else secrets.token_hex(8)

        def record(cursor: duckdb.DuckDBPyConnection) -> None:
            if row and row["id"] != identity:
                ((replaced_rows,),) = cursor.execute(SQL["replace"], {"id": row["id"], "now": utc_now()}).fetchall()
                if not replaced_rows:
                    raise RetunedError(f"{kind} {place[1]}: it was removed meanwhile, and is not published")
            if not row or row["id"] != identity:
                insert(
                    cursor,
                    "artifacts",
                    id=identity,
                    kind=kind,
                    name=place[1],
                    files=json.dumps(files, sort_keys=True),
                    created_at=utc_now(),
                )
            self._here[place] = {identity} | ({row["id"]} if row else set())

        return record

    def _row(self, kind: Kind, name: str) -> dict[str, Any] | None:
        return self._warehouse.row(SQL["of_place"], {"kind": kind, "name": name})

    def _stored(self, file: Path, before: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Where a file is in the storage: where it was before, if that is the same, or where it is put now."""
        content: bytes | Path = file
        size, sha256 = file.stat().st_size, ""
        if size <= PART_BYTES:  # it may be replaced by another one while it is read, so the hash is of what is sent
            content = file.read_bytes()
            size, sha256 = len(content), hashlib.sha256(content).hexdigest()
        sha256 = sha256 or _sha256(file)
        if before and before["sha256"] == sha256:
            return before
        key = f"{PREFIX}{self._lead() or 0}/{sha256}-{secrets.token_hex(4)}"
        self._objects.put(key, content)
        return {"key": key, "bytes": size, "sha256": sha256}

    def _bring(self, missing: Mapping[Place, str]) -> list[str]:
        """Bring artifacts to this machine, the newest first; of each the id of its row. Returns what failed."""
        if not missing:
            return []
        given = {"ids": list(missing.values())}
        files = {row["id"]: json.loads(row["files"]) for row in self._warehouse.rows(SQL["files_of"], given)}
        problems: list[str] = []
        brought = 0
        now, failed = time.monotonic(), self._failed
        self._failed = {identity: failed[identity] for identity in missing.values() if identity in failed}
        for (kind, name), identity in missing.items():
            since, problem = self._failed.get(identity, (-RETRY_SECONDS, ""))
            if identity not in files:  # removed since
                continue
            if now - since < RETRY_SECONDS:
                problems.append(problem)
                continue
            try:
                self._bring_one(kind, name, files[identity])
                self._here[kind, name] = {identity}
                brought += 1
                continue
            except StoreUnavailable as error:
                return [*problems, f"{len(missing) - brought} artifacts are not on this machine yet: {error}"]
            except _Unfit as error:
                problem = f"{kind} {name}: {error}; put that file back, or remove the {kind}"
            except OSError as error:
                problem = f"{kind} {name}: cannot be written here ({error.strerror or error}); see to the disk"
            problems.append(problem)
            self._failed[identity] = now, problem
        return problems

    def _bring_one(self, kind: Kind, name: str, files: Files) -> None:
        path = self._path(kind, name)
        if any(Path(file).name != file for file in files):
            raise _Unfit("it names a file outside of its folder")
        folder = path.parent if kind == "report" else path
        if folder == path and not path.is_dir():
            with written_aside(path) as aside:
                for file, stored in files.items():
                    self._fetch(stored, aside / file)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for file, stored in files.items():
            if not _is(folder / file, stored):
                with replaced(folder / file) as aside:
                    self._fetch(stored, aside)
        for other in _files(kind, path):
            if other.name not in files:
                other.unlink()

    def _fetch(self, stored: Mapping[str, Any], file: Path) -> None:
        digest, key = hashlib.sha256(), stored["key"]
        try:
            with file.open("wb") as opened:
                for part in self._objects.parts(key):
                    opened.write(part)
                    digest.update(part)
        except FileNotFoundError as error:
            raise _Unfit(f"store.objects_url: {key} is not there") from error
        if digest.hexdigest() != stored["sha256"]:
            raise _Unfit(f"store.objects_url: {key} is not what was recorded")

    def _delete_here(self, places: Iterable[Place]) -> list[str]:
        """Delete what was removed from this machine. Returns what failed."""
        problems = []
        for kind, name in list(places):
            path = self._path(kind, name)
            try:
                if kind == "report":
                    for file in _files(kind, path):
                        file.unlink()
                elif path.is_dir():
                    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # swept up at the next start
                    path.rename(aside)
                    shutil.rmtree(aside)
                self._here.pop((kind, name), None)
            except FileNotFoundError:  # retention deletes it, too
                self._here.pop((kind, name), None)
            except OSError as error:
                reason = f"removed, and cannot be deleted here ({error.strerror}); correct its permissions"
                problems.append(f"{kind} {name}: {reason}")
        return problems

    def _sweep(self) -> None:
        """Delete files of earlier epochs that no row names, and put back what rows name and the storage has lost."""
        epoch, deleted, there = self._lead() or 0, 0, set[str]()
        rows = self._warehouse.rows(SQL["all_files"])
        named = {key for row in rows for key in _keys(row["files"])}
        for keys in self._objects.list(PREFIX):
            old = [key for key in keys if (found := _KEY.fullmatch(key)) and int(found[1]) < epoch and key not in named]
            self._objects.delete(old)
            deleted += len(old)
            there.update(keys)
        if deleted:
            log.info("store: %d files that no artifact has are deleted", deleted)
        lost = []
        for row in rows:
            for file, stored in json.loads(row["files"]).items():
                if stored["key"] not in there and not self._put_back(row["kind"], row["name"], file, stored):
                    lost.append(
                        f"{row['kind']} {row['name']}: store.objects_url: {stored['key']} is lost, and not here"
                    )
        self._lost = lost

    def _put_back(self, kind: Kind, name: str, file: str, stored: Mapping[str, Any]) -> bool:
        path = self._path(kind, name)
        found = (path.parent if kind == "report" else path) / file
        if not _is(found, stored):
            return False
        self._objects.put(stored["key"], found)
        log.warning("store: %s of %s %s was lost there, and is put back", file, kind, name)
        return True

    def _name(self, kind: Kind, path: Path) -> str:
        folder = self._folders[kind]
        if not (path := path.resolve()).is_relative_to(folder):
            raise RetunedError(
                f"{kind} {path}: it is not below {folder}: on all machines of a cluster models.directory and "
                "warehouse.path are the same"
            )
        return path.relative_to(folder).as_posix()

    def _path(self, kind: Kind, name: str) -> Path:
        folder = self._folders[kind]
        path = (folder / name).resolve()
        if folder not in path.parents:
            raise _Unfit(f"it lies outside of {folder}")
        return path


def _files(kind: Kind, path: Path) -> list[Path]:
    """The files of an artifact on this machine; what is being written has a name that begins with a dot."""
    found = path.parent.glob(f"{escape(path.name)}.*") if kind == "report" else path.iterdir()
    return sorted(file for file in found if file.is_file() and not file.is_symlink() and file.name[0] != ".")


def _is(file: Path, stored: Mapping[str, Any]) -> bool:
    return file.is_file() and file.stat().st_size == stored["bytes"] and _sha256(file) == stored["sha256"]


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _keys(files: str) -> set[str]:
    return {stored["key"] for stored in json.loads(files).values()}
