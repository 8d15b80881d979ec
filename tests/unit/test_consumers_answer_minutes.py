"""The table `answer_minutes` says what a scan of all interactions would, whatever came, in whatever order."""

import threading
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from fixtures.feedback.history import START, WORKLOADS, History
from fixtures.feedback.traffic import new_warehouse, store
from retuned.consumers.settings import IngestSettings, RetentionSettings, Settings
from retuned.consumers.warehouse import answer_minutes, judgements
from retuned.consumers.warehouse.archive import Kept, archive
from retuned.consumers.warehouse.connection import Warehouse
from retuned.daemon import workloads
from retuned.monitors.settings import WindowsSettings
from retuned.monitors.windows import in_service_since

DAY, MINUTE, SECOND = timedelta(days=1), timedelta(minutes=1), timedelta(seconds=1)
FULL_SCAN = """
SELECT workload, model = 'demonstration', date_trunc('minute', timestamp) AS minute, count(*), min(timestamp)
FROM interactions GROUP BY ALL ORDER BY ALL
"""
TABLE = "SELECT workload, demonstration, minute, answers, first_at FROM answer_minutes ORDER BY ALL"
BEGAN = """
WITH counted AS (
    SELECT epoch_us(date_trunc('minute', timestamp)) // 60_000_000 // $minutes AS bucket, timestamp
    FROM traffic WHERE workload = $workload AND timestamp < $now
)
SELECT coalesce(
    (SELECT min(timestamp) FROM counted AS one
     WHERE (SELECT count(*) FROM counted WHERE bucket BETWEEN one.bucket AND one.bucket + $following) >= $enough),
    (SELECT min(timestamp) FROM counted)
) AS since
"""


def assert_the_same(history: History, warehouse: Warehouse) -> None:
    assert workloads.known(warehouse) == sorted(
        row["workload"] for row in warehouse.rows("SELECT DISTINCT workload FROM interactions")
    )
    for workload in WORKLOADS:
        for hours, enough in ((1, 1), (24, 3), (24, 6), (7 * 24, 40)):
            minutes = max(hours * 60 // 64, 1)
            given = {"workload": workload, "now": history.now, "minutes": minutes, "enough": enough}
            expected = warehouse.row(BEGAN, given | {"following": hours * 60 // minutes - 1})
            settings = WindowsSettings(reference_seconds=3_600 * hours, minimum_rows=enough)
            assert expected == {"since": in_service_since(warehouse, settings, workload, history.now)}
    with warehouse.cursor() as cursor:
        expected_rows = cursor.execute(FULL_SCAN).fetchall()
        assert cursor.execute(TABLE).fetchall() == expected_rows
    assert expected_rows


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2))
def test_minutes_are_those_of_a_full_scan(tmp_path: Path, seed: int) -> None:
    warehouse = new_warehouse(tmp_path)
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
        if step % 12 == 10:  # with answers that are not counted yet
            archived += archive(warehouse, settings, Kept(), history.now, threading.Event()).rows
        if step == 17:
            warehouse.close()
            warehouse = history.warehouse = new_warehouse(tmp_path)
    assert archived
    with closing(warehouse):
        with judgements.changing, answer_minutes.changing, warehouse.transaction() as cursor:  # a user is erased
            gone = cursor.execute(
                "SELECT DISTINCT workload, date_trunc('minute', timestamp) FROM interactions WHERE user_id = 'anna'"
            ).fetchall()
            cursor.execute("DELETE FROM interactions WHERE user_id = 'anna'")
            answer_minutes.renew(cursor, gone)
        assert gone
        assert_the_same(history, warehouse)


def test_what_is_not_counted_yet_is_not_counted_twice_when_its_minute_is_counted_anew(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    old = START - 10 * DAY
    event = {"timestamp": old, "workload": "support", "model": "m", "messages": "[]", "response": "", "topic": "t"}
    event |= {"partition": 0, "offset": 0}
    store(warehouse, "interactions", [event | {"id": "leaves", "received_at": old}])
    store(warehouse, "interactions", [event | {"id": "newest", "received_at": START, "timestamp": START}])
    answer_minutes.follow(warehouse)
    store(warehouse, "interactions", [event | {"id": "late", "received_at": START}])
    settings = Settings(retention=RetentionSettings(keep_days=3, archive=tmp_path / "archive"))
    assert archive(warehouse, settings, Kept(), START, threading.Event()).rows == 1
    answer_minutes.follow(warehouse)
    assert minutes(warehouse) == [(old, 1, old), (START, 1, START)]


def minutes(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    rows = warehouse.rows("SELECT minute, answers, first_at FROM answer_minutes ORDER BY minute")
    return [tuple(row.values()) for row in rows]


def test_a_minute_grows_with_each_look(warehouse: Warehouse) -> None:
    event = {"workload": "support", "model": "m", "messages": "[]", "response": "", "topic": "t", "partition": 0}
    event |= {"offset": 0, "received_at": START}
    for number, second in enumerate((30, 10, 50, 61)):
        store(warehouse, "interactions", [event | {"id": f"i{number}", "timestamp": START + second * SECOND}])
        answer_minutes.follow(warehouse)
    assert minutes(warehouse) == [(START, 3, START + 10 * SECOND), (START + MINUTE, 1, START + 61 * SECOND)]


def test_what_an_older_version_stored_is_counted(warehouse: Warehouse) -> None:
    history = History(warehouse, 7)
    for _ in range(12):
        history.go_on()
    warehouse.execute("UPDATE interactions SET batch = NULL")
    assert_the_same(history, warehouse)


def test_the_minute_under_way_ends_now(warehouse: Warehouse) -> None:
    history = History(warehouse, 3)
    for _ in range(4):
        history.go_on()
    last = warehouse.row("SELECT max(timestamp) AS at, arg_max(workload, timestamp) AS workload FROM traffic")
    assert last is not None
    settings = WindowsSettings(reference_seconds=60, minimum_rows=1)
    warehouse.execute("DELETE FROM interactions WHERE timestamp < $at", {"at": last["at"]})
    assert in_service_since(warehouse, settings, last["workload"], last["at"]) is None
    assert in_service_since(warehouse, settings, last["workload"], last["at"] + timedelta(microseconds=1)) == last["at"]
    assert last["at"] > START + MINUTE
