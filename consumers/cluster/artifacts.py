"""Shares the artifacts of a cluster between its daemons through object storage.

A file is stored under `artifacts/<epoch>/<sha256>-<random>`, and never changes. Once all files of an artifact are
stored, a row in `artifacts` names them, in the same transaction as the row that names the artifact. Removal takes the
opposite order: the row is marked, its files are deleted, then the row is deleted.

Stray files are found without clocks. A leader deletes unnamed files of earlier epochs, because an earlier leader can no
longer add rows. Of its own and later epochs it deletes only what it removed. No two uploads share a key, so a former
leader can only delete files that no row names.
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
from retuned.consumers.common import durable
from retuned.consumers.common.durable import replaced, written_aside
from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import RetunedError, StoreUnavailable
from retuned.consumers.warehouse.artifacts import Artifacts, Kind, Record
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries, utc_now

log = logging.getLogger(__name__)

SQL = named_queries("retuned.consumers.cluster", "artifacts.sql")
PREFIX = "artifacts/"
RETRY_SECONDS = 60.0
"""The wait before a damaged or missing file is fetched again."""
_KEY = re.compile(rf"{PREFIX}(\d+)/[0-9a-f]{{64}}-[0-9a-f]+")

Place = tuple[Kind, str]
"""The kind of an artifact, and its path below the folder of this kind."""
Files = Mapping[str, Mapping[str, Any]]
"""The `key`, `bytes` and `sha256` of each file of an artifact, by its name."""


class _Mismatch(Exception):
    """A file in the storage does not match its row."""


class StoredArtifacts(Artifacts):
    """The artifacts of one warehouse, in object storage and on this machine; thread-safe."""

    def __init__(
        self, warehouse: Warehouse, objects: Objects, folders: Mapping[Kind, Path], lead: Lead = alone
    ) -> None:
        """Creates the artifacts of a warehouse.

        Args:
            folders: the local folder of each kind.
            lead: see `common.lead`; before any daemon leads, the epoch is 0.
        """
        self._warehouse, self._objects, self._lead = warehouse, objects, lead
        self._folders = {kind: folder.resolve() for kind, folder in folders.items()}
        self._renewing, self._following = threading.Lock(), threading.Lock()
        # The ids of the rows that match the local files: two while one row replaces another.
        self._here: dict[Place, set[str]] = {}
        self._live: set[Place] = set()  # when last followed
        self._failed: dict[str, tuple[float, str]] = {}  # ids of rows whose files cannot be fetched: since when, why
        self._problems: list[str] = []  # on this machine
        self._lost: list[str] = []  # in the storage

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
            log.info("store: deleted the files of %d removed or replaced artifacts", len(rows))
        self._sweep()

    def follow(self) -> bool:
        with self._following:
            live: dict[Place, str] = {
                (row["kind"], row["name"]): row["id"] for row in self._warehouse.rows(SQL["live"])
            }
            gone = (self._live - live.keys()) & self._here.keys()  # new artifacts may not be live yet
            problems = self._delete_here(gone)
            self._live = live.keys() | (gone & self._here.keys())
            problems += self._fetch_all(
                {place: id for place, id in live.items() if id not in self._here.get(place, ())}
            )
            for problem in problems:
                if problem not in self._problems:
                    log.warning("%s", problem)
            self._problems = problems
            return not problems

    def problems(self) -> list[str]:
        return self._problems + self._lost

    def _put(self, kind: Kind, path: Path, but: str) -> Record:
        place: Place = (kind, self._name(kind, path))
        files: dict[str, Mapping[str, Any]] = {}
        row = self._row(*place)
        before: Files = json.loads(row["files"]) if row else {}
        for file in _files(kind, path):
            if file.name == but:
                continue
            files[file.name] = self._upload(file, before.get(file.name))
        identity = row["id"] if row and files == before else secrets.token_hex(8)

        def record(cursor: duckdb.DuckDBPyConnection) -> None:
            if row and row["id"] != identity:
                ((replaced_rows,),) = cursor.execute(SQL["replace"], {"id": row["id"], "now": utc_now()}).fetchall()
                if not replaced_rows:
                    raise RetunedError(f"{kind} {place[1]}: removed meanwhile, and not published")
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

    def _upload(self, file: Path, before: Mapping[str, Any] | None) -> Mapping[str, Any]:
        """Uploads a file unless it is unchanged, and returns its key, size and hash."""
        content: bytes | Path = file
        size, sha256 = file.stat().st_size, ""
        if size <= PART_BYTES:  # the file may be replaced meanwhile, so the uploaded bytes are hashed
            content = file.read_bytes()
            size, sha256 = len(content), hashlib.sha256(content).hexdigest()
        sha256 = sha256 or durable.sha256(file)
        if before and before["sha256"] == sha256:
            return before
        key = f"{PREFIX}{self._lead() or 0}/{sha256}-{secrets.token_hex(4)}"
        self._objects.put(key, content)
        return {"key": key, "bytes": size, "sha256": sha256}

    def _fetch_all(self, missing: Mapping[Place, str]) -> list[str]:
        """Fetches artifacts to this machine, the newest first, and returns the problems.

        Args:
            missing: the id of each artifact's row.
        """
        if not missing:
            return []
        given = {"ids": list(missing.values())}
        files = {row["id"]: json.loads(row["files"]) for row in self._warehouse.rows(SQL["files_of"], given)}
        problems: list[str] = []
        fetched = 0
        now, failed = time.monotonic(), self._failed
        self._failed = {identity: failed[identity] for identity in missing.values() if identity in failed}
        for (kind, name), identity in missing.items():
            since, problem = self._failed.get(identity, (-RETRY_SECONDS, ""))
            if identity not in files:  # removed meanwhile
                continue
            if now - since < RETRY_SECONDS:
                problems.append(problem)
                continue
            try:
                self._fetch_artifact(kind, name, files[identity])
                self._here[kind, name] = {identity}
                fetched += 1
                continue
            except StoreUnavailable as error:
                return [*problems, f"{len(missing) - fetched} artifacts are not on this machine yet: {error}"]
            except _Mismatch as error:
                problem = f"{kind} {name}: {error}; restore that file, or remove the {kind}"
            except OSError as error:
                problem = f"{kind} {name}: cannot be written here ({error.strerror or error}); check the disk"
            problems.append(problem)
            self._failed[identity] = now, problem
        return problems

    def _fetch_artifact(self, kind: Kind, name: str, files: Files) -> None:
        path = self._path(kind, name)
        if any(Path(file).name != file for file in files):
            raise _Mismatch("it names a file outside of its folder")
        folder = path.parent if kind == "report" else path
        if folder == path and not path.is_dir():
            with written_aside(path) as aside:
                for file, stored in files.items():
                    self._fetch(stored, aside / file)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for file, stored in files.items():
            if not _matches(folder / file, stored):
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
            raise _Mismatch(f"store.objects_url: {key} does not exist") from error
        if digest.hexdigest() != stored["sha256"]:
            raise _Mismatch(f"store.objects_url: {key} does not have the recorded content")

    def _delete_here(self, places: Iterable[Place]) -> list[str]:
        """Deletes removed artifacts from this machine, and returns the problems."""
        problems = []
        for kind, name in list(places):
            path = self._path(kind, name)
            try:
                if kind == "report":
                    for file in _files(kind, path):
                        file.unlink()
                elif path.is_dir():
                    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")  # `durable.sweep` deletes it
                    path.rename(aside)
                    shutil.rmtree(aside)
                self._here.pop((kind, name), None)
            except FileNotFoundError:  # retention deletes files as well
                self._here.pop((kind, name), None)
            except OSError as error:
                reason = f"removed, but cannot be deleted here ({error.strerror}); correct its permissions"
                problems.append(f"{kind} {name}: {reason}")
        return problems

    def _sweep(self) -> None:
        """Deletes unnamed files of earlier epochs, and uploads named files that the storage has lost."""
        epoch, deleted, existing = self._lead() or 0, 0, set[str]()
        rows = self._warehouse.rows(SQL["all_files"])
        named = {key for row in rows for key in _keys(row["files"])}
        for keys in self._objects.list(PREFIX):
            old = [key for key in keys if (match := _KEY.fullmatch(key)) and int(match[1]) < epoch and key not in named]
            self._objects.delete(old)
            deleted += len(old)
            existing.update(keys)
        if deleted:
            log.info("store: deleted %d files without an artifact", deleted)
        lost = []
        for row in rows:
            for file, stored in json.loads(row["files"]).items():
                if stored["key"] not in existing and not self._restore(row["kind"], row["name"], file, stored):
                    lost.append(
                        f"{row['kind']} {row['name']}: store.objects_url: {stored['key']} is lost, and not here either"
                    )
        self._lost = lost

    def _restore(self, kind: Kind, name: str, file: str, stored: Mapping[str, Any]) -> bool:
        path = self._path(kind, name)
        local = (path.parent if kind == "report" else path) / file
        if not _matches(local, stored):
            return False
        self._objects.put(stored["key"], local)
        log.warning("store: %s of %s %s was lost there, and is restored", file, kind, name)
        return True

    def _name(self, kind: Kind, path: Path) -> str:
        folder = self._folders[kind]
        if not (path := path.resolve()).is_relative_to(folder):
            raise RetunedError(
                f"{kind} {path}: it is not below {folder}: models.directory and warehouse.path have to be the same on "
                "all machines of a cluster"
            )
        return path.relative_to(folder).as_posix()

    def _path(self, kind: Kind, name: str) -> Path:
        folder = self._folders[kind]
        path = (folder / name).resolve()
        if folder not in path.parents:
            raise _Mismatch(f"it is outside of {folder}")
        return path


def _files(kind: Kind, path: Path) -> list[Path]:
    """Returns the local files of an artifact; incomplete files have names that begin with a dot."""
    files = path.parent.glob(f"{escape(path.name)}.*") if kind == "report" else path.iterdir()
    return sorted(file for file in files if file.is_file() and not file.is_symlink() and file.name[0] != ".")


def _matches(file: Path, stored: Mapping[str, Any]) -> bool:
    return file.is_file() and file.stat().st_size == stored["bytes"] and durable.sha256(file) == stored["sha256"]


def _keys(files: str) -> set[str]:
    return {stored["key"] for stored in json.loads(files).values()}
