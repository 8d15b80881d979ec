"""Ingestion from real brokers into real DuckDB files."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import OffsetOutOfRangeError
from prometheus_client import CollectorRegistry

from fixtures.kafka.brokers import (
    Broker,
    Json,
    forget_killed,
    free_port,
    no_apache_kafka,
    run_apache_kafka,
    run_tansu,
    until,
)
from fixtures.kafka.ingestion import Rig, feedback, interaction, not_writable, settings_for
from retuned.consumers.errors import (
    BrokerRefused,
    BrokerUnavailable,
    EventsLost,
    Fenced,
    RetunedError,
)
from retuned.consumers.formats import dialects
from retuned.consumers.formats.events import Feedback
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.connection import WITHOUT_END, check_broker, unbounded_topics
from retuned.consumers.kafka.contract import FIRST_RECORDS, Source
from retuned.consumers.kafka.memory import MemoryLog, MemorySource
from retuned.consumers.kafka.publisher import KafkaPublisher
from retuned.consumers.kafka.records import FetchedRecord
from retuned.consumers.kafka.source import KafkaSource
from retuned.consumers.metrics import Metrics
from retuned.consumers.privacy.pseudonyms import is_pseudonym
from retuned.consumers.replay import replay
from retuned.consumers.settings import IngestSettings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.writer import stored_offsets

OTEL = {"gen_ai.request.model": "m", "gen_ai.agent.name": "support.refunds", "gen_ai.response.id": "otel"}
OTEL |= {"gen_ai.prompt": "Whom?", "gen_ai.completion": "Anna."}

NAMELESS = {key: text for key, text in OTEL.items() if key != "gen_ai.request.model"} | {"gen_ai.response.id": "other"}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    settings = settings_for(tmp_path)
    warehouse = open_warehouse(settings.warehouse)
    yield Rig(settings, warehouse, MemoryLog())
    warehouse.close()


def producer_for(broker: Broker) -> KafkaProducer:
    return KafkaProducer(bootstrap_servers=broker.bootstrap_servers, value_serializer=Json())


def test_all_fields_arrive_redacted_with_a_pseudonym(rig: Rig) -> None:
    rig.send(
        interaction(
            "i1",
            messages=[
                {"role": "user", "content": "I am anna@example.com"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"arguments": '{"mail":"anna@example.com"}'}}],
                },
            ],
            response="Dear anna@example.com",
            context=["Call +49 30 1234567"],
            attributes={"from": "anna@example.com", "channel": "web"},
            user_id="anna",
            conversation_id="c1",
            latency_seconds=0.8,
            input_tokens=10,
        ),
        feedback("f1", "i1", name="comment", value="I am anna@example.com", user_id="anna", source="expert"),
    )
    assert rig.drain() == 2
    row = rig.warehouse.row("SELECT * FROM interactions")
    said = rig.warehouse.row("SELECT * FROM feedback")
    assert row is not None
    assert said is not None
    assert "anna" not in json.dumps([row, said], default=str)
    assert json.loads(row["messages"])[1]["tool_calls"] == [{"function": {"arguments": '{"mail":"<EMAIL_1>"}'}}]
    assert (row["response"], json.loads(row["context"])) == ("Dear <EMAIL_1>", ["Call <PHONE_1>"])
    assert json.loads(row["attributes"]) == {"from": "<EMAIL_1>", "channel": "web"}
    assert (row["conversation_id"], row["latency_seconds"], row["input_tokens"], row["output_tokens"]) == (
        "c1",
        0.8,
        10,
        None,
    )
    assert json.loads(said["value"]) == "I am <EMAIL_1>"
    assert row["user_id"] == said["user_id"]
    assert len(row["user_id"]) == 4 + 1 + 32
    assert rig.count("retuned_redactions_total", kind="EMAIL") == 5
    assert rig.count("retuned_events_total", topic=rig.settings.kafka.feedback_topic) == 1
    of = {"workload": row["workload"], "model_name": row["model"]}
    assert rig.count("retuned_interaction_latency_seconds_sum", **of) == 0.8
    assert rig.count("retuned_interaction_tokens_total", kind="input", **of) == 10
    assert rig.ingest.events_seen == 2
    assert rig.ingest.last_event_at == row["received_at"]


def test_placeholders_are_numbered_within_a_conversation_over_batches_and_feedback(rig: Rig) -> None:
    said = [{"role": "user", "name": "a@x.org", "content": "from a@x.org to b@x.org"}]
    rig.send(interaction("i1", conversation_id="c1", messages=said, response="c@x.org", finish_reason="stop: a@x.org"))
    rig.send(interaction("i2", conversation_id="c2", response="c@x.org"), interaction("i3", conversation_id="c1"))
    rig.drain()
    rig.send(interaction("i4", conversation_id="c1", response="d@x.org, c@x.org"))
    rig.send(feedback("f1", "i3", name="comment", value="ask b@x.org"))  # nothing was found in i3 itself
    rig.send(
        feedback("f2", "i2", name="about c@x.org", value="e@x.org"),
        feedback("f3", "unseen", name="other", value="b@x.org"),
    )
    rig.drain()
    rows = {row["id"]: row for row in rig.warehouse.rows("SELECT * FROM interactions")}
    (message,) = json.loads(rows["i1"]["messages"])
    assert is_pseudonym(message["name"])  # it names the user
    assert message["content"] == "from <EMAIL_1> to <EMAIL_2>"
    assert (rows["i1"]["response"], rows["i1"]["finish_reason"]) == ("<EMAIL_3>", "stop: <EMAIL_1>")
    assert (rows["i2"]["response"], rows["i4"]["response"]) == ("<EMAIL_1>", "<EMAIL_4>, <EMAIL_3>")
    said_later = {row["id"]: (row["name"], row["value"]) for row in rig.warehouse.rows("SELECT * FROM feedback")}
    assert said_later == {
        "f1": ("comment", '"ask <EMAIL_2>"'),
        "f2": ("about <EMAIL_1>", '"<EMAIL_2>"'),
        "f3": ("other", '"<EMAIL_1>"'),
    }


def test_a_conversation_named_after_a_person_is_hashed_and_stays_one(rig: Rig) -> None:
    rig.send(interaction("i1", conversation_id="whatsapp:+49 171 2938475"), interaction("i2", conversation_id="c1"))
    rig.send(interaction("i3", conversation_id="whatsapp:+49 171 2938475", response="a@x.org"))
    rig.drain()
    one, two, three = (
        row["conversation_id"] for row in rig.warehouse.rows("SELECT conversation_id FROM interactions ORDER BY id")
    )
    assert one == three
    assert len(one) == 4 + 1 + 32
    assert two == "c1"


def test_the_key_of_the_user_hash_is_nowhere_in_the_warehouse(rig: Rig) -> None:
    rig.send(interaction("i1", user_id="anna"), b'{"user_id": "anna"}')
    rig.drain()
    path = rig.warehouse.path
    with rig.warehouse.cursor() as cursor:
        cursor.execute("CHECKPOINT")
    key = path.with_name(path.name + ".key").read_bytes().strip()
    assert key
    assert key not in path.read_bytes()
    user = rig.warehouse.row("SELECT user_id, payload FROM interactions, dead_letters")
    assert user is not None
    assert user["user_id"] in user["payload"]


@pytest.mark.parametrize(
    "payload",
    [
        b'{"user": "anna", "request": {"user": {"name": "anna", "n": null}, "safety_identifier": ["anna"]}}',
        b'{"attributes": [{"key": "enduser.id", "value": {"stringValue": "anna"}}, {"key": "role", "value": "user"}]}',
        b'{"attributes": {"user.id": "anna", "role": "user"}}',
        b'{"user.id" : "anna", "role": "user", broken',
    ],
)
def test_users_are_in_no_dead_letter_whatever_its_format(rig: Rig, payload: bytes) -> None:
    rig.send(payload)
    rig.drain()
    letter = rig.warehouse.row("SELECT payload FROM dead_letters")
    assert letter is not None
    assert "anna" not in letter["payload"]
    assert b"role" not in payload or '"role"' in letter["payload"]


def test_an_id_is_stored_once_within_the_distance(rig: Rig) -> None:
    rig.send(interaction("a"), interaction("b"), interaction("a"))
    rig.drain()
    rig.send(interaction("a"), interaction("a", timestamp="2026-11-24T10:29:59Z"), interaction("c"))
    rig.send(interaction("a", timestamp="2026-11-25T09:30:00Z"))  # a day later: another event
    rig.send(feedback("a", "a"), feedback("a", "a"))  # ids of the two kinds are apart
    rig.drain()
    ids = [row["id"] for row in rig.warehouse.rows("SELECT id FROM interactions ORDER BY id, timestamp")]
    assert ids == ["a", "a", "b", "c"]
    assert len(rig.warehouse.rows("SELECT id FROM feedback")) == 1
    assert rig.count("retuned_event_duplicates_total") == 4


def test_feedback_may_come_before_its_interaction(rig: Rig) -> None:
    rig.send(feedback("f1", "late"))
    rig.drain()
    rig.send(interaction("late"))
    rig.drain()
    joined = rig.warehouse.rows("SELECT f.value FROM feedback f JOIN interactions i ON i.id = f.interaction_id")
    assert joined == [{"value": "true"}]


def test_malformed_events_become_dead_letters_and_stop_nothing(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, dead_letter_topic="dead")
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse, MemoryLog())
    rig.send(interaction("good"))
    rig.send(b'{"user_id": "anna", "text": "anna\\u0040example.com"}', b"\xff\xfe anna@example.com", b"{}", b"")
    rig.send(b'{"user_id": "anna", broken', interaction("good too"), b'{"a": "' + b"x" * 100_000)
    assert rig.drain() == 8
    letters = warehouse.rows('SELECT * FROM dead_letters ORDER BY "offset"')
    assert [letter["offset"] for letter in letters] == [1, 2, 3, 4, 5, 7]
    assert [letter["reason"] for letter in letters] == [
        "not_an_event", "not_utf8", "not_an_event", "empty", "not_json", "not_json",
    ]  # fmt: skip
    assert "anna" not in json.dumps(letters, default=str)
    assert "<EMAIL_1>" in letters[0]["payload"]
    assert "id" in letters[2]["detail"]
    assert len(letters[5]["payload"]) < 70_000
    assert len(warehouse.rows("SELECT id FROM interactions")) == 2
    assert stored_offsets(warehouse) == {(settings.kafka.interactions_topic, 0): 8}
    assert [(topic, value["reason"]) for topic, _, value in rig.publisher.messages] == [
        ("dead", letter["reason"]) for letter in letters
    ]
    assert rig.count("retuned_dead_letters_total", reason="not_json") == 2
    warehouse.close()


def letter(warehouse: Warehouse, offset: int, payload: Any, topic: str = "in") -> None:
    """A dead letter of a version that could not decode what this one can."""
    text = payload if isinstance(payload, str) else json.dumps(payload)
    row = {"topic": topic, "partition": 0, "offset": offset, "reason": "not_an_event", "detail": "…", "payload": text}
    warehouse.insert("dead_letters", **row, received_at=datetime(2026, 11, 24))


def spans(*attributes: dict[str, str]) -> dict[str, Any]:
    """A batch of OpenTelemetry spans, as an exporter sends it."""
    times = {"startTimeUnixNano": "1795512600000000000", "endTimeUnixNano": "1795512601000000000"}
    made = [
        {"attributes": [{"key": key, "value": {"stringValue": text}} for key, text in each.items()], **times}
        for each in attributes
    ]
    return {"resourceSpans": [{"scopeSpans": [{"spans": made}]}]}


def test_of_two_letters_of_one_message_the_one_that_is_an_event_now_is_replayed(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    strict = settings.model_copy(update={"ingest": IngestSettings(batch_seconds=0.2, max_age_days=1)})
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(strict, warehouse, MemoryLog())
    rig.send(json.dumps(spans(OTEL, NAMELESS)).encode())
    rig.drain()
    stored = warehouse.rows('SELECT partition, "offset", payload FROM dead_letters')
    assert [(row["partition"], row["offset"]) for row in stored] == [(0, 0), (0, 0)]
    assert replay(Rig(settings, warehouse, rig.log).ingest) == {"tried": 2, "replayed": 1, "stored": 1}
    (left,) = warehouse.rows("SELECT payload FROM dead_letters")
    assert json.loads(left["payload"])["id"] == "other"
    warehouse.close()


def test_dead_letters_that_are_events_now_are_replayed(rig: Rig) -> None:
    rig.send(interaction("seen", user_id="anna"))
    rig.drain()
    stored = rig.warehouse.row("SELECT user_id FROM interactions")
    assert stored is not None
    topic, feedback_topic = rig.settings.kafka.interactions_topic, rig.settings.kafka.feedback_topic
    letter(rig.warehouse, 1, interaction("new", user_id=stored["user_id"]), topic)
    letter(rig.warehouse, 2, interaction("seen"), topic)
    letter(rig.warehouse, 3, feedback("f", "new", value="yes", name="comment"), feedback_topic)
    letter(rig.warehouse, 4, interaction("named", user_id="anna", response="Mail bob@example.com"), topic)
    letter(rig.warehouse, 5, {"price": 3}, topic)
    letter(rig.warehouse, 6, "not json", topic)
    letter(rig.warehouse, 7, spans(OTEL, NAMELESS), topic)
    assert replay(rig.ingest) == {"tried": 7, "replayed": 4, "stored": 3}
    rows = {row["id"]: row for row in rig.warehouse.rows("SELECT * FROM interactions")}
    assert rows.keys() == {"seen", "new", "named"}
    assert rows["new"]["user_id"] == rows["named"]["user_id"] == rows["seen"]["user_id"]
    assert rows["named"]["response"] == "Mail <EMAIL_1>"
    assert (rows["new"]["topic"], rows["new"]["offset"]) == (topic, 1)
    assert [row["value"] for row in rig.warehouse.rows("SELECT value FROM feedback")] == ['"yes"']
    kept = [row["offset"] for row in rig.warehouse.rows('SELECT "offset" FROM dead_letters ORDER BY 1')]
    assert kept == [5, 6, 7]  # also the one of which only a part is an event
    assert replay(rig.ingest) == {"tried": 3, "replayed": 0, "stored": 0}
    rig.warehouse.execute('UPDATE dead_letters SET payload = ? WHERE "offset" = 7', [json.dumps(spans(OTEL))])
    assert replay(rig.ingest) == {"tried": 3, "replayed": 1, "stored": 1}  # that part was one all along
    rig.send(interaction("new"))  # a producer that sends it again, later: it is known
    rig.drain()
    assert rig.warehouse.row("SELECT count(*) AS n FROM interactions") == {"n": 4}


def test_a_cloud_event_in_binary_mode_is_replayed_with_its_headers(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    event = interaction("replaced")
    del event["id"], event["timestamp"]
    headers = {"specversion": "1.0", "id": "cloud", "time": "2026-11-24T09:30:00Z", "subject": "anna@example.com"}
    encoded = [(f"ce_{name}", value.encode()) for name, value in headers.items()]
    monkeypatch.setattr(dialects, "_recognised", lambda *_: iter(()))  # as a daemon that does not know the format yet
    rig.log.append(rig.settings.kafka.interactions_topic, json.dumps(event).encode(), headers=encoded)  # type: ignore[union-attr]
    assert rig.drain() == 1
    monkeypatch.undo()
    payload = json.loads(rig.warehouse.rows("SELECT payload FROM dead_letters")[0]["payload"])
    assert payload == headers | {"subject": "<EMAIL_1>", "data": event}
    assert replay(rig.ingest) == {"tried": 1, "replayed": 1, "stored": 1}
    assert [row["id"] for row in rig.warehouse.rows("SELECT id FROM interactions")] == ["cloud"]


def test_dead_letters_are_replayed_while_events_flow(rig: Rig) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=rig.ingest.run, args=(stop,))
    thread.start()
    try:
        for number in range(30):
            rig.send(*[interaction(f"{number}-{n}") for n in range(20)])
            letter(rig.warehouse, number, interaction(f"letter {number}"), rig.settings.kafka.interactions_topic)
            if number % 10 == 9:
                assert replay(rig.ingest) == {"tried": 10, "replayed": 10, "stored": 10}
        until(lambda: rig.ingest.events_seen == 600)
    finally:
        stop.set()
        thread.join(10)
    assert rig.warehouse.row("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM interactions") == {
        "n": 630,
        "ids": 630,
    }
    letter(rig.warehouse, 99, interaction("after"), rig.settings.kafka.interactions_topic)
    assert replay(rig.ingest)["stored"] == 1


def test_a_replay_that_cannot_be_written_changes_nothing(rig: Rig) -> None:
    letter(rig.warehouse, 1, interaction("new"), rig.settings.kafka.interactions_topic)
    with not_writable(rig.warehouse, "dead_letters"), pytest.raises(RetunedError, match=r"^dead letters: "):
        replay(rig.ingest)
    assert rig.warehouse.row("SELECT count(*) AS n FROM interactions") == {"n": 0}
    assert rig.warehouse.row("SELECT count(*) AS n FROM dead_letters") == {"n": 1}
    assert replay(rig.ingest) == {"tried": 1, "replayed": 1, "stored": 1}


@pytest.mark.parametrize("error", [BrokerUnavailable("away"), BrokerRefused("not allowed")])
def test_a_dead_letter_topic_that_takes_nothing_loses_nothing(tmp_path: Path, error: Exception) -> None:
    settings = settings_for(tmp_path, dead_letter_topic="dead")
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse, MemoryLog())

    tries = []

    def fail(*arguments: Any) -> None:
        tries.append(arguments)
        raise error

    rig.publisher.publish_all = fail  # type: ignore[method-assign]
    for number in range(3):
        rig.send(b"bad", interaction(f"good {number}"))
        assert rig.drain() == 2
    assert len(warehouse.rows("SELECT * FROM dead_letters")) == 3
    assert len(tries) == 1  # each try may take seconds, and events must not wait for a copy
    assert rig.count("retuned_dead_letter_publish_failures_total") == 1
    warehouse.close()


def test_another_consumer_that_moved_an_offset_fences(rig: Rig) -> None:
    rig.send(interaction("a"))
    rig.drain()
    rig.send(interaction("b"))
    rig.warehouse.execute("UPDATE offsets SET next_offset = 2")
    with pytest.raises(Fenced, match="one daemon for each warehouse"):
        rig.ingest.step()
    assert [row["id"] for row in rig.warehouse.rows("SELECT id FROM interactions")] == ["a"]


def test_two_first_writers_of_a_partition_fence(rig: Rig) -> None:
    rig.send(interaction("a"))
    other = Rig(rig.settings, rig.warehouse, rig.log)
    batch, late = rig.source.poll(10, 0), other.source.poll(10, 0)
    for source, ready in ((rig.source, batch), (other.source, late)):
        source.poll = lambda *_, ready=ready: ready
    rig.ingest.step()
    with pytest.raises(Fenced):
        other.ingest.step()
    assert len(rig.warehouse.rows("SELECT id FROM interactions")) == 1


def test_run_stores_what_it_read_before_it_stops(rig: Rig) -> None:
    rig.send(*[interaction(str(number)) for number in range(200)])
    stop = threading.Event()
    thread = threading.Thread(target=rig.ingest.run, args=(stop,))
    thread.start()
    until(lambda: rig.ingest.events_seen == 200)
    rig.send(*[interaction(f"x{number}") for number in range(200)])
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
    rows = rig.warehouse.row("SELECT count(*) AS n FROM interactions")
    assert rows is not None
    offset = stored_offsets(rig.warehouse)[rig.settings.kafka.interactions_topic, 0]
    assert rows["n"] == offset == rig.ingest.events_seen


def test_run_lets_other_errors_out(rig: Rig) -> None:
    rig.send(interaction("a"))
    rig.warehouse.execute(
        "INSERT INTO offsets (topic, partition, next_offset) VALUES (?, 0, 5)", [rig.settings.kafka.interactions_topic]
    )
    assert rig.log is not None
    source = MemorySource(rig.log, [rig.settings.kafka.interactions_topic], dict)  # as if nothing was stored
    with pytest.raises(Fenced):
        Ingest(source, rig.warehouse, rig.settings, Metrics(CollectorRegistry())).run(threading.Event())


@pytest.fixture(params=["tansu", "apache_kafka"])
def broker(request: pytest.FixtureRequest) -> Broker:
    found: Broker = request.getfixturevalue(request.param)
    return found


def test_events_are_known_until_the_time_of_the_oldest_that_waits(broker: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, broker.bootstrap_servers)
    settings = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"batch_events": 10})})
    broker.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic, partitions=1)
    producer = producer_for(broker)
    for part in range(2):
        for number in range(10):
            producer.send(settings.kafka.interactions_topic, interaction(f"{part} {number}"))
        producer.flush()
        time.sleep(0.5)
    producer.close()
    sent = utc_now()
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse)
    assert rig.ingest.known_until is None
    until(lambda: rig.ingest.step() > 0)
    known = rig.ingest.known_until
    assert known is None or known < sent - timedelta(seconds=0.4)
    until(lambda: rig.ingest.step() == 0 and rig.ingest.caught_up)
    known = rig.ingest.known_until
    assert known is not None
    assert known > sent
    rig.source.close()
    warehouse.close()


def test_both_topics_from_a_broker(broker: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, broker.bootstrap_servers)
    broker.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic, partitions=3)
    producer = producer_for(broker)
    for number in range(300):
        producer.send(settings.kafka.interactions_topic, interaction(str(number)), partition=number % 3)
        producer.send(settings.kafka.feedback_topic, feedback(str(number), str(number)), partition=number % 3)
    producer.flush()
    producer.close()
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse)
    until(lambda: rig.ingest.step() >= 0 and rig.ingest.events_seen == 600)
    assert warehouse.row("SELECT count(DISTINCT id) AS n FROM interactions") == {"n": 300}
    assert warehouse.row("SELECT count(DISTINCT id) AS n FROM feedback") == {"n": 300}
    assert set(stored_offsets(warehouse).values()) == {100}
    assert rig.ingest.broker_up
    rig.source.close()
    warehouse.close()


def test_formats_are_mixed_in_one_topic(broker: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, broker.bootstrap_servers)
    topic = settings.kafka.interactions_topic
    broker.create_topics(topic, settings.kafka.feedback_topic)
    answer = {"id": "openai", "choices": [{"message": {"role": "assistant", "content": "Mail anna@example.com."}}]}
    asked = {"model": "m", "messages": [{"role": "user", "content": "Whom?"}], "user": "anna"}
    openai = {"timestamp": 1795512600, "workload_id": "support.refunds", "request": asked, "response": answer}
    otel = {**OTEL, "timestamp": 1795512600}
    verdict = {"gen_ai.evaluation.name": "relevance", "gen_ai.evaluation.score.value": 1, "gen_ai.response.id": "otel"}
    judged = {"event.name": "gen_ai.evaluation.result", "timestamp": 1795512601, **verdict}
    event = interaction("replaced")
    del event["id"]
    producer = producer_for(broker)
    producer.send(topic, openai)
    producer.send(topic, otel)
    producer.send(topic, judged)
    producer.send(topic, event, headers=[("ce_specversion", b"1.0"), ("ce_id", b"cloud")])
    producer.send(topic, {"specversion": "1.0", "id": "structured", "data": event})
    producer.send(topic, interaction("native"))
    producer.send(topic, {"specversion": "1.0", "data": {"price": 3}})
    producer.flush()
    producer.close()
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse)
    until(lambda: rig.ingest.step() >= 0 and rig.ingest.events_seen == 7)
    stored = {row["id"]: row for row in warehouse.rows("SELECT * FROM interactions")}
    assert stored.keys() == {"openai", "otel", "cloud", "structured", "native"}
    assert stored["openai"]["response"] == "Mail <EMAIL_1>."
    assert len(stored["openai"]["user_id"]) == 4 + 1 + 32
    said = warehouse.row("SELECT name, source, interaction_id FROM feedback")
    assert said == {"name": "relevance", "source": "judge", "interaction_id": "otel"}
    letters = warehouse.rows("SELECT reason, payload FROM dead_letters")
    assert [letter["reason"] for letter in letters] == ["not_an_event"]
    assert json.loads(letters[0]["payload"])["data"] == {"price": 3}
    rig.source.close()
    warehouse.close()


def batch_sizes(broker: Broker, folder: Path, events: int, event: bytes, most: int) -> list[int]:
    """Records in each batch that is not empty, where so many events wait and `most` are asked for."""
    settings = settings_for(folder, broker.bootstrap_servers)
    broker.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, linger_ms=10)
    for _ in range(events):
        producer.send(settings.kafka.interactions_topic, event)
    producer.flush()
    producer.close()
    source = KafkaSource(settings.kafka, dict)
    sizes: list[int] = []
    until(lambda: sizes.append(len(source.poll(most, 0.5).records)) is None and sum(sizes) == events)
    source.close()
    return [size for size in sizes if size]


def test_batches_are_bounded_in_bytes(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retuned.consumers.kafka.source.BATCH_BYTES", 1_000_000)
    assert max(batch_sizes(broker, tmp_path, 300, b"x" * 9_000, 5_000)) <= 112


def test_batches_are_whole_where_the_client_fetches_less_at_once(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retuned.consumers.kafka.source.MOST_PARTITION_BYTES", 2**20)
    monkeypatch.setattr("retuned.consumers.kafka.source.FILL_MS", 5_000)
    assert batch_sizes(broker, tmp_path, 1_250, b"x" * 10_000, 500) == [500, 500, 250]


@pytest.mark.parametrize("fails", [False, True])
def test_what_was_read_before_a_new_assignment_comes_once(
    fails: bool, tansu: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Letters have no id that would tell the second one."""
    monkeypatch.setattr("retuned.consumers.kafka.source.FILL_MS", 5_000)
    settings = settings_for(tmp_path, tansu.bootstrap_servers, on_lost_offset="latest")
    settings = settings.model_copy(update={"ingest": IngestSettings(batch_seconds=0.2, batch_events=300)})
    tansu.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic)
    producer = KafkaProducer(bootstrap_servers=tansu.bootstrap_servers)
    for number in range(1_000):
        producer.send(
            settings.kafka.interactions_topic, b"{" if number % 2 else json.dumps(interaction(str(number))).encode()
        )
    producer.flush()
    producer.close()
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse)
    until(lambda: rig.ingest.step() > 0)
    consumer = rig.source._consumer
    poll, interrupted = consumer.poll, []

    def interrupt(*arguments: Any, max_records: int) -> Any:
        """As when the group is made anew between two looks at what the client holds."""
        if max_records > FIRST_RECORDS and not interrupted:
            interrupted.append(max_records)
            client = threading.Thread(target=rig.source._assigned, args=(list(consumer.assignment()),))
            client.start()
            client.join()
            if fails:  # behind what is dropped
                raise OffsetOutOfRangeError({TopicPartition(settings.kafka.interactions_topic, 0): 400})
        return poll(*arguments, max_records=max_records)

    consumer.poll = interrupt
    until(lambda: rig.ingest.step() >= 0 and rig.ingest.caught_up)
    assert interrupted
    letters = warehouse.rows('SELECT "offset" FROM dead_letters')
    assert sorted(letter["offset"] for letter in letters) == list(range(1, 1_000, 2))
    assert warehouse.row("SELECT count(*) AS n FROM interactions") == {"n": 500}
    assert rig.count("retuned_duplicates_total") == 0
    assert rig.count("retuned_events_lost_total", topic=settings.kafka.interactions_topic) == 0
    rig.source.close()
    warehouse.close()


@pytest.mark.full
def test_what_the_client_holds_of_many_partitions_is_bounded(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retuned.consumers.kafka.source.HELD_BYTES", 8 * 2**20)
    settings = settings_for(tmp_path, broker.bootstrap_servers)
    broker.create_topics(settings.kafka.interactions_topic, partitions=16)
    broker.create_topics(settings.kafka.feedback_topic)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for number in range(16 * 40):  # 4 MB in each
        producer.send(settings.kafka.interactions_topic, b"x" * 100_000, partition=number % 16)
    producer.flush()
    producer.close()
    source = KafkaSource(settings.kafka, dict)
    seen = 0
    tracemalloc.start()
    try:
        while seen < 200:
            seen += len(source.poll(1, 0.5).records)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Some of it in several copies, on its way from the connection.
    assert peak < 6 * 8 * 2**20
    source.close()


def test_a_fenced_consumer_of_the_same_group_stops(apache_kafka: Broker, tmp_path: Path) -> None:
    """It polled a batch, lost its partition while it slept, and another one stored the batch."""
    settings = settings_for(tmp_path, apache_kafka.bootstrap_servers)
    apache_kafka.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic)
    producer = producer_for(apache_kafka)
    for number in range(10):
        producer.send(settings.kafka.interactions_topic, interaction(str(number)))
    producer.flush()
    producer.close()
    warehouse = open_warehouse(settings.warehouse)
    slow, quick = Rig(settings, warehouse), Rig(settings, warehouse)
    until(lambda: (batch := slow.source.poll(100, 0.2)).records and setattr(slow, "batch", batch) is None)
    slow.source._consumer._coordinator.close(timeout_ms=1000)  # leaves the group, as after a long pause
    until(lambda: quick.ingest.step() >= 0 and quick.ingest.events_seen == 10)
    slow.source.poll = lambda *_: slow.batch  # type: ignore[attr-defined]
    with pytest.raises(Fenced):
        slow.ingest.step()
    assert warehouse.row("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM interactions") == {"n": 10, "ids": 10}
    quick.source.close()
    slow.source.close()
    warehouse.close()


def test_what_is_there_is_read_while_events_keep_coming(tansu: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, tansu.bootstrap_servers)
    tansu.create_topics(*settings.kafka.topics)
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse)
    producer, stop, sent = producer_for(tansu), threading.Event(), iter(range(10_000))

    def send() -> None:
        producer.send(settings.kafka.interactions_topic, interaction(f"{next(sent)}")).get(10)

    def keep_coming() -> None:
        while not stop.wait(0.02):
            send()

    for _ in range(20):
        send()
    coming, reading = (
        threading.Thread(target=work, daemon=True)
        for work in (keep_coming, lambda: rig.ingest.read_until(utc_now()))
    )  # fmt: skip
    coming.start()
    reading.start()
    reading.join(60)
    has_ended = not reading.is_alive()
    stop.set()
    coming.join(10)
    reading.join(10)
    producer.close()
    rig.source.close()
    stored = warehouse.rows("SELECT id FROM interactions")
    warehouse.close()
    assert has_ended
    assert {f"{number}" for number in range(20)} <= {row["id"] for row in stored}


def test_topics_that_are_missing_are_named_and_read_when_they_appear(
    apache_kafka: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path, apache_kafka.bootstrap_servers)
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse)
    rig.ingest.read_until(utc_now())  # of what is missing there is nothing to read
    stop = threading.Event()
    thread = threading.Thread(target=rig.ingest.run, args=(stop,))
    thread.start()
    topic = settings.kafka.interactions_topic
    until(lambda: f"topic {topic!r} is not on the broker: create it" in caplog.text)
    assert "(does not exist yet)" in check_broker(settings.kafka)
    until(lambda: rig.ingest.missing_topics == sorted([topic, settings.kafka.feedback_topic]))
    apache_kafka.create_topics(topic, settings.kafka.feedback_topic)
    producer = producer_for(apache_kafka)
    producer.send(topic, interaction("a")).get(10)
    producer.close()
    until(lambda: rig.ingest.events_seen == 1)
    until(lambda: rig.ingest.missing_topics == [])
    assert caplog.text.count(f"topic {topic!r} is not on the broker") == 1
    stop.set()
    thread.join(10)
    rig.source.close()
    warehouse.close()


def test_a_rebalance_that_outlasts_a_poll_is_completed(apache_kafka: Broker, tmp_path: Path) -> None:
    """The group is joined again for a topic that appears, by polls that are each too short for that."""
    settings = settings_for(tmp_path, apache_kafka.bootstrap_servers)
    topics = settings.kafka.interactions_topic, settings.kafka.feedback_topic
    apache_kafka.create_topics(topics[0])
    source = KafkaSource(settings.kafka, dict)
    until(lambda: source.poll(100, 0.2) and source.caught_up())
    apache_kafka.create_topics(topics[1])
    producer = producer_for(apache_kafka)
    for topic in topics:
        producer.send(topic, {}).get(10)
    producer.close()
    seen: set[str] = set()
    until(lambda: seen.update(record.topic for record in source.poll(100, 0.001).records) or seen == set(topics))
    source.close()


class Rebalanced(MemorySource):
    """A source that is assigned anew when the test says so, on any thread, as kafka-python does it."""

    def reassign(self) -> None:
        self.rewind()
        self._assign()


@pytest.mark.parametrize("when", ["while the loop waits for a write", "between a poll and its write"])
def test_a_rebalance_before_a_batch_is_stored_neither_ends_the_loop_nor_stores_twice(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    assert rig.log
    source = Rebalanced(rig.log, rig.settings.kafka.topics, rig.stored[0], identities=rig.stored[1])
    rig.ingest._source = source
    polls, poll, write, decode = [0], source.poll, rig.ingest.writer.write, rig.ingest.decoder.rows
    polled_again, is_done = threading.Event(), threading.Event()

    def counted(*arguments: Any) -> Any:
        batch = poll(*arguments)
        polls[0] += 1
        if polls[0] > 1:
            polled_again.set()
        return batch

    def rebalance_while_writing(rows: Any) -> Any:
        if not is_done.is_set():
            is_done.set()
            assert polled_again.wait(10)
            time.sleep(0.1)  # the loop waits for this write by now
            assigning = threading.Thread(target=source.reassign)
            assigning.start()
            assigning.join(0.5)
        return write(rows)

    def rebalance_after_polling(*arguments: Any) -> Any:
        rows = decode(*arguments)
        if not is_done.is_set():
            is_done.set()
            source.reassign()
        return rows

    monkeypatch.setattr(source, "poll", counted)
    if when == "while the loop waits for a write":
        monkeypatch.setattr(rig.ingest.writer, "write", rebalance_while_writing)
    else:
        monkeypatch.setattr(rig.ingest.decoder, "rows", rebalance_after_polling)
    rig.send(*[interaction(f"i{number}") for number in range(5)])
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(rig.ingest.run, stop)
        try:
            until(lambda: running.done() or (is_done.is_set() and rig.ingest.events_seen >= 5))
            rig.send(interaction("later"))
            until(lambda: running.done() or rig.ingest.events_seen >= 6)
        finally:
            stop.set()
        running.result(10)
    assert rig.warehouse.rows("SELECT id FROM interactions ORDER BY id") == [
        {"id": id} for id in ("i0", "i1", "i2", "i3", "i4", "later")
    ]
    assert rig.ingest.events_seen == 6
    assert rig.count("retuned_duplicates_total") == 0


def test_a_broker_that_goes_away_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if reason := no_apache_kafka():
        pytest.skip(reason)
    caplog.set_level("INFO", "retuned")
    with run_apache_kafka(tmp_path / "kafka") as broker:
        settings = settings_for(tmp_path, broker.bootstrap_servers)
        broker.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic)
        producer = producer_for(broker)
        producer.send(settings.kafka.interactions_topic, interaction("before")).get(10)
        producer.close()
        warehouse = open_warehouse(settings.warehouse)
        rig = Rig(settings, warehouse)
        stop = threading.Event()
        thread = threading.Thread(target=rig.ingest.run, args=(stop,))
        thread.start()
        until(lambda: rig.ingest.events_seen == 1)
        broker.stop(signal.SIGKILL)
        until(lambda: not rig.ingest.broker_up)
        assert rig.count("retuned_broker_up") == 0
        broker.start()
        producer = producer_for(broker)
        producer.send(settings.kafka.interactions_topic, interaction("after")).get(20)
        producer.close()
        until(lambda: rig.ingest.events_seen == 2)
        assert rig.ingest.broker_up
        stop.set()
        thread.join(10)
        assert not thread.is_alive()
        ids = [row["id"] for row in warehouse.rows("SELECT id FROM interactions ORDER BY id")]
        assert ids == ["after", "before"]
        said = [record.getMessage() for record in caplog.records if record.name == "retuned.consumers.ingest"]
        assert [text.rpartition("; ")[2].rpartition(": ")[2] for text in said] == [
            "answers",
            "trying again until it answers",
            "answers",
        ]
        rig.source.close()
        warehouse.close()


@pytest.mark.full
def test_a_quiet_poll_is_no_answer_while_the_broker_is_away(tmp_path: Path) -> None:
    with _killed(tmp_path) as (broker, source):
        until(lambda: not source._consumer.metrics()["consumer-metrics"]["connection-count"])  # the client noticed
        # As a look at the group fails that comes just then.
        source._postponed = BrokerUnavailable("away")
        for _ in range(3):
            with pytest.raises(BrokerUnavailable):
                source.poll(100, 0.1)
        broker.start()
        until(lambda: _answers(source))


@pytest.mark.full
def test_a_connection_that_is_being_made_is_no_answer(tmp_path: Path) -> None:
    with _killed(tmp_path) as (broker, source):
        host, _, port = broker.bootstrap_servers.rpartition(":")
        with socket.create_server((host, int(port))):  # takes connections, and says nothing
            until(lambda: not _answers(source))
            for _ in range(2):
                assert not _answers(source)


@contextmanager
def _killed(folder: Path) -> Iterator[tuple[Broker, KafkaSource]]:
    """A broker that was killed, and the source that had read all of it."""
    with run_tansu(folder) as broker:
        settings = settings_for(folder, broker.bootstrap_servers)
        broker.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic)
        source = KafkaSource(settings.kafka, dict)
        until(lambda: not source.poll(100, 0.1).records and source.caught_up())
        broker.stop(signal.SIGKILL)
        yield broker, source
        source.close()


def _answers(source: Source) -> bool:
    try:
        source.poll(100, 0.1)
    except BrokerUnavailable:
        return False
    return True


@pytest.mark.parametrize("choice", ["stop", "earliest", "latest"])
def test_events_that_retention_deleted(
    apache_kafka: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture, choice: str
) -> None:
    settings = settings_for(tmp_path, apache_kafka.bootstrap_servers, on_lost_offset=choice)
    topic = settings.kafka.interactions_topic
    apache_kafka.create_topics(topic, settings.kafka.feedback_topic)
    producer = producer_for(apache_kafka)
    for number in range(50):
        producer.send(topic, interaction(f"{number}"))
    producer.flush()
    admin = KafkaAdminClient(bootstrap_servers=apache_kafka.bootstrap_servers)
    admin.delete_records({TopicPartition(topic, 0): 40})
    admin.close()
    warehouse = open_warehouse(settings.warehouse)
    warehouse.insert("offsets", topic=topic, partition=0, next_offset=10)
    rig = Rig(settings, warehouse)
    assert rig.count("retuned_events_lost_total", topic=topic) == 0
    said = f"topic {topic} partition 0: {40 if choice == 'latest' else 30} events from offset 10 on were deleted"
    if choice == "stop":
        with pytest.raises(EventsLost, match=f"{said} .*on_lost_offset"):
            until(lambda: rig.ingest.step() and False)
        assert stored_offsets(warehouse)[topic, 0] == 10
    else:
        until(lambda: rig.ingest.step() >= 0 and stored_offsets(warehouse)[topic, 0] == 50)
        producer.send(topic, interaction("new")).get(10)
        until(lambda: rig.ingest.step() >= 0 and stored_offsets(warehouse)[topic, 0] == 51)
        assert said in caplog.text
        assert warehouse.row("SELECT count(*) AS n FROM interactions") == {"n": 11 if choice == "earliest" else 1}
        assert rig.count("retuned_events_lost_total", topic=topic) == (30 if choice == "earliest" else 40)
    producer.close()
    rig.source.close()
    warehouse.close()


def test_a_topic_that_was_made_anew_is_read_from_its_beginning(
    apache_kafka: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(tmp_path, apache_kafka.bootstrap_servers)
    topic = settings.kafka.interactions_topic
    apache_kafka.create_topics(topic, settings.kafka.feedback_topic)
    producer = producer_for(apache_kafka)
    producer.send(topic, interaction("a")).get(10)
    producer.close()
    warehouse = open_warehouse(settings.warehouse)
    warehouse.insert("offsets", topic=topic, partition=0, next_offset=50)
    rig = Rig(settings, warehouse)
    until(lambda: rig.ingest.step() >= 0 and rig.ingest.events_seen == 1)
    assert f"topic {topic} partition 0: offset 50 is beyond its end 1: the topic was recreated" in caplog.text
    assert stored_offsets(warehouse)[topic, 0] == 1
    assert rig.count("retuned_events_lost_total", topic=topic) == 0
    rig.source.close()
    warehouse.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of a broker that is not there need not wait for it as long as a daemon does."""
    monkeypatch.setattr("retuned.consumers.kafka.connection.CONNECT_SECONDS", 0.5)


@pytest.mark.usefixtures("impatient")
def test_nothing_answers(tmp_path: Path) -> None:
    threads = threading.active_count()
    settings = settings_for(tmp_path, f"127.0.0.1:{free_port()}")
    with pytest.raises(BrokerUnavailable, match=r"does not answer.*kafka\.bootstrap_servers"):
        check_broker(settings.kafka)
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        KafkaSource(settings.kafka, dict).poll(1, 0)
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        KafkaPublisher(settings.kafka).publish("t", "k", {})
    assert threading.active_count() == threads


def test_check_names_what_answers(tansu: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, tansu.bootstrap_servers)
    tansu.create_topics(settings.kafka.interactions_topic)
    line = check_broker(settings.kafka)
    assert tansu.bootstrap_servers in line
    assert f"{settings.kafka.interactions_topic} (1 partitions)" in line


def test_topics_with_texts_that_keep_messages_without_an_end_are_named(tmp_path: Path) -> None:
    if why := no_apache_kafka():
        pytest.skip(why)
    with run_apache_kafka(tmp_path / "kafka") as broker:
        kafka = settings_for(tmp_path, broker.bootstrap_servers).kafka.model_copy(
            update={"label_requests_topic": "labels", "dead_letter_topic": "letters", "erasure_topic": "not-there"}
        )
        configs = {
            kafka.interactions_topic: {},
            kafka.feedback_topic: {"retention.ms": "-1"},
            "labels": {"cleanup.policy": "compact"},
            "letters": {"retention.ms": "604800000", "cleanup.policy": "compact,delete"},
            "others": {"retention.ms": "-1"},
        }
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        admin.create_topics([NewTopic(name, 1, 1, topic_configs=given) for name, given in configs.items()])
        admin.close()
        named = sorted([kafka.feedback_topic, "labels"])
        assert unbounded_topics(kafka) == named
        assert check_broker(kafka).endswith(f"; {', '.join(named)}: {WITHOUT_END}")


def test_a_broker_that_does_not_tell_how_long_topics_keep_messages_is_no_problem(tansu: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, tansu.bootstrap_servers)
    tansu.create_topics(settings.kafka.interactions_topic)
    assert unbounded_topics(settings.kafka) == []


def test_publisher_returns_when_the_broker_has_it(broker: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, broker.bootstrap_servers)
    broker.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic)
    publisher = KafkaPublisher(settings.kafka)
    publisher.publish(settings.kafka.interactions_topic, "conversation", interaction("published"))
    publisher.close()
    publisher.close()
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse)
    until(lambda: rig.ingest.step() >= 0 and rig.ingest.events_seen == 1)
    assert warehouse.rows("SELECT id FROM interactions") == [{"id": "published"}]
    rig.source.close()
    warehouse.close()


def test_publisher_recovers_from_a_refused_message(apache_kafka: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, apache_kafka.bootstrap_servers)
    topic = settings.kafka.interactions_topic
    apache_kafka.create_topics(topic)
    publisher = KafkaPublisher(settings.kafka)
    with pytest.raises(BrokerRefused, match="MessageSizeTooLarge"):
        publisher.publish(topic, "k", {"too large": "x" * 2_000_000})
    publisher.publish(topic, "k", {"small": True})
    publisher.close()


INGEST = """
import sys, threading, time
from pathlib import Path
from prometheus_client import CollectorRegistry
from retuned.consumers.ingest import Ingest
from retuned.consumers.warehouse.writer import stored_offsets
from retuned.consumers.kafka.source import KafkaSource
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.opening import open_warehouse
settings = Settings.model_validate_json(sys.argv[1])
warehouse = open_warehouse(settings.warehouse)
source = KafkaSource(settings.kafka, lambda: stored_offsets(warehouse))
ingest = Ingest(source, warehouse, settings, Metrics(CollectorRegistry()))
running = threading.Thread(target=ingest.run, args=(threading.Event(),), daemon=True)
running.start()
while running.is_alive():
    print(ingest.events_seen)
    time.sleep(0.01)
"""


@pytest.mark.full
def test_a_process_that_is_killed_loses_and_doubles_nothing(broker: Broker, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, broker.bootstrap_servers)
    settings = settings.model_copy(update={"ingest": IngestSettings(batch_events=200, batch_seconds=0.1)})
    broker.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic)
    total, enough = 0, threading.Event()

    def produce() -> None:
        nonlocal total
        producer = producer_for(broker)
        while not enough.is_set():
            for _ in range(100):
                producer.send(settings.kafka.interactions_topic, interaction(str(total)))
                total += 1
            producer.flush()
            enough.wait(0.05)
        producer.close()

    sending = threading.Thread(target=produce)
    sending.start()
    command = [sys.executable, "-c", INGEST, settings.model_dump_json()]
    try:
        for life in range(3):
            with subprocess.Popen(
                command, env=os.environ | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout is not None
                seen = next((int(line) for line in process.stdout if int(line) >= 300 * (life + 1)), 0)
                process.kill()  # in the middle of whatever follows
            forget_killed(broker.bootstrap_servers, settings.kafka.group_id)
            assert seen > 0, "it ended by itself"
    finally:
        enough.set()
        sending.join()
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse)
    end = (settings.kafka.interactions_topic, 0)
    until(lambda: rig.ingest.step() >= 0 and stored_offsets(warehouse).get(end, 0) == total)
    assert warehouse.row("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM interactions") == {
        "n": total,
        "ids": total,
    }
    assert rig.count("retuned_event_duplicates_total") == 0
    rig.source.close()
    warehouse.close()


def test_who_finds_another_in_the_group_leaves_it_alone(apache_kafka: Broker, tmp_path: Path) -> None:
    """However often it is started: the healthy one keeps its place, its partitions and its generation."""
    settings = settings_for(tmp_path, apache_kafka.bootstrap_servers)
    apache_kafka.create_topics(settings.kafka.interactions_topic, settings.kafka.feedback_topic)
    warehouse = open_warehouse(settings.warehouse)
    healthy = Rig(settings, warehouse)
    until(lambda: healthy.ingest.step() >= 0 and healthy.ingest.caught_up)
    generation = healthy.source._consumer.group_metadata().generation_id
    for _ in range(2):
        second = Rig(settings, warehouse)
        assert second.ingest.step() == 0
        assert "another consumer" in second.ingest.waiting_for
        healthy.ingest.step()
        assert second.ingest.step() == 0
        second.source.close()
    healthy.ingest.step()
    assert healthy.source._consumer.group_metadata().generation_id == generation
    healthy.source.close()
    third = Rig(settings, warehouse)
    until(lambda: third.ingest.step() >= 0 and third.ingest.caught_up)
    assert third.ingest.waiting_for == ""
    third.source.close()
    warehouse.close()


def test_experts_speak_on_their_topic_and_in_files(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, expert_topic="experts")
    warehouse = open_warehouse(settings.warehouse)
    rig = Rig(settings, warehouse, MemoryLog())
    assert rig.log
    rig.send(interaction("i1"), feedback("claimed", "i1", source="expert"), feedback("judged", "i1", source="judge"))
    rig.log.append("experts", json.dumps(feedback("vouched", "i1", source="expert")).encode())
    rig.drain()
    sources = {row["id"]: row["source"] for row in warehouse.rows("SELECT id, source FROM feedback")}
    assert sources == {"claimed": "user", "judged": "judge", "vouched": "expert"}
    letter = FetchedRecord(
        settings.kafka.feedback_topic, 0, 9, json.dumps(feedback("f", "i1", source="expert")).encode()
    )
    (part,) = rig.ingest.decoder.found(letter, datetime(2026, 11, 24, 10))
    assert isinstance(part, Feedback)
    assert part.source == "user"  # nor when a dead letter is replayed
    warehouse.close()


def test_calls_of_tools_are_stored_redacted_and_stay_json(rig: Rig) -> None:
    arguments = '{"mail": "anna@example.com", "card": 4111111111111111, "name": "\\u00fc", "since": "2026-01-02"}'
    call = {"id": "c1", "type": "function", "function": {"name": "refund", "arguments": arguments}}
    rig.send(
        interaction(
            "i1",
            messages=[{"role": "user", "content": "I am anna@example.com"}],
            tools=[{"type": "function", "function": {"name": "refund", "description": "Ask anna@example.com"}}],
            response={"content": None, "tool_calls": [call]},
        ),
        feedback("f1", "i1", name="correction", value={"mail": "anna@example.com", "tool_calls": [call]}),
    )
    assert rig.drain() == 2
    row = rig.warehouse.row("SELECT response, attributes, value FROM interactions, feedback")
    assert row
    kept, said = json.loads(row["attributes"]), json.loads(row["value"])
    assert row["response"] == ""
    assert kept["tools"][0]["function"]["description"] == "Ask <EMAIL_1>"
    assert json.loads(kept["tool_calls"][0]["function"]["arguments"]) == {
        "mail": "<EMAIL_1>", "card": "<CARD_1>", "name": "ü", "since": "2026-01-02",
    }  # fmt: skip
    assert said["mail"] == "<EMAIL_1>"
    assert said["tool_calls"] == kept["tool_calls"]
