"""What a daemon of a cluster does for the files that its rows name: it puts them into object storage, and fetches what
others put there.
"""

import logging
from datetime import datetime
from pathlib import Path
from typing import get_args

from retuned.consumers.common.extras import needing
from retuned.consumers.common.lead import Lead, alone
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.artifacts import Kind
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.reports import reports
from retuned.daemon.settings import Settings
from retuned.monitors.drift import check as drift
from retuned.retrain.release import retention
from retuned.retrain.versions import workload_folder

log = logging.getLogger(__name__)

KINDS: tuple[Kind, ...] = get_args(Kind)
SQL = named_queries("retuned.daemon", "artifacts.sql")
DELETED_REPORTS = named_queries("retuned.daemon.erasure", "erasure.sql")["deleted_reports"]


def keep(warehouse: Warehouse, settings: Settings, lead: Lead = alone) -> None:
    """From now on, have what is published from a warehouse in the storage of its cluster.

    Args:
        lead: see `common.lead`.

    Raises:
        ConfigurationError: store.objects_url is missing or wrong, or the extra is not installed.
    """
    with needing("cluster", "store.kind cluster"):
        from retuned.consumers.cluster.artifacts import StoredArtifacts
        from retuned.consumers.cluster.objects import Objects
    models, folder = settings.models.directory, reports.folder_of(warehouse)
    folders: dict[Kind, Path] = {"version": models, "dataset": models, "report": folder}
    warehouse.artifacts = StoredArtifacts(warehouse, Objects(settings.store, lead=lead), folders, lead)


def settle(warehouse: Warehouse, settings: Settings) -> None:
    """Put into the storage what rows name and it was never given, as what is older than the cluster; delete from it
    what no row names any more.

    Raises:
        StoreUnavailable: the storage does not answer; the next call does the rest.
    """
    # In this order: what is stored has had its row by then.
    stored = {kind: warehouse.artifacts.stored(kind) for kind in KINDS}
    for kind, named in _named(warehouse, settings).items():
        for path in named:
            if path not in stored[kind] and _is_here(kind, path):
                kept = warehouse.artifacts.put(kind, path)
                with warehouse.transaction() as cursor:
                    kept(cursor)
        if left := [path for path in stored[kind].difference(named) if kind != "report" or drift.is_report(path)]:
            with warehouse.transaction() as cursor:
                warehouse.artifacts.remove(cursor, kind, left)
    warehouse.artifacts.delete_removed()


def follow(warehouse: Warehouse, settings: Settings, *, first: bool = False) -> bool:
    """Make the files here those that the rows name, after others may have changed the rows.

    Args:
        first: whether it is the first time since the start: it also deletes what others removed before. No job that
            writes reports of months and quarters may be running.

    Returns:
        whether all are here. Those that are not have to be tried again; `warehouse.artifacts.problems` has the reasons.
    """
    complete = warehouse.artifacts.follow()
    if first:
        for workload in retention.workloads(warehouse):
            try:
                retention.delete_removed(warehouse, settings, workload)
            except RetunedError as error:
                log.warning("%s", error)
        try:
            _delete_removed_reports(warehouse)
        except OSError as error:
            log.warning("%s: it was removed, but cannot be deleted here; correct its permissions", error)
    return complete


def _delete_removed_reports(warehouse: Warehouse) -> None:
    """Delete reports here that were removed while this daemon was down.

    The report of a drift check has a row. That of a month or quarter has none, and if it is not in the storage, it may
    have to be put there: only an erasure removes one, and names it.
    """
    home = reports.folder_of(warehouse)
    drift.sweep(warehouse, home, datetime.max)  # noqa: DTZ901  (no zone)
    erased = {row["name"] for row in warehouse.rows(DELETED_REPORTS)}
    stored = warehouse.artifacts.stored("report")
    for path in reports.written(home):
        if path.name in erased and path.resolve() not in stored:
            for suffix in (".json", ".html"):  # the page goes last: `written` finds reports by their pages
                path.with_name(path.name + suffix).unlink(missing_ok=True)


def _named(warehouse: Warehouse, settings: Settings) -> dict[Kind, list[Path]]:
    """What the rows name, and reports of months and quarters, which no row does."""
    models, home = settings.models.directory.resolve(), reports.folder_of(warehouse).resolve()

    def below(folder: str, query: str) -> list[Path]:
        rows = warehouse.rows(SQL[query])
        return [workload_folder(models, row["workload"]) / folder / row["version"] for row in rows]

    checks = [home / row["id"] for row in warehouse.rows(SQL["drift_reports"])]
    return {
        "version": below("", "versions"),
        "dataset": below("datasets", "datasets"),
        "report": checks + reports.written(home),
    }


def _is_here(kind: Kind, path: Path) -> bool:
    return path.with_suffix(".html").is_file() if kind == "report" else path.is_dir()
