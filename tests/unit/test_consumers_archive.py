"""The archive: what leaves the warehouse, what stays, and that each row is in one of the two whatever happens."""

import hashlib
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.traffic import START, feedback, interactions, new_warehouse, prompts, store
from retuned.consumers.errors import ArchiveError, Busy
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.memory import MemoryLog, MemorySource
from retuned.consumers.metrics import Metrics
from retuned.consumers.replay import replay
from retuned.consumers.settings import RetentionSettings, Settings, WarehouseSettings
from retuned.consumers.warehouse import archive as module
from retuned.consumers.warehouse.archive import Archived, Kept, Span, archive, archived
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
NOW = START + 10 * DAY  # nine in the morning, as START
KEYS = {"interactions": "id", "feedback": "id", "dead_letters": "\"offset\" || ':' || detail"}


def fill(warehouse: Warehouse, days: int = 10, per_day: int = 24) -> list[str]:
    """So many interactions each day from START on, every other one rated helpful a minute later, and dead letters."""
    rng, step = random.Random(1), DAY / per_day
    ids = interactions(warehouse, prompts(days * per_day, rng), rng, step=step)
    for number in range(0, len(ids), 2):
        when = START + number * step + timedelta(minutes=1)
        feedback(warehouse, [ids[number]], "helpful", True, when=when, offset=number)
    letters(warehouse, days)
    return ids


def letters(warehouse: Warehouse, days: int) -> None:
    """One message a day of which three parts were no events."""
    rows = [
        {
            "topic": "interactions",
            "partition": 0,
            "offset": day,
            "reason": "not_json",
            "detail": f"part {part}",
            "payload": "{",
            "received_at": START + day * DAY,
        }
        for day in range(days)
        for part in range(3)
    ]
    store(warehouse, "dead_letters", rows)


def run(warehouse: Warehouse, kept: Kept | None = None, *, now: datetime = NOW, **retention: Any) -> Archived:
    settings = Settings(retention=RetentionSettings(**({"keep_days": 3} | retention)))
    return archive(warehouse, settings, kept or Kept(), now, threading.Event())


def stored(warehouse: Warehouse, table: str) -> list[str]:
    return [row["key"] for row in warehouse.rows(f"SELECT {KEYS[table]} AS key FROM {table} ORDER BY ALL")]


def in_archive(folder: Path, table: str) -> list[str]:
    """Read as anybody would, with a DuckDB of one's own."""
    if not list(folder.glob(f"{table}/*/*.parquet")):
        return []
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT {KEYS[table]} FROM '{folder}/{table}/*/*.parquet' ORDER BY ALL")
        return [row[0] for row in rows.fetchall()]


def everything(warehouse: Warehouse, folder: Path) -> dict[str, list[str]]:
    return {table: sorted(stored(warehouse, table) + in_archive(folder, table)) for table in KEYS}


def test_whole_old_days_move_and_the_rest_stays(warehouse: Warehouse, tmp_path: Path) -> None:
    ids = fill(warehouse)
    before = everything(warehouse, tmp_path / "archive")
    done = run(warehouse)
    midnight = NOW.replace(hour=0) - 3 * DAY
    assert warehouse.row("SELECT min(received_at) >= $1 AS young FROM interactions", [midnight]) == {"young": True}
    left = in_archive(tmp_path / "archive", "interactions")
    assert len(left) == 6 * 24 + 15  # START is at nine
    assert len(stored(warehouse, "interactions")) == len(ids) - len(left)
    assert in_archive(tmp_path / "archive", "dead_letters") == [
        f"{day}:part {part}" for day in range(7) for part in range(3)
    ]
    assert everything(warehouse, tmp_path / "archive") == before
    assert done.rows == sum(table["rows"] for table in archived(warehouse)) == len(left) + len(left) // 2 + 1 + 21
    assert run(warehouse) == Archived(0, 0, 0)


def test_the_files_are_what_is_recorded_and_hold_every_column(warehouse: Warehouse, tmp_path: Path) -> None:
    fill(warehouse)
    whole = warehouse.rows("SELECT * EXCLUDE (batch) FROM interactions WHERE received_at < '2026-03-03' ORDER BY id")
    run(warehouse)
    for row in warehouse.rows("FROM archives"):
        file = tmp_path / "archive" / row["file"]
        assert (row["bytes"], row["sha256"]) == (
            file.stat().st_size,
            hashlib.sha256(file.read_bytes()).hexdigest(),
        )
        assert row["file"].split("/")[:2] == [row["table_name"], f"day={row['first_received_at']:%Y-%m-%d}"]
    (file,) = (tmp_path / "archive/interactions/day=2026-03-02").glob("*.parquet")
    assert sorted(pq.read_table(file, partitioning=None).to_pylist(), key=lambda row: str(row["id"])) == whole
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"
    with duckdb.connect() as connection:  # days of feedback are those of its interactions
        joined = connection.execute(
            f"SELECT count(*) FROM '{tmp_path}/archive/feedback/*/*.parquet' f "
            f"JOIN '{tmp_path}/archive/interactions/*/*.parquet' i ON i.id = f.interaction_id AND i.day = f.day"
        ).fetchone()
    assert joined == (len(in_archive(tmp_path / "archive", "feedback")),)


def test_what_is_still_needed_stays_with_its_feedback(warehouse: Warehouse, tmp_path: Path) -> None:
    ids = fill(warehouse)
    spans = [Span("support", START + HOUR, START + 3 * HOUR), Span("another", START, NOW)]
    run(warehouse, Kept(spans, [ids[40]]))
    old = set(ids) - set(in_archive(tmp_path / "archive", "interactions"))
    assert {ids[1], ids[2], ids[40]} < old
    assert not {ids[0], ids[3], ids[41]} & old
    about = {row["interaction_id"] for row in warehouse.rows("FROM feedback")}
    assert {ids[2], ids[40]} < about
    assert ids[0] not in about


def test_an_interaction_waits_for_its_youngest_feedback(warehouse: Warehouse, tmp_path: Path) -> None:
    ids = fill(warehouse)
    feedback(warehouse, [ids[0]], "correction", "No.", when=NOW - 2 * DAY, offset=1_000)
    run(warehouse)
    assert ids[0] in stored(warehouse, "interactions")
    assert len(warehouse.rows("FROM feedback WHERE interaction_id = $1", [ids[0]])) == 2
    run(warehouse, now=NOW + 2 * DAY)
    assert ids[0] in in_archive(tmp_path / "archive", "interactions")
    assert not warehouse.rows("FROM feedback WHERE interaction_id = $1", [ids[0]])


def test_feedback_that_comes_after_its_interaction_left_is_kept_and_follows(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    ids = fill(warehouse)
    run(warehouse)
    feedback(warehouse, [ids[0], "never came"], "helpful", True, when=NOW - DAY, offset=1_000)
    run(warehouse)
    late = warehouse.rows("SELECT interaction_id FROM feedback WHERE interaction_id IN ($1, 'never came')", [ids[0]])
    assert late == [{"interaction_id": "never came"}]  # its answer may still come
    assert "feedback-1000" in in_archive(tmp_path / "archive", "feedback")
    run(warehouse, now=NOW + 5 * DAY)
    assert {"feedback-1000", "feedback-1001"} < set(in_archive(tmp_path / "archive", "feedback"))


def test_what_copies_of_events_are_told_by_stays(warehouse: Warehouse) -> None:
    """Producers were silent for long: when they come back they may send the last again."""
    ids = fill(warehouse, days=2)
    run(warehouse, now=NOW + 300 * DAY)
    # Within twice an hour of the newest, as are the newest feedback and the one two hours before it.
    assert stored(warehouse, "interactions") == sorted(ids[-4:])
    assert stored(warehouse, "feedback") == ["feedback-44", "feedback-46"]


@pytest.mark.full
def test_the_oldest_days_leave_when_the_warehouse_is_too_large(warehouse: Warehouse, tmp_path: Path) -> None:
    rng = random.Random(2)
    texts = [rng.randbytes(200).hex() for _ in range(60_000)]
    interactions(warehouse, texts, rng, step=10 * DAY / len(texts))
    warehouse.checkpoint()
    before = warehouse.size().used
    run(warehouse, keep_days=None, keep_bytes=before // 2)
    assert warehouse.size().used <= before // 2
    days = [
        row["d"].day for row in warehouse.rows("SELECT DISTINCT received_at::DATE AS d FROM interactions ORDER BY d")
    ]
    assert days[-1] == 12
    assert days == list(range(days[0], 13))
    assert 4 <= len(days) <= 7  # about half of ten: no more left than had to
    assert len(stored(warehouse, "interactions")) + len(in_archive(tmp_path / "archive", "interactions")) == 60_000
    with pytest.raises(ArchiveError, match=r"still needed: raise retention\.keep_bytes \(100,000\)"):
        run(warehouse, keep_days=None, keep_bytes=100_000)
    assert [row["d"].day for row in warehouse.rows("SELECT DISTINCT received_at::DATE AS d FROM interactions")] == [12]


def test_files_that_were_not_recorded_are_recorded_and_hold_no_row_twice(tmp_path: Path) -> None:
    """A kill after the rename, or a warehouse put back from a backup: both leave files that it knows nothing of.

    Written anew they would be other files, for something was said since of what they hold.
    """
    warehouse = new_warehouse(tmp_path)
    ids = fill(warehouse)
    before = everything(warehouse, tmp_path / "archive")
    warehouse.close()
    backup = (tmp_path / "retuned.duckdb").read_bytes()
    warehouse = new_warehouse(tmp_path)
    run(warehouse)
    files = stored_files(warehouse)
    warehouse.close()
    (tmp_path / "retuned.duckdb").write_bytes(backup)
    rewriting = tmp_path / "archive" / Path(files[0]).parent / ".0123456789abcdef.parquet.7.tmp"
    for half in (tmp_path / "archive/interactions/writing.tmp", rewriting):
        half.write_bytes(b"PAR1 half")
    warehouse = new_warehouse(tmp_path)
    feedback(warehouse, ids[:1], "comment", "Late.", when=NOW - DAY, offset=1_000)
    before["feedback"] = sorted([*before["feedback"], "feedback-1000"])
    done = run(warehouse)
    assert set(files) < set(stored_files(warehouse))
    assert done.files == len(stored_files(warehouse)) == len(files) + 1  # and that of the late comment
    assert everything(warehouse, tmp_path / "archive") == before
    assert not list(tmp_path.glob("archive/**/*.tmp"))
    warehouse.close()


def stored_files(warehouse: Warehouse) -> list[str]:
    return [row["file"] for row in warehouse.rows("SELECT file FROM archives ORDER BY file")]


def test_a_file_that_is_no_archive_is_named(warehouse: Warehouse, tmp_path: Path) -> None:
    ids = fill(warehouse)
    stray = tmp_path / "archive/interactions/day=2026-03-02/notes.parquet"
    stray.parent.mkdir(parents=True)
    stray.write_text("no Parquet")
    with pytest.raises(ArchiveError, match=rf"{stray} cannot be read .*move it away"):
        run(warehouse)
    assert stored(warehouse, "interactions") == sorted(ids)


ARCHIVE = """
import resource, sys, threading
from datetime import datetime
from pathlib import Path
from retuned.consumers.warehouse import archive
from retuned.consumers.errors import RetunedError
from retuned.consumers.settings import RetentionSettings, Settings, WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse

archive.PART_ROWS = int(sys.argv[2])
settings = Settings(retention=RetentionSettings(keep_days=3), warehouse=WarehouseSettings(path=Path(sys.argv[1])))
warehouse = open_warehouse(settings.warehouse)
print("open", flush=True)
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    archive.archive(warehouse, settings, archive.Kept(), datetime(2026, 3, 12, 9), threading.Event())
except RetunedError as error:
    print(type(error).__name__, error)
warehouse.insert("offsets", topic="after", partition=0, next_offset=1)
print("done")
"""


@pytest.mark.processes
@pytest.mark.full
def test_killed_at_any_moment_nothing_is_lost_and_nothing_doubled(tmp_path: Path) -> None:
    warehouse = new_warehouse(tmp_path)
    fill(warehouse, per_day=240)
    folder, rng = tmp_path / "archive", random.Random(3)
    before = everything(warehouse, folder)
    warehouse.close()
    interrupted = 0
    for _ in range(8):
        rows = str(rng.randint(15, 40))  # so that no two runs write the same files
        command = [sys.executable, "-c", ARCHIVE, str(tmp_path / "retuned.duckdb"), rows]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            time.sleep(rng.uniform(0, 0.4))
            process.send_signal(signal.SIGKILL)
            interrupted += process.wait() == -signal.SIGKILL
    assert interrupted >= 4
    warehouse = new_warehouse(tmp_path)
    run(warehouse)
    assert everything(warehouse, folder) == before
    assert len(in_archive(folder, "interactions")) == 6 * 240 + 150
    assert {f"{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()} == set(
        stored_files(warehouse)
    )
    warehouse.close()


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no file size limit on this system")
def test_on_a_full_disk_the_rows_stay_and_events_still_come_in(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    warehouse = new_warehouse(tmp_path)
    rng = random.Random(4)
    ids = interactions(warehouse, [rng.randbytes(2_000).hex() for _ in range(1_000)], rng)
    warehouse.close()
    command = [sys.executable, "-c", ARCHIVE, str(tmp_path / "retuned.duckdb"), "100000", "500000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    _, said, after = done.stdout.splitlines()
    assert said.startswith(f"ArchiveError archive {tmp_path}/archive: cannot be written"), done.stderr
    assert "stay in the warehouse: free disk space" in said
    assert after == "done"
    warehouse = new_warehouse(tmp_path)
    assert stored(warehouse, "interactions") == sorted(ids)
    assert not [path for path in tmp_path.rglob("archive/**/*") if path.is_file()]
    run(warehouse)
    assert len(in_archive(tmp_path / "archive", "interactions")) > 500
    warehouse.close()


def test_the_last_of_a_disk_is_left_to_the_events(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(warehouse)
    monkeypatch.setattr(module, "FREE_BYTES", 2**60)
    with pytest.raises(ArchiveError, match=r"MiB are free, and \d+ MiB must stay free\); the events stay"):
        run(warehouse)
    assert stored(warehouse, "interactions") == sorted(ids)
    assert in_archive(tmp_path / "archive", "interactions") == []


def test_an_interaction_does_not_leave_without_its_feedback(warehouse: Warehouse, tmp_path: Path) -> None:
    """The second of the two files cannot be written."""
    ids = fill(warehouse)
    (tmp_path / "archive").mkdir()
    blocked = tmp_path / "archive/feedback"
    blocked.write_text("a file stands where the folder is to be")
    for _ in range(2):
        with pytest.raises(ArchiveError, match="cannot be written"):
            run(warehouse)
        assert in_archive(tmp_path / "archive", "interactions") == []
    assert stored(warehouse, "interactions") == sorted(ids)


def test_a_replay_of_letters_that_are_being_archived_is_refused_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retuned.consumers.warehouse.writer.PAUSES", (0.0, 0.0))
    settings = Settings(warehouse=WarehouseSettings(path=tmp_path / "w.duckdb"))
    warehouse = open_warehouse(settings.warehouse)
    event = (
        '{"id": "i", "timestamp": "2026-03-02T09:00:00Z", "workload": "w", "model": "m", '
        '"messages": [{"role": "user", "content": "?"}], "response": "r"}'
    )
    store(
        warehouse,
        "dead_letters",
        [{"topic": "interactions", "partition": 0, "offset": 1, "reason": "r", "detail": "d", "payload": event}
         | {"received_at": START}],
    )  # fmt: skip
    source = MemorySource(MemoryLog(), ("interactions", "feedback"), dict)
    ingest = Ingest(source, warehouse, settings, Metrics(CollectorRegistry()))
    stop = threading.Event()
    thread = threading.Thread(target=ingest.run, args=(stop,))
    thread.start()
    with warehouse.transaction() as cursor:
        cursor.execute("DELETE FROM dead_letters")  # as the archive does
        with pytest.raises(Busy, match="being archived now"):
            replay(ingest)
    assert replay(ingest) == {"tried": 0, "replayed": 0, "stored": 0}
    assert thread.is_alive()
    stop.set()
    thread.join()
    assert stored(warehouse, "interactions") == []
    warehouse.close()
