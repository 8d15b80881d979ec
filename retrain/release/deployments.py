"""Deployments, the desired state: the versions that the targets of a workload should have, and their shares.

They are rows, written in the transaction that changes the aliases. `release.reconciler` makes the targets follow.
"""

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
        version: None for the base model, which servers need not load.
        share: its share of new conversations; 0 in shadow, or until it is drained.
        since: the time since when it has this share, naive UTC.
        served_at: the time when enough replicas of its targets answered with it; None if that has not happened. It is
            kept while it is deployed, whatever its share.
        aliases: its aliases, of champion, canary and previous.
        replaces: the name of the version before it, unless there is none, as after a rollback.
        erased: whether it learned rows that were erased, so that nothing goes back to it.
    """

    workload: str
    version: str | None
    share: float
    since: datetime
    served_at: datetime | None
    aliases: frozenset[str]
    replaces: str | None = None
    erased: bool = False

    @property
    def name(self) -> str:
        """The name on servers."""
        return model_name(self.workload, self.version)

    @property
    def serves(self) -> bool:
        """Whether it gets new requests."""
        return self.share > 0 or CANARY in self.aliases


@dataclass(frozen=True)
class Wanted:
    """A version that a target should have.

    Attributes:
        aliases: its aliases.
        since: the time of the last change of its share, naive UTC.
    """

    version: Version
    aliases: frozenset[str]
    since: datetime

    @property
    def name(self) -> str:
        """The name on servers."""
        return self.version.name


def deploy(cursor: duckdb.DuckDBPyConnection, workload: str, shares: Mapping[str | None, float], now: datetime) -> None:
    """Sets the shares of a workload's versions, None for the base model, in the caller's transaction.

    Deployed versions that are not in `shares` get 0: they stay loaded until they are drained.
    """
    rows = cursor.execute(QUERIES["of_workload"], {"workload": workload}).fetchall()
    before = {version: (share, since, served_at) for version, share, since, served_at in rows}
    cursor.execute(QUERIES["drop_workload"], {"workload": workload})
    for version in {**dict.fromkeys(before), **dict.fromkeys(shares)}:
        share = shares.get(version, 0.0)
        if version is None and share == 0:
            continue  # the base model is never unloaded
        share_before, since, served_at = before.get(version, (None, now, None))
        if share != share_before:
            since = now
        insert(cursor, "deployments", workload=workload, version=version, share=share, since=since, served_at=served_at)


def deployments(warehouse: Warehouse) -> list[Deployment]:
    """Returns the deployments of all workloads, without versions that retention removed."""
    return [
        Deployment(
            row["workload"],
            row["version"],
            row["share"],
            row["since"],
            row["served_at"],
            frozenset(row["aliases"]),
            _replaces(row),
            row["erased"],
        )
        for row in warehouse.rows(QUERIES["all"])
        if row["version"] is None or row["present"]
    ]


def _replaces(row: dict[str, Any]) -> str | None:
    """Returns the name of the version that a version replaces: a canary the champion, a champion the previous one."""
    if CANARY in row["aliases"]:
        return model_name(row["workload"], row["champion"])
    replaces = CHAMPION in row["aliases"] and row["has_previous"]
    return model_name(row["workload"], row["previous"]) if replaces else None


def drain(warehouse: Warehouse, settings: Settings, deployed: list[Deployment], now: datetime) -> list[Deployment]:
    """Drops versions without a share for `serving.keep_seconds` that have not answered for `serving.drain_seconds`.

    Versions that learned erased rows do not wait for `serving.keep_seconds`.

    A version answers until its successor is in service, so the time without a share starts then.

    Returns:
        the deployments that stay.
    """
    replaced = dict[str, datetime]()  # the time since when all serving versions are in service
    for workload in {one.workload for one in deployed}:
        serving = [one for one in deployed if one.workload == workload and one.serves and one.version is not None]
        if not settings.for_workload(workload).serving.targets or all(one.served_at for one in serving):
            replaced[workload] = max((one.served_at for one in serving if one.served_at), default=datetime.min)  # noqa: DTZ901

    def is_drained(one: Deployment) -> bool:
        own = settings.for_workload(one.workload).serving
        since = max(one.since, replaced.get(one.workload, now))
        keep = timedelta(seconds=0 if one.erased else own.keep_seconds)
        if one.serves or one.version is None or now - since < keep:
            return False
        after = now - timedelta(seconds=own.drain_seconds)
        key = {"workload": one.workload, "model": one.name, "after": after}
        return warehouse.row(QUERIES["answered"], key) is None

    stay = []
    for one in deployed:
        if is_drained(one):
            warehouse.execute(QUERIES["drop"], {"workload": one.workload, "version": one.version, "since": one.since})
        else:
            stay.append(one)
    return stay


def wanted(warehouse: Warehouse, workloads: Iterable[str]) -> dict[str, Wanted]:
    """Returns the versions that serve or are being drained, for model servers, by name."""
    return _read(warehouse, "wanted", workloads)


def named(warehouse: Warehouse, workloads: Iterable[str]) -> dict[str, Wanted]:
    """Returns the versions with an alias, drained or not, for links and registries, by name."""
    return _read(warehouse, "named", workloads)


def _read(warehouse: Warehouse, query: str, workloads: Iterable[str]) -> dict[str, Wanted]:
    """Reads all workloads in one query, because this runs every few seconds."""
    result = []
    for row in warehouse.rows(QUERIES[query], {"workloads": list(workloads)}):
        aliases, since = frozenset(row.pop("aliases")), row.pop("since")
        result.append(Wanted(versions.from_row(row), aliases, since))
    return {one.name: one for one in result}
