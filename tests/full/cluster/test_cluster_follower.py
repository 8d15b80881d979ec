"""A daemon that follows the segments: the same rows as by Kafka, each once, in one order for all who follow."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from fixtures.kafka.ingestion import feedback, interaction

pytest.importorskip("obstore", reason="the extra cluster is not installed")
pytest.importorskip("moto", reason="the extra test is not installed")

from fixtures.cluster.artifacts import away, keys
from fixtures.cluster.doubles import Cluster, drain
from fixtures.daemon.promoting import model_row
from retuned.consumers.cluster.follower import Follower, followed
from retuned.consumers.cluster.metrics import store_up
from retuned.consumers.cluster.source import SegmentSource
from retuned.consumers.cluster.sweep import sweep
from retuned.consumers.errors import ConfigurationError, Fenced, StoreUnavailable
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.memory import MemorySource
from retuned.consumers.metrics import Metrics
from retuned.consumers.settings import PrivacySettings, WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, utc_now
from retuned.consumers.warehouse.opening import open_warehouse
from retuned.consumers.warehouse.writer import stored_identities, stored_offsets
from retuned.daemon import artifacts
from retuned.daemon.cli.backup import hand_over
from retuned.daemon.settings import Settings as DaemonSettings
from retuned.retrain.settings import ModelsSettings

EVENTS = "SELECT * EXCLUDE (batch, received_at) FROM interactions ORDER BY rowid"


class Node:
    """A warehouse, and what follows the segments into it."""

    def __init__(self, cluster: Cluster, name: str = "node") -> None:
        self.cluster = cluster
        self.warehouse: Warehouse = open_warehouse(WarehouseSettings(path=cluster.folder.parent / f"{name}.duckdb"))
        self.source: SegmentSource | None = None
        self.open()

    def open(self) -> None:
        """As a start of its process does, after the end of the one before."""
        if self.source is not None:
            self.source.close()
        self.registry = CollectorRegistry()
        self.ingest: Follower
        settings, database = self.cluster.settings, self.cluster.database()
        self.source = SegmentSource(
            database, self.cluster.objects, settings.kafka.topics, lambda: followed(self.warehouse)
        )
        self.ingest = Follower(self.source, self.warehouse, settings, Metrics(self.registry), store_up(self.registry))

    def close(self) -> None:
        assert self.source is not None
        self.source.close()
        self.warehouse.close()

    def drain(self) -> int:
        messages = 0
        while not self.ingest.caught_up:
            messages += self.ingest.step()
        return messages + self.ingest.step()

    def metric(self, name: str) -> float | None:
        return self.registry.get_sample_value(name)


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Node]:
    made = Node(cluster)
    yield made
    made.close()


def test_the_rows_are_those_of_a_daemon_that_reads_kafka(cluster: Cluster, node: Node, tmp_path: Path) -> None:
    for number in range(3):
        cluster.send(
            interaction(f"i{number}", user_id="anna", context=["a"], conversation_id="c", response="To a@example.com"),
            feedback(f"f{number}", f"i{number}", name="comment", value={"text": "from a@example.com"}),
            feedback(
                f"s{number}", f"i{number}", name="shadow_answer", value={"model": "m", "response": "x"}, source="app"
            ),
            b"no event",
            interaction("twice"),
        )
        drain(cluster.ingester())
    assert node.drain() == 15
    alone = open_warehouse(WarehouseSettings(path=tmp_path / "alone.duckdb"))
    with closing(alone):
        topics = cluster.settings.kafka.topics
        source = MemorySource(
            cluster.log,
            topics,
            lambda: stored_offsets(alone),
            identities=lambda: stored_identities(alone),
        )
        kafka = Ingest(source, alone, cluster.settings, Metrics(CollectorRegistry()))
        while kafka.step():
            pass
        for sql in (
            EVENTS,
            "SELECT * EXCLUDE (batch, received_at) FROM feedback ORDER BY rowid",
            "SELECT * EXCLUDE (batch, received_at) FROM shadow_answers ORDER BY rowid",
            'SELECT * EXCLUDE (received_at) FROM dead_letters ORDER BY topic, partition, "offset"',
            "SELECT * FROM offsets ORDER BY ALL",
        ):
            assert node.warehouse.rows(sql) == alone.rows(sql)
    assert [row["id"] for row in node.warehouse.rows(EVENTS)] == ["i0", "twice", "i1", "i2"]
    assert node.warehouse.row("SELECT count(*) AS rows FROM shadow_answers") == {"rows": 3}
    assert node.warehouse.row("SELECT json_type(messages) AS kind FROM interactions") == {"kind": "ARRAY"}
    assert node.metric("retuned_event_duplicates_total") == 2
    assert node.metric("retuned_store_up") == 1
    assert node.registry.get_sample_value("retuned_events_total", {"topic": topics[0]}) is None, "ingesters count them"


def test_all_who_follow_store_the_same_of_an_id_that_is_in_several_partitions(cluster: Cluster) -> None:
    """Whichever segment was recorded first has it, also for who follows later."""
    nodes = [Node(cluster, "first")]
    ingesters = [cluster.ingester() for _ in range(2)]
    for turn in range(6):
        for partition in (1, 0) if turn % 2 else (0, 1):
            cluster.send(interaction(f"{turn}", response=f"by {partition}"), partition=partition)
            drain(ingesters[partition])
        nodes[0].drain()
    nodes[0].source.close()
    nodes.append(Node(cluster, "second"))
    nodes[1].drain()
    rows = [node.warehouse.rows(EVENTS) for node in nodes]
    assert rows[0] == rows[1]
    assert [row["response"] for row in rows[0]] == ["by 0", "by 1"] * 3
    for node in nodes:
        node.close()


def test_a_database_that_was_set_back_is_refused(cluster: Cluster, node: Node) -> None:
    """What comes would have the numbers of what is there."""
    cluster.send(interaction("0"))
    drain(cluster.ingester())
    node.drain()
    with psycopg.connect(cluster.url) as connection:
        connection.execute("UPDATE retuned.last_segment SET number = 0")
    with pytest.raises(Fenced, match="the last segment is 0, but the warehouse has 1"):
        node.ingest.step()


def test_it_goes_on_where_it_was_killed(cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a segment is stored, in the midst of it, and after it."""
    ingester = cluster.ingester()
    for turn in range(4):
        cluster.send(interaction(f"{turn}"))
        drain(ingester)
    node.ingest.step()
    node.source.poll(1, 0)  # read, and not stored
    node.open()
    move = node.ingest.writer._move_offsets

    def killed(*arguments: Any) -> None:
        move(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(node.ingest.writer, "_move_offsets", killed)
        with pytest.raises(KeyboardInterrupt):
            node.ingest.step()
    node.open()
    assert node.drain() == 3
    assert [row["id"] for row in node.warehouse.rows(EVENTS)] == ["0", "1", "2", "3"]
    assert node.warehouse.rows("FROM followed_segments") == [{"number": 4}]


def test_a_file_that_is_away_or_damaged_is_waited_for(cluster: Cluster, node: Node) -> None:
    for turn in range(2):
        cluster.send(interaction(f"{turn}"))
        drain(cluster.ingester())
    (key, *_), (later, *_) = (row for row in cluster.query("SELECT key FROM retuned.segment_files ORDER BY number"))
    whole = (cluster.folder / key).read_bytes()
    (cluster.folder / key).unlink()
    with pytest.raises(StoreUnavailable):
        node.ingest.step()
    (cluster.folder / key).write_bytes((cluster.folder / later).read_bytes())
    with pytest.raises(StoreUnavailable, match="does not have the recorded content"):
        node.ingest.step()
    (cluster.folder / key).write_bytes(whole)
    node.drain()
    assert [row["id"] for row in node.warehouse.rows(EVENTS)] == ["0", "1"]


def test_segments_that_have_expired_keep_no_daemon_from_joining(
    cluster: Cluster, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    database = cluster.database()
    for turn in range(4):
        cluster.send(interaction(f"{turn}"), feedback(f"f{turn}", f"{turn}"), partition=turn % 2)
        drain(cluster.ingester())
    node.drain()
    cluster.query("UPDATE retuned.segments SET received_at = now() - INTERVAL '40 days' WHERE number <= 3 RETURNING 1")
    assert database.expire(30, up_to=1) == 1
    assert database.expire(30, up_to=4) == 2, "the fourth one is not old enough"
    assert sweep(database, cluster.objects) == 6
    assert len(cluster.files()) == 2
    assert cluster.query("SELECT count(*) FROM retuned.segments") == [(1,)]
    assert cluster.query("SELECT count(*) FROM retuned.gone_files") == [(0,)]
    with closing(Node(cluster, "late")) as late:
        late.drain()
        assert [row["id"] for row in late.warehouse.rows(EVENTS)] == ["3"]
        assert "segments up to 3 have expired: this warehouse lacks up to 6 of their rows" in caplog.text
        assert stored_offsets(late.warehouse) == stored_offsets(node.warehouse)
        for turn in range(4, 6):
            cluster.send(interaction(f"{turn}"), partition=turn % 2)
            drain(cluster.ingester())
            late.drain()
            node.drain()
        assert [row["id"] for row in late.warehouse.rows(EVENTS)] == ["3", "4", "5"]
        assert [row["id"] for row in node.warehouse.rows(EVENTS)] == ["0", "1", "2", "3", "4", "5"]
        # Positions in these numbers pass from leader to leader.
        assert batches(late) == batches(node) == {"3": 5, "4": 6, "5": 7}


def batches(node: Node) -> dict[str, int]:
    """The batch of each of the last three events."""
    rows = node.warehouse.rows("SELECT id, batch FROM interactions WHERE id >= '3' ORDER BY id")
    return {row["id"]: row["batch"] for row in rows}


def test_a_segment_that_was_erased_keeps_no_daemon_from_joining(
    cluster: Cluster, node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    for turn in range(3):
        cluster.send(interaction(f"{turn}"))
        drain(cluster.ingester())
    ((key,),) = cluster.query("SELECT key FROM retuned.segment_files WHERE number = 2")
    (cluster.folder / key).unlink()
    with pytest.raises(StoreUnavailable, match=r"does not exist; .* SELECT retuned\.forget_segment\(2, 'the reason'\)"):
        node.drain()
    assert cluster.query("SELECT retuned.forget_segment(2, 'erased, request 17')") == [(1,)]
    node.drain()
    assert [row["id"] for row in node.warehouse.rows(EVENTS)] == ["0", "2"]
    assert "segment 2 is gone (erased, request 17): this warehouse lacks its 1 rows" in caplog.text
    assert node.warehouse.rows("SELECT batch FROM interactions ORDER BY id") == [{"batch": 2}, {"batch": 4}]
    assert sweep(cluster.database(), cluster.objects) == 1


def test_lag_is_what_other_segments_hold_and_since_when(cluster: Cluster, node: Node) -> None:
    ingester = cluster.ingester()
    for turn in range(3):
        cluster.send(*(interaction(f"{turn} {number}") for number in range(turn + 1)))
        drain(ingester)
    topic = cluster.settings.kafka.interactions_topic
    assert (node.ingest.lag_seconds, node.ingest.caught_up) == ({}, False)
    assert node.ingest.known_until is None
    node.ingest.step()
    waiting = cluster.query("SELECT received_at AT TIME ZONE 'UTC' FROM retuned.segments WHERE number = 2")[0][0]
    assert abs(node.ingest.known_until - waiting) < timedelta(seconds=1)
    assert node.ingest.lag == 5
    second = cluster.query("SELECT extract(epoch FROM now() - received_at) FROM retuned.segments WHERE number = 2")
    assert 0 < node.ingest.lag_seconds[topic] <= float(second[0][0])
    node.drain()
    assert (node.ingest.lag, node.ingest.lag_seconds[topic], node.ingest.caught_up) == (0, 0.0, True)
    assert utc_now() - node.ingest.known_until < timedelta(seconds=5)


def test_too_many_dead_letters_stop_nobody_and_are_shown(cluster: Cluster, node: Node) -> None:
    ingest = cluster.settings.ingest.model_copy(update={"dead_letter_window": 10})
    cluster.settings = cluster.settings.model_copy(update={"ingest": ingest})
    node.open()
    ingester = cluster.ingester()
    for _ in range(2):
        cluster.send(*[b"no event"] * 20)
        drain(ingester)
    node.drain()
    node.open()
    cluster.send(*[b"no event"] * 20)
    drain(ingester)
    node.drain()
    assert node.warehouse.row("SELECT count(*) AS letters FROM dead_letters") == {"letters": 60}
    assert [found.messages for found in node.ingest.set_aside()] == [10]


def test_a_warehouse_that_was_filled_from_kafka_goes_over_with_all_that_it_has(
    cluster: Cluster, node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "models" / "support" / "3f2a91c0" / "adapter_model.safetensors"
    adapter.parent.mkdir(parents=True)
    adapter.write_bytes(b"weights")
    node.warehouse.insert("models", **model_row("3f2a91c0", adapter.parent, datetime(2026, 4, 1)))
    settings = DaemonSettings(**cluster.settings.model_dump(), models=ModelsSettings(directory=tmp_path / "models"))
    cluster.send(interaction("before"))
    stored = (lambda: stored_offsets(node.warehouse)), (lambda: stored_identities(node.warehouse))
    source = MemorySource(cluster.log, cluster.settings.kafka.topics, stored[0], identities=stored[1])
    kafka = Ingest(source, node.warehouse, cluster.settings, Metrics(CollectorRegistry()))
    while kafka.step():
        pass
    (cluster.folder / "artifacts").mkdir()
    with away(cluster.folder / "artifacts"):
        assert hand_over(node.warehouse, settings) == 1
    assert "versions, datasets and reports are put there once the daemon runs" in capsys.readouterr().out
    artifacts.settle(node.warehouse, settings)
    [key] = keys(cluster.objects)
    assert cluster.objects.get(key) == b"weights"
    cluster.send(interaction("after"), interaction("before"))
    drain(cluster.ingester())
    node.drain()
    assert [row["id"] for row in node.warehouse.rows(EVENTS)] == ["before", "after"]
    with pytest.raises(ConfigurationError, match="have already used this database"):
        cluster.database().seed({("another", 0): 1}, {})


def test_a_warehouse_goes_over_with_the_key_under_which_its_users_are_stored(cluster: Cluster, node: Node) -> None:
    settings = DaemonSettings(**cluster.settings.model_dump())
    cluster.send(interaction("before", user_id="alice"))
    source = MemorySource(cluster.log, cluster.settings.kafka.topics, lambda: stored_offsets(node.warehouse))
    kafka = Ingest(source, node.warehouse, cluster.settings, Metrics(CollectorRegistry()))
    while kafka.step():
        pass
    other = {"privacy": PrivacySettings(user_key="another key, of sixteen characters")}  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"stored under another key: .*\.key\)"):
        hand_over(node.warehouse, settings.model_copy(update=other))
    assert hand_over(node.warehouse, settings) == 1
    cluster.send(interaction("after", user_id="alice"))
    with pytest.raises(ConfigurationError, match="none of these keys"):
        drain(cluster.ingester(cluster.settings.model_copy(update=other)))
    drain(cluster.ingester())
    node.drain()
    assert node.warehouse.row("SELECT count(DISTINCT user_id) AS users FROM interactions") == {"users": 1}


def test_segments_that_do_not_go_on_where_the_warehouse_ends_are_refused(cluster: Cluster, node: Node) -> None:
    """Those of a cluster that began with another warehouse, or with none."""
    topic = cluster.settings.kafka.interactions_topic
    cluster.database().seed({(topic, 0): 1}, {})
    cluster.send(interaction("before"), interaction("after"))
    drain(cluster.ingester())
    with pytest.raises(Fenced, match="segment 1 does not continue warehouse"):
        node.drain()
    assert node.warehouse.rows(EVENTS) == []


def test_columns_of_an_older_version_are_null(cluster: Cluster, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    from retuned.consumers.cluster import segments

    plain = segments._plain
    monkeypatch.setattr(segments, "_plain", lambda table: plain(table).drop_columns(["cost", "attributes"]))
    cluster.send(interaction("i", cost=1.0, attributes={"a": 1}))
    drain(cluster.ingester())
    node.drain()
    assert node.warehouse.row("SELECT id, cost, attributes FROM interactions") == {
        "id": "i", "cost": None, "attributes": None,
    }  # fmt: skip


def test_a_segment_without_files_moves_partitions(cluster: Cluster, node: Node) -> None:
    cluster.send(interaction("i"))
    cluster.log.skip(cluster.settings.kafka.interactions_topic)
    ingester = cluster.ingester()
    drain(ingester)
    cluster.log.skip(cluster.settings.kafka.interactions_topic)
    drain(ingester)
    node.drain()
    assert json.dumps(node.warehouse.rows("FROM followed_segments")) == '[{"number": 2}]'
    assert list(stored_offsets(node.warehouse).values()) == [3]
