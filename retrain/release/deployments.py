"""The desired state: which versions the targets of a workload should have, and what share of new conversations each
gets. It is rows, written in the transaction that changes the aliases; `release.reconciler` makes the targets follow."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import duckdb

from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.retrain import versions
from retuned.retrain.settings import Settings
from retuned.retrain.versions import CANARY, CHAMPION, Version, model_name

QUERIES = named_queries("retuned.retrain.release", "deployments.sql")


@dataclass(frozen=True)
class Deployment:
    """A version that the targets of its workload should have.

    Attributes:
        version: None: the base model, which servers have without loading anything.
        share: of new conversations; 0: it is asked in shadow, or stays loaded until it is drained.
        since: when it got this share, naive UTC.
        served_at: when it came into service: enough replicas of its targets answered with it; None: not yet. It stays
            while they have it, whatever its share.
        aliases: that name it, of champion, canary and previous.
        provided: a provider keeps its weights.
        replaces: the name of the version before it; None: there is none, as after a rollback.
    """

    workload: str
    version: str | None
    share: float
    since: datetime
    served_at: datetime | None
    aliases: frozenset[str]
    provided: bool = False
    replaces: str | None = None

    @property
    def name(self) -> str:
        """On a server."""
        return model_name(self.workload, self.version)

    @property
    def serves(self) -> bool:
        """Whether it is asked for anything new."""
        return self.share > 0 or CANARY in self.aliases


@dataclass(frozen=True)
class Wanted:
    """A version as a target gets it.

    Attributes:
        aliases: that name it.
        since: when its share last changed, naive UTC.
    """

    version: Version
    aliases: frozenset[str]
    since: datetime

    @property
    def name(self) -> str:
        """On a server."""
        return self.version.name


def deploy(cursor: duckdb.DuckDBPyConnection, workload: str, shares: Mapping[str | None, float], now: datetime) -> None:
    """Set the shares of a workload's versions, None for the base model, in the caller's transaction.

    Those that had one before and are not named get 0: they stay loaded until they are drained.
    """
    found = cursor.execute(QUERIES["of_workload"], {"workload": workload}).fetchall()
    before = {version: (share, since, served_at) for version, share, since, served_at in found}
    cursor.execute(QUERIES["drop_workload"], {"workload": workload})
    for version in {**dict.fromkeys(before), **dict.fromkeys(shares)}:
        share = shares.get(version, 0.0)
        if version is None and share == 0:
            continue  # it is never unloaded
        share_before, since, served_at = before.get(version, (None, now, None))
        if share != share_before:
            since = now
        insert(cursor, "deployments", workload=workload, version=version, share=share, since=since, served_at=served_at)


def deployments(warehouse: Warehouse) -> list[Deployment]:
    """Of all workloads; without versions that retention removed."""
    return [
        Deployment(
            row["workload"],
            row["version"],
            row["share"],
            row["since"],
            row["served_at"],
            frozenset(row["aliases"]),
            row["provided"],
            _replaces(row),
        )
        for row in warehouse.rows(QUERIES["all"])
        if row["version"] is None or row["present"]
    ]


def _replaces(row: dict[str, Any]) -> str | None:
    """The name of the version that one replaces: a canary the champion, and a champion the previous one."""
    if CANARY in row["aliases"]:
        return model_name(row["workload"], row["champion"])
    replaces = CHAMPION in row["aliases"] and row["has_previous"]
    return model_name(row["workload"], row["previous"]) if replaces else None


def drain(warehouse: Warehouse, settings: Settings, found: list[Deployment], now: datetime) -> list[Deployment]:
    """Drop what has had no share for `serving.keep_seconds`, and has not answered for `serving.drain_seconds`.

    Until what serves in its place has come into service, it answers: that is no time without a share.

    Returns:
        those that stay.
    """
    stay = []
    replaced = dict[str, datetime]()  # when all that serves had come into service; absent where some has not
    for workload in {one.workload for one in found}:
        serving = [one for one in found if one.workload == workload and one.serves and one.version is not None]
        if not settings.for_workload(workload).serving.targets or all(one.served_at for one in serving):
            replaced[workload] = max((one.served_at for one in serving if one.served_at), default=datetime.min)  # noqa: DTZ901
    for one in found:
        own = settings.for_workload(one.workload).serving
        since = max(one.since, replaced.get(one.workload, now))
        if one.serves or one.version is None or now - since < timedelta(seconds=own.keep_seconds):
            stay.append(one)
            continue
        after = now - timedelta(seconds=own.drain_seconds)
        given = {"workload": one.workload, "model": one.name, "after": after}
        if warehouse.row(QUERIES["answered"], given) is not None:
            stay.append(one)
            continue
        warehouse.execute(QUERIES["drop"], {"workload": one.workload, "version": one.version, "since": one.since})
    return stay


def wanted(warehouse: Warehouse, workloads: Iterable[str]) -> dict[str, Wanted]:
    """What serves, or is being drained: what model servers should have, by its name there."""
    return _read(warehouse, "wanted", workloads)


def named(warehouse: Warehouse, workloads: Iterable[str]) -> dict[str, Wanted]:
    """What an alias names, drained or not: what links and registries should have."""
    return _read(warehouse, "named", workloads)


def _read(warehouse: Warehouse, query: str, workloads: Iterable[str]) -> dict[str, Wanted]:
    """In one query for all workloads: this is asked every few seconds."""
    found = []
    for row in warehouse.rows(QUERIES[query], {"workloads": list(workloads)}):
        aliases, since = frozenset(row.pop("aliases")), row.pop("since")
        found.append(Wanted(versions.from_row(row), aliases, since))
    return {one.name: one for one in found}
