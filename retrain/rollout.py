"""Putting a version into service, taking it back, and telling the world."""

import logging
import threading
import uuid
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

from retuned.consumers.errors import BrokerUnavailable, RetunedError
from retuned.consumers.warehouse import Warehouse, insert
from retuned.retrain import registry
from retuned.retrain.registry import CHAMPION, PREVIOUS, QUERIES
from retuned.retrain.settings import Settings

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

BASE = "base"

_lock = threading.RLock()


class Publisher(Protocol):
    """Where messages go: Kafka, or its twin in memory."""

    def publish(self, topic: str, key: str, value: dict[str, Any]) -> None:
        """Return when the message is stored.

        Raises:
            BrokerUnavailable: it could not be delivered.
        """


def one_at_a_time(work: Callable[P, R]) -> Callable[P, R]:
    """The gate, an operator, the watch and the announcing job work in threads of their own, on the same rows and links.

    What looks at the champion before it changes it is decorated too, so that the champion is still the one it saw.
    """

    @wraps(work)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _lock:
            return work(*args, **kwargs)

    return alone


@one_at_a_time
def promote(
    warehouse: Warehouse,
    settings: Settings,
    publisher: Publisher,
    topic: str,
    workload: str,
    version: str,
    actor: Literal["gate", "operator"],
    reason: str,
    now: datetime,
) -> str | None:
    """Make a version the champion; `base` puts the base model back into service.

    Returns what serves now: the version, or None for the base model.

    The change is a fact once its row is written; the link and the message follow, after a crash by `reconcile` and
    `announce_pending`.

    Raises:
        RetunedError: there is no such version, or it is the champion already.
    """
    known = [version.version for version in registry.versions(warehouse, workload)]
    if version != BASE and version not in known:
        names = ", ".join([*known, BASE])
        raise RetunedError(f"workload {workload}: no version {version}; known are {names}")
    aliases = registry.aliases(warehouse, workload)
    target = None if version == BASE else version
    if aliases.get(CHAMPION) == target:
        raise RetunedError(f"workload {workload}: {registry.model_name(workload, target)} is the champion already")
    return _change(
        warehouse,
        settings,
        publisher,
        topic,
        workload,
        "promoted",
        target,
        aliases.get(CHAMPION),
        True,
        actor,
        reason,
        now,
    )


@one_at_a_time
def rollback(
    warehouse: Warehouse,
    settings: Settings,
    publisher: Publisher,
    topic: str,
    workload: str,
    actor: Literal["operator", "watch"],
    reason: str,
    now: datetime,
    of: str | None = None,
) -> str | None:
    """Put the previous champion back into service and return it, None for the base model.

    What is rolled back from is not kept as previous, and the gate never promotes it again.

    Args:
        of: take back this version, and no other that has become the champion meanwhile.

    Raises:
        RetunedError: there is no previous champion, or `of` is not the champion.
    """
    aliases = registry.aliases(warehouse, workload)
    if of is not None and aliases.get(CHAMPION) != of:
        raise RetunedError(
            f"workload {workload}: {registry.model_name(workload, of)} is not taken back: it no longer serves"
        )
    if PREVIOUS not in aliases:
        names = ", ".join([*(version.version for version in registry.versions(warehouse, workload)), BASE])
        raise RetunedError(f"workload {workload}: no previous champion to go back to; promote one of {names}")
    return _change(
        warehouse,
        settings,
        publisher,
        topic,
        workload,
        "rolled_back",
        aliases[PREVIOUS],
        aliases.get(CHAMPION),
        False,
        actor,
        reason,
        now,
    )


@one_at_a_time
def announce_pending(warehouse: Warehouse, publisher: Publisher, topic: str) -> int:
    """Publish the changes that a crash or an absent broker left unannounced, oldest first; returns how many.

    A crash between the message and its mark publishes it twice, with one id.

    Raises:
        BrokerUnavailable: the rest stays pending.
    """
    rows = warehouse.rows(QUERIES["unannounced"])
    for row in rows:
        publisher.publish(topic, row["workload"], _message(row))
        warehouse.execute(QUERIES["announced"], {"id": row["id"]})
    return len(rows)


def _change(
    warehouse: Warehouse,
    settings: Settings,
    publisher: Publisher,
    topic: str,
    workload: str,
    event: Literal["promoted", "rolled_back"],
    version: str | None,
    before: str | None,
    keep_previous: bool,
    actor: str,
    reason: str,
    now: datetime,
) -> str | None:
    rows = {CHAMPION: version} | ({PREVIOUS: before} if keep_previous else {})
    with warehouse.transaction() as cursor:
        for alias in (CHAMPION, PREVIOUS):
            cursor.execute(QUERIES["drop_alias"], {"workload": workload, "alias": alias})
        for alias, value in rows.items():
            insert(cursor, "aliases", workload=workload, alias=alias, version=value, created_at=now)
        insert(
            cursor,
            "promotions",
            id=uuid.uuid4().hex,
            created_at=now,
            workload=workload,
            event=event,
            version=version,
            previous_version=before,
            actor=actor,
            reason=reason,
            announced=False,
        )
    registry.link(settings.models.directory, workload, rows)
    try:
        announce_pending(warehouse, publisher, topic)
    except BrokerUnavailable as error:
        log.warning("%s is the champion, not announced yet: %s", registry.model_name(workload, version), error)
    return version


def _message(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "timestamp": row["created_at"].isoformat(timespec="milliseconds") + "Z",
        "event": row["event"],
        "workload": row["workload"],
        "model": registry.model_name(row["workload"], row["version"]),
        "version": row["version"],
        "previous_version": row["previous_version"],
        "path": row["path"] and str(Path(row["path"]).resolve()),
        "base_model": row["base_model"],
        "share": 1.0,
        "reason": row["reason"],
    }
