"""What a backup is: a folder of generations, each of them a copy of everything at one moment, with a manifest.

    DIR/2026-11-24T03-00-00Z/manifest.json      written last: what has none is no backup
                             retuned.duckdb     as of one transaction
                             user.key           the key of pseudonyms, where retuned made it
                             archive/ reports/ models/

Files that did not change since the generation before are hard links to its copies.
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from retuned.consumers.errors import BackupError
from retuned.daemon.settings import Settings

MANIFEST, WAREHOUSE, KEY = "manifest.json", "retuned.duckdb", "user.key"
MARKER = ".retuned-backup"
"""An empty file in the folder of the generations, locked while a backup is made."""
FORMAT = 1
KEEP = 7
"""Generations that are kept where nothing else is said."""
CHUNK_BYTES = 2**20


class File(msgspec.Struct, frozen=True):
    """A file of a generation.

    Attributes:
        path: below the generation.
        modified_ns: when the original was last changed; with its size it tells whether it is to be copied again.
    """

    path: str
    bytes: int
    sha256: str
    modified_ns: int


class Link(msgspec.Struct, frozen=True):
    """A symbolic link of a generation, as `champion` of a workload."""

    path: str
    target: str


class Offset(msgspec.Struct, frozen=True):
    """Where reading goes on after a restore."""

    topic: str
    partition: int
    next_offset: int


class Manifest(msgspec.Struct, frozen=True):
    """What a generation holds.

    Attributes:
        format: of the backup.
        version: of the retuned that made it.
        schema: version of the warehouse's schema.
        created_at: UTC.
        folders: where archive, reports and models were, as the warehouse names them.
    """

    format: int
    version: str
    schema: int
    created_at: datetime
    offsets: list[Offset]
    folders: dict[str, str]
    files: list[File]
    links: list[Link]

    def paths(self) -> list[str]:
        """Of all files and links."""
        return [file.path for file in self.files] + [link.path for link in self.links]


def places(settings: Settings) -> dict[str, Path]:
    """What is backed up, by its name in a generation, and where it is: files and folders that may not be there."""
    warehouse = settings.warehouse.path
    return {
        WAREHOUSE: warehouse,
        KEY: warehouse.with_name(warehouse.name + ".key"),
        "archive": settings.retention.archive or warehouse.parent / "archive",
        "reports": warehouse.parent / "reports",
        "models": settings.models.directory,
    }


def generations(folder: Path) -> list[Path]:
    """The complete backups in a folder, oldest first."""
    return sorted(path.parent for path in folder.glob(f"[!.]*/{MANIFEST}"))


def read(generation: Path) -> Manifest:
    """The manifest of a generation.

    Raises:
        BackupError: it cannot be read, or a newer retuned wrote it.
    """
    path = generation / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, ValueError) as error:
        raise BackupError(f"backup {path}: cannot be read ({error}); choose another generation") from error
    if manifest.format > FORMAT:
        raise BackupError(f"backup {generation}: made by a newer retuned; restore it with {manifest.version}")
    for name in manifest.paths():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise BackupError(f"backup {path}: names {name}, which is outside of it; choose another generation")
    return manifest


def sha256(path: Path) -> str:
    """The hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(generation: Path) -> Iterator[str]:
    """What is wrong with a generation, a line for each file; nothing when every file is as its manifest has it.

    Raises:
        BackupError: the manifest cannot be read.
    """
    for file in read(generation).files:
        path = generation / file.path
        try:
            if (size := path.stat().st_size) != file.bytes:
                yield f"{path}: {size:,} bytes, not {file.bytes:,}"
            elif sha256(path) != file.sha256:
                yield f"{path}: its content has changed since the backup"
        except OSError as error:
            yield f"{path}: {error.strerror}"
