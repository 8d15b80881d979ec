"""How often candidates were compared with a champion, and when the holdout is drawn anew: settings that people choose
by its scores wear it out."""

from collections.abc import Sequence

from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.versions import QUERIES


def tries(warehouse: Warehouse, workload: str, champion: str | None) -> int:
    """How often the gate has compared a candidate with this version, or with the base model where none served."""
    row = warehouse.row(QUERIES["gate_tries"], {"workload": workload, "champion": champion})
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
