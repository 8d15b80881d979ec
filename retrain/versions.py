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
from retuned.retrain.settings import Base, ProviderModel

QUERIES = named_queries("retuned.retrain", "retrain.sql")

CHAMPION, PREVIOUS, CANARY = "champion", "previous", "canary"

LONGEST_FOLDER = 200
"""Characters of a workload's folder: file systems have 255 bytes, and something is written beside it under its name."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
PROVIDER_FILE = "provider_model.json"
"""In the place of an adapter: `model`, the provider's name of what was trained, with its `base`, `url` and `job`."""

_MIB = 1 << 20


@dataclass(frozen=True)
class Version:
    """A registered adapter, or a model that a provider trained.

    Attributes:
        version: first 8 hex digits of the SHA-256 over its configuration and its weights (see `files_of`).
        path: its folder, absolute.
        base_model: folder of the base model that it was trained on, or the provider's name of it.
        base_hash: see `base_hash`.
        parent_version: the version that its training began from; None: the base model.
        manifest: all of `manifest.json`.
        removed_at: when retention deleted its folder, naive UTC; None: it is there.
        provider_model: the provider's name of it; None: its weights are in the folder.
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
    provider_model: str | None = None

    @property
    def base(self) -> Base:
        """The base model that it was trained on."""
        return Path(self.base_model) if self.provider_model is None else ProviderModel(self.base_model)

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


def base_hash(base: Base) -> str:
    """A hash that tells base models apart.

    It is over the configuration, and of each weight file its name, its size, its first and its last MiB.
    Reading gigabytes at each start would cost more than it tells: two models whose headers, sizes and ends are equal
    are one model. Of a provider's model it is over the name.

    Raises:
        RetunedError: there is no model in the folder.
    """
    if isinstance(base, ProviderModel):
        return hashlib.sha256(f"provider:{base.name}".encode()).hexdigest()[:16]
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


def files_of(folder: Path) -> tuple[str, ...]:
    """What makes a version, of the folder in which a training left it: PEFT's files, or the provider's name of it."""
    return (PROVIDER_FILE,) if (folder / PROVIDER_FILE).is_file() else ADAPTER_FILES


def provider_model_in(folder: Path) -> str | None:
    """The provider's name of what such a folder stands for; None: it holds an adapter."""
    file = folder / PROVIDER_FILE
    return str(json.loads(file.read_text(encoding="utf-8"))["model"]) if file.is_file() else None


def content_hash(folder: Path) -> str:
    """The version of what a training left in a folder."""
    digest = hashlib.sha256()
    for name in files_of(folder):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:8]


def base_of(champion: Version | None, base: Base | None) -> Base:
    """The base model that a workload goes on with: the configured one, or where that is still the one before a rebase,
    the one that its champion was moved to.

    Raises:
        RetunedError: no base model is set, or the champion was trained on another one.
    """
    configured = need_base(base)
    if champion is not None and champion.manifest.get("rebased_from") == base_hash(configured):
        return base_folder(champion, configured)
    if champion is not None:
        check_base(champion, configured)
    return configured


def base_folder(version: Version, base: Base) -> Base:
    """The base model that a version was trained on: `base`, or, where that is another one, the one that the version
    names.

    Raises:
        RetunedError: neither folder holds it.
    """
    for found in (base, version.base):
        if (isinstance(found, ProviderModel) or found.is_dir()) and base_hash(found) == version.base_hash:
            return found
    raise RetunedError(
        f"model {version.name}: its base model is not at {version.base} any more, nor at models.base ({base}); put it "
        "back"
    )


def check_base(version: Version, base: Base) -> None:
    """An adapter works on the base model that it was trained on, and on no other.

    Raises:
        RetunedError: the base model is another one.
    """
    if version.base_hash == base_hash(base):
        return
    move = f"move the workload with `retuned rebase {version.workload} --base {base}`, "
    if isinstance(version.base, ProviderModel) != isinstance(base, ProviderModel):
        move = ""  # between a folder and a provider nothing is moved
    raise RetunedError(
        f"model {version.name} was trained on another base model ({version.base}) than the configured one ({base}): "
        f"set it back (models.base, or base below workloads, and train.engine), {move}or start anew with `retuned "
        f"promote {version.workload} base`"
    )


def need_base(base: Base | None) -> Base:
    """The base model, a folder as an absolute path.

    Raises:
        RetunedError: none is set.
    """
    if base is None:
        raise RetunedError("models.base is not set: name the folder of the base model to train adapters for it")
    return base if isinstance(base, ProviderModel) else base.resolve()


def champion(warehouse: Warehouse, workload: str) -> Version | None:
    """The version that serves, or None: the base model serves."""
    row = warehouse.row(QUERIES["champion"], {"workload": workload})
    return from_row(row) if row else None


def champions(warehouse: Warehouse) -> dict[str, Version]:
    """The versions that serve, by workload; absent: the base model serves."""
    return {row["workload"]: from_row(row) for row in warehouse.rows(QUERIES["champion"], {"workload": None})}


def aliases(warehouse: Warehouse, workload: str) -> dict[str, str | None]:
    """The aliases of a workload that are set (champion, previous, canary): a version, or None for the base model."""
    return {row["alias"]: row["version"] for row in warehouse.rows(QUERIES["aliases"], {"workload": workload})}


def versions_of(warehouse: Warehouse, workload: str) -> list[Version]:
    """All versions of a workload, oldest first, those that retention removed among them."""
    return [from_row(row) for row in warehouse.rows(QUERIES["versions"], {"workload": workload})]


def find(warehouse: Warehouse, workload: str, version: str) -> Version | None:
    """A version by its hash, or None."""
    return next((known for known in versions_of(warehouse, workload) if known.version == version), None)


def from_row(row: dict[str, Any]) -> Version:
    """A version from its row in `models`."""
    return Version(**row | {"path": Path(row["path"]), "manifest": json.loads(row["manifest"])})
