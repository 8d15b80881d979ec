"""What a version of a model is, and which versions a workload has. `release.registry` makes them."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.retrain", "retrain.sql")

CHAMPION, PREVIOUS = "champion", "previous"

LONGEST_FOLDER = 200
"""Characters of a workload's folder: file systems have 255 bytes, and something is written beside it under its name."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")

_MIB = 1 << 20


@dataclass(frozen=True)
class Version:
    """A registered adapter.

    Attributes:
        version: first 8 hex digits of the SHA-256 over its configuration and its weights.
        path: its folder, absolute.
        base_model: folder of the base model that it was trained on.
        base_hash: see `base_hash`.
        parent_version: the version that its training began from; None: the base model.
        manifest: all of `manifest.json`.
        removed_at: when retention deleted its folder, naive UTC; None: it is there.
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
    def name(self) -> str:
        """The name under which it is served."""
        return model_name(self.workload, self.version)


def model_name(workload: str, version: str | None) -> str:
    """The name under which a version is served; None: the base model."""
    return f"{workload}@{version or 'base'}"


def workload_folder(directory: Path, workload: str) -> Path:
    """Where a workload's versions, aliases, datasets and runs are kept; any name gives one plain folder name."""
    name = quote(workload, safe="")
    if len(name) > LONGEST_FOLDER:
        name = f"{name[: LONGEST_FOLDER - 17]}~{hashlib.sha256(workload.encode()).hexdigest()[:16]}"
    return directory / (f"%2E{name[1:]}" if name.startswith(".") else name)


def base_hash(folder: Path) -> str:
    """A hash that tells base models apart.

    It is over the configuration, and of each weight file its name, its size, its first and its last MiB.
    Reading gigabytes at each start would cost more than it tells: two models whose headers, sizes and ends are equal
    are one model.

    Raises:
        RetunedError: there is no model in the folder.
    """
    config = folder / "config.json"
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if not config.is_file() or not weights:
        raise RetunedError(
            f"base model {folder}: no transformers model there (config.json and *.safetensors); "
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


def content_hash(adapter: Path) -> str:
    """The version of an adapter, from the folder in which PEFT saved it."""
    digest = hashlib.sha256()
    for name in ADAPTER_FILES:
        digest.update((adapter / name).read_bytes())
    return digest.hexdigest()[:8]


def base_of(champion: Version | None, base: Path | None) -> Path:
    """The folder of the base model that a workload goes on with: `models.base`, or where that is still the one before a
    rebase, the one that its champion was moved to.

    Raises:
        RetunedError: no base model is set, or the champion was trained on another one.
    """
    folder = need_base(base)
    if champion is not None and champion.manifest.get("rebased_from") == base_hash(folder):
        return base_folder(champion, folder)
    if champion is not None:
        check_base(champion, folder)
    return folder


def base_folder(version: Version, base: Path) -> Path:
    """Where the base model is that a version was trained on: `base`, or, where that is another one, the folder that the
    version names.

    Raises:
        RetunedError: neither holds it.
    """
    own = Path(version.base_model)
    for folder in (base, own):
        if folder.is_dir() and base_hash(folder) == version.base_hash:
            return folder
    raise RetunedError(
        f"model {version.name}: its base model is not at {own} any more, nor at models.base ({base}); put it back"
    )


def check_base(version: Version, base: Path) -> None:
    """An adapter works on the base model that it was trained on, and on no other.

    Raises:
        RetunedError: the base model is another one.
    """
    if version.base_hash != base_hash(base):
        raise RetunedError(
            f"model {version.name} was trained on another base model ({version.base_model}) than the configured one "
            f"({base}): set it back (models.base, or base below workloads), move the workload with `retuned rebase "
            f"{version.workload} --base {base}`, or start anew with `retuned promote {version.workload} base`"
        )


def need_base(base: Path | None) -> Path:
    """The folder of the base model.

    Raises:
        RetunedError: none is set.
    """
    if base is None:
        raise RetunedError("models.base is not set: name the folder of the base model to train adapters for it")
    return base.resolve()


def champion(warehouse: Warehouse, workload: str) -> Version | None:
    """The version that serves, or None: the base model serves."""
    row = warehouse.row(QUERIES["champion"], {"workload": workload})
    return _version(row) if row else None


def aliases(warehouse: Warehouse, workload: str) -> dict[str, str | None]:
    """The aliases of a workload that are set, `champion` and `previous`: a version, or None for the base model."""
    return {row["alias"]: row["version"] for row in warehouse.rows(QUERIES["aliases"], {"workload": workload})}


def versions_of(warehouse: Warehouse, workload: str) -> list[Version]:
    """All versions of a workload, oldest first, those that retention removed among them."""
    return [_version(row) for row in warehouse.rows(QUERIES["versions"], {"workload": workload})]


def find(warehouse: Warehouse, workload: str, version: str) -> Version | None:
    """A version by its hash, or None."""
    return next((known for known in versions_of(warehouse, workload) if known.version == version), None)


def _version(row: dict[str, Any]) -> Version:
    return Version(**row | {"path": Path(row["path"]), "manifest": json.loads(row["manifest"])})
