"""Builds datasets from the evidence in the warehouse, in a child process: the parent's functions, the child's work."""

import json
import shutil
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.child import child_main
from retuned.consumers.common.durable import written_aside
from retuned.consumers.common.process import Emit, run_child
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, attach, insert, named_queries
from retuned.retrain import versions
from retuned.retrain.data.checks import check_classes, check_enough, check_leaks
from retuned.retrain.data.consensus import QUARANTINED
from retuned.retrain.data.dataset import (
    SET_ASIDE,
    SPLITS,
    THUMBS,
    TRAFFIC,
    Dataset,
    DatasetRefused,
    LostClass,
    TooFewRows,
    load,
)
from retuned.retrain.data.evidence import Earlier, Evidence
from retuned.retrain.data.examples import Example, unrated
from retuned.retrain.data.selection import Selection, sample_of_traffic, select
from retuned.retrain.data.similarity import text_hash
from retuned.retrain.settings import SECRETS, Settings
from retuned.retrain.versions import QUERIES

_EXTRACT = named_queries("retuned.retrain.data", "extract.sql")
_EXTRACT_FILE = "extract.duckdb"
_REFUSALS: dict[str, type[DatasetRefused]] = {kind.__name__: kind for kind in (TooFewRows, LostClass)}
_TIMES = ("timestamp", "received_at")
_COLUMNS = [(name, pa.string()) for name in Example.__dataclass_fields__ if name not in _TIMES] + [
    (name, pa.timestamp("us")) for name in _TIMES
]
_SCHEMAS = {
    **dict.fromkeys(SPLITS, pa.schema([*_COLUMNS, ("replay", pa.bool_())])),
    THUMBS: pa.schema([*_COLUMNS, ("desirable", pa.bool_())]),
    TRAFFIC: pa.schema(_COLUMNS),
    SET_ASIDE: pa.schema([*_COLUMNS, ("reason", pa.string()), ("detail", pa.string())]),
}


def build_dataset(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    now: datetime,
    folder: Path,
    stop: threading.Event | None = None,
    anew: bool = False,
) -> Dataset:
    """Make the dataset of a workload from the evidence that is newer than the champion's dataset, or from all of it.

    The same evidence gives the same version, which is then written once. Feedback that is set aside is in
    the table `quarantine` afterwards. Rows are chosen in a child process, which takes minutes where they are many.

    Args:
        folder: of this work alone.
        anew: for a training that begins from nothing: from all of the evidence, and all that earlier datasets taught
            and is still true.

    Raises:
        TooFewRows: fewer rows than dataset.minimum_rows, or than the gate needs in the holdout.
        LostClass: most questions of a frequent answer or topic would be left out.
        Cancelled: stop was set.
        ChildFailed: the child failed or died; also when the splits share a question, a fault of this program.
    """
    stop = stop or threading.Event()
    try:
        job = prepare(warehouse, settings, workload, folder, stop, anew)
        result = run_child(
            "retuned.retrain.data.build",
            job,
            folder,
            timeout_seconds=settings.train.timeout_seconds,
            stop=stop,
            to_need_less="lower dataset.maximum_rows",
        )
    finally:
        (folder / _EXTRACT_FILE).unlink(missing_ok=True)
    return registered(warehouse, workload, result, now)


def prepare(
    warehouse: Warehouse, settings: Settings, workload: str, folder: Path, stop: threading.Event, anew: bool = False
) -> dict[str, Any]:
    """The job of the child: what it reads of the warehouse is in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    extract = folder / _EXTRACT_FILE
    extract.unlink(missing_ok=True)  # of an attempt that was killed
    limits = {"limit": settings.dataset.maximum_rows, "traffic_rows": settings.dataset.traffic_rows}
    warehouse.extract_to(extract, _EXTRACT, {"workload": workload, **limits}, stop)
    return {
        "extract": str(extract.resolve()),
        "workload": workload,
        "anew": anew,
        # The daemon's settings have more sections, and nobody is asked for anything here.
        "settings": settings.model_dump(
            mode="json", include=Settings.model_fields.keys() - {"labels", "privacy"}, exclude=SECRETS
        ),
    }


def work(job: dict[str, Any], _: Emit) -> dict[str, Any]:
    """The child's side: the files of the dataset, and what the warehouse is to know of it."""
    settings, workload = Settings.model_validate(job["settings"]), job["workload"]
    with closing(attach(WarehouseSettings(path=Path(job["extract"])), create=False)) as warehouse:
        champion = versions.champion(warehouse, workload)
        earlier = Earlier.of(warehouse, settings, workload, champion)
        evidence = Evidence.of(warehouse, settings, workload, earlier.generation)
        similarity = settings.dataset.near_duplicate_similarity
        chosen_by = settings.dataset
        if job["anew"]:
            earlier, chosen_by = replace(earlier, until=None), chosen_by.model_copy(update={"replay_share": 1.0})
        chosen = select(evidence, earlier, chosen_by)
        try:
            check_enough(chosen, settings, workload)
            check_classes(chosen, similarity, evidence.template, workload, evidence.metric.metric)
        except DatasetRefused as error:
            return {"refused": type(error).__name__, "reason": str(error)}
        check_leaks(chosen.splits, chosen.thumbs, similarity, evidence.template)
        traffic = sample_of_traffic(unrated(warehouse, settings.dataset), chosen, evidence.template, settings.dataset)
        content = [[name, sorted(row.row_id for row in chosen.splits[name])] for name in SPLITS]
        content.append([THUMBS, sorted(f"{row.row_id} {desirable}" for row, desirable in chosen.thumbs)])
        content.append([TRAFFIC, sorted(row.row_id for row in traffic)])
        version = text_hash(json.dumps([workload, content]))[:12]
        card = {
            "workload": workload,
            "evidence_until": max(row.received_at for row in evidence.rows).isoformat(),
            "earlier_datasets": earlier.versions,
            "generation": earlier.generation,
            "rows": {name: len(chosen.splits[name]) for name in SPLITS},
            "thumbs": len(chosen.thumbs),
            "traffic": len(traffic),
            "replay": len(chosen.replayed),
            "left_out": chosen.left_out,
            **_profile(
                [row for name in ("train", "validation", "holdout") for row in chosen.splits[name]], chosen.replayed
            ),
            "metric": evidence.metric.as_dict(),
            "settings": settings.dataset.model_dump(mode="json"),
        }
        known = load(warehouse, workload, version)
    path = versions.workload_folder(settings.models.directory, workload) / "datasets" / version
    if known is not None and known.reduced:
        shutil.rmtree(known.path)  # it is written anew, whole
    if known is None or not known.path.is_dir():
        _write_files(path, version, chosen, traffic, card)
    doubted = [
        {
            "feedback_id": one.row.feedback_id,
            "interaction_id": one.row.interaction_id,
            "user_id": one.row.user_id,
            "reason": one.reason,
            "detail": one.detail,
        }
        for one in evidence.left
        if one.reason in QUARANTINED
    ]
    return {"version": version, "path": str(path.resolve()), "card": card, "quarantine": doubted}


def registered(warehouse: Warehouse, workload: str, result: dict[str, Any], now: datetime) -> Dataset:
    """The dataset that a child has made, known to the warehouse.

    Raises:
        TooFewRows, LostClass: the child refused to make it.
        StoreUnavailable: the storage of the cluster does not take it; it is no dataset yet.
    """
    if "refused" in result:
        raise _REFUSALS[result["refused"]](result["reason"])
    version, path, card = result["version"], Path(result["path"]), result["card"]
    counts = card["rows"]
    known = load(warehouse, workload, version)
    kept = warehouse.artifacts.put("dataset", path)
    with warehouse.transaction() as cursor:
        kept(cursor)
        cursor.execute(QUERIES["forget_quarantine"], {"workload": workload})
        about = {"workload": workload, "dataset_version": version, "created_at": now}
        if doubted := [one | about for one in result["quarantine"]]:
            cursor.execute(QUERIES["quarantine"], {"rows": doubted})
        if known is None:
            insert(
                cursor,
                "datasets",
                version=version,
                workload=workload,
                created_at=now,
                path=str(path),
                train=counts["train"],
                validation=counts["validation"],
                holdout=counts["holdout"],
                replay=card["replay"],
                card=json.dumps(card),
            )
        elif known.removed_at is not None:  # by retention, with its rows
            cursor.execute(QUERIES["keep_dataset"], {"workload": workload, "version": version})
        if known is None or known.removed_at is not None:
            files = [str(path / f"{name}.parquet") for name in (*SPLITS, THUMBS, TRAFFIC)]
            cursor.execute(QUERIES["dataset_lineage"], {"version": version, "files": files})
    made = load(warehouse, workload, version)
    assert made is not None
    return made


def _profile(rows: Sequence[Example], replayed: frozenset[str]) -> dict[str, Any]:
    """Of the new rows: how many each source, topic and account gave."""
    new = [row for row in rows if row.row_id not in replayed]
    accounts = Counter(row.user_id for row in new if row.user_id is not None)
    return {
        "sources": dict(Counter(row.taught_by for row in new).most_common()),
        "topics": dict(Counter(row.topic for row in new).most_common()),
        "accounts": {
            "number": len(accounts),
            "largest_share": max(accounts.values(), default=0) / max(len(new), 1),
            "nameless_rows": len(new) - accounts.total(),
        },
    }


def _write_files(path: Path, version: str, chosen: Selection, traffic: Sequence[Example], card: dict[str, Any]) -> None:
    rows = {
        **{
            name: [row.as_row() | {"replay": row.row_id in chosen.replayed} for row in chosen.splits[name]]
            for name in SPLITS
        },
        THUMBS: [row.as_row() | {"desirable": desirable} for row, desirable in chosen.thumbs],
        TRAFFIC: [row.as_row() for row in traffic],
        SET_ASIDE: [one.row.as_row() | {"reason": one.reason, "detail": one.detail} for one in chosen.left],
    }
    with written_aside(path) as aside:
        for name, values in rows.items():
            pq.write_table(pa.Table.from_pylist(values, schema=_SCHEMAS[name]), aside / f"{name}.parquet")
        chosen.topics.save(aside)
        (aside / "card.json").write_text(json.dumps(card | {"version": version}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    child_main(work)
