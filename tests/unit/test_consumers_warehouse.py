"""The warehouse file: migrations, one owner, transactions, a full disk."""

import json
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pytest

from retuned.consumers.errors import Busy, WarehouseError
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import connection as module
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import ROW_GROUP_ROWS, open_warehouse
from retuned.monitors.quality.consistency import last_question

TABLES = {
    "interactions", "feedback", "dead_letters", "offsets", "datasets", "dataset_rows", "runs", "evaluations",
    "decisions", "promotions", "watch_checks", "drift_checks", "quality", "ledger", "quarantine",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path) -> WarehouseSettings:
    return WarehouseSettings(path=tmp_path / "data" / "w.duckdb")


def tables(warehouse: Warehouse) -> set[str]:
    return {row["table_name"] for row in warehouse.rows("SELECT table_name FROM information_schema.tables")}


def test_a_new_file_gets_all_tables_and_keeps_its_rows(settings: WarehouseSettings) -> None:
    warehouse = open_warehouse(settings)
    assert tables(warehouse) >= TABLES
    warehouse.insert("offsets", topic="t", partition=0, next_offset=7)
    warehouse.close()
    again = open_warehouse(settings)
    assert again.rows("SELECT topic, partition, next_offset FROM offsets") == [
        {"topic": "t", "partition": 0, "next_offset": 7}
    ]
    again.close()


def test_a_newer_schema_is_refused(settings: WarehouseSettings) -> None:
    warehouse = open_warehouse(settings)
    warehouse.execute("INSERT INTO schema_migrations VALUES (999, '999_future.sql', '2030-01-01')")
    warehouse.close()
    with pytest.raises(WarehouseError, match=r"schema \(999\) is newer.*upgrade retuned"):
        open_warehouse(settings)
    with duckdb.connect(str(settings.path)) as connection:  # nothing holds the file
        assert connection.execute("SELECT max(number) FROM schema_migrations").fetchone() == (999,)


@pytest.mark.processes
def test_another_process_that_has_it_open_is_named(settings: WarehouseSettings) -> None:
    settings.path.parent.mkdir()
    code = f"import duckdb; c = duckdb.connect({str(settings.path)!r}); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(WarehouseError, match=rf"in use by process {holder.pid} \(python.*\);.*wait until"):
            open_warehouse(settings)
        holder.communicate("\n")


def test_what_is_no_warehouse_is_refused(settings: WarehouseSettings) -> None:
    settings.path.parent.mkdir()
    settings.path.write_text("this is no database" * 1000)
    with pytest.raises(WarehouseError, match=r"w\.duckdb: cannot be opened"):
        open_warehouse(settings)
    assert settings.path.read_text().startswith("this is no database")


def test_a_failed_transaction_leaves_nothing(settings: WarehouseSettings) -> None:
    warehouse = open_warehouse(settings)

    def write(then: str) -> None:
        with warehouse.transaction() as cursor:
            cursor.execute("INSERT INTO offsets (topic, partition, next_offset) VALUES ('t', 0, 1)")
            cursor.execute(then)

    with pytest.raises(duckdb.ConversionException):
        write("INSERT INTO offsets (topic, partition, next_offset) VALUES ('t', 1, 'no number')")
    with pytest.raises(duckdb.CatalogException):
        write("INSERT INTO no_such_table VALUES (1)")
    assert warehouse.rows("SELECT topic, partition, next_offset FROM offsets") == []
    warehouse.close()


FILL = """
import resource, sys
from pathlib import Path
from retuned.consumers.warehouse import connection as module
from retuned.consumers.errors import Busy, WarehouseError
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse
warehouse = open_warehouse(WarehouseSettings(path=Path(sys.argv[1])))
warehouse.insert("offsets", topic="before", partition=0, next_offset=1)
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
try:
    with warehouse.transaction() as cursor:
        cursor.execute("INSERT INTO offsets (topic, partition, next_offset) VALUES ('with it', 0, 1)")
        cursor.execute("CREATE TABLE big AS SELECT random() AS x FROM range(3_000_000)")
except WarehouseError as error:
    print(error)
"""


@pytest.mark.processes
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no file size limit on this system")
def test_a_full_disk_is_one_clear_line_and_nothing_half_written(settings: WarehouseSettings) -> None:
    """A limit on the size of files stands for the disk."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(settings.path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert "cannot write" in done.stdout, done.stderr
    assert "free disk space" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    warehouse = open_warehouse(settings)
    assert [row["topic"] for row in warehouse.rows("SELECT topic FROM offsets")] == ["before"]
    assert "big" not in tables(warehouse)
    warehouse.close()


def test_row_groups_are_small_in_every_life(tmp_path: Path) -> None:
    settings = WarehouseSettings(path=tmp_path / "the team's data" / "w.duckdb")
    for life in range(2):
        warehouse = open_warehouse(settings)
        warehouse.execute(
            "INSERT INTO offsets (topic, partition, next_offset) "
            f"SELECT 't', {life} * 50_000 + n, 0 FROM range(50_000) numbers(n)"
        )
        warehouse.execute("CHECKPOINT")
        warehouse.close()
    with duckdb.connect(str(settings.path)) as connection:
        stored = "SELECT max(count), sum(count) FROM pragma_storage_info('offsets') WHERE column_name = 'next_offset'"
        largest, rows = connection.execute(f"{stored} AND segment_type <> 'VALIDITY'").fetchone() or (0, 0)
        assert rows == 100_000
        assert 0 < largest <= ROW_GROUP_ROWS


def test_a_long_reader_keeps_checkpoints_away_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log grows while it reads, and is short again after the first write that follows."""
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "w.duckdb", checkpoint_threshold="1MB"))
    warehouse.insert("offsets", topic="t", partition=0, next_offset=0)

    def write() -> None:
        with warehouse.transaction() as cursor:
            cursor.execute(
                "INSERT INTO dead_letters SELECT 't', 0, n, 'r', 'd', md5(n::VARCHAR), now()::TIMESTAMP, NULL "
                "FROM range(2000) AS numbers(n)"
            )
            cursor.execute("UPDATE offsets SET next_offset = next_offset + 2000")

    monkeypatch.setattr(module, "CHECKPOINT_SECONDS", 0.2)
    with warehouse.cursor() as reader:
        reader.begin()
        reader.execute("FROM offsets").fetchall()
        for _ in range(40):
            write()
        assert warehouse.size().log > 3_000_000
        with pytest.raises(Busy, match=r"no checkpoint within 0\.2 s"):
            warehouse.checkpoint()
        assert reader.execute("SELECT next_offset FROM offsets").fetchone() == (0,)
    write()
    assert warehouse.size().log < 1_000_000
    assert warehouse.row("SELECT count(*) AS n FROM dead_letters") == {"n": 82_000}
    warehouse.checkpoint()
    assert warehouse.size().log == 0
    warehouse.close()


@pytest.mark.full
def test_it_is_closed_while_threads_open_cursors(settings: WarehouseSettings) -> None:
    """What still works on it at the end of a daemon is refused; DuckDB itself would refuse to close."""

    def ask(warehouse: Warehouse) -> None:
        while True:
            warehouse.rows("SELECT count(*) FROM promotions")

    for _ in range(20):
        warehouse = open_warehouse(settings)
        with ThreadPoolExecutor(12) as pool:
            asking = [pool.submit(ask, warehouse) for _ in range(12)]
            time.sleep(0.01)
            warehouse.close()
        for one in asking:
            assert isinstance(one.exception(), duckdb.Error)
            assert re.search("closed|No open result", str(one.exception()))


def test_a_snapshot_reads_one_state_on_its_own_thread_alone(settings: WarehouseSettings) -> None:
    warehouse = open_warehouse(settings)

    def stored() -> int:
        return len(warehouse.rows("FROM offsets"))

    def write() -> int:
        warehouse.insert("offsets", topic="t", partition=stored(), next_offset=1)
        return stored()

    write()
    with ThreadPoolExecutor(1) as other:
        with warehouse.snapshot():
            assert stored() == 1
            assert other.submit(write).result() == 2
            assert stored() == 1
        assert stored() == 2
        with pytest.raises(duckdb.Error), warehouse.snapshot():
            warehouse.rows("FROM there_is_no_such_table")
        assert stored() == 2
    warehouse.close()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Open today?", "Open today?"),
        ([{"type": "text", "text": "Open today?"}], "Open today?"),
        (
            [{"type": "input_text", "text": "Open"}, {"type": "image_url"}, {"type": "text", "text": "today?"}],
            "Open\ntoday?",
        ),
        ([{"type": "image_url", "image_url": {"url": "https://shop.example/7.png"}}], None),
        ([{"type": "text"}, "odd", 1], None),
        ([], None),
        (None, None),
    ],
)
def test_queries_read_the_question_as_the_program_does(warehouse: Warehouse, content: Any, text: str | None) -> None:
    messages = json.dumps(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": content},
            {"role": "assistant", "content": "One moment."},
        ]
    )
    with warehouse.cursor() as cursor:
        ((found,),) = cursor.execute("SELECT last_question(?)", [messages]).fetchall()
    assert found == text
    assert last_question(messages) == (text or "")
