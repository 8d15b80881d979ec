"""The queue of runs: adds, lists and cancels runs, and removes their files."""

import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.audit import by_request
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.retrain import versions
from retuned.retrain.release import approvals
from retuned.retrain.release.exclusive import one_at_a_time
from retuned.retrain.release.rollout import Rollout
from retuned.retrain.settings import Settings
from retuned.retrain.versions import QUERIES

log = logging.getLogger(__name__)

Cause = Literal["policy", "person", "erasure"]
"""What asked for a run. One that an erasure alone asked for is not needed once the erasure is done otherwise."""

TRAIN, EVALUATE = "train", "evaluate"
"""Folders of the training and of the evaluation, in the folder of a run."""
changing = threading.Lock()
"""Held to change rows of `runs`, which commands and runs in progress do in threads of their own."""


def enqueue(
    warehouse: Warehouse,
    workload: str,
    reasons: Sequence[str],
    now: datetime,
    at_any_hour: bool = False,
    base: Path | None = None,
    cause: Cause = "policy",
) -> str:
    """Adds a run for a workload, unless such a run is waiting already, which then serves both. Returns the run's id.

    Args:
        reasons: the reasons, which are stored with the run.
        at_any_hour: this run and interrupted ones of the workload do not wait for `schedule.training_hours`.
        base: train a new adapter on this base model, an absolute path; None continues from the champion.
        cause: what asks for the run.
    """
    with changing:
        if at_any_hour:
            warehouse.execute(QUERIES["at_any_hour"], {"workload": workload})
        base_model = None if base is None else str(base)
        for row in unfinished(warehouse, workload):
            if row["state"] == "waiting" and row["base_model"] == base_model:
                if cause != "erasure" and row["cause"] != "person":
                    warehouse.execute(QUERIES["add_cause"], {"id": row["id"], "cause": cause})
                return str(row["id"])
        run_id = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        row = {
            "id": run_id,
            "workload": workload,
            "reasons": json.dumps(list(reasons)),
            "state": "waiting",
            "started_at": now,
            "attempts": 0,
            "at_any_hour": at_any_hour,
            "kind": "retrain" if base is None else "rebase",
            "base_model": base_model,
            "cause": cause,
        }
        with warehouse.transaction() as cursor:
            insert(cursor, "runs", **row)
            warehouse.trail.note(cursor, by_request("policy", "queued", "rule", workload=workload, subject=run_id))
        return run_id


def untrainable(warehouse: Warehouse, settings: Settings, workload: str) -> str | None:
    """Returns why a workload cannot be trained, whatever the evidence; None if it can."""
    models = settings.models
    if settings.base is None:
        return "there is no base model (models.base)"
    if not models.retrains(workload):
        return "retraining is not enabled for this workload (models.workloads)"
    champion = versions.champion(warehouse, workload)
    try:
        versions.base_hash(versions.base_of(champion, settings.base))
    except RetunedError as error:
        return str(error)
    return None


def unfinished(warehouse: Warehouse, workload: str | None = None) -> list[dict[str, Any]]:
    """Returns the rows of waiting and interrupted runs, of one workload or of all, in the order of the queue."""
    return warehouse.rows(QUERIES["unfinished_runs"], {"workload": workload})


def cancel(
    rollout: Rollout,
    workload: str,
    error: str,
    now: datetime,
    under_way: Collection[str],
    run_id: str | None = None,
) -> list[str]:
    """Cancels the waiting, interrupted and current runs of a workload, or one of them. Returns their ids.

    Args:
        error: who cancelled them and why; stored with the runs.
        under_way: the runs in progress. The caller stops them, and their files are removed when their child has ended.

    Raises:
        RetunedError: there are none, or a run's version is in service.
    """
    ids = _mark_cancelled(rollout, workload, error, now, run_id)
    for run_id in ids:
        if run_id not in under_way:
            discard(rollout, workload, run_id)
    return ids


@one_at_a_time
def _mark_cancelled(rollout: Rollout, workload: str, error: str, now: datetime, run_id: str | None) -> list[str]:
    with changing:
        runs = [row for row in unfinished(rollout.warehouse, workload) if run_id in (None, row["id"])]
        if not runs:
            missing = (
                "no run is under way and none waits" if run_id is None else f"run {run_id} has ended, or is unknown"
            )
            raise RetunedError(f"workload {workload}: {missing}")
        aliases = versions.aliases(rollout.warehouse, workload)
        serving = {aliases.get(alias) for alias in (versions.CHAMPION, versions.CANARY)} - {None}
        for row in runs:
            if row["version"] in serving:
                name = versions.model_name(workload, row["version"])
                raise RetunedError(
                    f"workload {workload}: run {row['id']} is done, and {name} serves; "
                    f"`retuned rollback {workload}` takes it back"
                )
        ids = [row["id"] for row in runs]
        reviewed = {one.run_id for one in approvals.waiting(rollout.warehouse, workload) if one.kind == "dataset"}
        with rollout.warehouse.transaction() as cursor:
            cursor.execute(QUERIES["cancel_runs"], {"ids": ids, "error": error, "now": now})
            if not reviewed.isdisjoint(ids):
                approvals.supersede(cursor, workload, f"its run was {error}", now, "dataset")
    return ids


def sweep(rollout: Rollout, under_way: Callable[[str], bool]) -> None:
    """Removes files of cancelled runs that a crash left.

    Args:
        under_way: returns whether a run is in progress. Such a run removes its files itself.
    """
    for row in rollout.warehouse.rows("SELECT workload, id FROM runs WHERE state = 'cancelled'"):
        if not under_way(row["id"]) and folder_of(rollout.settings, row["workload"], row["id"]).is_dir():
            discard(rollout, row["workload"], row["id"])


def discard(rollout: Rollout, workload: str, run_id: str) -> None:
    """Removes the files of a run."""
    shutil.rmtree(folder_of(rollout.settings, workload, run_id), ignore_errors=True)


def folder_of(settings: Settings, workload: str, run_id: str) -> Path:
    """Returns the folder of a run's files, which exists until the run ends."""
    return versions.workload_folder(settings.models.directory, workload) / "runs" / run_id
