"""The table `judgements` says what a scan of all feedback and interactions would, whatever came, in whatever order."""

import random
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.history import START, WORKLOADS, History
from fixtures.feedback.traffic import feedback, new_warehouse
from retuned.consumers.settings import IngestSettings, RetentionSettings, Settings
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.archive import Kept, archive
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon.policy import evidence

DAY = timedelta(days=1)

FULL_SCAN = """
SELECT i.workload, i.id, i.timestamp, i.received_at, i.model = 'demonstration', i.topic LIKE 'import:%',
       CASE WHEN i.conversation_id IS NULL THEN i.id ELSE i.conversation_id END, i.model, i.user_id,
       s.id, name, value, source, s.user_id, s.timestamp, greatest(s.received_at, i.received_at)
FROM (
    SELECT id, name, value, source, user_id, timestamp, received_at, interaction_id FROM votes
    UNION ALL
    SELECT id, name, NULL, source, user_id, timestamp, received_at, interaction_id
    FROM feedback WHERE name = 'correction'
) AS s JOIN interactions AS i ON i.id = s.interaction_id
ORDER BY ALL
"""
TABLE = """
SELECT workload, interaction_id, answered_at, answer_received_at, demonstration, imported,
       conversation, model, asker_id, feedback_id, name, value, source, user_id, timestamp, received_at
FROM judgements ORDER BY ALL
"""

# The same figures from all kept events.
CORRECTIONS = """
SELECT count(*) FILTER (received_at > $since_dataset) AS to_learn,
       count(*) FILTER (received_at > $since_run) AS untried,
       count(*) FILTER (received_at > $since_run AND (timestamp >= $promoted_at OR model = 'demonstration')) AS new
FROM (
    SELECT greatest(f.received_at, i.received_at) AS received_at, i.timestamp, i.model
    FROM feedback f JOIN interactions i ON i.id = f.interaction_id AND i.workload = $workload
    WHERE f.name = 'correction'
)
"""


def assert_the_same(history: History, warehouse: Warehouse) -> None:
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        expected = cursor.execute(FULL_SCAN).fetchall()
        assert cursor.execute(TABLE).fetchall() == expected
    assert expected
    for workload in WORKLOADS:
        for days in (2, 9):
            since, given = history.now - days * DAY, {"workload": workload}
            more = {"since_dataset": START, "since_run": since, "promoted_at": since}
            assert warehouse.row(evidence.QUERIES["corrections"], given | more) == warehouse.row(
                CORRECTIONS, given | more
            )


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2))
def test_judgements_are_those_of_a_full_scan(warehouse: Warehouse, tmp_path: Path, seed: int) -> None:
    history = History(warehouse, seed)
    settings = Settings(
        ingest=IngestSettings(deduplicate_seconds=3_600),
        retention=RetentionSettings(keep_days=3, archive=tmp_path / "archive"),
    )
    archived = 0
    for step in range(24):
        history.go_on()
        if step % 4 == 3:
            assert_the_same(history, warehouse)
        if step % 12 == 11:
            archived += archive(warehouse, settings, Kept(), history.now, threading.Event()).rows
            assert_the_same(history, warehouse)
    assert archived
    with judgements.changing, warehouse.transaction() as cursor:  # a user's feedback is deleted
        gone = cursor.execute("SELECT DISTINCT interaction_id FROM feedback WHERE user_id = 'anna'").fetchall()
        cursor.execute("DELETE FROM feedback WHERE user_id = 'anna'")
        judgements.renew(cursor, [interaction for (interaction,) in gone])
    assert_the_same(history, warehouse)


def test_what_an_older_version_stored_is_taken_in(warehouse: Warehouse) -> None:
    history = History(warehouse, 7)
    for _ in range(12):
        history.go_on()
    warehouse.execute("UPDATE interactions SET batch = NULL")
    warehouse.execute("UPDATE feedback SET batch = NULL")
    assert_the_same(history, warehouse)


PAIRS = """
SELECT workload, CASE WHEN name = 'made up' THEN 'other' ELSE name END AS name, source, count(*) AS total
FROM feedback JOIN interactions ON interactions.id = interaction_id
GROUP BY ALL ORDER BY ALL
"""


@pytest.mark.parametrize("seed", range(2))
def test_all_feedback_is_counted_once_for_the_workload_of_its_answer(tmp_path: Path, seed: int) -> None:
    """Whichever of both came first, and however often somebody looked; a restart, or retention, takes nothing away."""
    warehouse, luck = new_warehouse(tmp_path), random.Random(seed)
    history = History(warehouse, seed)
    for _ in range(24):
        history.go_on()
        if luck.random() < 0.3:
            judgements.follow(warehouse)
        if luck.random() < 0.2:
            warehouse.close()
            warehouse = history.warehouse = new_warehouse(tmp_path)
    feedback(warehouse, ["i3", "i4"], "made up", 1, source="app")
    judgements.follow(warehouse)
    expected = warehouse.rows(PAIRS)
    assert {row["workload"] for row in expected} == set(WORKLOADS)
    assert {"other", "rating", "helpful"} <= {row["name"] for row in expected}

    def counted() -> list[dict[str, Any]]:
        judgements.follow(warehouse)
        found = [
            {"workload": workload, "name": name, "source": source, "total": total}
            for workload in WORKLOADS
            for (name, source), total in judgements.feedback_totals(warehouse, workload).items()
        ]
        return sorted(found, key=lambda row: (row["workload"], row["name"], row["source"]))

    assert counted() == expected
    waiting = "SELECT count(*) AS n FROM feedback ANTI JOIN interactions ON interactions.id = interaction_id"
    assert (warehouse.row(waiting) or {})["n"] > 0  # of no workload, as its answer never came
    for table in ("feedback", "interactions"):
        warehouse.execute(f"DELETE FROM {table}")
    history.go_on()
    warehouse.execute("DELETE FROM interactions")
    assert counted() == expected
    warehouse.close()
