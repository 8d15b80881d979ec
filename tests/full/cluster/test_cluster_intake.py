"""Files and replayed dead letters on a cluster: once on all daemons, whatever fails and whoever else is at it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fixtures.daemon.operations import ask
from fixtures.kafka.brokers import Proxy, until
from fixtures.kafka.importing import KEY, Node, following, logged, opened, pairs, written
from retuned.daemon.operations.files import FileIntake

pytest.importorskip("obstore", reason="the extra cluster is not installed")
pytest.importorskip("moto", reason="the extra test is not installed")

from fixtures.cluster.servers import S3_ENVIRONMENT, run_s3
from retuned.consumers.cluster import intake
from retuned.consumers.cluster.objects import Objects
from retuned.consumers.cluster.sweep import sweep
from retuned.consumers.errors import Busy, OutOfStep, RetunedError, StoreUnavailable
from retuned.consumers.file_import import Position
from retuned.consumers.formats.files import EventFile
from retuned.consumers.warehouse import writer
from retuned.consumers.warehouse.archive import Kept, archive
from retuned.consumers.warehouse.connection import utc_now
from retuned.daemon.cli.backup import hand_over
from retuned.daemon.operations.local import Local
from retuned.daemon.settings import Settings

EVENTS = "SELECT * EXCLUDE (batch) FROM interactions ORDER BY rowid"
LETTERS = 'SELECT topic, partition, "offset", reason, payload FROM dead_letters ORDER BY ALL'


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def one(tmp_path: Path, database: str) -> Iterator[Node]:
    with following(tmp_path / "one", database, ingest={"batch_events": 30}) as node:
        yield node


@pytest.fixture
def two(tmp_path: Path, database: str) -> Iterator[Node]:
    with following(tmp_path / "two", database, ingest={"batch_events": 30}) as node:
        yield node


def agree(*nodes: Node) -> None:
    """Wait until all have followed to the end, and compare what they have."""
    last = nodes[0].database.last_segment()
    for node in nodes:
        until(lambda node=node: node.warehouse.row("FROM followed_segments") == {"number": last})
    for sql in (EVENTS, LETTERS, "FROM offsets ORDER BY ALL"):
        rows = [node.warehouse.rows(sql) for node in nodes]
        assert all(found == rows[0] for found in rows)


def after(done: Any, call: int, then: Callable[[], None]) -> Any:
    """A function with something that happens after one of its calls."""
    calls = iter(range(1_000))

    def do(*arguments: Any) -> Any:
        result = done(*arguments)
        if next(calls) == call:
            then()
        return result

    return do


def left(node: Node) -> set[str]:
    """Files that are in no segment once all is swept, and those of segments that are missing."""
    sweep(node.database, node.objects)
    with node.database._postgres.transaction() as connection:
        recorded = {key for (key,) in connection.execute("SELECT key FROM retuned.segment_files").fetchall()}
    return recorded ^ {key for page in node.objects.list("") for key in page}


def killed() -> None:
    raise Killed


def holds(node: Node) -> tuple[int, int]:
    row = node.warehouse.row("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM interactions")
    assert row is not None
    return row["n"], row["ids"]


@pytest.mark.parametrize("step", ["claim", "put", "record"])
def test_an_import_that_is_killed_goes_on_at_another_daemon(
    one: Node, two: Node, tmp_path: Path, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a claim, after a file is put, and after the segment is recorded."""
    path = written(tmp_path / "faq.jsonl", *pairs(100))
    place: Any = one.objects if step == "put" else one.database
    calls = 3 if step == "put" else 1  # two files for each batch
    setattr(place, step, after(getattr(place, step), calls, killed))
    with pytest.raises(Killed):
        one.take(path, workload="support")
    capsys.readouterr()
    assert two.take(path, workload="support") == 0
    taken = 60 if step == "record" else 30
    assert f"continues after row {taken}" in capsys.readouterr().err
    agree(one, two)
    assert left(one) == set()
    assert (holds(one), one.count("feedback")) == ((100, 100), 100)


def test_of_two_imports_of_a_file_the_one_that_is_overtaken_stores_nothing_more(
    one: Node, two: Node, tmp_path: Path
) -> None:
    """It was frozen between its files and its statement, and wakes up when the other one has ended."""
    path = written(tmp_path / "faq.jsonl", *pairs(100))
    put = one.objects.put
    one.objects.put = after(put, 2, lambda: two.take(path, workload="support"))  # type: ignore[method-assign]
    with pytest.raises(OutOfStep, match=r"faq\.jsonl: another import of the same file has stored its first 100 rows"):
        one.take(path, workload="support")
    agree(one, two)
    assert (holds(one), one.count("feedback")) == ((100, 100), 100)


def test_all_store_the_same_rows_of_a_file_whatever_is_in_their_archives(one: Node, two: Node, tmp_path: Path) -> None:
    first = [logged(number) for number in range(10)]
    assert one.take(written(tmp_path / "first.jsonl", *first)) == 0
    agree(one, two)
    later = utc_now() + timedelta(days=400)
    keep = one.settings.model_copy(
        update={"ingest": one.settings.ingest.model_copy(update={"deduplicate_seconds": 1.0})}
    )
    assert archive(one.warehouse, keep, Kept(), later, threading.Event()).rows > 0
    assert holds(one)[0] < 10
    again = [*first, *(logged(number) for number in range(10, 15))]
    for node, name in ((one, "again.jsonl"), (two, "at the other one.jsonl")):
        assert node.take(written(tmp_path / name, *again, logged(100 + len(name)))) == 0
        agree_on_events(one, two)


def agree_on_events(*nodes: Node) -> None:
    """As `agree`, wherever each has them: in its warehouse or its archive."""
    last = nodes[0].database.last_segment()
    held = []
    for node in nodes:
        until(lambda node=node: node.warehouse.row("FROM followed_segments") == {"number": last})
        files = sorted(str(path) for path in node.warehouse.path.parent.glob("archive/interactions/*/*.parquet"))
        archived = node.warehouse.rows("SELECT id FROM read_parquet($files)", {"files": files}) if files else []
        held.append(sorted(row["id"] for row in [*archived, *node.warehouse.rows("SELECT id FROM interactions")]))
    assert all(found == held[0] for found in held)
    assert len(held[0]) == len(set(held[0]))


def test_an_import_that_is_behind_does_not_stop_the_one_that_is_not(one: Node, two: Node, tmp_path: Path) -> None:
    path = written(tmp_path / "faq.jsonl", *pairs(60))
    stale: list[type[BaseException] | None] = []

    def again() -> None:
        """By another process, with the first batch, which is stored."""
        claim = two.database.claim
        two.database.claim = lambda *_: pytest.fail("claimed")  # type: ignore[method-assign]
        with pytest.raises(OutOfStep) as refused:
            FileIntake(two.service).take(first[0])
        stale.append(refused.type)
        two.database.claim = claim  # type: ignore[method-assign]

    first: list[Any] = []
    take = one.intake.take
    one.intake.take = lambda batch: (first.append(batch), take(batch))[1]  # type: ignore[func-returns-value,method-assign]
    one.objects.put = after(one.objects.put, 2, again)  # type: ignore[method-assign]
    assert one.take(path, workload="support") == 0
    assert stale == [OutOfStep]
    agree(one, two)
    assert holds(one) == (60, 60)


def test_a_storage_that_fails_again_and_again_loses_and_doubles_nothing(
    tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log of 20,000 rows, of which a hundredth is none; each dead letter is copied once."""
    rows = [logged(number) if number % 100 else {"x": number} for number in range(20_000)]
    path = written(tmp_path / "log.jsonl", *rows)

    class Failing(Objects):
        puts = 0

        def put(self, key: str, content: Any) -> None:
            self.puts += 1
            if self.puts % 5 == 0:
                raise StoreUnavailable("store.objects_url: away")
            super().put(key, content)

    sections: dict[str, Any] = {"ingest": {"batch_events": 2_000}, "kafka": {"dead_letter_topic": "letters"}}
    with (
        following(tmp_path / "one", database, objects=Failing, **sections) as one,
        following(tmp_path / "two", database, **sections) as two,
    ):
        failed = 0
        while failed < 20:
            try:
                one.take(path)
                break
            except StoreUnavailable:
                failed += 1
        out = capsys.readouterr().out
        agree(one, two)
        assert 3 <= failed < 20
        assert (holds(two), two.count("dead_letters")) == ((19_800, 19_800), 200)
        assert one.registry.get_sample_value("retuned_events_total", {"topic": "import"}) == 20_000
        assert two.registry.get_sample_value("retuned_events_total", {"topic": "import"}) is None
        assert len({key for _, key, _ in one.publisher.messages}) == len(one.publisher.messages) == 200
        reported = [line.split()[1].replace(",", "") for line in out.splitlines() if line.startswith("  stored")]
        assert sum(map(int, reported)) == 19_800


def test_an_object_storage_that_goes_away_in_the_middle_is_named_and_the_same_command_goes_on(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "faq.jsonl", *pairs(100))
    with run_s3(tmp_path) as server, closing(Proxy(server.port)) as proxy:
        for name, value in (S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}"}).items():
            monkeypatch.setenv(name, value)
        httpx.put(f"http://127.0.0.1:{server.port}/bucket").raise_for_status()
        store = {"kind": "cluster", "postgres_url": database, "objects_url": "s3://bucket/retuned"}
        with following(tmp_path / "one", database, store=store, ingest={"batch_events": 30}) as node:
            port = proxy.target
            recorded = node.database.record

            def cut(*arguments: Any) -> int:
                """With the second segment, which is recorded."""
                number = recorded(*arguments)
                if number == 2:
                    until(lambda: holds(node) == (60, 60))
                    proxy.target = 1
                    proxy.cut()
                return number

            node.database.record = cut  # type: ignore[method-assign]
            with pytest.raises(StoreUnavailable, match=r"store\.objects_url s3://bucket/retuned"):
                node.take(path, workload="support")
            proxy.target = port
            assert node.take(path, workload="support") == 0
            assert (holds(node), node.count("feedback")) == ((100, 100), 100)


def test_a_daemon_that_does_not_follow_in_time_says_that_it_is_stored(
    tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(intake, "FOLLOW_SECONDS", 0.0)
    path = written(tmp_path / "faq.jsonl", *pairs(10))
    (tmp_path / "node").mkdir()
    with closing(Node(tmp_path / "node", database)) as node:  # whose thread stands still
        with pytest.raises(RetunedError, match="import: stored in a segment, which this daemon has not followed"):
            node.take(path, workload="support")
        assert node.count("interactions") == 0
        node.follow()
        assert (node.take(path, workload="support"), holds(node)) == (0, (10, 10))
        assert "nothing is left to import" in capsys.readouterr().out


def test_what_was_refused_is_known_to_a_daemon_that_follows_later(tmp_path: Path, database: str) -> None:
    path = written(tmp_path / "log.jsonl", *map(logged, range(20)), *[{"x": 1}] * 7)
    with following(tmp_path / "one", database) as one:
        assert one.take(path) == 1
    (tmp_path / "two").mkdir()
    with closing(Node(tmp_path / "two", database)) as two:
        topic = EventFile(path, None, None, 10_000).topic
        awaited = two.intake._followed

        def follows(*arguments: Any) -> Any:
            two.follow()
            return awaited(*arguments)

        two.intake._followed = follows  # type: ignore[method-assign]
        assert FileIntake(two.service).position(topic) == Position(27, 7)


def test_a_daemon_that_misses_a_segment_replays_nothing(one: Node, tmp_path: Path, database: str) -> None:
    """It does not have all letters, and would say that there are few."""
    one.take(written(tmp_path / "log.jsonl", *[{"x": n} for n in range(3)]))
    (file,) = (tmp_path / "objects").rglob("*.parquet")
    content = file.read_bytes()
    file.unlink()
    with following(tmp_path / "new", database) as new:
        until(lambda: bool(new.ingest.broker_problem))
        with pytest.raises(StoreUnavailable, match=r"this daemon may not know all of them: .*parquet"):
            ask(new.service, "replay")
        file.write_bytes(content)
        agree(one, new)
        until(lambda: not new.ingest.broker_problem)
        assert ask(new.service, "replay") == {"tried": 3, "replayed": 0, "stored": 0}


def test_rows_of_files_set_no_producer_aside(tmp_path: Path, database: str) -> None:
    path = written(tmp_path / "log.jsonl", *map(logged, range(50)), *[{"x": 1}] * 20)
    with following(tmp_path / "one", database, ingest={"batch_events": 50, "dead_letter_window": 10}) as node:
        assert node.take(path) == 1
        assert (node.count("dead_letters"), node.ingest.set_aside(), node.ingest.events_seen) == (20, [], 0)


def test_what_was_imported_before_a_warehouse_went_over_is_known(
    tmp_path: Path, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "faq.jsonl", *pairs(10))
    with opened(tmp_path / "one", privacy={"user_key": KEY}) as alone:
        alone.take(path, workload="support")
        store = {"postgres_url": database, "objects_url": (tmp_path / "objects").as_uri()}
        assert hand_over(alone.warehouse, Settings(**alone.settings.model_dump() | {"store": store})) == 0
    with following(tmp_path / "one", database) as node:
        capsys.readouterr()
        assert node.take(path, workload="support") == 0
        assert "nothing is left to import" in capsys.readouterr().out
        assert node.take(written(tmp_path / "more.jsonl", *pairs(12)), workload="support") == 0
        assert holds(node) == (12, 12)


# Dead letters


@pytest.fixture
def letters(tmp_path: Path, database: str) -> int:
    """Those of a configuration that was too strict, and one that is no event for good. Returns how many can be
    replayed."""
    (tmp_path / "strict").mkdir()
    with closing(Node(tmp_path / "strict", database, ingest={"max_age_days": 1})) as strict:
        strict.send(*map(logged, range(20)), {"price": 3})
        strict.follow()
        assert strict.count("dead_letters") == 21
    return 20


def replayed(node: Node) -> list[int]:
    """How many letters each segment has moved."""
    rows = node.database._postgres
    with rows.transaction() as connection:
        found = connection.execute(
            "SELECT rows FROM retuned.segment_files WHERE table_name = 'replayed_dead_letters' ORDER BY number"
        )
        return [count for (count,) in found.fetchall()]


def test_letters_are_replayed_on_all_daemons_whichever_is_asked(letters: int, one: Node, two: Node) -> None:
    for node in (one, two):
        until(lambda node=node: node.count("dead_letters") == 21)
    assert ask(one.service, "replay") == {"tried": 21, "replayed": letters, "stored": letters}
    agree(one, two)
    assert (holds(two), two.count("dead_letters")) == ((letters, letters), 1)
    topic = two.settings.kafka.interactions_topic
    assert {row["topic"] for row in two.warehouse.rows(EVENTS)} == {topic}
    assert ask(two.service, "replay") == {"tried": 1, "replayed": 0, "stored": 0}
    assert two.ingest.events_seen == 21, "replayed letters are no traffic of now"
    assert not any(
        family.samples for family in two.registry.collect() if family.name.startswith("retuned_interaction_")
    )


def test_of_two_daemons_that_are_asked_one_replays(letters: int, one: Node, two: Node) -> None:
    """Both have read the letters when the other one records them."""
    for node in (one, two):
        until(lambda node=node: node.count("dead_letters") == 21)
    done: list[Any] = []
    one.objects.put = after(one.objects.put, 0, lambda: done.append(ask(two.service, "replay")))  # type: ignore[method-assign]
    with pytest.raises(Busy, match="nothing is replayed twice"):
        ask(one.service, "replay")
    assert done == [{"tried": 21, "replayed": letters, "stored": letters}]
    agree(one, two)
    assert (replayed(one), holds(one), one.count("dead_letters")) == ([letters], (letters, letters), 1)


def test_a_daemon_that_has_not_followed_a_replay_replays_nothing_of_it(
    letters: int, one: Node, tmp_path: Path, database: str
) -> None:
    (tmp_path / "behind").mkdir()
    with closing(Node(tmp_path / "behind", database)) as behind:
        behind.follow()
        until(lambda: one.count("dead_letters") == 21)
        ask(one.service, "replay")
        with pytest.raises(Busy, match="does not know it yet"):
            ask(behind.service, "replay")
        behind.follow()
        with behind.running():
            assert ask(behind.service, "replay") == {"tried": 1, "replayed": 0, "stored": 0}
        agree(one, behind)
    assert replayed(one) == [letters]


@pytest.mark.parametrize("step", ["claim", "put", "record"])
def test_a_replay_that_is_killed_is_done_once(
    letters: int, one: Node, two: Node, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retuned.consumers.replay.LETTERS", 8)
    for node in (one, two):
        until(lambda node=node: node.count("dead_letters") == 21)
    place: Any = one.objects if step == "put" else one.database
    setattr(place, step, after(getattr(place, step), 2 if step == "put" else 1, killed))
    with pytest.raises(Killed):
        ask(one.service, "replay")
    agree(one, two)
    whole = letters - (16 if step == "record" else 8)
    assert ask(two.service, "replay") == {"tried": whole + 1, "replayed": whole, "stored": whole}
    agree(one, two)
    assert left(one) == set()
    assert (sum(replayed(one)), holds(one), one.count("dead_letters")) == (letters, (letters, letters), 1)


def test_a_replay_is_followed_once_letters_that_are_being_archived_are(
    letters: int, one: Node, tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They leave this warehouse in a transaction that ends only after the replay is followed first."""
    (tmp_path / "archiving").mkdir()
    with closing(Node(tmp_path / "archiving", database)) as archiving:
        archiving.follow()
        until(lambda: one.count("dead_letters") == 21)
        ask(one.service, "replay")
        with archiving.warehouse.cursor() as cursor:
            cursor.begin()
            cursor.execute('DELETE FROM dead_letters WHERE "offset" < 5')
            waiting = SimpleNamespace(sleep=lambda _: cursor.commit(), perf_counter=time.perf_counter)
            monkeypatch.setattr(writer, "time", waiting)
            archiving.follow()
        agree(one, archiving)
        assert (holds(archiving), archiving.count("dead_letters")) == ((letters, letters), 1)


def test_what_a_cluster_does_not_do_is_said(one: Node) -> None:
    with pytest.raises(RetunedError, match="dead-letters resume: nothing is stopped"):
        ask(one.service, "resume_ingestion")
    alone = Local(one.service.jobs)
    asked = "import:0123456789abcdef"
    for attempt in (
        lambda: ask(alone, "replay"),
        lambda: FileIntake(alone).position(asked),
        lambda: ask(alone, "resume_ingestion"),
    ):
        with pytest.raises(RetunedError, match=r"http\.port .*: no daemon runs there; on a cluster \(store\.kind\)"):
            attempt()
