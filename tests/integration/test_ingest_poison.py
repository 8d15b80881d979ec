"""What one message holds stops nothing: neither the stream, nor an import, nor a replay, nor anybody else's events."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fixtures.kafka.brokers import until
from fixtures.kafka.ingestion import Rig, feedback, interaction, not_writable, settings_for
from retuned.consumers import decoding as decoding_module
from retuned.consumers import replay as replay_module
from retuned.consumers.errors import MemoryLimit, RetunedError, TooManyDeadLetters
from retuned.consumers.file_import import take
from retuned.consumers.formats import dialects
from retuned.consumers.formats.files import TOPIC
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.kafka.memory import MemoryLog
from retuned.consumers.kafka.records import FetchedRecord
from retuned.consumers.privacy.finder import Finder
from retuned.consumers.replay import replay
from retuned.consumers.settings import IngestSettings, Settings
from retuned.consumers.warehouse import packing as packing_module
from retuned.consumers.warehouse import writer as writer_module
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.writer import QUERIES, stored_offsets
from retuned.monitors.money.ledger import book
from retuned.monitors.settings import RoiSettings
from retuned.monitors.settings import Settings as MonitorSettings

POISON = "poison 4111 1111 1111 1111"  # with a number that has to be redacted


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    settings = settings_for(tmp_path)
    warehouse = open_warehouse(settings.warehouse)
    yield Rig(settings, warehouse, MemoryLog())
    warehouse.close()


def with_ingest(settings: Settings, **ingest: Any) -> Settings:
    changes = {"batch_seconds": 0.2, "max_age_days": 73_000, **ingest}
    return settings.model_copy(update={"ingest": IngestSettings(**changes)})


def stored(rig: Rig, table: str = "interactions") -> list[str]:
    return [row["id"] for row in rig.warehouse.rows(f"SELECT id FROM {table} ORDER BY id")]


def letters(rig: Rig) -> list[tuple[str, str, str | None]]:
    found = rig.warehouse.rows('SELECT reason, detail, payload FROM dead_letters ORDER BY topic, "offset"')
    return [(row["reason"], row["detail"], row["payload"]) for row in found]


def fails_on_poison(method: Callable[..., Any], place: int) -> Callable[..., Any]:
    def failing(*arguments: Any, **more: Any) -> Any:
        if "poison" in str(arguments[place]):
            raise RuntimeError(f"cannot do {arguments[place]}")
        return method(*arguments, **more)

    return failing


# Each breaks another step for one message, as a fault that nobody knows would.


def decoding(_: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dialects, decoding_module):
        monkeypatch.setattr(module, "decode", fails_on_poison(module.decode, 1))  # type: ignore[attr-defined]


def packing(_: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_module, "_array", fails_on_poison(packing_module._array, 0))


def redaction(_: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Finder, "find", fails_on_poison(Finder.find, 1))


def storing(_: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = """INSERT INTO {table} SELECT * REPLACE (
        CASE WHEN contains(batch_events::VARCHAR, 'poison') THEN error('cannot store') ELSE id END AS id), $batch
        FROM batch_events"""
    monkeypatch.setitem(QUERIES, "insert_events", sql)


FAULTS = [decoding, packing, redaction, storing]


@pytest.mark.parametrize("fault", FAULTS)
def test_one_message_that_breaks_any_step_is_a_dead_letter_and_the_rest_is_stored(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    with monkeypatch.context() as broken:
        fault(rig, broken)
        rig.send(*[interaction(f"i{number:02}") for number in range(10)], interaction("bad", response=POISON))
        rig.send(*[interaction(f"i{number:02}", response="to a@x.org") for number in range(10, 20)])
        rig.send(feedback("f1", "i01"), feedback("f2", "i02", name="comment", value=POISON), feedback("f3", "i03"))
        assert rig.drain() == 24
        assert stored(rig) == [f"i{number:02}" for number in range(20)]
        assert stored(rig, "feedback") == ["f1", "f3"]
        found = letters(rig)
        assert [reason for reason, _, _ in found] == ["internal_error", "internal_error"]
        assert "4111" not in str(found)
        assert rig.count("retuned_dead_letters_total", reason="internal_error") == 2
        assert rig.drain() == 0  # the offsets have moved past it
        if fault is not redaction:  # what cannot be redacted is not kept
            assert replay(rig.ingest) == {"tried": 2, "replayed": 0, "stored": 0}
            assert len(letters(rig)) == 2
    if fault is not redaction:  # and after a fix
        assert replay(rig.ingest) == {"tried": 2, "replayed": 2, "stored": 2}
        assert stored(rig)[0] == "bad"
        assert letters(rig) == []
        # Where the event was redacted already, nobody knows that the letter's card is the same.
        (kept,) = rig.warehouse.rows("SELECT response FROM interactions WHERE id = 'bad'")
        assert kept["response"].endswith("<CARD_2>" if fault is storing else "<CARD_1>")


@pytest.mark.parametrize("fault", FAULTS)
def test_one_row_of_a_file_that_breaks_any_step_is_refused_and_the_rest_is_stored(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    fault(rig, monkeypatch)
    events = [interaction("a"), interaction("bad", response=POISON), interaction("c")]
    topic = TOPIC + "0" * 16
    records = [FetchedRecord(topic, 0, place, json.dumps(event).encode()) for place, event in enumerate(events)]
    taken = take(rig.ingest, Batch(records, {}, {(topic, 0): 3}))
    assert (taken.stored, taken.refused) == ({"interactions": 2}, {"internal_error": 1})
    assert stored(rig) == ["a", "c"]
    assert taken.examples[0].offset == 1
    assert "4111" not in taken.examples[0].detail


def test_it_goes_on_in_the_running_loop_and_says_so_in_the_log(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    decoding(rig, monkeypatch)
    stop = threading.Event()
    thread = threading.Thread(target=rig.ingest.run, args=[stop])
    thread.start()
    try:
        rig.send(interaction("a"), interaction("bad", response=POISON), interaction("c"))
        for _ in range(100):
            if len(stored(rig)) == 2:
                break
            stop.wait(0.1)
    finally:
        stop.set()
        thread.join(10)
    assert stored(rig) == ["a", "c"]
    assert "RuntimeError" in caplog.text


def test_a_statement_that_fails_for_every_row_makes_no_dead_letters(rig: Rig) -> None:
    rig.send(interaction("a"), interaction("b"))
    with not_writable(rig.warehouse, "interactions"), pytest.raises(duckdb.Error):
        rig.ingest.step()
    assert letters(rig) == []


@pytest.mark.parametrize(
    "event",
    [
        {"attributes": json.loads('{"a":' * 500 + '"a@x.org"' + "}" * 500)},
        {"input_tokens": 9_223_372_036_854_775_807},
        {"cost": 1e308},
        {"timestamp": "1970-01-21T10:45:12Z"},
    ],
)
def test_messages_that_stopped_the_daemon_once(tmp_path: Path, event: dict[str, Any]) -> None:
    settings = with_ingest(settings_for(tmp_path), max_age_days=1_095)
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse, MemoryLog())
    rig.send(interaction("a", timestamp=_now()), interaction("bad", **{"timestamp": _now(), **event}))
    assert rig.drain() == 2
    assert stored(rig) == ["a"]
    assert [reason for reason, _, _ in letters(rig)] in (["bad_value"], ["too_deep"])
    warehouse.close()


def _now() -> str:
    return utc_now().isoformat() + "Z"


@pytest.mark.parametrize("field", ["attributes", "messages"])
@pytest.mark.parametrize("depth", [70, 500, 900, 3_000])
def test_what_is_nested_deeply_is_a_dead_letter_whole(rig: Rig, field: str, depth: int) -> None:
    def event(id: str, depth: int) -> bytes:
        nested = '{"a": ' * depth + '"b@x.org"' + "}" * depth
        text = f'[{{"role": "user", "content": "Hi", "more": {nested}}}]' if field == "messages" else nested
        plain = json.dumps(interaction(id, **{field: "HERE"}))
        return plain.replace('"HERE"', text).encode()

    wide = {"attributes": {str(number): [] for number in range(500)}}  # many brackets alone are no depth
    rig.send(event("a", 40), interaction("wide", **wide), event("deep", depth), interaction("z"))
    assert rig.drain() == 4
    assert stored(rig) == ["a", "wide", "z"]
    ((reason, _, payload),) = letters(rig)
    assert reason == "too_deep"
    assert payload is not None
    assert "b@x.org" not in payload
    assert replay(rig.ingest) == {"tried": 1, "replayed": 0, "stored": 0}


def test_an_event_of_the_future_or_the_far_past_never_becomes_a_window(tmp_path: Path) -> None:
    settings = with_ingest(settings_for(tmp_path), max_age_days=1_095)
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse, MemoryLog())
    for id, moved in (("late", -5_000), ("now", 0), ("early", 1)):
        rig.send(interaction(id, timestamp=(utc_now() + timedelta(days=moved)).isoformat() + "Z"))
    rig.drain()
    assert stored(rig) == ["now"]
    # A file may hold years.
    topic = TOPIC + "1" * 16
    old = json.dumps(interaction("old", timestamp="2011-02-03T00:00:00Z")).encode()
    take(rig.ingest, Batch([FetchedRecord(topic, 0, 0, old)], {}, {(topic, 0): 1}))
    assert stored(rig) == ["now", "old"]
    warehouse.close()


def test_what_is_passed_over_is_counted_and_stored_nowhere(rig: Rig) -> None:
    span = {"attributes": [{"key": "http.method", "value": {"stringValue": "GET"}}], "name": "GET"}
    failed = {"request": {"model": "m", "messages": [{"role": "user", "content": "x"}]}, "response": None}
    rig.send(json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span, span]}]}]}).encode())
    rig.send(json.dumps(failed).encode(), interaction("a"))
    assert rig.drain() == 3
    assert stored(rig) == ["a"]
    assert letters(rig) == []
    assert rig.count("retuned_events_passed_over_total", reason="no_model_call") == 2
    assert rig.count("retuned_events_passed_over_total", reason="failed_call") == 1
    assert rig.ingest.passed_over == {"no_model_call": 2, "failed_call": 1}


# --- producers -------------------------------------------------------------------------------------------------------


def window_of(tmp_path: Path, window: int) -> Rig:
    settings = with_ingest(settings_for(tmp_path), dead_letter_window=window)
    return Rig(settings, open_warehouse(settings.warehouse), MemoryLog())


def broken(number: int, workload: str) -> bytes:
    return json.dumps(interaction(f"b{number}", workload=workload, messages="none")).encode()


def test_a_producer_of_rubbish_is_set_aside_and_the_stream_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = window_of(tmp_path, 100)
    rig.send(interaction("first"))
    rig.drain()
    rubbish = bytes([0x0A, 7, 0x12, 5, 0x12, 3, 0x0A, 1, 0x6D])  # a metric of a collector, as protobuf
    rig.send(*[rubbish] * 120)
    assert rig.drain() == 120
    rig.send(interaction("last"))
    assert rig.drain() == 1
    assert stored(rig) == ["first", "last"]
    (found,) = rig.ingest.set_aside()
    assert (found.topic, found.workload, found.dead) == (rig.settings.kafka.interactions_topic, None, 100)
    assert "metrics" in found.example
    assert rig.count("retuned_producers_set_aside", topic=rig.settings.kafka.interactions_topic) == 1
    assert "set aside" in caplog.text
    assert len(letters(rig)) == 120  # nothing is lost
    rig.warehouse.close()


def test_a_workload_is_set_aside_for_itself_and_comes_back(tmp_path: Path) -> None:
    rig = window_of(tmp_path, 20)
    rig.send(*[interaction(f"g{number}", workload="good") for number in range(30)])
    rig.send(*[interaction(f"o{number}", workload="odd") for number in range(30)])
    rig.drain()
    rig.send(*[broken(number, "odd") for number in range(30)])
    rig.send(*[interaction(f"h{number}", workload="good") for number in range(10)])
    rig.drain()
    assert [(found.workload, found.dead, found.messages) for found in rig.ingest.set_aside()] == [("odd", 20, 20)]
    rig.send(interaction("o", workload="odd"))
    rig.drain()
    assert "o" in stored(rig)  # what it sends is treated as before
    rig.send(*[interaction(f"p{number}", workload="odd") for number in range(15)])
    rig.drain()
    assert rig.ingest.set_aside() == []
    assert rig.count("retuned_producers_set_aside", topic=rig.settings.kafka.interactions_topic) == 0
    rig.warehouse.close()


def test_when_most_of_everything_is_broken_it_stops_after_the_letters_are_stored(tmp_path: Path) -> None:
    rig = window_of(tmp_path, 10)
    rig.send(*[b"bad"] * 5, *[interaction(str(number)) for number in range(5)])
    rig.drain()  # half is not more than half
    rig.send(*[broken(number, "support.refunds") for number in range(12)])
    with pytest.raises(TooManyDeadLetters, match=r"10 of the last 10 .*dead_letter_share_limit 0\.5.*not_an_event"):
        rig.ingest.step()
    assert len(letters(rig)) == 17
    rig.warehouse.close()


def test_where_nobody_ever_sent_an_event_rubbish_stops_it(tmp_path: Path) -> None:
    rig = window_of(tmp_path, 10)
    rig.send(*[b"bad"] * 10)
    with pytest.raises(TooManyDeadLetters, match="not_json"):
        rig.ingest.step()
    rig.warehouse.close()


def test_who_sent_events_before_a_restart_is_known_after_it(tmp_path: Path) -> None:
    rig = window_of(tmp_path, 10)
    rig.send(interaction("a"))
    rig.drain()
    again = Rig(rig.settings, rig.warehouse, rig.log)
    again.send(*[b"bad"] * 30, interaction("b"))
    again.drain()
    assert stored(again) == ["a", "b"]
    assert len(again.ingest.set_aside()) == 1
    rig.warehouse.close()


def test_made_up_names_of_workloads_stop_nothing(tmp_path: Path) -> None:
    rig = window_of(tmp_path, 10)
    rig.send(interaction("a"))
    rig.drain()
    rig.send(*[broken(number, f"made up {number}") for number in range(300)])
    rig.drain()
    rig.send(interaction("b"))
    rig.drain()
    assert stored(rig) == ["a", "b"]
    rig.warehouse.close()


def restarted(rig: Rig) -> Rig:
    return Rig(rig.settings, rig.warehouse, rig.log)


def stopped(tmp_path: Path, window: int = 10) -> Rig:
    """Ingestion that stopped: 12 letters are stored and more wait."""
    rig = window_of(tmp_path, window)
    rig.send(*[interaction(str(number)) for number in range(window)])
    rig.drain()
    rig.send(*[broken(number, "support.refunds") for number in range(window + 2)])
    with pytest.raises(TooManyDeadLetters):
        rig.ingest.step()
    return rig


def test_a_start_after_a_stop_throws_nothing_more_away(tmp_path: Path) -> None:
    rig = stopped(tmp_path)
    rig.send(*[broken(number, "support.refunds") for number in range(100, 130)])
    before = stored_offsets(rig.warehouse)
    for _ in range(3):
        with pytest.raises(TooManyDeadLetters, match=r"30 of the next 30.*retuned dead-letters resume.*not_an_event"):
            restarted(rig).ingest.step()
    assert len(letters(rig)) == 12
    assert stored_offsets(rig.warehouse) == before
    rig.warehouse.close()


def test_a_start_after_the_producers_were_corrected_goes_on(tmp_path: Path) -> None:
    rig = stopped(tmp_path)
    again = restarted(rig)
    again.send(*[interaction(f"new {number}") for number in range(7)], b"bad")
    assert again.drain() == 8
    again.send(*[interaction(f"newer {number}") for number in range(20)])
    assert again.drain() == 20
    again.send(*[broken(number, "support.refunds") for number in range(12)])
    with pytest.raises(TooManyDeadLetters, match="of the last 10 messages"):  # the trial is over
        again.ingest.step()
    assert len(letters(rig)) == 12 + 1 + 12
    rig.warehouse.close()


def test_a_stop_is_remembered_for_as_long_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = stopped(tmp_path)
    later = utc_now() + timedelta(days=90)
    monkeypatch.setattr("retuned.consumers.decoding.utc_now", lambda: later)
    again = restarted(rig)
    again.send(*[b"bad"] * 3)
    with pytest.raises(TooManyDeadLetters, match="none of them was stored"):
        again.ingest.step()
    rig.warehouse.close()


def test_a_window_fills_over_many_starts(tmp_path: Path) -> None:
    """One that is killed before each window is full stops all the same."""
    rig = window_of(tmp_path, 100)
    for start in range(9):
        rig = restarted(rig)
        rig.send(*[broken(10 * start + number, f"w{start % 2}") for number in range(11)])
        rig.drain()
    rig = restarted(rig)
    rig.send(*[b"bad"] * 11)
    with pytest.raises(TooManyDeadLetters):
        rig.drain()
    rig.warehouse.close()


def test_who_was_set_aside_before_a_restart_is_after_it(tmp_path: Path) -> None:
    rig = window_of(tmp_path, 20)
    for name in ("a", "b", "c"):
        rig.send(*[interaction(f"{name}{number}", workload=name) for number in range(5)])
    rig.drain()
    rig.send(*[broken(number, "b") for number in range(40)], b"bad")
    rig.drain()
    (before,) = rig.ingest.set_aside()
    again = restarted(rig)
    (after,) = again.ingest.set_aside()
    assert (after.topic, after.workload, after.dead, after.messages) == (
        rig.settings.kafka.interactions_topic, "b", before.dead, before.messages,
    )  # fmt: skip
    assert after.example == before.example
    rig.warehouse.close()


def test_letters_that_were_replayed_count_no_more(tmp_path: Path) -> None:
    rig = stopped(tmp_path)
    messages = '[{"role":"user","content":"?"}]'
    rig.warehouse.execute("UPDATE dead_letters SET payload = replace(payload, '\"none\"', ?)", [messages])
    assert replay(rig.ingest)["replayed"] == 12
    again = restarted(rig)
    again.send(b"bad")
    assert again.drain() == 1
    rig.warehouse.close()


def test_an_operator_has_it_take_in_what_waits_and_no_more(tmp_path: Path) -> None:
    rig = stopped(tmp_path)
    rig.send(*[broken(number, "support.refunds") for number in range(100, 130)])
    restarted(rig).ingest.resume()
    again = restarted(rig)  # it is kept
    assert again.drain() == 30
    assert len(letters(rig)) == 42
    for rig in (again, restarted(again)):  # everything was read: it counts again, from here on
        rig.send(*[broken(number, "support.refunds") for number in range(4)])
        assert rig.drain() == 4
    rig.send(*[broken(number, "support.refunds") for number in range(4)])
    with pytest.raises(TooManyDeadLetters):
        rig.drain()
    rig.warehouse.close()


def test_what_waits_is_taken_in_while_events_keep_coming(tmp_path: Path) -> None:
    """No poll is ever empty."""
    rig = stopped(tmp_path)
    rig.ingest.resume()
    for number in range(30):
        rig.send(broken(number, "support.refunds"))
        if number < 5:
            assert rig.ingest.step() == 1
    with pytest.raises(TooManyDeadLetters):
        rig.ingest.step()
    rig.warehouse.close()


# --- replay ----------------------------------------------------------------------------------------------------------


def test_a_replay_of_many_letters_lets_ingestion_go_on_between_its_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of a bounded number and size, each letter once, also those of one message and those that stay."""
    monkeypatch.setattr(replay_module, "LETTERS", 7)
    monkeypatch.setattr(replay_module, "CHARACTERS", 1_200)
    rig = window_of(tmp_path, 1_000)
    rig.send(interaction("first"))
    rig.drain()
    for number in range(40):
        messages = "none" if number % 4 else "never"
        rig.send(json.dumps(interaction(f"b{number}", messages=messages, response="x" * 60 * (number % 5))).encode())
        if number % 3 == 0:
            rig.drain()
    rig.drain()
    rig.warehouse.execute('INSERT INTO dead_letters FROM dead_letters WHERE "offset" = 2')  # of one message
    fixed = '[{"role":"user","content":"?"}]'
    rig.warehouse.execute("UPDATE dead_letters SET payload = replace(payload, '\"none\"', ?)", [fixed])
    pieces, run = [], rig.ingest.run_in_ingest_thread

    def counted(name: str, work: Any) -> Any:
        done = run(name, work)
        pieces.append(done["tried"])
        rig.send(interaction(f"meanwhile {len(pieces)}"))
        rig.drain()
        return done

    monkeypatch.setattr(rig.ingest, "run_in_ingest_thread", counted)
    done = replay(rig.ingest)
    assert done == {"tried": 41, "replayed": 31, "stored": 30}
    assert sum(pieces) == 41
    assert max(pieces) <= 7
    assert len(pieces) > 6
    assert len(letters(rig)) == 10
    assert len(stored(rig)) == 1 + 30 + len(pieces)
    rig.warehouse.close()


def test_replayed_letters_are_booked(tmp_path: Path) -> None:
    """Kafka's offset of one is far behind what was booked before."""
    rig = window_of(tmp_path, 1_000)
    roi = MonitorSettings(roi=RoiSettings(hourly_rate=40.0))
    rig.send(json.dumps(interaction("a", cost=0.5, messages="none")).encode(), interaction("b", cost=0.25))
    rig.drain()
    assert [entry.amount for entry in book(rig.warehouse, roi, utc_now())] == [0.25]
    rig.warehouse.execute('UPDATE dead_letters SET payload = replace(payload, \'"none"\', \'[{"role":"user"}]\')')
    rig.warehouse.execute('UPDATE dead_letters SET payload = replace(payload, \'"user"\', \'"user","content":"?"\')')
    assert replay(rig.ingest)["stored"] == 1
    assert [entry.amount for entry in book(rig.warehouse, roi, utc_now())] == [0.5]
    assert book(rig.warehouse, roi, utc_now()) == []
    rig.warehouse.close()


def test_events_of_a_topic_that_was_made_anew_are_booked(tmp_path: Path) -> None:
    """Its offsets begin at 0 again."""
    rig = window_of(tmp_path, 1_000)
    roi = MonitorSettings(roi=RoiSettings(hourly_rate=40.0))
    rig.send(*[interaction(str(number), cost=1.0) for number in range(5)])
    rig.drain()
    assert [entry.amount for entry in book(rig.warehouse, roi, utc_now())] == [5.0]
    assert rig.log
    rig.log.remake(rig.settings.kafka.interactions_topic)
    rig.send(*[interaction(f"new {number}", cost=1.0) for number in range(7)])
    assert rig.drain() == 7
    assert [entry.amount for entry in book(rig.warehouse, roi, utc_now())] == [7.0]
    assert rig.count("retuned_topics_remade_total", topic=rig.settings.kafka.interactions_topic) == 1
    assert len(stored(rig)) == 12  # what was stored stays
    rig.warehouse.close()


# --- memory ----------------------------------------------------------------------------------------------------------


class Relief:
    """The pauses of the writer, in the first of which something else gives back its memory."""

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    def __iter__(self) -> Iterator[float]:
        yield 0.0
        with self._warehouse.cursor() as cursor:
            cursor.execute("SET memory_limit = '1GB'")
        yield 0.0


def big_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(writer_module, "PAUSES", (0.0, 0.0))
    rig = window_of(tmp_path, 1_000)
    rig.send(interaction("small"))
    assert rig.drain() == 1
    rig.send(*[interaction(str(number), response="a " * 10_000) for number in range(600)])
    with rig.warehouse.cursor() as cursor:
        cursor.execute("SET memory_limit = '8MB'")
    return rig


def test_a_batch_waits_for_memory_that_something_else_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = big_batch(tmp_path, monkeypatch)
    monkeypatch.setattr(writer_module, "PAUSES", Relief(rig.warehouse))
    assert rig.drain() == 600
    assert len(stored(rig)) == 601
    rig.warehouse.close()


def test_too_little_memory_is_named_and_nothing_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = big_batch(tmp_path, monkeypatch)
    with pytest.raises(MemoryLimit, match=r"more memory than warehouse\.memory_limit \(1GB\)"):
        rig.ingest.step()
    assert len(stored(rig)) == 1
    rig.warehouse.close()


@pytest.fixture
def letters_in_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Ingestion that runs, and letters whose replay finds too little memory until the first retry."""
    monkeypatch.setattr(writer_module, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(replay_module, "CHARACTERS", 20 * 2**20)
    rig = window_of(tmp_path, 1_000)
    rig.send(interaction("small"))
    rig.send(*[interaction(f"{n:03}", messages="none", response="a " * 30_000) for n in range(200)])
    rig.drain()
    fixed = '[{"role":"user","content":"?"}]'
    rig.warehouse.execute("UPDATE dead_letters SET payload = replace(payload, '\"none\"', ?)", [fixed])
    run = rig.ingest.run_in_ingest_thread

    def pressed(name: str, work: Callable[[], Any]) -> Any:
        def pressed_work() -> Any:
            for megabytes in range(6, 60, 2):  # as little as it can keep
                with rig.warehouse.cursor() as cursor, suppress(duckdb.OutOfMemoryException):
                    cursor.execute(f"SET memory_limit = '{megabytes}MB'")
                    break
            return work()

        return run(name, pressed_work)

    monkeypatch.setattr(rig.ingest, "run_in_ingest_thread", pressed)
    stop = threading.Event()
    thread = threading.Thread(target=rig.ingest.run, args=[stop])
    thread.start()
    yield rig
    stop.set()
    thread.join(10)
    rig.warehouse.close()


@pytest.mark.full
def test_a_replay_waits_for_memory_as_a_batch_does(letters_in_need: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "PAUSES", Relief(letters_in_need.warehouse))
    assert replay(letters_in_need.ingest) == {"tried": 200, "replayed": 200, "stored": 200}
    assert len(stored(letters_in_need)) == 201


@pytest.mark.full
@pytest.mark.parametrize("kind", ["replay", "import"])
def test_a_request_that_finds_too_little_memory_fails_and_ingestion_goes_on(letters_in_need: Rig, kind: str) -> None:
    rig = letters_in_need
    topic = TOPIC + "3" * 16
    rows = [json.dumps(interaction(f"row {n}", response="a " * 30_000)).encode() for n in range(200)]
    batch = Batch([FetchedRecord(topic, 0, n, row) for n, row in enumerate(rows)], {}, {(topic, 0): len(rows)})
    with pytest.raises(MemoryLimit):
        replay(rig.ingest) if kind == "replay" else take(rig.ingest, batch)
    with rig.warehouse.cursor() as cursor:
        cursor.execute("SET memory_limit = '1GB'")
    assert stored(rig) == ["small"]
    rig.send(interaction("later"))
    until(lambda: stored(rig) == ["later", "small"])
    assert len(letters(rig)) == 200


@pytest.mark.parametrize(
    ("kind", "broken", "is_stored"),
    [
        ("import", lambda ingest: (ingest.decoder, "rows"), False),
        ("import", lambda ingest: (ingest.writer, "_move_offsets"), False),  # the end of the transaction
        ("import", lambda ingest: (ingest, "account_for"), True),
        ("replay", lambda ingest: (ingest.decoder, "found"), False),
        ("replay", lambda ingest: (ingest.writer, "_move_offsets"), False),
    ],
)
def test_a_request_that_fails_for_a_reason_that_nobody_foresaw_fails_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str, broken: Any, is_stored: bool
) -> None:
    rig.send(interaction("a"), interaction("b", messages="none"))
    rig.drain()
    fixed = '[{"role":"user","content":"?"}]'
    rig.warehouse.execute("UPDATE dead_letters SET payload = replace(payload, '\"none\"', ?)", [fixed])
    topic = TOPIC + "4" * 16
    batch = Batch([FetchedRecord(topic, 0, 0, json.dumps(interaction("row")).encode())], {}, {(topic, 0): 1})
    offsets = stored_offsets(rig.warehouse)

    def fails(*_: Any, **__: Any) -> Any:
        raise KeyError(POISON)

    stop = threading.Event()
    thread = threading.Thread(target=rig.ingest.run, args=[stop])
    thread.start()
    try:
        until(lambda: rig.ingest.broker_up)
        with monkeypatch.context() as patch:
            patch.setattr(*broken(rig.ingest), fails)
            with pytest.raises(RetunedError, match=r"^(import|dead letters): .*KeyError in fails") as failure:
                replay(rig.ingest) if kind == "replay" else take(rig.ingest, batch)
        assert "KeyError in fails" in caplog.text
        assert POISON not in caplog.text + str(failure.value)
        if not is_stored:
            assert (stored(rig), len(letters(rig)), stored_offsets(rig.warehouse)) == (["a"], 1, offsets)
            assert take(rig.ingest, batch).stored == {"interactions": 1}
        assert replay(rig.ingest) == {"tried": 1, "replayed": 1, "stored": 1}
        rig.send(interaction("later"))
        until(lambda: stored(rig) == ["a", "b", "later", "row"])
    finally:
        stop.set()
        thread.join(10)
