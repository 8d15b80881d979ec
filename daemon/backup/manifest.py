"""The format of a backup: a folder of generations, each of them a copy of everything at one moment, with a manifest.

    DIR/2026-11-24T03-00-00Z/manifest.json      written last: a folder without it is no backup
                             retuned.duckdb     as of one transaction
                             user.key           the key of pseudonyms, where retuned made it
                             archive/ reports/ models/

Files that did not change since the previous generation are hard links to its copies.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from datetime import datetime
from io import BufferedReader
from pathlib import Path
from typing import Any

import msgspec

from retuned.consumers.errors import BackupError
from retuned.daemon.settings import Settings

NAME = "%Y-%m-%dT%H-%M-%SZ"
"""The name of a generation. One with another name, which a person gave it, is kept until a person deletes it."""
MANIFEST, WAREHOUSE, KEY = "manifest.json", "retuned.duckdb", "user.key"
MARKER = ".retuned-backup"
"""An empty file in the folder of the generations, locked during a backup."""
FORMAT = 1
CHUNK_BYTES = 2**20


class File(msgspec.Struct, frozen=True):
    """A file of a generation.

    Attributes:
        path: below the generation.
        modified_ns: modification time of the original. A file with the same time and size is not copied again.
    """

    path: str
    bytes: int
    sha256: str
    modified_ns: int


class Offset(msgspec.Struct, frozen=True):
    """The offset from which a partition is read after a restore."""

    topic: str
    partition: int
    next_offset: int


class Manifest(msgspec.Struct, frozen=True):
    """The contents of a generation.

    Attributes:
        format: version of the backup's format.
        version: of the retuned that created it.
        schema: version of the warehouse's schema.
        created_at: UTC. The name of the generation is later if the clock went back.
        folders: paths of models and reports, as the warehouse's rows have them.
        links: empty; version 1.0 expects it, and stored links there. None is restored: a daemon makes those of aliases.
    """

    format: int
    version: str
    schema: int
    created_at: datetime
    offsets: list[Offset]
    folders: dict[str, str]
    files: list[File]
    links: Sequence[Any] = ()


def places(settings: Settings) -> dict[str, Path]:
    """Returns the files and folders that are backed up, by their name in a generation; they need not exist."""
    warehouse = settings.warehouse.path
    return {
        WAREHOUSE: warehouse,
        KEY: warehouse.with_name(warehouse.name + ".key"),
        "archive": settings.retention.archive or warehouse.parent / "archive",
        "reports": warehouse.parent / "reports",
        "models": settings.models.directory,
    }


def generations(folder: Path) -> list[Path]:
    """Returns the complete generations in a folder, oldest first, without those that a person has renamed."""
    return sorted(path for path in complete(folder) if _time(path.name) is not None)


def complete(folder: Path) -> list[Path]:
    """Returns all complete generations in a folder, by name."""
    return sorted(path.parent for path in folder.glob(f"[!.]*/{MANIFEST}"))


def named_at(generation: Path) -> datetime:
    """Returns the time in the name of a generation, naive UTC."""
    time = _time(generation.name)
    assert time is not None
    return time


def _time(name: str) -> datetime | None:
    try:
        return datetime.strptime(name, NAME)  # noqa: DTZ007  (naive UTC)
    except ValueError:
        return None


def read(generation: Path) -> Manifest:
    """Returns the manifest of a generation.

    Raises:
        BackupError: it cannot be read, or a newer retuned wrote it.
    """
    path = generation / MANIFEST
    try:
        with opened(generation, MANIFEST) as content:
            manifest = msgspec.json.decode(content.read(), type=Manifest)
    except (OSError, ValueError) as error:
        raise BackupError(f"backup {path}: cannot be read ({error}); choose another generation") from error
    if manifest.format > FORMAT:
        raise BackupError(f"backup {generation}: made by a newer retuned; restore it with {manifest.version}")
    for file in manifest.files:
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts or "\0" in file.path:
            raise BackupError(
                f"backup {path}: names {file.path!r}, which is outside the backup; choose another generation"
            )
    return manifest


def opened(generation: Path, name: str) -> BufferedReader:
    """Returns a file of a generation, open for reading. No link is followed, and no device is opened.

    Raises:
        OSError: the file cannot be read, or is a link, below one, or no regular file.
    """
    path = generation / name
    if path.resolve() != generation.resolve() / name:
        raise OSError(errno.ELOOP, "a link, which a backup does not have", str(path))
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for a writer
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def verify(generation: Path) -> Iterator[str]:
    """Yields a line for each file of a generation that differs from its manifest.

    Raises:
        BackupError: the manifest cannot be read.
    """
    for file in read(generation).files:
        path = generation / file.path
        try:
            with opened(generation, file.path) as content:
                if (size := os.fstat(content.fileno()).st_size) != file.bytes:
                    yield f"{path}: {size:,} bytes, not {file.bytes:,}"
                elif hashlib.file_digest(content, "sha256").hexdigest() != file.sha256:
                    yield f"{path}: its content has changed since the backup"
        except OSError as error:
            yield f"{path}: {error.strerror}"
