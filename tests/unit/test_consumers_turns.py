"""One thread uses the warehouse alone: it waits for the cursors of others, and others wait for it."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from retuned.consumers.errors import Busy
from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse import turns
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.opening import open_warehouse


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    warehouse = open_warehouse(WarehouseSettings(path=tmp_path / "w.duckdb"))
    yield warehouse
    warehouse.close()


def test_others_end_before_and_begin_after(warehouse: Warehouse) -> None:
    order, opened, entered = list[str](), threading.Event(), threading.Event()

    def before() -> None:
        with warehouse.cursor() as cursor:
            opened.set()
            time.sleep(0.2)
            with warehouse.cursor():  # a thread with a cursor may open another one
                order.append("before")
            cursor.execute("SELECT 1")

    def after() -> None:
        entered.wait()
        warehouse.rows("SELECT 1")
        order.append("after")

    threads = [threading.Thread(target=before), threading.Thread(target=after)]
    for thread in threads:
        thread.start()
    opened.wait()
    with warehouse.turns.alone():
        entered.set()
        assert warehouse.turns.is_alone
        warehouse.execute("INSERT INTO pauses (workload, created_at, actor, reason) VALUES ('w', now(), 'a', 'r')")
        time.sleep(0.2)
        order.append("alone")
    for thread in threads:
        thread.join()
    assert order == ["before", "alone", "after"]


def test_a_long_query_is_not_waited_for_and_a_lost_cursor_counts_no_more(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LONG_SECONDS", 0.0)
    opened, done = threading.Event(), threading.Event()

    def hold() -> None:
        lost = warehouse.cursor()
        opened.set()
        done.wait()
        del lost  # never closed

    thread = threading.Thread(target=hold)
    thread.start()
    opened.wait()
    with pytest.raises(Busy, match="a long query runs"), warehouse.turns.alone():
        pass
    assert not warehouse.turns.is_alone
    done.set()
    thread.join()
    with warehouse.turns.alone():
        pass


def test_the_file_can_be_exchanged_while_others_wait(warehouse: Warehouse, tmp_path: Path) -> None:
    other = open_warehouse(WarehouseSettings(path=tmp_path / "other.duckdb"))
    other.insert("pauses", workload="from the other file", created_at="2026-01-01", actor="a", reason="r")
    other.close()
    with warehouse.turns.alone():
        warehouse.exchange(tmp_path / "other.duckdb")
    assert warehouse.rows("SELECT workload FROM pauses") == [{"workload": "from the other file"}]
    warehouse.execute("DELETE FROM pauses")
    warehouse.close()
    with pytest.raises(duckdb.ConnectionException):
        warehouse.rows("SELECT 1")
