"""Retention of each workload: what is archived, what is deleted from the archive, and what a legal hold keeps."""

import errno
import hashlib
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pydantic import ValidationError

from fixtures.feedback.traffic import START, feedback, interactions, prompts, store
from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import ArchiveError
from retuned.consumers.warehouse import expiry
from retuned.consumers.warehouse.archive import Kept, archive
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.expiry import expire
from retuned.consumers.warehouse.holds import place, release
from retuned.daemon.settings import Settings

DAY = timedelta(days=1)
NOW = START + 10 * DAY  # nine in the morning, as START
TABLES = ("interactions", "feedback", "dead_letters")


def settings_of(workloads: Mapping[str, Any] | None = None, **retention: Any) -> Settings:
    entries = {name: {"retention": keys} for name, keys in (workloads or {}).items()}
    return Settings(retention=retention, workloads=entries)  # type: ignore[arg-type]


def fill(warehouse: Warehouse) -> None:
    """Each day one answer of two workloads, each rated, and a dead letter; feedback on no known answer."""
    rng = random.Random(1)
    for offset, workload in ((0, "support"), (100, "billing")):
        for number, id in enumerate(
            interactions(warehouse, prompts(10, rng), rng, step=DAY, workload=workload, offset=offset)
        ):
            feedback(warehouse, [id], "helpful", True, when=START + number * DAY, offset=offset + number)
    feedback(warehouse, ["long-gone"], "helpful", True, when=START + DAY, offset=1_000)
    letter = {"topic": "in", "partition": 0, "reason": "not_json", "detail": "…", "payload": "{"}
    store(warehouse, "dead_letters", [letter | {"offset": day, "received_at": START + day * DAY} for day in range(10)])


def run(warehouse: Warehouse, settings: Settings, now: datetime = NOW) -> Mapping[str, int]:
    archive(warehouse, settings, Kept(), now, threading.Event())
    return expired(warehouse, settings, now)


def expired(warehouse: Warehouse, settings: Settings, now: datetime = NOW) -> Counter[str]:
    deleted = Counter[str]()
    for table, rows in expire(warehouse, settings, now, is_audited=True):
        deleted[table] += rows
    return deleted


def in_warehouse(warehouse: Warehouse) -> dict[str, int]:
    rows = warehouse.rows("SELECT workload, count(*) AS n FROM interactions GROUP BY ALL ORDER BY ALL")
    return {row["workload"]: row["n"] for row in rows}


def in_archive(folder: Path, table: str) -> int:
    if not list(folder.glob(f"archive/{table}/*/*.parquet")):
        return 0
    with duckdb.connect() as connection:
        ((rows,),) = connection.execute(f"SELECT count(*) FROM '{folder}/archive/{table}/*/*.parquet'").fetchall()
    return int(rows)


def test_each_workload_is_archived_after_its_own_days(warehouse: Warehouse, tmp_path: Path) -> None:
    fill(warehouse)
    run(warehouse, settings_of({"bill*": {"keep_days": 7}}, keep_days=3))
    assert in_warehouse(warehouse) == {"billing": 7, "support": 3}
    assert (in_archive(tmp_path, "interactions"), in_archive(tmp_path, "feedback")) == (10, 11)


def test_a_workload_that_is_kept_for_good_does_not_keep_another_one(warehouse: Warehouse) -> None:
    fill(warehouse)
    run(warehouse, settings_of({"support": {"keep_days": 3}}, keep_days=None))
    assert in_warehouse(warehouse) == {"billing": 10, "support": 3}


def test_archived_events_of_a_workload_are_deleted_and_those_beside_them_stay(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    fill(warehouse)
    settings = settings_of({"support": {"delete_days": 5}}, keep_days=3)
    assert run(warehouse, settings) == {"interactions": 5, "feedback": 5}
    with duckdb.connect() as connection:
        kept = connection.execute(
            f"SELECT workload, count(*) FROM '{tmp_path}/archive/interactions/*/*.parquet' i "
            f"JOIN '{tmp_path}/archive/feedback/*/*.parquet' f ON f.interaction_id = i.id GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    assert kept == [("billing", 7), ("support", 2)]
    assert in_archive(tmp_path, "feedback") == 10  # that on an unknown answer belongs to no workload
    for row in warehouse.rows("FROM archives"):
        assert row["bytes"] == (tmp_path / "archive" / row["file"]).stat().st_size
    gone = warehouse.rows("SELECT actor, details ->> '$.workloads[0]' AS workload FROM audit WHERE action = 'removed'")
    assert {tuple(row.values()) for row in gone} == {("retention", "support")}
    assert not sum(run(warehouse, settings).values())


def test_a_file_goes_with_its_last_row_and_old_dead_letters_go_by_themselves(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    fill(warehouse)
    deleted = run(warehouse, settings_of(keep_days=5, delete_days=7, dead_letter_days=2))
    assert deleted == {"interactions": 6, "feedback": 7, "dead_letters": 8}
    assert in_warehouse(warehouse) == {"billing": 5, "support": 5}
    assert (in_archive(tmp_path, "interactions"), in_archive(tmp_path, "dead_letters")) == (4, 0)
    assert warehouse.row("SELECT count(*) AS n FROM dead_letters") == {"n": 2}
    assert len(list(tmp_path.glob("archive/*/*/*.parquet"))) == len(warehouse.rows("FROM archives"))


@pytest.mark.parametrize("user", [None, "u-1"])
def test_a_legal_hold_stops_the_deletion_of_what_it_covers(
    warehouse: Warehouse, tmp_path: Path, user: str | None
) -> None:
    fill(warehouse)
    settings = settings_of(keep_days=5, delete_days=5, dead_letter_days=5)
    (hold,) = place(warehouse, "support", [user], "case 17", "ann", NOW)
    assert run(warehouse, settings) == {"interactions": 5, "feedback": 5}
    assert in_archive(tmp_path, "interactions") == 5
    release(warehouse, hold.id, "closed", "ann", NOW)
    assert run(warehouse, settings) == {"interactions": 5, "feedback": 6, "dead_letters": 5}
    assert in_archive(tmp_path, "interactions") == 0


def test_a_deletion_that_was_killed_before_its_record_is_completed(warehouse: Warehouse, tmp_path: Path) -> None:
    fill(warehouse)
    settings = settings_of({"support": {"delete_days": 5}}, keep_days=3)
    archive(warehouse, settings, Kept(), NOW, threading.Event())
    expired(warehouse, settings_of(keep_days=3))  # reads the workloads of files, deletes nothing
    records = warehouse.rows("FROM archives")
    expired(warehouse, settings)
    warehouse.execute("DELETE FROM archives")
    for row in records:
        warehouse.insert("archives", **row)
    expired(warehouse, settings)
    assert sum(row["rows"] for row in warehouse.rows("FROM archives WHERE table_name = 'interactions'")) == 9
    for row in warehouse.rows("FROM archives"):
        assert row["sha256"] == hashlib.sha256((tmp_path / "archive" / row["file"]).read_bytes()).hexdigest()


def test_feedback_on_an_archived_answer_follows_the_retention_of_its_answer(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    rng = random.Random(1)
    for offset, workload in ((0, "support"), (100, "billing")):
        interactions(warehouse, prompts(10, rng), rng, step=DAY, workload=workload, offset=offset)
    settings = settings_of({"support": {"delete_days": 5}}, keep_days=3, delete_days=None)
    archive(warehouse, settings, Kept(), NOW, threading.Event())
    day = f"day={(START + 4 * DAY).date()}"
    late = [*ids_of(tmp_path, day), "never-arrived"]
    feedback(warehouse, late, "helpful", True, when=NOW)
    feedback(warehouse, [warehouse.rows("SELECT id FROM interactions")[0]["id"]], "helpful", True, when=NOW + 9 * DAY,
             offset=100)  # fmt: skip
    later = NOW + 4 * DAY
    archive(warehouse, settings, Kept(), later, threading.Event())
    assert {path.parent.name for path in tmp_path.glob("archive/feedback/*/*.parquet")} == {
        day, f"day={NOW.date()}"
    }  # fmt: skip
    assert expired(warehouse, settings, later)["feedback"] == 1
    with duckdb.connect() as connection:
        left = connection.execute(f"SELECT interaction_id FROM '{tmp_path}/archive/feedback/*/*.parquet'").fetchall()
    assert {id for (id,) in left} == {"never-arrived", *ids_of(tmp_path, day)}


@pytest.mark.parametrize("keep_days", [90, None])
def test_late_feedback_is_deleted_with_its_answer_whatever_the_days_of_other_workloads(
    warehouse: Warehouse, tmp_path: Path, keep_days: int | None
) -> None:
    rng = random.Random(1)
    (answer,) = interactions(warehouse, prompts(1, rng), rng)
    settings = settings_of({"support": {"keep_days": 3, "delete_days": 9}}, keep_days=keep_days)
    for day in range(1, 12):
        feedback(warehouse, [answer if day == 6 else "never-arrived"], "comment", "Anna", when=START + day * DAY,
                 offset=day)  # fmt: skip
        interactions(warehouse, prompts(1, rng), rng, start=START + day * DAY, workload="billing", offset=100 + day)
        run(warehouse, settings, START + day * DAY)
        if day == 8:
            assert in_archive(tmp_path, "feedback") == 1
    assert in_archive(tmp_path, "interactions") == in_archive(tmp_path, "feedback") == 0
    left = warehouse.rows("SELECT DISTINCT interaction_id FROM feedback")
    assert left == [{"interaction_id": "never-arrived"}]


def ids_of(folder: Path, day: str) -> list[str]:
    """The archived answers of a day."""
    with duckdb.connect() as connection:
        rows = connection.execute(f"SELECT id FROM '{folder}/archive/interactions/{day}/*.parquet'").fetchall()
    return [id for (id,) in rows]


def test_a_file_that_cannot_be_read_keeps_no_other_one(warehouse: Warehouse, tmp_path: Path) -> None:
    fill(warehouse)
    settings = settings_of(keep_days=3, delete_days=5)
    archive(warehouse, settings, Kept(), NOW, threading.Event())
    broken = next(tmp_path.glob(f"archive/interactions/day={START.date()}/*.parquet"))
    content = broken.read_bytes()
    broken.write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(ArchiveError, match=broken.name):
            expired(warehouse, settings)
        assert broken.exists()
        assert in_archive_but(tmp_path, broken) == 4
    feedback(warehouse, ["unknown"], "helpful", True, when=NOW, offset=2_000)
    with pytest.raises(ArchiveError, match="feedback on archived answers stays"):
        archive(warehouse, settings, Kept(), NOW + 4 * DAY, threading.Event())
    assert in_warehouse(warehouse) == {
        "billing": 1,
        "support": 1,
    }  # the newest ones always stay
    broken.write_bytes(content)
    expired(warehouse, settings)
    assert not broken.exists()


@pytest.mark.parametrize("known", [True, False], ids=["while it is written", "while it is read"])
def test_answers_stay_until_all_feedback_of_their_day_is_deleted(
    warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Without them, nobody could find out which feedback is due."""
    fill(warehouse)
    settings = settings_of({"support": {"delete_days": 5}}, keep_days=3)
    archive(warehouse, settings, Kept(), NOW, threading.Event())
    name = f"day={START.date()}"
    (full,) = tmp_path.glob(f"archive/feedback/{name}/*.parquet")
    content = full.read_bytes()
    if known:
        with monkeypatch.context() as patched:
            patched.setattr(expiry, "replaced", partial(_replaced, full))
            with pytest.raises(ArchiveError, match=full.name):
                expired(warehouse, settings)
    else:
        full.write_bytes(b"broken")
        with pytest.raises(ArchiveError, match=full.name):
            expired(warehouse, settings)
        full.write_bytes(content)
    assert (in_archive(tmp_path, "interactions"), in_archive(tmp_path, "feedback")) == (10, 11)
    assert expired(warehouse, settings) == {"interactions": 1, "feedback": 1}
    assert (in_archive(tmp_path, "interactions"), in_archive(tmp_path, "feedback")) == (9, 10)


@contextmanager
def _replaced(full: Path, path: Path) -> Iterator[Path]:
    if path == full:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    with replaced(path) as aside:
        yield aside


def in_archive_but(folder: Path, file: Path) -> int:
    """The archived interactions in all files but one."""
    files = [str(one) for one in folder.glob("archive/interactions/*/*.parquet") if one != file]
    with duckdb.connect() as connection:
        ((rows,),) = connection.execute("SELECT count(*) FROM read_parquet(?)", [files]).fetchall()
    return int(rows)


def test_keys_that_cannot_hold_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"delete_days: expected at least keep_days \(90\)"):
        settings_of(delete_days=30)
    with pytest.raises(ValidationError, match="delete_days: expected at least keep_days"):
        settings_of({"support": {"keep_days": None}}, delete_days=100)
    with pytest.raises(ValidationError, match=r"all workloads have one archive: set retention\.archive"):
        settings_of({"support": {"archive": "/x"}})
