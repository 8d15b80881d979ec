"""Registers versions, which are immutable and content-addressed, and makes links follow the aliases."""

import importlib.metadata
import json
import logging
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from retuned.consumers.common import durable as files
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.audit import by_rule
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.retrain.data.identity import text_hash
from retuned.retrain.release import bom, card, signature
from retuned.retrain.release.licence import licence_of
from retuned.retrain.release.targets.folder import link, links
from retuned.retrain.settings import Settings
from retuned.retrain.versions import (
    ADAPTER_FILES,
    QUERIES,
    Version,
    aliases,
    base_files,
    base_hash,
    check_intact,
    content_hash,
    erased_since,
    file_hashes,
    find,
    model_name,
    workload_folder,
)

log = logging.getLogger(__name__)


def register(
    warehouse: Warehouse,
    directory: Path,
    workload: str,
    adapter: Path,
    *,
    base_model: Path,
    parent_version: str | None,
    dataset_version: str,
    run_id: str,
    details: dict[str, Any],
    now: datetime,
    key_file: Path | None = None,
) -> Version:
    """Registers an adapter as a version. The same adapter gives the same version, which is written once, but for one
    that learned erased rows (see `_name`).

    Args:
        adapter: a folder with PEFT's files, `adapter_model.safetensors` and `adapter_config.json`.
        details: further fields of the manifest, such as settings, metrics and cost.
        key_file: the private key that signs the version; None: it is not signed.

    Raises:
        StoreUnavailable: the cluster's storage does not accept the files; the version is not registered.
    """
    version = _name(warehouse, workload, adapter, parent_version, dataset_version)
    known = find(warehouse, workload, version)
    if known is not None and known.removed_at is None and known.path.is_dir():
        return known
    columns: dict[str, Any] = {
        "version": version,
        "workload": workload,
        "base_model": str(base_model),
        "base_hash": base_hash(base_model),
        "parent_version": parent_version,
        "dataset_version": dataset_version,
        "run_id": run_id,
    }
    manifest = {
        **columns,
        "created_at": now.isoformat() + "Z",
        "code_version": importlib.metadata.version("retuned"),
        "files": file_hashes(adapter),
        "base_files": base_files(base_model),
        **details,
    }
    path = (workload_folder(directory, workload) / version).resolve()
    _write(warehouse, path, adapter, manifest, key_file)
    kept = warehouse.artifacts.put("version", path)
    with warehouse.transaction() as cursor:
        kept(cursor)
        names = {"files": manifest["files"], "base_hash": columns["base_hash"], "dataset": dataset_version}
        subject = model_name(workload, version)
        entry = by_rule("training", "registered", workload=workload, subject=subject, details=names)
        warehouse.trail.note(cursor, entry)
        if known is not None:
            cursor.execute(QUERIES["keep_version"], {"workload": workload, "version": version})
        else:
            insert(cursor, "models", **columns, created_at=now, path=str(path), manifest=json.dumps(manifest))
    registered = find(warehouse, workload, version)
    assert registered is not None
    return registered


def _name(warehouse: Warehouse, workload: str, adapter: Path, parent_version: str | None, dataset_version: str) -> str:
    """Returns the version of an adapter: the hash of its files.

    Where others stated what was erased in the same words, a training without the erased rows may give the weights of
    the version that learned them. It gives a version of its own, which replaces that one.
    """
    version = content_hash(adapter)
    known, taught = find(warehouse, workload, version), (parent_version, dataset_version)
    if known is None or (known.parent_version, known.dataset_version) == taught:
        return version
    return text_hash(json.dumps([version, *taught]))[:8] if version in erased_since(warehouse, workload) else version


def _write(warehouse: Warehouse, path: Path, adapter: Path, manifest: dict[str, Any], key_file: Path | None) -> None:
    """Writes the folder of a version: the adapter, its manifest, its bill of materials, its signature and its card."""
    with files.written_aside(path) as aside:
        for name in ADAPTER_FILES:
            shutil.copyfile(adapter / name, aside / name)
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        made = bom.bom(manifest, licence_of(Path(manifest["base_model"])))
        (aside / bom.NAME).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
        if key_file is not None:
            signature.write(aside, made, key_file)
        card.write(warehouse, aside, path, manifest)


def renew_card(warehouse: Warehouse, version: Version) -> None:
    """Writes the card of a version again, with what is known now.

    Raises:
        OSError: the card cannot be written.
        StoreUnavailable: the cluster's storage does not accept it.
    """
    card.write(warehouse, version.path, version.path, version.manifest)
    warehouse.artifacts.renew("version", version.path)


def reconcile(warehouse: Warehouse, settings: Settings) -> None:
    """Restores the links after a crash, and removes incomplete files. Called at start."""
    files.sweep(settings.models.directory, but="runs")  # a training on a cluster outlives the daemon
    for workload in {row["workload"] for row in warehouse.rows(QUERIES["aliases"], {"workload": None})}:
        try:
            relink(warehouse, settings, workload)
        except (OSError, RetunedError) as error:  # `rollout.follow_up` tries again
            log.error("%s: the links to its versions cannot be created: %s", workload, error)


def relink(warehouse: Warehouse, settings: Settings, workload: str) -> None:
    """Makes the links of a workload follow its aliases. Without the target `folder` a workload has no links.

    Raises:
        OSError: the links cannot be created.
        RetunedError: the files of a version to link were changed; all links stay as they are.
    """
    wanted = aliases(warehouse, workload) if settings.for_workload(workload).serving.has_links else {}
    before = links(settings.models.directory, workload).values()
    for version in {version for version in wanted.values() if version and version not in before}:
        if (found := find(warehouse, workload, version)) is not None:
            check_intact(found)
    link(settings.models.directory, workload, wanted)
