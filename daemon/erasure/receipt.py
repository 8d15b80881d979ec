"""The receipt of an erasure: what was found where, what was done, and what an operator still has to do."""

import base64
from datetime import datetime
from typing import Any

import msgspec

from retuned.consumers.common.signing import sign
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.erasure.files import after, why
from retuned.daemon.settings import Settings

CLUSTER = (
    "Other daemons of the cluster remove the rows from their own warehouses within seconds; start those that are down, "
    "or delete their files.",
    "PostgreSQL keeps the keys of deleted rows for a month, and old versions of rows until VACUUM; so do its backups. "
    "Versioned buckets keep the replaced segments.",
)
TYPE = "application/vnd.retuned.erasure-receipt+json"


def receipt(
    warehouse: Warehouse,
    settings: Settings,
    erasure: dict[str, Any],
    found: dict[str, Any],
    now: datetime | None,
) -> dict[str, Any]:
    """Returns the receipt, in JSON's types. It names no erased id.

    Args:
        now: when the erasure was completed; None: files are left that could not be read or changed.
    """
    swapped = found["swapped"]
    tombstones = warehouse.row("SELECT count(*) AS n FROM tombstones WHERE erasure_id = ?", [erasure["id"]])
    assert tombstones is not None
    return {
        "erasure": erasure["id"],
        "requested_at": f"{erasure['requested_at'].isoformat()}Z",
        "requested_by": erasure["requested_by"],
        "reason": erasure["reason"],
        "done_at": f"{now.isoformat()}Z" if now else None,
        "workloads": found["workloads"],
        "rows": found["tables"],
        "files": after(found["files"]),
        "segments": found.get("segments", []),
        "warehouse": {
            "path": str(warehouse.path.absolute()),
            "sha256_before": swapped["before"],
            "sha256_after": swapped["after"],
            "ingestion_paused_seconds": round(swapped["seconds"], 3),
        },
        "tombstones": tombstones["n"],
        "versions": found["versions"],
        "operator": to_do(settings, found),
    }


def signed(written: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Returns a receipt in a DSSE envelope; without audit.key_file, the receipt itself."""
    if settings.audit.key_file is None:
        return written
    return sign(msgspec.json.encode(written), TYPE, settings.audit.key_file)


def parts(stored: str | None) -> dict[str, Any]:
    """Returns a stored receipt, and the envelope with its signature; null: there is none."""
    if stored is None:
        return {"receipt": None, "envelope": None}
    content = msgspec.json.decode(stored)
    if "payloadType" not in content:
        return {"receipt": content, "envelope": None}
    return {"receipt": msgspec.json.decode(base64.b64decode(content["payload"])), "envelope": content}


def to_do(settings: Settings, found: dict[str, Any]) -> list[str]:
    """Returns what an erasure does not reach, each with what an operator has to do."""
    kafka = settings.kafka
    topics = [*kafka.topics, *filter(None, (kafka.dead_letter_topic, kafka.label_requests_topic))]
    learned = ", ".join(f"{one['workload']}@{one['version']}" for one in found["versions"])
    left = found.get("left")
    return [
        *([f"This erasure is not complete: {why(left)}."] if left else []),
        f"Kafka: the topics {', '.join(topics)} keep the events until their retention ends; shorten it, or delete "
        "the records. Tombstones keep them from being stored again.",
        "Backups from before this erasure contain the events, and so does what a restore has set aside (replaced-…): "
        "delete them, or erase again after a restore.",
        "Buffers of gateways on disk (gateway.buffer) are empty once the gateways have published them.",
        *(CLUSTER if settings.store.kind == "cluster" else ()),
        "Exports, and reports that were copied, are files of their own: delete them.",
        "Logs of drift checks contain the most frequent new words of prompts; check these, and those of apps.",
        *(
            [
                f"These models were trained on erased rows: {learned}. They are deleted once a retraining without "
                "these rows has replaced them (forget.weights); retuned_erased_versions counts those that still exist."
            ]
            if learned
            else []
        ),
    ]
