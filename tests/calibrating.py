"""Answers whose labels calibrate the hallucination rate: drawn at random, and labelled by an expert."""

from collections.abc import Sequence
from datetime import datetime

from traffic import feedback

from retuned.consumers.warehouse.connection import Warehouse


def requested(warehouse: Warehouse, ids: Sequence[str], now: datetime, *, alarm: bool | None) -> None:
    """Requests to label answers, drawn from the alarms or from the others; None: as older versions drew them."""
    warehouse.execute(
        "INSERT INTO label_requests BY NAME SELECT 'request ' || id AS id, $now AS created_at, 'support' AS workload, "
        "id AS interaction_id, 'calibration' AS reason, '' AS detail, true AS announced, $alarm::BOOLEAN AS alarm "
        "FROM (SELECT unnest($ids::VARCHAR[]) AS id)",
        {"ids": list(ids), "now": now, "alarm": alarm},
    )


def labelled(
    warehouse: Warehouse,
    ids: Sequence[str],
    invented: int,
    now: datetime,
    *,
    alarm: bool,
    offset: int = 10_000,
    user_id: str | None = None,
) -> None:
    """Requests that an expert answered: the first so many answers are invented."""
    requested(warehouse, ids, now, alarm=alarm)
    for about, value, first in ((ids[:invented], True, offset), (ids[invented:], False, offset + 1_000)):
        if about:
            feedback(warehouse, about, "hallucination", value, source="expert", when=now, offset=first, user_id=user_id)
