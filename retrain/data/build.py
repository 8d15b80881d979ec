"""Builds datasets from the evidence in the warehouse."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.common.durable import written_aside
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.retrain import versions
from retuned.retrain.data.checks import check_classes, check_enough, check_leaks
from retuned.retrain.data.consensus import QUARANTINED
from retuned.retrain.data.dataset import SET_ASIDE, SPLITS, THUMBS, Dataset, load
from retuned.retrain.data.evidence import Earlier, Evidence, LeftOut
from retuned.retrain.data.examples import Example
from retuned.retrain.data.selection import Selection, select
from retuned.retrain.data.similarity import forget, text_hash
from retuned.retrain.settings import Settings
from retuned.retrain.versions import QUERIES

_TIMES = ("timestamp", "received_at")
_COLUMNS = [(name, pa.string()) for name in Example.__dataclass_fields__ if name not in _TIMES] + [
    (name, pa.timestamp("us")) for name in _TIMES
]
_SCHEMAS = {
    **dict.fromkeys(SPLITS, pa.schema([*_COLUMNS, ("replay", pa.bool_())])),
    THUMBS: pa.schema([*_COLUMNS, ("desirable", pa.bool_())]),
    SET_ASIDE: pa.schema([*_COLUMNS, ("reason", pa.string()), ("detail", pa.string())]),
}


def build_dataset(
    warehouse: Warehouse, settings: Settings, workload: str, now: datetime, anew: bool = False
) -> Dataset:
    """Make the dataset of a workload from the evidence that is newer than the champion's dataset, or from all of it.

    The same evidence gives the same version, which is then written once. Feedback that is set aside is in
    the table `quarantine` afterwards.

    Args:
        anew: for a training that begins from nothing: from all of the evidence, and all that earlier datasets taught
            and is still true.

    Raises:
        TooFewRows: fewer rows than dataset.minimum_rows, or than the gate needs in the holdout.
        LostClass: most questions of a frequent answer or topic would be left out.
        Leak: the splits share a question; a fault of this program.
    """
    champion = versions.champion(warehouse, workload)
    earlier = Earlier.of(warehouse, settings, workload, champion.dataset_version if champion else None)
    evidence = Evidence.of(warehouse, settings, workload, earlier.generation)
    chosen_by = settings.dataset
    if anew:
        earlier, chosen_by = replace(earlier, until=None), chosen_by.model_copy(update={"replay_share": 1.0})
    try:
        chosen = select(evidence, earlier, chosen_by)
        check_enough(chosen, settings, workload)
        check_classes(chosen, settings.dataset.near_duplicate_similarity, evidence.template, workload)
        check_leaks(chosen.splits, chosen.thumbs, settings.dataset.near_duplicate_similarity, evidence.template)
    finally:
        forget()
    content = [[name, sorted(row.row_id for row in chosen.splits[name])] for name in SPLITS]
    content.append([THUMBS, sorted(f"{row.row_id} {desirable}" for row, desirable in chosen.thumbs)])
    version = text_hash(json.dumps(content))[:12]
    card = {
        "workload": workload,
        "evidence_until": max(row.received_at for row in evidence.rows).isoformat(),
        "earlier_datasets": earlier.versions,
        "generation": earlier.generation,
        "rows": {name: len(chosen.splits[name]) for name in SPLITS},
        "thumbs": len(chosen.thumbs),
        "replay": len(chosen.replayed),
        "left_out": chosen.left_out,
        **_profile(
            [row for name in ("train", "validation", "holdout") for row in chosen.splits[name]], chosen.replayed
        ),
        "settings": settings.dataset.model_dump(mode="json"),
    }
    quarantined = [one for one in evidence.left if one.reason in QUARANTINED]
    return _write(warehouse, settings, workload, version, chosen, quarantined, card, now)


@dataclass(frozen=True)
class Learnable:
    """What a training from scratch would learn from, oldest first.

    Attributes:
        thumbs: answers that people called helpful (True) or not.
    """

    rows: list[Example]
    thumbs: list[tuple[Example, bool]]


def learnable(warehouse: Warehouse, settings: Settings, workload: str) -> Learnable:
    """Selection as for a dataset: what is set aside, what is out of date, what says the same twice, and what comes near
    to a question that is judged on, now or by the champion and those before it, is not learned from."""
    champion = versions.champion(warehouse, workload)
    earlier = Earlier.of(warehouse, settings, workload, champion.dataset_version if champion else None)
    anew = replace(earlier, versions=[], until=None, train=[])
    chosen = select(Evidence.of(warehouse, settings, workload, earlier.generation), anew, settings.dataset)
    forget()
    return Learnable(
        sorted(chosen.splits["train"] + chosen.splits["validation"], key=lambda row: (row.timestamp, row.row_id)),
        chosen.thumbs,
    )


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


def _write(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    version: str,
    chosen: Selection,
    quarantined: Sequence[LeftOut],
    card: dict[str, Any],
    now: datetime,
) -> Dataset:
    known = load(warehouse, workload, version)
    path = versions.workload_folder(settings.models.directory, workload) / "datasets" / version
    if known is None or not known.path.is_dir():
        _write_files(path, version, chosen, card)
    counts = card["rows"]
    with warehouse.transaction() as cursor:
        cursor.execute(QUERIES["forget_quarantine"], {"workload": workload})
        doubted = [
            {
                "workload": workload,
                "feedback_id": one.row.feedback_id,
                "interaction_id": one.row.interaction_id,
                "user_id": one.row.user_id,
                "reason": one.reason,
                "detail": one.detail,
                "dataset_version": version,
                "created_at": now,
            }
            for one in quarantined
        ]
        if doubted:
            cursor.execute(QUERIES["quarantine"], {"rows": doubted})
        if known is None:
            insert(
                cursor,
                "datasets",
                version=version,
                workload=workload,
                created_at=now,
                path=str(path.resolve()),
                train=counts["train"],
                validation=counts["validation"],
                holdout=counts["holdout"],
                replay=card["replay"],
                card=json.dumps(card),
            )
            cursor.execute(QUERIES["dataset_lineage"], {"rows": _lineage(version, chosen)})
        elif known.removed_at is not None:  # by retention, with its rows
            cursor.execute(QUERIES["keep_dataset"], {"workload": workload, "version": version})
            cursor.execute(QUERIES["dataset_lineage"], {"rows": _lineage(version, chosen)})
    if known is not None and known.path.is_dir():
        return known
    return Dataset(version, workload, known.created_at if known else now, path.resolve(), counts, card["replay"], card)


def _write_files(path: Path, version: str, chosen: Selection, card: dict[str, Any]) -> None:
    rows = {
        **{
            name: [row.as_row() | {"replay": row.row_id in chosen.replayed} for row in chosen.splits[name]]
            for name in SPLITS
        },
        THUMBS: [row.as_row() | {"desirable": desirable} for row, desirable in chosen.thumbs],
        SET_ASIDE: [one.row.as_row() | {"reason": one.reason, "detail": one.detail} for one in chosen.left],
    }
    with written_aside(path) as aside:
        for name, values in rows.items():
            pq.write_table(pa.Table.from_pylist(values, schema=_SCHEMAS[name]), aside / f"{name}.parquet")
        chosen.topics.save(aside)
        (aside / "card.json").write_text(json.dumps(card | {"version": version}, indent=2) + "\n", encoding="utf-8")


def _lineage(version: str, chosen: Selection) -> list[dict[str, Any]]:
    return [
        {
            "dataset_version": version,
            "row_id": row.row_id,
            "split": name,
            "prompt_hash": row.prompt_hash,
            "interaction_id": row.interaction_id,
            "feedback_id": row.feedback_id,
        }
        for name, rows in [*chosen.splits.items(), (THUMBS, [row for row, _ in chosen.thumbs])]
        for row in rows
    ]
