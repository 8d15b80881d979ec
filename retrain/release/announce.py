"""Publishes messages about changes of what serves, and about requests for approval."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retuned.consumers.common.times import iso
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import versions
from retuned.retrain.release import approvals
from retuned.retrain.release.approvals import Approval
from retuned.retrain.release.exclusive import one_at_a_time
from retuned.retrain.settings import Settings
from retuned.retrain.versions import QUERIES

_publishing: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by workload


def announce(
    warehouse: Warehouse,
    settings: Settings,
    publisher: Publisher,
    topic: str,
    workload: str,
    requests: Sequence[Approval],
) -> int:
    """Publishes the pending messages of a workload, oldest first. Returns how many.

    Changes have the order in which they were made, whatever the clock showed, so the last message, which a compacted
    topic keeps, is about what serves now. A request follows the last change before it or, if later ones were announced
    before it could be, the last of those.
    A crash between publishing a message and marking it publishes the message twice, with the same id.

    Args:
        requests: requests for approval whose state has not been announced.

    Raises:
        BrokerUnavailable, BrokerRefused: the remaining messages stay pending.
    """
    published = 0
    with _publishing[workload]:
        changes = warehouse.rows(QUERIES["changes"], {"workload": workload, "requests": bool(requests)})
        announced = max((place for place, row in enumerate(changes, 1) if row["announced"]), default=0)
        after = defaultdict[int, list[Approval]](list)  # the requests that follow a change, by its place
        for request in sorted(requests, key=lambda request: request.state_since):
            made = [place for place, row in enumerate(changes, 1) if row["created_at"] <= request.state_since]
            after[max([announced, *made])].append(request)
        for place, change in enumerate([_unchanged(workload), *changes]):
            if not change["announced"]:
                publisher.publish(topic, workload, _message(change, _base(settings, change)))
                warehouse.execute(QUERIES["announced"], {"id": change["id"]})
                published += 1
            for request in after[place]:
                if request.state != "approved":  # an approval results in a change, which has a message of its own
                    publisher.publish(topic, workload, _request_message(settings, request, change))
                    published += 1
                _mark(warehouse, request)
    return published


@one_at_a_time
def _mark(warehouse: Warehouse, approval: Approval) -> None:
    """Needs the lock because DuckDB refuses to change a row that another transaction settles."""
    warehouse.execute(approvals.QUERIES["announced"], {"id": approval.id, "state": approval.state})


def _request_message(settings: Settings, approval: Approval, serving: dict[str, Any]) -> dict[str, Any]:
    """Returns the message about a request that waits, was refused or has expired.

    It repeats the last change before it, `serving`, and adds the request, so readers that only need what serves, and a
    compacted topic, lose nothing.
    """
    event = {"id": approval.id, "created_at": approval.state_since, "event": "approval_requested"}
    if approval.state != "waiting":
        event |= {"id": f"{approval.id}-{approval.state}", "event": f"approval_{approval.state}"}
    request = {
        "id": approval.id,
        "kind": approval.kind,
        "version": approval.version,
        "model": approval.name if approval.kind == "version" else None,
        "expires_at": iso(approval.expires_at),
        "actor": approval.actor,
        "reason": approval.reason,
    }
    return _message(serving, _base(settings, serving), **event, reason=str(approval)) | {"approval": request}


def _unchanged(workload: str) -> dict[str, Any]:
    """Returns a row in the form of `promotions` for a workload that the base model has always served."""
    known = ("version", "previous_version", "path", "base_model", "share", "experiment", "champion", "champion_path")
    unset = dict.fromkeys(known)
    return {"workload": workload, "announced": True, **unset}


def _base(settings: Settings, row: dict[str, Any]) -> str | None:
    """Returns the base model of what serves since a change.

    It is the configured path if the version has that base model, else the path that the version was trained with. If
    the base model itself serves, it is the base model of the next training.
    """
    configured, known = settings.for_workload(row["workload"]).base, row["base_model"]
    if configured is None or (row["version"] is not None and configured.resolve() != Path(known or "").resolve()):
        return None if known is None else str(known)
    return str(configured)


def _message(serving: dict[str, Any], base: str | None, **change: Any) -> dict[str, Any]:
    """Returns a message about what serves, a row of `promotions`, and about a change, by default that row itself."""
    event: dict[str, Any] = {name: serving.get(name) for name in ("id", "created_at", "event", "reason")} | change
    return {
        "id": event["id"],
        "timestamp": iso(event["created_at"]),
        "event": event["event"],
        "workload": serving["workload"],
        "model": versions.model_name(serving["workload"], serving["version"]),
        "version": serving["version"],
        "previous_version": serving["previous_version"],
        "path": _resolved(serving["path"]),
        "base_model": base,
        "share": 1.0 if serving["share"] is None else serving["share"],
        "experiment": serving["experiment"],
        "champion": {
            "model": versions.model_name(serving["workload"], serving["champion"]),
            "path": _resolved(serving["champion_path"]),
        },
        "reason": event["reason"],
    }


def _resolved(path: str | None) -> str | None:
    return path and str(Path(path).resolve())
