"""Lineage in both directions: the datasets and models of a piece of feedback, and the rows that a model learned."""

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
    """Returns the lineage of an interaction, feedback, row, dataset or version (`3f2a91c0` or `support@3f2a91c0`).

    Returns:
        `rows`: rows of datasets, each with workload, dataset_version, created_at, split, row_id, interaction_id,
        feedback_id and models, the versions that were trained on it (none for a held-out row). `set_aside`: rows that
        datasets left out, each with workload, dataset_version, created_at, row_id, interaction_id, feedback_id, reason
        and detail. `quarantine`: rows of the interaction or feedback, or of an account by its pseudonym, that are set
        aside now. `removed`: the dataset or version of that name that retention removed, with kind, workload, version,
        created_at and removed_at.

    Raises:
        RetunedError: nothing is known of it.
    """
    result = find(warehouse, id)
    if not any(result.values()):
        gone = warehouse.row(QUERIES["removed_datasets"]) or {}
        removed = ""
        if gone["count"]:
            datasets = f"{gone['count']} datasets until {gone['latest']:%Y-%m-%d}"
            removed = f" (retention removed {datasets} with their rows)"
        raise RetunedError(
            f"lineage: {id} is in no dataset, was not set aside and is not in quarantine{removed}; name an "
            "interaction, a feedback, a row, a dataset or a version"
        )
    return result


def find(warehouse: Warehouse, id: str) -> dict[str, list[dict[str, Any]]]:
    """Returns the same as `lineage`, with empty lists if nothing is known."""
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
    rows = []
    for dataset in warehouse.rows(QUERIES["all_datasets"]):
        path = Path(dataset.pop("path")) / f"{SET_ASIDE}.parquet"
        if path.exists():
            table = pq.read_table(path, columns=[*_ROW, "reason", "detail"], filters=named)
            rows += [{**dataset, **row} for row in table.to_pylist()]
    return rows
