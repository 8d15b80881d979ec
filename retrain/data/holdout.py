"""Counts the comparisons on a holdout, and determines when it is drawn anew.

Each decision on a holdout, and each setting that people choose by its scores, makes it less independent evidence.
"""

from collections.abc import Sequence

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.versions import QUERIES


def tries(warehouse: Warehouse, workload: str, champion: str | None) -> int:
    """Returns how often the gate has compared a candidate with this champion; None stands for the base model."""
    row = warehouse.row(QUERIES["gate_tries"], {"workload": workload, "champion": champion})
    assert row is not None
    return int(row["tries"])


def generation(warehouse: Warehouse, workload: str, since: str | None, limit: int) -> int:
    """Returns the number of the current draw of the holdout. A new draw follows `limit` decisions on the latest one.

    Args:
        since: the champion's dataset. Decisions up to that dataset do not count.
    """
    row = warehouse.row(QUERIES["holdout_generation"], {"workload": workload, "version": since})
    if row is None:
        return 0
    return int(row["generation"]) + (int(row["decisions"]) >= limit)


def spent(warehouse: Warehouse, workload: str, since: str | None, today: int) -> Sequence[str]:
    """Returns the datasets after the champion's whose holdout is from an earlier draw, newest first.

    Rows of their holdouts stay held out: they move to the regression set, where further comparisons do little harm, and
    are never trained on.
    """
    rows = warehouse.rows(QUERIES["spent_datasets"], {"workload": workload, "version": since, "generation": today})
    return [row["version"] for row in rows]
