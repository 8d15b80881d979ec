"""Versions that learned erased rows: takes them out of service, and removes them once nothing needs them.

Deletion is exact: the version that replaces such a champion is trained from the newest version before it that did not
learn these rows, or from the base model, on what has remained (see `versions.clean_start`). A run does so whenever the
champion learned erased rows, and the policy asks for it. Here follows what else has to happen.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from retuned.consumers.common.times import shown
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.consumers.warehouse.holds import holds
from retuned.retrain import versions
from retuned.retrain.release import approvals, retention
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.release.routes import Experiment, under_way
from retuned.retrain.settings import Settings
from retuned.retrain.versions import CHAMPION, PREVIOUS, QUERIES, Version

log = logging.getLogger(__name__)
OWN = named_queries("retuned.retrain.release", "erased.sql")

Step = Literal[
    "take_back_canary", "end_holdback", "replace_champion", "drop_previous", "restart_canary", "supersede_approval"
]


@dataclass(frozen=True)
class Standing:
    """The versions of a workload that serve or may serve again.

    Attributes:
        erased: the versions that learned erased rows.
        champion, previous, canary: None: the base model, or none.
        holdback: whether the previous version still answers a share of the traffic.
        waiting: the version that waits for approval; None: none.
        at_once: an erased champion must not serve until it is replaced by a retraining.
    """

    erased: Collection[str]
    champion: str | None = None
    previous: str | None = None
    canary: str | None = None
    holdback: bool = False
    waiting: str | None = None
    at_once: bool = False


def steps(now: Standing) -> list[Step]:
    """Returns what has to be done so that no erased version but the champion serves or may serve again."""
    found: list[Step] = []
    if now.waiting in now.erased:
        found.append("supersede_approval")
    if now.canary in now.erased:
        found.append("take_back_canary")
    if now.holdback and now.previous in now.erased and now.champion not in now.erased:
        found.append("end_holdback")
    if now.at_once and now.champion in now.erased:
        found += ["replace_champion", "drop_previous"]
        if now.canary is not None and now.canary not in now.erased:
            found.append("restart_canary")  # it is compared with what serves now, from its first step on
    elif now.previous in now.erased:
        found.append("drop_previous")
    return found


def kept(warehouse: Warehouse, workload: str, now: datetime) -> dict[str, object] | None:
    """Returns the decision to keep erased versions in service that applies now: until, actor and reason; or None."""
    return warehouse.row(
        "SELECT until, actor, reason FROM erased_kept WHERE workload = ? AND until > ? ORDER BY until DESC LIMIT 1",
        [workload, now],
    )


def keep(warehouse: Warehouse, workload: str, until: datetime, actor: str, reason: str, now: datetime) -> None:
    """Stores the decision to keep the erased champion of a workload in service until a time."""
    warehouse.insert("erased_kept", workload=workload, created_at=now, until=until, actor=actor, reason=reason)
    log.info("%s: %s keeps versions with erased rows until %s", workload, actor, until)


def due(warehouse: Warehouse, workload: str, now: datetime) -> datetime | None:
    """Returns the time of the latest erasure of rows that the champion learned, or the one that left service for that
    (see `left`). None: no retraining without such rows is due, or a person keeps the champion in service."""
    row = warehouse.row(QUERIES["erased_champion"], {"workload": workload})
    if row is None:
        return left(warehouse, workload)
    return None if kept(warehouse, workload, now) is not None else row["latest"]


def left(warehouse: Warehouse, workload: str) -> datetime | None:
    """Returns the time of the latest erasure of rows that a champion learned which has left service for that, until a
    retraining is decided or another version comes into service; None: no retraining is owed."""
    before = warehouse.row(OWN["left"], {"workload": workload})
    row = warehouse.row(OWN["latest"], {"workload": workload, "version": before["version"]}) if before else None
    return row["latest"] if row else None


def answer(warehouse: Warehouse, workload: str) -> str | None:
    """Returns what becomes of a version that did not learn erased rows, and is about to be decided: it waits for
    approval, or is being rolled out. None: there is none."""
    found: dict[str, str] = {}
    for one in approvals.waiting(warehouse, workload):
        if one.kind == "version":
            until = shown(one.expires_at)
            found[one.version] = f"{one.name}, which did not learn them, waits for approval until {until}"
    running = under_way(warehouse, workload)
    if running is not None and running.state == "canary":
        name = versions.model_name(workload, running.version)
        found[running.version] = f"{name}, which did not learn them, is being rolled out"
    known = versions.erased_since(warehouse, workload) if found else {}
    return next((words for version, words in found.items() if version not in known), None)


def replaced(warehouse: Warehouse, workload: str, champion: str | None, serving: str | None) -> bool:
    """Whether `serving`, None for the base model, only serves because an erasure took `champion` out of service."""
    given = {"workload": workload, "champion": champion, "serving": serving}
    row = warehouse.row(OWN["replaced"], given)
    return bool(row and row["by_erasure"])


def concerned(warehouse: Warehouse) -> list[str]:
    """Returns the workloads for which `settle` or a retraining may be due."""
    rows = [*warehouse.rows(QUERIES["erased_standing"]), *warehouse.rows(OWN["workloads"])]
    return sorted({row["workload"] for row in rows})


def standing(warehouse: Warehouse, settings: Settings, now: datetime) -> dict[str, tuple[int, int]]:
    """Returns the number of erased versions that still exist, and how many of them are overdue, by workload. What a
    person or a legal hold keeps is not overdue."""
    counts: dict[str, tuple[int, int]] = {}
    for row in warehouse.rows(QUERIES["erased_standing"]):
        days = settings.for_workload(row["workload"]).forget.within_days
        is_late = row["since"] + timedelta(days=days) < now
        is_late = is_late and kept(warehouse, row["workload"], now) is None and not holds(warehouse, row["workload"])
        number, late = counts.get(row["workload"], (0, 0))
        counts[row["workload"]] = (number + 1, late + is_late)
    return counts


def settle(rollout: Rollout, workload: str, now: datetime) -> list[str]:
    """Takes erased versions out of service as the settings require, and removes those that nothing needs and no legal
    hold covers. Returns the removed versions.

    Raises:
        RetunedError: a version changed meanwhile, or a folder cannot be deleted. The next call tries again.
    """
    warehouse, settings = rollout.warehouse, rollout.settings.for_workload(workload)
    since = versions.erased_since(warehouse, workload)
    if not since:
        return []
    running = under_way(warehouse, workload)
    waiting = next((one.version for one in approvals.waiting(warehouse, workload) if one.kind == "version"), None)
    aliases = versions.aliases(warehouse, workload)
    standing = Standing(
        erased=since,
        champion=aliases.get(CHAMPION),
        previous=aliases.get(PREVIOUS),
        canary=running.version if running and running.state == "canary" else None,
        holdback=running is not None and running.state == "holdback",
        waiting=waiting,
        at_once=settings.forget.weights == "base_until_retrained" and kept(warehouse, workload, now) is None,
    )
    for step in steps(standing):
        _carry_out(rollout, workload, step, running, now)
    if holds(warehouse, workload):
        return []
    return retention.remove_versions(warehouse, settings, workload, list(since), now)


def _carry_out(rollout: Rollout, workload: str, step: Step, running: Experiment | None, now: datetime) -> None:
    warehouse, reason = rollout.warehouse, "it learned rows that were erased"
    log.info("%s: %s: %s", workload, step.replace("_", " "), reason)
    if step == "supersede_approval":
        with warehouse.transaction() as cursor:
            approvals.supersede(cursor, workload, reason, now, "version")
    elif step == "take_back_canary":
        rollout.rollback(workload, "erasure", reason, now, of=running.version if running else None)
    elif step == "end_holdback":
        rollout.complete(workload, "the version before it learned rows that were erased", now)
    elif step == "drop_previous":
        rollout.drop_previous(workload)
    elif step == "restart_canary":
        assert running is not None
        rollout.begin(workload, running.version, "erasure", f"the champion that it was compared with {reason[3:]}", now)
        rollout.follow_up_or_log(workload)
    else:
        start = versions.clean_start(warehouse, workload, versions.champion(warehouse, workload))
        rollout.promote(workload, _name(start), "erasure", f"the champion before {reason[3:]}", now)


def _name(version: Version | None) -> str:
    return versions.BASE if version is None else version.version
