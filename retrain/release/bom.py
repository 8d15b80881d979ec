"""Writes the bill of materials of a version: an ML-BOM in CycloneDX 1.6.

It names the files of the adapter and of the base model with their hashes, the licence of the base model, the dataset
and the version that the training started from. Source: https://cyclonedx.org/docs/1.6/json/.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retuned.retrain.versions import model_name

NAME = "bom.cdx.json"


def bom(manifest: Mapping[str, Any], licence: str) -> dict[str, Any]:
    """Returns the bill of materials.

    Args:
        manifest: see `registry.register`.
        licence: of the base model.
    """
    name = model_name(manifest["workload"], manifest["version"])
    base, dataset = f"base-model:{manifest['base_hash']}", f"dataset:{manifest['dataset_version']}"
    parts: list[dict[str, Any]] = [
        {
            "type": "machine-learning-model",
            "bom-ref": base,
            "name": Path(manifest["base_model"]).name or manifest["base_model"],
            "version": manifest["base_hash"],
            "licenses": [{"license": {"name": licence}}],
            "components": _files(manifest["base_files"]),
        },
        {"type": "data", "bom-ref": dataset, "name": "dataset", "version": manifest["dataset_version"]},
    ]
    if manifest["parent_version"]:
        parent = model_name(manifest["workload"], manifest["parent_version"])
        parts.append(_model(parent, manifest["workload"], manifest["parent_version"]))
    own = _model(name, manifest["workload"], manifest["version"]) | {
        "components": _files(manifest["files"]),
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "text-generation",
                "datasets": [{"ref": dataset}],
            }
        },
    }
    tool = {"type": "application", "name": "retuned", "version": manifest["code_version"]}
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {manifest['created_at']}").urn,
        "version": 1,
        "metadata": {"timestamp": manifest["created_at"], "tools": {"components": [tool]}, "component": own},
        "components": parts,
        "dependencies": [{"ref": name, "dependsOn": [part["bom-ref"] for part in parts]}],
    }


def _files(hashes: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "name": file, "hashes": [{"alg": "SHA-256", "content": content}]}
        for file, content in hashes.items()
    ]


def _model(ref: str, workload: str, version: str) -> dict[str, Any]:
    return {"type": "machine-learning-model", "bom-ref": ref, "name": workload, "version": version}
