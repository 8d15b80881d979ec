"""Registers versions, immutable and addressed by their content, and makes links follow the aliases."""

import importlib.metadata
import json
import logging
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

from retuned.consumers.common import durable as files
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.retrain.release import card
from retuned.retrain.release.targets.folder import link
from retuned.retrain.settings import Base, Settings
from retuned.retrain.versions import (
    QUERIES,
    Version,
    aliases,
    base_hash,
    content_hash,
    files_of,
    find,
    provider_model_in,
    workload_folder,
)

log = logging.getLogger(__name__)


def register(
    warehouse: Warehouse,
    directory: Path,
    workload: str,
    adapter: Path,
    *,
    base_model: Base,
    parent_version: str | None,
    dataset_version: str,
    run_id: str,
    details: dict[str, Any],
    now: datetime,
) -> Version:
    """Keep an adapter as a version. The same adapter gives the same version, once.

    Args:
        adapter: a folder with what PEFT saves, `adapter_model.safetensors` and `adapter_config.json`, or with what
            stands for a model that a provider trained (see `versions.PROVIDER_FILE`).
        details: what else the manifest says: settings, metrics, cost.

    Raises:
        StoreUnavailable: the storage of the cluster does not take it; it is no version yet.
    """
    version = content_hash(adapter)
    known = find(warehouse, workload, version)
    if known is not None and known.removed_at is None and known.path.is_dir():
        return known
    path = (workload_folder(directory, workload) / version).resolve()
    provider_model = provider_model_in(adapter)
    manifest = {
        "version": version,
        "workload": workload,
        "created_at": now.isoformat() + "Z",
        "base_model": str(base_model),
        "base_hash": base_hash(base_model),
        **({"provider_model": provider_model} if provider_model else {}),
        "parent_version": parent_version,
        "dataset_version": dataset_version,
        "run_id": run_id,
        "code_version": importlib.metadata.version("retuned"),
    } | details
    with files.written_aside(path) as aside:
        for name in files_of(adapter):
            shutil.copyfile(adapter / name, aside / name)
        (aside / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        card.write(warehouse, aside, path, manifest)
    kept = warehouse.artifacts.put("version", path)
    with warehouse.transaction() as cursor:
        kept(cursor)
        if known is not None:
            cursor.execute(QUERIES["keep_version"], {"workload": workload, "version": version})
        else:
            insert(
                cursor,
                "models",
                version=version,
                workload=workload,
                created_at=now,
                path=str(path),
                base_model=manifest["base_model"],
                base_hash=manifest["base_hash"],
                provider_model=provider_model,
                parent_version=parent_version,
                dataset_version=dataset_version,
                run_id=run_id,
                manifest=json.dumps(manifest),
            )
    found = find(warehouse, workload, version)
    assert found is not None
    return found


def renew_card(warehouse: Warehouse, version: Version) -> None:
    """Have the card of a version say what is known by now.

    Raises:
        OSError: it cannot be written.
        StoreUnavailable: the storage of the cluster does not take it.
    """
    card.write(warehouse, version.path, version.path, version.manifest)
    warehouse.artifacts.renew("version", version.path)


def reconcile(warehouse: Warehouse, settings: Settings) -> None:
    """At start: make the links follow the rows, after a crash between the two, and sweep up what was half-written."""
    files.sweep(settings.models.directory)
    for workload in {row["workload"] for row in warehouse.rows(QUERIES["aliases"], {"workload": None})}:
        try:
            relink(warehouse, settings, workload)
        except OSError as error:  # `rollout.follow_up` tries again
            log.error("%s: the links to its versions cannot be made: %s", workload, error)


def relink(warehouse: Warehouse, settings: Settings, workload: str) -> None:
    """Make the links of a workload follow its rows; without the target folder it has none.

    Raises:
        OSError: they cannot be made.
    """
    wanted = aliases(warehouse, workload) if settings.for_workload(workload).serving.has_links else {}
    link(settings.models.directory, workload, wanted)
