"""How often a holdout was looked at. Each look at it tells a little, so that it wears out, and is drawn anew."""

from collections.abc import Sequence

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.versions import QUERIES

SHARED = 0.1
"""A decision was on this holdout when so large a share of its rows stood in that decision's holdout too."""


def tries(warehouse: Warehouse, workload: str, dataset_version: str) -> int:
    """Decisions of the gate that were made on the holdout of a dataset, or on one that shares its rows."""
    row = warehouse.row(QUERIES["holdout_tries"], {"workload": workload, "version": dataset_version, "shared": SHARED})
    assert row is not None
    return int(row["tries"])


def generation(warehouse: Warehouse, workload: str, since: str | None, limit: int) -> int:
    """The draw that questions are held out by today: one more after `limit` decisions on the latest.

    Args:
        since: the champion's dataset; what was decided on it and before says nothing of today's evidence.
    """
    row = warehouse.row(QUERIES["holdout_generation"], {"workload": workload, "version": since})
    if row is None:
        return 0
    return int(row["generation"]) + (int(row["decisions"]) >= limit)


def spent(warehouse: Warehouse, workload: str, since: str | None, today: int) -> Sequence[str]:
    """The datasets after the champion's whose holdout was drawn before today's generation, newest first.

    What stands in their holdouts was judged on and stays so: it moves to the regression set, where a few looks too many
    do little harm, and is never taught.
    """
    rows = warehouse.rows(QUERIES["spent_datasets"], {"workload": workload, "version": since, "generation": today})
    return [row["version"] for row in rows]
