"""Lineage, both ways: what came of a piece of feedback, and what a model learned from."""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.data.dataset import SET_ASIDE
from retuned.retrain.versions import QUERIES

_ROW = ("row_id", "interaction_id", "feedback_id")


def lineage(warehouse: Warehouse, id: str) -> dict[str, Any]:
    """What is known of an interaction, a feedback, a row, a dataset, or a version (`3f2a91c0` or `support@3f2a91c0`).

    Returns:
        `rows`: of datasets, each with workload, dataset_version, created_at, split, row_id, interaction_id, feedback_id
        and models, the versions that learned from it (none from a row that was judged on). `set_aside`: of datasets
        that the interaction, feedback or row was left out of, each with workload, dataset_version, created_at, row_id,
        interaction_id, feedback_id, reason and detail. `quarantine`: what is set aside now of the interaction or
        feedback, or of an account by its pseudonym. `removed`: the dataset or version of that name which retention
        removed, each with kind, workload, version, created_at and removed_at; the rows of such a dataset are gone.

    Raises:
        RetunedError: nothing is.
    """
    found = find(warehouse, id)
    if not any(found.values()):
        gone = warehouse.row(QUERIES["removed_datasets"]) or {}
        removed = ""
        if gone["count"]:
            datasets = f"{gone['count']} datasets until {gone['latest']:%Y-%m-%d}"
            removed = f" (retention removed {datasets}; what they held is not known any more)"
        raise RetunedError(
            f"lineage: {id} is in no dataset, was not set aside and is not in quarantine{removed}; name an "
            "interaction, a feedback, a row, a dataset or a version"
        )
    return found


def find(warehouse: Warehouse, id: str) -> dict[str, list[dict[str, Any]]]:
    """The same, with empty lists where nothing is known."""
    return {
        "rows": warehouse.rows(QUERIES["lineage"], {"id": id}),
        "set_aside": _set_aside(warehouse, id),
        "quarantine": warehouse.rows(QUERIES["in_quarantine"], {"id": id}),
        "removed": warehouse.rows(QUERIES["removed"], {"id": id}),
    }


def _set_aside(warehouse: Warehouse, id: str) -> list[dict[str, Any]]:
    named = pc.field("row_id") == id
    for column in _ROW[1:]:
        named |= pc.field(column) == id
    found = []
    for dataset in warehouse.rows(QUERIES["all_datasets"]):
        path = Path(dataset.pop("path")) / f"{SET_ASIDE}.parquet"
        if path.exists():
            table = pq.read_table(path, columns=[*_ROW, "reason", "detail"], filters=named)
            found += [{**dataset, **row} for row in table.to_pylist()]
    return found
