"""Ingesters of a cluster: every event in one segment, once, whatever fails and whoever has the partitions."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import httpx
import psycopg
import pytest
from prometheus_client import CollectorRegistry

from fixtures.kafka.brokers import Broker, Proxy, free_port, until
from fixtures.kafka.ingestion import feedback, interaction

pytest.importorskip("obstore", reason="the extra cluster is not installed")
pytest.importorskip("moto", reason="the extra test is not installed")

from fixtures.cluster.doubles import KEY, Cluster, drain
from fixtures.cluster.servers import Postgres
from retuned.consumers.cluster.database import Database
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.cluster.sweep import sweep
from retuned.consumers.errors import ConfigurationError, Reassigned, StoreUnavailable
from retuned.consumers.settings import PrivacySettings, Settings, StoreSettings
from retuned.daemon.ingest import IngestProcess
from retuned.daemon.settings import Settings as DaemonSettings


def test_a_batch_is_a_segment_redacted_and_in_files_that_other_engines_read(cluster: Cluster) -> None:
    cluster.send(
        interaction("i1", response="Dear anna@example.com", user_id="anna", context=["a", "b"]),
        feedback("f1", "i1", name="comment", value="I am anna@example.com", user_id="anna"),
        b"no event",
    )
    registry = CollectorRegistry()
    ingester = cluster.ingester(registry=registry)
    assert drain(ingester) == 3
    (row,), (said,), (letter,) = (cluster.stored(table) for table in ("interactions", "feedback", "dead_letters"))
    assert (row["response"], json.loads(row["context"])) == ("Dear <EMAIL_1>", ["a", "b"])
    assert (said["value"], said["user_id"]) == ('"I am <EMAIL_1>"', row["user_id"])
    assert "anna" not in json.dumps([row, said, letter], default=str)
    assert (letter["topic"], letter["partition"], letter["offset"]) == (cluster.settings.kafka.interactions_topic, 0, 1)
    everything = f"{cluster.folder}/interactions/*/*.parquet"
    day = duckdb.sql(f"SELECT day, context->>'$[1]' FROM read_parquet('{everything}')").fetchall()
    assert day == [(row["received_at"].date(), "b")]
    (counts,) = cluster.query("SELECT counts FROM retuned.segments")[0]
    assert counts["messages"] == {
        cluster.settings.kafka.interactions_topic: 2,
        cluster.settings.kafka.feedback_topic: 1,
    }
    assert counts["redactions"] == {"EMAIL": 2}
    assert registry.get_sample_value("retuned_segments_total") == 1
    assert registry.get_sample_value("retuned_events_total", {"topic": cluster.settings.kafka.feedback_topic}) == 1
    assert registry.get_sample_value("retuned_store_up") == 1


def test_several_polls_are_one_segment(cluster: Cluster) -> None:
    settings = cluster.settings.model_copy(
        update={"store": cluster.settings.store.model_copy(update={"segment_seconds": 30})}
    )
    settings = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"batch_events": 3})})
    ingester = cluster.ingester(settings)
    cluster.send(interaction("a"))
    polled = ingester._source.poll

    def poll(most: int, seconds: float) -> Any:
        """Each poll brings one event, and another one comes after it."""
        batch = polled(min(most, 1), seconds)
        cluster.send(interaction(f"after {batch.nexts}"))
        return batch

    ingester._source.poll = poll  # type: ignore[method-assign]
    assert ingester.step() == 3
    assert cluster.query("SELECT start_offset, next_offset FROM retuned.segment_moves") == [(None, 3)]


def test_an_assignment_between_two_polls_of_a_segment_doubles_nothing(cluster: Cluster) -> None:
    store = cluster.settings.store.model_copy(update={"segment_seconds": 30})
    ingest = cluster.settings.ingest.model_copy(update={"batch_events": 3})
    ingester = cluster.ingester(cluster.settings.model_copy(update={"store": store, "ingest": ingest}))
    cluster.send(*(interaction(f"{number}") for number in range(3)))
    polled, polls = ingester._source.poll, iter(range(10))

    def poll(most: int, seconds: float) -> Any:
        if next(polls) == 1:
            ingester._source.rewind()  # as an assignment does: from the stored offsets on
        return polled(min(most, 2), seconds)

    ingester._source.poll = poll  # type: ignore[method-assign]
    with pytest.raises(Reassigned, match="was reassigned"):
        ingester.step()
    assert ingester.step() == 3
    assert cluster.ids() == ["0", "1", "2"]


def test_segments_are_numbered_without_gaps_and_their_moves_are_a_chain(cluster: Cluster) -> None:
    first, second = cluster.ingester(), cluster.ingester()
    for turn, ingester in enumerate([first, second, first, first, second, first]):
        cluster.send(interaction(f"{turn}"), partition=turn % 2)
        drain(ingester)
    assert sorted(cluster.ids()) == [f"{turn}" for turn in range(6)]
    numbers = [number for (number,) in cluster.query("SELECT number FROM retuned.segments ORDER BY number")]
    assert numbers == list(range(1, len(numbers) + 1))
    moves = cluster.query(
        "SELECT partition, start_offset, next_offset FROM retuned.segment_moves ORDER BY partition, number"
    )
    for partition in (0, 1):
        chain = [(start, end) for number, start, end in moves if number == partition]
        assert [start for start, _ in chain] == [None, *(end for _, end in chain[:-1])]


@pytest.mark.parametrize("meanwhile", ["claims", "stores"])
def test_a_stopped_ingester_stores_nothing_of_what_another_has_by_now(cluster: Cluster, meanwhile: str) -> None:
    """It wakes up between its files and its statement."""
    cluster.send(*(interaction(f"{number}") for number in range(5)))
    other = cluster.ingester()

    class Stopped(Objects):
        def put(self, key: str, content: bytes) -> None:
            super().put(key, content)
            if meanwhile == "stores":
                drain(other)
            else:
                other._claim([(cluster.settings.kafka.interactions_topic, 0)])

    registry = CollectorRegistry()
    stopped = cluster.ingester(objects=Stopped(cluster.settings.store), registry=registry)
    with pytest.raises(Reassigned):
        stopped.step()
    assert registry.get_sample_value("retuned_segments_reassigned_total") == 1
    assert cluster.ids() == ([f"{number}" for number in range(5)] if meanwhile == "stores" else [])
    stopped._writer._objects = cluster.objects
    cluster.send(interaction("5"))
    drain(stopped)
    drain(other)
    assert cluster.ids() == [f"{number}" for number in range(6)]


def test_a_batch_of_which_one_partition_is_another_s_is_given_up_as_a_whole(cluster: Cluster) -> None:
    topic = cluster.settings.kafka.interactions_topic
    cluster.send(interaction("a"), partition=0)
    cluster.send(interaction("b"), partition=1)
    ingester, database = cluster.ingester(), cluster.database()
    batch = ingester._gather()
    database.claim([(topic, 1)])
    with pytest.raises(Reassigned):
        ingester._store(batch)
    assert (cluster.ids(), database.offsets()) == ([], {})
    assert cluster.query("SELECT number FROM retuned.last_segment") == [(0,)]
    ingester._rewinding = True
    drain(ingester)
    assert sorted(cluster.ids()) == ["a", "b"]


def test_a_batch_of_before_its_partition_went_to_another_and_came_back_is_given_up(cluster: Cluster) -> None:
    """Then its epoch is the ingester's own again, and only where it starts tells."""
    cluster.send(*(interaction(f"{number}") for number in range(3)))
    ingester = cluster.ingester()
    batch = ingester._gather()
    drain(cluster.ingester())
    ingester._claim([(cluster.settings.kafka.interactions_topic, 0)])
    with pytest.raises(Reassigned):
        ingester._store(batch)
    assert cluster.ids() == ["0", "1", "2"]


class Failing(Database):
    """Fails once, before or after the statement is done."""

    when = ""

    def record(self, *arguments: Any) -> int:
        when, self.when = self.when, ""
        if when == "before":
            raise StoreUnavailable("the database is away")
        number = super().record(*arguments)
        if when == "after":
            raise StoreUnavailable("the answer of the database is lost")
        return number


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_statement_whose_answer_never_comes_costs_and_doubles_nothing(cluster: Cluster, when: str) -> None:
    database = Failing(cluster.settings.store)
    cluster.opened.append(database)
    ingester = cluster.ingester(database=database)
    for turn in range(3):
        cluster.send(interaction(f"{turn}"))
        database.when = when if turn == 1 else ""
        drain(ingester)
    assert cluster.ids() == ["0", "1", "2"]


def test_what_cannot_be_put_is_stored_later(cluster: Cluster) -> None:
    class Broken(Objects):
        broken = True

        def put(self, key: str, content: bytes) -> None:
            if self.broken and key.startswith("feedback"):
                raise StoreUnavailable("no")
            super().put(key, content)

    objects = Broken(cluster.settings.store)
    ingester = cluster.ingester(objects=objects)
    cluster.send(interaction("i"), feedback("f", "i"))
    with pytest.raises(StoreUnavailable):
        ingester.step()
    assert (cluster.ids(), len(cluster.files())) == ([], 1)
    objects.broken = False
    drain(ingester)
    assert (cluster.ids(), [row["id"] for row in cluster.stored("feedback")]) == (["i"], ["f"])


def test_a_database_that_is_killed_is_waited_for(cluster: Cluster, postgres: Postgres) -> None:
    ingester = cluster.ingester()
    cluster.send(interaction("before"))
    drain(ingester)
    postgres.stop(signal.SIGKILL)
    cluster.send(interaction("meanwhile"))
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            ingester.step()
    postgres.start()
    assert drain(ingester) == 1
    assert cluster.ids() == ["before", "meanwhile"]


def test_files_that_no_segment_can_get_any_more_are_deleted_and_no_others(cluster: Cluster) -> None:
    """Left by who was killed before the statement (twice), by who was overtaken; one is of who is still at it."""
    before_statement: list[Callable[[], None]] = []

    class Slow(Objects):
        def put(self, key: str, content: bytes) -> None:
            super().put(key, content)
            if before_statement:
                before_statement.pop()()

    def killed() -> None:
        raise KeyboardInterrupt

    slow = Slow(cluster.settings.store)
    cluster.send(interaction("1"))
    for _ in range(2):
        before_statement.append(killed)
        with pytest.raises(KeyboardInterrupt):
            cluster.ingester(objects=slow).step()
    left = cluster.files()
    assert len(left) == 2
    sweeping = cluster.database()
    assert sweep(sweeping, cluster.objects) == 1, "the last one's epoch is the current one: it may be at it still"
    assert len(cluster.files()) == 1
    drain(cluster.ingester())  # another claims, and stores it
    swept: list[int] = []
    before_statement.append(lambda: swept.append(sweep(sweeping, cluster.objects)))
    cluster.send(interaction("2"))
    drain(cluster.ingester(objects=slow))
    assert swept == [1], "what was put and is not recorded yet stays"
    assert cluster.ids() == ["1", "2"]
    assert len(cluster.files()) == 2
    (cluster.folder / "interactions" / "README.txt").write_text("not ours")
    assert sweep(sweeping, cluster.objects) == 0
    assert (cluster.folder / "interactions" / "README.txt").exists()


def test_a_sweep_looks_at_what_came_since_the_last_one(cluster: Cluster) -> None:
    listed: list[str] = []

    class Watched(Objects):
        def list(self, prefix: str) -> Iterator[list[str]]:
            listed.append(prefix)
            return super().list(prefix)

    database, watched = cluster.database(), Watched(cluster.settings.store)
    cluster.send(interaction("1"))
    ingester = cluster.ingester()
    drain(ingester)
    (stored,) = cluster.files()
    day = re.search(r"day=([0-9-]+)", stored)
    assert day is not None

    def left_over(on: str, epoch: int) -> Path:
        file = (
            cluster.folder / f"interactions/day={on}/{cluster.settings.kafka.interactions_topic}-0-{epoch}-1-00.parquet"
        )
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
        return file

    dead, undecided = left_over("2026-01-01", 0), left_over("2026-01-02", 1)  # the ingester may be at the second one
    assert sweep(database, watched) == 1
    assert (dead.exists(), undecided.exists()) == (False, True)
    assert "interactions/" in listed
    listed.clear()
    drain(cluster.ingester())  # claims the partition
    cluster.send(interaction("2"))
    drain(cluster.ingester())
    assert sweep(database, watched) == 1, "it is looked at until it is known"
    assert not undecided.exists()
    listed.clear()
    assert sweep(database, watched) == 0
    assert {prefix.partition("/")[2] for prefix in listed} <= {
        f"day={date.fromisoformat(day[1]) + timedelta(days=ahead)}/" for ahead in (0, 1)
    }
    assert len(cluster.ids()) == 2


def test_one_that_wakes_up_too_late_deletes_what_it_put_there(cluster: Cluster) -> None:
    class Overtaken(Objects):
        def put(self, key: str, content: bytes) -> None:
            drain(cluster.ingester())
            super().put(key, content)

    cluster.send(interaction("1"))
    with pytest.raises(Reassigned):
        cluster.ingester(objects=Overtaken(cluster.settings.store)).step()
    assert cluster.ids() == ["1"]
    assert len(cluster.files()) == 1


def test_all_have_one_key_of_pseudonyms(cluster: Cluster) -> None:
    def with_key(key: str | None) -> Settings:
        return cluster.settings.model_copy(update={"privacy": PrivacySettings(user_key=key)})  # type: ignore[arg-type]

    with pytest.raises(ConfigurationError, match="the same key"):
        cluster.ingester(with_key(None))
    drain(cluster.ingester())
    with pytest.raises(ConfigurationError, match="none of these keys"):
        cluster.ingester(with_key("another key of sixteen characters")).step()
    cluster.send(interaction("i", user_id="anna"))
    drain(cluster.ingester(with_key(f"a newer key of sixteen characters\n{KEY}")))
    drain(cluster.ingester(with_key("a newer key of sixteen characters")))  # it is known by now
    assert len(cluster.stored()) == 1


def test_dead_letters_are_copied_once_they_are_stored(cluster: Cluster) -> None:
    kafka = cluster.settings.kafka.model_copy(update={"dead_letter_topic": "letters"})
    database = Failing(cluster.settings.store)
    cluster.opened.append(database)
    database.when = "before"
    cluster.send(b"no event")
    drain(cluster.ingester(cluster.settings.model_copy(update={"kafka": kafka}), database))
    assert [topic for topic, _, _ in cluster.publisher.messages] == ["letters"]


def test_a_database_of_a_newer_version_is_refused(cluster: Cluster) -> None:
    cluster.database().offsets()
    with psycopg.connect(cluster.url) as connection:
        connection.execute("INSERT INTO retuned.migrations VALUES (999)")
    with pytest.raises(ConfigurationError, match="newer than this retuned"):
        cluster.database().offsets()


def test_its_health_and_metrics_are_served_and_nothing_else(tansu: Broker, cluster: Cluster, tmp_path: Path) -> None:
    """While its database does not answer, and then does."""
    kafka = {
        "bootstrap_servers": tansu.bootstrap_servers,
        "group_id": tmp_path.name,
        "interactions_topic": f"{tmp_path.name}.interactions",
        "feedback_topic": f"{tmp_path.name}.feedback",
        "session_timeout_seconds": 2.0,
    }
    tansu.create_topics(kafka["interactions_topic"], kafka["feedback_topic"])
    away = Proxy(free_port())
    port = urlsplit(cluster.url).port
    url = cluster.url.replace(f":{port}/", f":{away.port}/")
    process = IngestProcess(
        DaemonSettings(
            kafka=kafka,
            privacy={"user_key": KEY},
            store={"postgres_url": url, "objects_url": cluster.folder.as_uri()},
            http={"port": 0},
        )
    )
    process.start()
    try:

        def get(path: str) -> httpx.Response:
            return httpx.get(process.server.url + path)

        until(lambda: "store.postgres_url: " in get("/readyz").text)
        assert (get("/readyz").status_code, get("/healthz").status_code) == (503, 200)
        assert "\nretuned_store_up 0.0" in get("/metrics").text
        away.target = port
        until(lambda: get("/readyz").status_code == 200)
        assert "\nretuned_store_up 1.0" in get("/metrics").text
        assert (get("/").status_code, get("/api/v1/status").status_code) == (404, 404)
    finally:
        process.stop()
        away.close()
    assert process.health() == []


def test_what_is_not_set_or_wrong_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"store\.postgres_url"):
        Database(StoreSettings())
    with pytest.raises(ConfigurationError, match=r"store\.objects_url: not set"):
        Objects(StoreSettings())
    with pytest.raises(ConfigurationError, match=r"store\.objects_url nowhere"):
        Objects(StoreSettings(objects_url="nowhere:///"))
