"""Versions of models, and queries for them. `release.registry` registers versions."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from retuned.consumers.common.durable import sha256
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.retrain", "retrain.sql")

BASE = "base"
"""The name of the base model, in the place of a version."""
CHAMPION, PREVIOUS, CANARY = "champion", "previous", "canary"

LONGEST_FOLDER = 200
"""The maximum length of a workload's folder name: file systems allow 255 bytes, and temporary names are longer."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_FOLDER = {*ADAPTER_FILES, "manifest.json", "bom.cdx.json", "signature.dsse.json", "README.md"}
"""What the folder of a version holds. A server would load more, such as a tokenizer, without being asked to."""

_BASE_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
_NOT_OF_BASE = ("generation_config.json",)
"""Defaults of servers, which neither training nor evaluation reads."""

_MIB = 1 << 20


@dataclass(frozen=True)
class Version:
    """A registered adapter.

    Attributes:
        version: the first 8 hex digits of the SHA-256 of its configuration and weights.
        path: its folder, absolute.
        base_model: the folder of its base model.
        base_hash: see `base_hash`.
        parent_version: the version from which its training started; None for the base model.
        manifest: the content of `manifest.json`.
        removed_at: the time when retention deleted its folder, naive UTC; None if it exists.
    """

    version: str
    workload: str
    created_at: datetime
    path: Path
    base_model: str
    base_hash: str
    parent_version: str | None
    dataset_version: str
    run_id: str
    manifest: dict[str, Any]
    removed_at: datetime | None

    @property
    def base(self) -> Path:
        """The folder of its base model."""
        return Path(self.base_model)

    @property
    def name(self) -> str:
        """The name on servers."""
        return model_name(self.workload, self.version)


def model_name(workload: str, version: str | None) -> str:
    """Returns the name of a version on servers; None stands for the base model."""
    return f"{workload}@{version or 'base'}"


def workload_folder(directory: Path, workload: str) -> Path:
    """Returns the folder of a workload's versions, aliases, datasets and runs. Every name gives a valid folder name."""
    name = quote(workload, safe="")
    if len(name) > LONGEST_FOLDER:
        name = f"{name[: LONGEST_FOLDER - 17]}~{hashlib.sha256(workload.encode()).hexdigest()[:16]}"
    return directory / (f"%2E{name[1:]}" if name.startswith(".") else name)


def base_hash(base: Path) -> str:
    """Returns a hash that identifies a base model.

    It covers the configuration and, for each weight file, its name, its size, its first and its last MiB. Reading
    gigabytes at each start would cost too much: models with equal headers, sizes and ends are assumed to be equal.

    Raises:
        RetunedError: there is no model in the folder.
    """
    config = base / "config.json"
    weights = sorted([*base.glob("*.safetensors"), *base.glob("*.bin")])
    if not config.is_file() or not weights:
        raise RetunedError(
            f"base model {base}: no transformers model there (config.json and *.safetensors); "
            "set models.base, or base below workloads, to its folder"
        )
    digest = hashlib.sha256(config.read_bytes())
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(_MIB))
            handle.seek(max(0, size - _MIB))
            digest.update(handle.read(_MIB))
    return digest.hexdigest()[:16]


def content_hash(folder: Path) -> str:
    """Returns the version of an adapter in a folder."""
    digest = hashlib.sha256()
    for name in ADAPTER_FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:8]


def file_hashes(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of an adapter, in hexadecimal."""
    return {name: sha256(folder / name) for name in ADAPTER_FILES}


def base_files(base: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of a base model that decides what it reads and answers, in hexadecimal.

    A file is read again only after it changed.
    """
    files = sorted({file for pattern in _BASE_FILES for file in base.glob(pattern)})
    return {file.name: _sha256(file, *_identity(file)) for file in files if file.name not in _NOT_OF_BASE}


def _identity(file: Path) -> tuple[int, ...]:
    """Returns what changes whenever a file does: its owner cannot set the time of the last change (ctime)."""
    found = file.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns


@lru_cache(maxsize=1_024)
def _sha256(file: Path, *_: int) -> str:
    return sha256(file)


def check_intact(version: Version) -> None:
    """Checks that the files of a version are those that were registered. Called before they are loaded anywhere.

    Versions that were registered before 1.0 have no hashes to compare.

    Raises:
        RetunedError: a file is gone, was added or was changed.
    """
    if (registered := version.manifest.get("files")) is None:
        return
    try:
        found = file_hashes(version.path)
        added = {file.name for file in version.path.iterdir() if not file.name.startswith(".")} - _FOLDER
    except OSError as error:
        raise RetunedError(
            f"model {version.name}: {error.filename} cannot be read ({error.strerror}); restore it from a backup"
        ) from error
    if changed := [name for name, content in registered.items() if found.get(name) != content]:
        raise RetunedError(
            f"model {version.name}: {', '.join(changed)} in {version.path} was changed after it was registered, and is "
            "not loaded; restore it from a backup"
        )
    if added:
        raise RetunedError(
            f"model {version.name}: {', '.join(sorted(added))} in {version.path} was added after it was registered, "
            "and it is not loaded; remove the file"
        )


def check_base_files(version: Version, base: Path) -> None:
    """Checks that the files of a base model are those that a version was trained on. Called before it is loaded.

    `check_base` compares models and is fast. This reads all of their files, once after each change.

    Raises:
        RetunedError: a file is gone, was added or was changed.
    """
    registered = version.manifest.get("base_files")
    if registered is None:  # the version is from before 1.0
        return
    found = base_files(base)
    if changed := sorted(name for name in registered.keys() | found if found.get(name) != registered.get(name)):
        raise RetunedError(
            f"base model {base}: {', '.join(changed)} was changed after {version.name} was trained on it; put the file "
            f"back, or start anew with `retuned promote {version.workload} base`"
        )


def base_of(champion: Version | None, base: Path | None) -> Path:
    """Returns the base model of a workload's next training.

    It is the configured one, or the champion's if a rebase has moved it away from the configured one.

    Raises:
        RetunedError: no base model is set, or the champion was trained on another one.
    """
    configured = need_base(base)
    if champion is not None and champion.manifest.get("rebased_from") == base_hash(configured):
        return base_folder(champion, configured)
    if champion is not None:
        check_base(champion, configured)
    return configured


def base_folder(version: Version, base: Path) -> Path:
    """Returns the folder of a version's base model: `base`, or else the folder that the version names.

    Raises:
        RetunedError: neither folder contains it.
    """
    for folder in (base, version.base):
        if folder.is_dir() and base_hash(folder) == version.base_hash:
            return folder
    raise RetunedError(
        f"model {version.name}: its base model is not at {version.base} any more, nor at models.base ({base}); put it "
        "back"
    )


def check_base(version: Version, base: Path) -> None:
    """Checks that a base model is the one that a version was trained on.

    Raises:
        RetunedError: it is another one.
    """
    if version.base_hash == base_hash(base):
        return
    raise RetunedError(
        f"model {version.name} was trained on another base model ({version.base}) than the configured one ({base}): "
        "set it back (models.base, or base below workloads), move the workload with "
        f"`retuned rebase {version.workload} --base {base}`, or start anew with "
        f"`retuned promote {version.workload} base`"
    )


def need_base(base: Path | None) -> Path:
    """Returns the base model as an absolute path.

    Raises:
        RetunedError: none is set.
    """
    if base is None:
        raise RetunedError("models.base is not set: name the folder of the base model to train adapters for it")
    return base.resolve()


def champion(warehouse: Warehouse, workload: str) -> Version | None:
    """Returns the champion of a workload; None if the base model serves."""
    row = warehouse.row(QUERIES["champion"], {"workload": workload})
    return from_row(row) if row else None


def clean_start(warehouse: Warehouse, workload: str, champion: Version | None) -> Version | None:
    """Returns the version from which a training starts; None: the base model.

    It is the champion or, if that learned erased rows, the newest available version before it that did not.
    """
    erased = set(erased_since(warehouse, workload))
    start = champion
    while start is not None and (start.version in erased or (start != champion and start.removed_at is not None)):
        start = find(warehouse, workload, start.parent_version) if start.parent_version else None
    return start


def erased_since(warehouse: Warehouse, workload: str) -> dict[str, datetime]:
    """Returns the versions that learned erased rows, also through the versions before them, with the time of the first
    erasure."""
    rows = warehouse.rows("SELECT version, since FROM erased_versions WHERE workload = ?", [workload])
    return {row["version"]: row["since"] for row in rows}


def champions(warehouse: Warehouse) -> dict[str, Version]:
    """Returns the champions by workload, without workloads that the base model serves."""
    return {row["workload"]: from_row(row) for row in warehouse.rows(QUERIES["champion"], {"workload": None})}


def aliases(warehouse: Warehouse, workload: str) -> dict[str, str | None]:
    """Returns the aliases of a workload (champion, previous, canary) with their versions, None for the base model."""
    return {row["alias"]: row["version"] for row in warehouse.rows(QUERIES["aliases"], {"workload": workload})}


def versions_of(warehouse: Warehouse, workload: str) -> list[Version]:
    """Returns all versions of a workload, oldest first, including removed ones."""
    return [from_row(row) for row in warehouse.rows(QUERIES["versions"], {"workload": workload})]


def find(warehouse: Warehouse, workload: str, version: str) -> Version | None:
    """Returns a version by its hash, or None."""
    return next((known for known in versions_of(warehouse, workload) if known.version == version), None)


def from_row(row: dict[str, Any]) -> Version:
    """Returns a version from its row in `models`."""
    return Version(**row | {"path": Path(row["path"]), "manifest": json.loads(row["manifest"])})
