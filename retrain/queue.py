"""Runs that wait, in the order in which they came; who gives one up, and what it leaves behind."""

import json
import logging
import shutil
import threading
import uuid
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from retuned.consumers.common.lead import Lead
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import versions
from retuned.retrain.release.rollout import Rollout, one_at_a_time
from retuned.retrain.settings import Base, Settings
from retuned.retrain.training import provider
from retuned.retrain.versions import QUERIES

log = logging.getLogger(__name__)

TRAIN, EVALUATE = "train", "evaluate"
"""In the folder of a run: those of the training and of the evaluation."""
changing = threading.Lock()
"""Commands and the runs under way change the rows of runs, each in a thread of its own."""


def put_in_line(
    warehouse: Warehouse,
    workload: str,
    reasons: Sequence[str],
    now: datetime,
    at_any_hour: bool = False,
    base: Base | None = None,
) -> str:
    """Have a workload retrained when its turn comes; one that waits already goes on waiting. Returns the run's id.

    Args:
        reasons: why; kept with the run.
        at_any_hour: it, and what of the workload was interrupted, does not wait for `schedule.training_hours`.
        base: train anew on this base model; a folder is absolute. None: go on from what serves.
    """
    with changing:
        if at_any_hour:
            warehouse.execute(QUERIES["at_any_hour"], {"workload": workload})
        base_model = None if base is None else str(base)
        for row in unfinished(warehouse, workload):
            if row["state"] == "waiting" and row["base_model"] == base_model:
                return str(row["id"])
        run_id = f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}"
        warehouse.insert(
            "runs",
            id=run_id,
            workload=workload,
            reasons=json.dumps(list(reasons)),
            state="waiting",
            started_at=now,
            attempts=0,
            at_any_hour=at_any_hour,
            kind="retrain" if base is None else "rebase",
            base_model=base_model,
        )
        return run_id


def untrainable(warehouse: Warehouse, settings: Settings, workload: str) -> str | None:
    """Why no run of a workload can be made, whatever there is to learn; None: one can."""
    models = settings.models
    if settings.base is None:
        return "there is no base model (models.base)"
    if not models.retrains(workload):
        return "this workload is not one to retrain (models.workloads)"
    champion = versions.champion(warehouse, workload)
    try:
        versions.base_hash(versions.base_of(champion, settings.base))
    except RetunedError as error:
        return str(error)
    return None


def unfinished(warehouse: Warehouse, workload: str | None = None) -> list[dict[str, Any]]:
    """The rows of runs that wait or are to be taken up again, of one workload or of all, as they come next."""
    return warehouse.rows(QUERIES["unfinished_runs"], {"workload": workload})


def cancel(rollout: Rollout, workload: str, error: str, now: datetime, under_way: Collection[str]) -> list[str]:
    """End the runs of a workload that wait, were interrupted, or are under way. Returns their ids.

    Args:
        error: who cancelled it, and why; kept with the run.
        under_way: the runs whose files go when their child has ended: the caller sees to that by their `stop`.

    Raises:
        RetunedError: there is none, or its version serves already.
    """
    ids = _mark_cancelled(rollout, workload, error, now)
    for run_id in ids:
        if run_id not in under_way:
            discard(rollout, workload, run_id)
    return ids


@one_at_a_time
def _mark_cancelled(rollout: Rollout, workload: str, error: str, now: datetime) -> list[str]:
    with changing:
        found = unfinished(rollout.warehouse, workload)
        if not found:
            raise RetunedError(f"workload {workload}: no run is under way and none waits")
        aliases = versions.aliases(rollout.warehouse, workload)
        serving = {aliases.get(alias) for alias in (versions.CHAMPION, versions.CANARY)} - {None}
        for row in found:
            if row["version"] in serving:
                name = versions.model_name(workload, row["version"])
                raise RetunedError(
                    f"workload {workload}: run {row['id']} is done, and {name} serves; "
                    f"`retuned rollback {workload}` takes it back"
                )
        ids = [row["id"] for row in found]
        rollout.warehouse.execute(QUERIES["cancel_runs"], {"ids": ids, "error": error, "now": now})
    return ids


def sweep(rollout: Rollout, under_way: Callable[[str], bool]) -> None:
    """Remove what a crash left of cancelled runs.

    Args:
        under_way: whether a run is: it removes its files itself.
    """
    for row in rollout.warehouse.rows("SELECT workload, id FROM runs WHERE state = 'cancelled'"):
        if not under_way(row["id"]) and folder_of(rollout.settings, row["workload"], row["id"]).is_dir():
            discard(rollout, row["workload"], row["id"])


def discard(rollout: Rollout, workload: str, run_id: str) -> None:
    """Remove what there is of a run, at a provider too. The folder stays while the provider does not answer: the next
    start tries again."""
    folder = folder_of(rollout.settings, workload, run_id)
    if left_provider(folder, rollout.settings.for_workload(workload), rollout.lead):
        shutil.rmtree(folder, ignore_errors=True)


def left_provider(folder: Path, settings: Settings, lead: Lead) -> bool:
    """Cancel and delete what a run that is given up has at a provider; False where that could not be done."""
    try:
        provider.discard(folder / TRAIN, settings.train, lead)
    except RetunedError as error:
        log.warning("run %s: %s", folder.name, error)
        return False
    return True


def folder_of(settings: Settings, workload: str, run_id: str) -> Path:
    """Where a run keeps what it has until it ends."""
    return versions.workload_folder(settings.models.directory, workload) / "runs" / run_id
