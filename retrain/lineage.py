"""Lineage, both ways: what came of a piece of feedback, and what a model learned from."""

from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse import Warehouse
from retuned.retrain.examples import QUERIES


def lineage(warehouse: Warehouse, id: str) -> dict[str, Any]:
    """What is known of an interaction, a feedback, a row, a dataset, or a version (`3f2a91c0` or `support@3f2a91c0`).

    Returns:
        `rows`: of datasets, each with workload, dataset_version, created_at, split, row_id, interaction_id, feedback_id
        and models, the versions that learned from it (none from a row that was judged on). `quarantine`: what is not
        believed now of the interaction or feedback, or of an account by its pseudonym.

    Raises:
        RetunedError: nothing is.
    """
    found = {
        "rows": warehouse.rows(QUERIES["lineage"], {"id": id}),
        "quarantine": warehouse.rows(QUERIES["in_quarantine"], {"id": id}),
    }
    if not any(found.values()):
        raise RetunedError(
            f"lineage: {id} is in no dataset and not in quarantine; name an interaction, a feedback, a row, a dataset "
            "or a version"
        )
    return found
