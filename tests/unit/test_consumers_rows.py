"""Batches on their way into the warehouse: whole ones, long ones, and a kill behind them."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import weakref
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry

from fixtures.feedback.traffic import BOUNDS
from fixtures.kafka.brokers import until
from retuned.consumers.formats.events import BadEvent, Interaction, decode
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.kafka.memory import MemoryLog, MemorySource
from retuned.consumers.kafka.records import FetchedRecord
from retuned.consumers.metrics import Metrics
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.settings import IngestSettings, Settings, WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.writer import stored_offsets

MANY = 5_000  # more than two of what becomes Arrow arrays together

KILLED = """
import json, os, signal, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from retuned.consumers.ingest import Ingest
from retuned.consumers.warehouse.writer import stored_offsets
from retuned.consumers.kafka.memory import MemoryLog, MemorySource
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import Settings, WarehouseSettings
from retuned.consumers.warehouse.opening import open_warehouse

settings = Settings(warehouse=WarehouseSettings(path=Path(sys.argv[1])))
log, warehouse = MemoryLog(), open_warehouse(settings.warehouse)
for number in range(2 * settings.ingest.batch_events):
    event = {"id": f"e{number}", "timestamp": "2026-11-24T09:00:00Z", "workload": "w", "model": "m",
             "messages": [{"role": "user", "content": f"question {number}"}], "response": f"answer {number}"}
    log.append("interactions", json.dumps(event).encode())
source = MemorySource(log, ("interactions", "feedback"), lambda: stored_offsets(warehouse))
ingest = Ingest(source, warehouse, settings, Metrics(CollectorRegistry()))
before = warehouse.size().log
print(ingest.step(), warehouse.size().log - before, flush=True)
ingest.step()
os.kill(os.getpid(), signal.SIGKILL)
"""


def record(number: int, **fields: object) -> FetchedRecord:
    event = {
        "id": f"e{number}",
        "timestamp": f"2026-11-24T09:00:00.{number:06d}Z",
        "workload": "w",
        "model": "m",
        "messages": [{"role": "user", "content": f"Größe {number}? 👟"}],
        "response": f"antwort {number}",
    }
    return FetchedRecord("interactions", 0, number, json.dumps(event | fields, ensure_ascii=False).encode())


def test_a_long_batch_keeps_its_order_its_texts_and_each_id_once() -> None:
    records = [record(number) for number in range(MANY)] + [record(3), record(MANY, context=["a", "b"])]
    rows = Rows(Batch(records), timedelta(hours=1).total_seconds(), utc_now(), str)
    for one in records:
        rows.add(decode("interactions", one.value, BOUNDS), one)
    rows.pack()
    rows.redact(Redactor(), str)
    table = rows.tables["interactions"]
    assert rows.ids["interactions"] == table["id"].to_pylist() == [f"e{number}" for number in range(MANY + 1)]
    assert rows.duplicates == 1
    assert [json.loads(text)[0]["content"] for text in table["messages"].to_pylist()] == [
        f"Größe {number}? 👟" for number in range(MANY + 1)
    ]
    assert table["context"].to_pylist() == [None] * MANY + ['["a", "b"]']
    assert table["offset"].to_pylist() == list(range(MANY + 1))
    assert rows.messages == {"interactions": MANY + 2}


def test_an_id_is_known_within_the_distance_before_and_after_and_no_further() -> None:
    def duplicates(*hours: int) -> int:
        rows = Rows(Batch(), timedelta(hours=2).total_seconds(), utc_now(), str)
        for hour in hours:
            one = record(0, timestamp=f"2026-11-24T{hour:02}:00:00Z")
            rows.add(decode("interactions", one.value, BOUNDS), one)
        return rows.duplicates

    assert duplicates(9, 11) == duplicates(11, 9) == 1
    assert duplicates(9, 12) == duplicates(12, 9) == 0
    assert duplicates(12, 9, 8) == 1  # near to the one before it


@pytest.mark.parametrize("seed", range(20))
def test_duplicates_do_not_depend_on_how_events_fall_into_batches(seed: int) -> None:
    """A producer sends its whole log again: ids that it uses once a day have several times in one batch."""
    rng = random.Random(seed)
    log = [(f"e{rng.randrange(3)}", rng.randrange(0, 300, 10)) for _ in range(20)]
    log += log
    kept: dict[str, list[int]] = {}
    for id, minutes in log:
        if all(abs(minutes - one) > 60 for one in kept.setdefault(id, [])):
            kept[id].append(minutes)
    rows = Rows(Batch(), timedelta(hours=1).total_seconds(), utc_now(), str)
    for id, minutes in log:
        one = record(0, id=id, timestamp=f"2026-11-24T{minutes // 60:02}:{minutes % 60:02}:00Z")
        rows.add(decode("interactions", one.value, BOUNDS), one)
    rows.pack()
    expected = Counter({id: len(times) for id, times in kept.items()})
    assert Counter(rows.ids["interactions"]) == expected
    assert rows.duplicates == len(log) - expected.total()


def test_a_batch_does_not_hold_what_it_was_made_from() -> None:
    before = pa.total_allocated_bytes()
    rows = Rows(Batch(), timedelta(hours=1).total_seconds(), utc_now(), str)
    for number in range(MANY):
        one = record(number)
        rows.add(decode("interactions", one.value, BOUNDS), one)
    rows.pack()
    rows.redact(Redactor(), str)
    assert pa.total_allocated_bytes() - before < 1.5 * rows.tables["interactions"].nbytes


class Filled(MemorySource):
    """A source that has many events, and looks at how many batches are still there whenever it is asked for more."""

    def __init__(self, warehouse: Warehouse, events: int) -> None:
        log = MemoryLog()
        for number in range(events):
            value = record(number).value
            assert value is not None
            log.append("interactions", value)
        super().__init__(log, ("interactions", "feedback"), lambda: stored_offsets(warehouse))
        self.made: list[weakref.ref[Rows]] = []
        self.alive: list[int] = []

    def poll(self, max_records: int, timeout_seconds: float) -> Batch:
        self.alive.append(sum(one() is not None for one in self.made))
        return super().poll(max_records, timeout_seconds)


def test_while_a_batch_is_read_no_more_than_the_one_before_it_is_held(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Filled(warehouse, 1_000)
    settings = Settings(ingest=IngestSettings(batch_events=100, batch_seconds=0.01), warehouse={"path": warehouse.path})
    collectors = CollectorRegistry()
    ingest = Ingest(source, warehouse, settings, Metrics(collectors))
    # Of now before anything is read: 0 would be a standstill of half a century at the first scrape.
    assert collectors.get_sample_value("retuned_ingest_last_progress_timestamp_seconds")
    pack = Rows.pack

    def packed(rows: Rows) -> None:
        source.made.append(weakref.ref(rows))
        pack(rows)

    monkeypatch.setattr(Rows, "pack", packed)
    stop = threading.Event()
    thread = threading.Thread(target=ingest.run, args=(stop,))
    thread.start()
    try:
        until(lambda: ingest.events_seen == 1_000)
    finally:
        stop.set()
        thread.join()
    assert len(source.made) == 10
    assert max(source.alive) == 1


@pytest.mark.full
@pytest.mark.processes
def test_whole_batches_go_past_the_log_and_survive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "w.duckdb"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    batch = IngestSettings().batch_events
    stored, log = map(int, done.stdout.split())
    assert stored == batch
    assert log < 100_000  # of some 2 MB of events
    with closing(open_warehouse(WarehouseSettings(path=path))) as warehouse:
        found = warehouse.row(
            "SELECT count(*) AS n, count(DISTINCT id) AS ids, max(response) AS last FROM interactions"
        )
        assert found == {"n": 2 * batch, "ids": 2 * batch, "last": "answer 9999"}
        assert warehouse.row("SELECT next_offset FROM offsets") == {"next_offset": 2 * batch}


def test_what_counts_as_json_is_json_to_duckdb() -> None:
    """DuckDB is told that it need not look: a text that it cannot read would break each query over its column."""
    rng = random.Random(0)
    whole = {"a": [1, -2.5e-3, True, None, 'é\n\\"x/', {"b": "€😀", "c": []}], "d": {"e": 1e10, "f": "\t"}, "g": "end"}
    signs = b'"\\{}[]:,0123456789.eE+-tfn ulasr\x00\x01\x1f\x7f\x80\xc3\xa9\xff\n\t/'
    event = record(0).value
    assert event is not None
    taken = []
    for turn in range(20_000):
        text = bytearray(json.dumps(whole, ensure_ascii=turn % 2 == 0).encode())
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(2)] = rng.sample(signs, rng.randrange(2))
        with contextlib.suppress(BadEvent):
            taken.append(decode("interactions", event[:-1] + b', "attributes": ' + text + b"}", BOUNDS))
    assert len(taken) > 2_000
    texts = [bytes(one.attributes).decode() for one in taken if isinstance(one, Interaction)]
    unread = duckdb.execute("SELECT count(*) FROM (SELECT unnest($1) AS text) WHERE NOT json_valid(text)", [texts])
    assert unread.fetchall() == [(0,)]
