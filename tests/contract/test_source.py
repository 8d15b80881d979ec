"""What every source of events keeps: memory, Tansu and Apache Kafka under one suite."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from kafka import KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewPartitions

from fixtures.kafka.brokers import Broker, break_batch, until
from retuned.consumers.errors import ConfigurationError, EventsLost
from retuned.consumers.kafka.contract import (
    Batch,
    Identities,
    Identity,
    Offsets,
    Partition,
    Source,
    check_cluster,
    is_another,
)
from retuned.consumers.kafka.memory import MemoryLog, MemorySource
from retuned.consumers.kafka.records import BrokenBatch
from retuned.consumers.kafka.source import KafkaSource
from retuned.consumers.settings import KafkaSettings

numbers = itertools.count()


@dataclass
class World:
    """One place where messages lie: how to put them there, and how to read them."""

    interactions: str
    feedback: str
    produce: Callable[[str, bytes, int], None]
    open: Callable[..., Source]
    add_partition: Callable[[str], None] | None
    gap: Callable[[str], None] | None
    delete: Callable[[str, int], None] | None
    remake: Callable[[str], None] | None
    broker: Broker | None = None
    flush: Callable[[], None] = lambda: None


def memory_world() -> Iterator[World]:
    log = MemoryLog()
    yield World(
        "interactions",
        "feedback",
        lambda topic, value, partition: (log.append(topic, value, partition), None)[1],
        lambda stored, start="earliest", lost="earliest", known=dict: MemorySource(
            log, ["interactions", "feedback"], stored, start, lost, known
        ),
        lambda _: None,
        log.skip,
        log.delete,
        log.remake,
    )


def kafka_world(broker: Broker, apache: bool) -> Iterator[World]:
    number = next(numbers)
    names = f"interactions-{number}", f"feedback-{number}"
    broker.create_topics(*names)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, linger_ms=1, metadata_max_age_ms=300)
    opened: list[Any] = []

    def open_source(
        stored: Callable[[], Offsets],
        start: Any = "earliest",
        lost: Any = "earliest",
        known: Any = dict,
        *,
        shared: bool = False,
    ) -> Source:
        settings = KafkaSettings(
            bootstrap_servers=broker.bootstrap_servers,
            group_id=f"group-{number}",
            interactions_topic=names[0],
            feedback_topic=names[1],
            start=start,
            on_lost_offset=lost,
            session_timeout_seconds=2,
        )
        opened.append(KafkaSource(settings, stored, known, shared=shared))
        return opened[-1]  # type: ignore[no-any-return]

    def gap(topic: str) -> None:
        """A transaction leaves a marker, which takes an offset and is no record."""
        other = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, transactional_id=f"tx-{next(numbers)}")
        other.init_transactions()
        other.begin_transaction()
        other.send(topic, b"aborted", partition=0)
        other.flush()
        other.abort_transaction()
        other.close()

    def produce(topic: str, value: bytes, partition: int) -> None:
        deadline = time.monotonic() + 10
        while partition not in (producer.partitions_for(topic) or ()) and time.monotonic() < deadline:
            time.sleep(0.1)
        producer.send(topic, value, partition=partition)

    def add_partition(topic: str) -> None:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        admin.create_partitions({topic: NewPartitions(2)})
        admin.close()

    def delete(topic: str, before: int) -> None:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        admin.delete_records({TopicPartition(topic, 0): before})
        admin.close()

    def remake(topic: str) -> None:
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        admin.delete_topics([topic])
        admin.close()
        until(lambda: _there(broker, topic) is False)
        broker.create_topics(topic)

    yield World(
        *names,
        produce,
        open_source,
        add_partition if apache else None,
        gap if apache else None,
        delete if apache else None,
        remake if apache else None,
        broker if apache else None,
        producer.flush,
    )
    for source in opened:
        source.close()
    producer.close()


def _there(broker: Broker, topic: str) -> bool:
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    try:
        return topic in admin.list_topics()
    finally:
        admin.close()


@pytest.fixture(params=["memory", "tansu", "apache_kafka"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "memory":
        yield from memory_world()
    else:
        yield from kafka_world(request.getfixturevalue(request.param), request.param == "apache_kafka")


# Tansu delivers aborted records, leaves no markers, and its topics do not grow.
not_tansu = pytest.mark.parametrize("world", ["memory", "apache_kafka"], indirect=True)


def read(source: Source, enough: Callable[[list[Batch]], bool], seconds: float = 20) -> list[Batch]:
    batches: list[Batch] = []
    deadline = time.monotonic() + seconds
    while not enough(batches) and time.monotonic() < deadline:
        batches.append(source.poll(100, 0.2))
    return batches


def values(batches: list[Batch], topic: str | None = None) -> list[bytes | None]:
    return [record.value for batch in batches for record in batch.records if topic in (None, record.topic)]


def has(count: int) -> Callable[[list[Batch]], bool]:
    return lambda batches: len(values(batches)) >= count


def known(batches: list[Batch]) -> Identities:
    """Of which topic each offset is, as it would be stored."""
    return {key: batch.identities[key[0]] for batch in batches for key in batch.nexts}


def nexts(batches: list[Batch]) -> Offsets:
    merged: Offsets = {}
    for batch in batches:
        merged |= batch.nexts
    return merged


def test_order_in_each_partition_and_where_to_go_on(world: World) -> None:
    sent = [b"%d" % number for number in range(250)]
    for value in sent:
        world.produce(world.interactions, value, 0)
    world.produce(world.feedback, b"f", 0)
    world.flush()
    source = world.open(dict)
    batches = read(source, has(251))
    assert values(batches, world.interactions) == sent
    assert values(batches, world.feedback) == [b"f"]
    assert all(len(batch.records) <= 100 for batch in batches)
    assert nexts(batches) == {(world.interactions, 0): 250, (world.feedback, 0): 1}
    source.close()


def test_each_batch_starts_where_the_last_one_ended(world: World) -> None:
    for number in range(250):
        world.produce(world.interactions, b"%d" % number, 0)
    world.flush()
    source = world.open(dict)
    key = (world.interactions, 0)
    moved = [batch for batch in read(source, has(250)) if key in batch.nexts]
    assert key not in moved[0].starts  # never stored
    for before, after in itertools.pairwise(moved):
        assert after.starts[key] == before.nexts[key]
    source.close()


def test_it_goes_on_from_the_stored_offset(world: World) -> None:
    for number in range(10):
        world.produce(world.interactions, b"%d" % number, 0)
    world.flush()
    source = world.open(lambda: {(world.interactions, 0): 7})
    batches = read(source, has(3))
    assert values(batches) == [b"7", b"8", b"9"]
    first = next(batch for batch in batches if batch.records)
    assert first.starts[world.interactions, 0] == 7
    source.close()


def test_what_was_polled_and_not_stored_comes_again(world: World) -> None:
    world.produce(world.interactions, b"x", 0)
    world.flush()
    stored: Offsets = {}
    first = world.open(lambda: stored)
    batches = read(first, has(1))
    first.commit(nexts(batches))  # the group's offset is for lag tools: it must not count
    first.close()
    second = world.open(lambda: stored)
    assert values(read(second, has(1))) == [b"x"]
    second.close()


def test_after_rewinding_what_is_not_stored_comes_again(world: World) -> None:
    stored: Offsets = {}
    for number in range(10):
        world.produce(world.interactions, b"%d" % number, 0)
    world.flush()
    source = world.open(lambda: dict(stored))
    assert len(values(read(source, has(10)))) == 10
    stored[world.interactions, 0] = 7
    source.rewind()
    batches = read(source, has(3))
    assert values(batches) == [b"7", b"8", b"9"]
    first = next(batch for batch in batches if batch.records)
    assert first.starts[world.interactions, 0] == 7
    source.close()


def test_what_fails_before_an_assignment_comes_out_and_rewinding_tries_again(world: World) -> None:
    claimed: set[Partition] = set()
    failures = [ValueError("the database is away")] * 2

    def claim(partitions: Sequence[Partition]) -> None:
        if failures and partitions:
            raise failures.pop()
        claimed.update(partitions)

    def rewind_and_read() -> None:
        source.rewind()
        read(source, has(1))

    for topic in (world.interactions, world.feedback):
        world.produce(topic, b"1", 0)
    world.flush()
    source = world.open(dict)
    source.before_assignment = claim
    with pytest.raises(ValueError, match="is away"):
        read(source, has(1))
    with pytest.raises(ValueError, match="is away"):
        rewind_and_read()
    source.rewind()
    assert values(read(source, has(2))) == [b"1", b"1"]
    assert claimed == {(world.interactions, 0), (world.feedback, 0)}
    source.close()


@pytest.mark.parametrize("world", ["apache_kafka"], indirect=True)
def test_members_of_a_shared_group_share_the_partitions(world: World) -> None:
    assert world.add_partition
    world.add_partition(world.interactions)
    claims: dict[int, set[Partition]] = {}
    sources = [world.open(dict, shared=True) for _ in range(2)]
    for number, source in enumerate(sources):
        source.before_assignment = lambda keys, number=number: claims.update({number: set(keys)})
    partitions = {(world.interactions, 0), (world.interactions, 1), (world.feedback, 0)}
    stopped = threading.Event()

    def poll(source: Source) -> None:
        while not stopped.is_set():
            source.poll(1, 0.1)

    with ThreadPoolExecutor() as threads:
        polling = [threads.submit(poll, source) for source in sources]
        try:
            until(lambda: len(claims) == 2 and all(claims.values()) and not claims[0] & claims[1], 30)
        finally:
            stopped.set()
        for one in polling:
            one.result()
    assert claims[0] | claims[1] == partitions
    for source in sources:
        source.close()


@not_tansu
def test_an_offset_without_a_record_is_passed_over(world: World) -> None:
    assert world.gap
    world.produce(world.interactions, b"before", 0)
    world.flush()
    world.gap(world.interactions)
    source = world.open(dict)
    batches = read(source, lambda batches: nexts(batches).get((world.interactions, 0), 0) > 1)
    assert values(batches) == [b"before"]
    end = nexts(batches)[world.interactions, 0]
    world.produce(world.interactions, b"after", 0)
    world.flush()
    more = read(source, has(1))
    assert values(more) == [b"after"]
    assert next(batch for batch in more if batch.records).starts[world.interactions, 0] == end
    source.close()


@not_tansu
def test_a_partition_that_is_added_is_read_from_its_beginning(world: World) -> None:
    """Even where a topic that was never read begins at its end: nobody would ever read those events."""
    assert world.add_partition
    world.produce(world.interactions, b"old", 0)
    world.flush()
    stored: Offsets = {}
    source = world.open(lambda: stored, "latest")
    stored |= nexts(read(source, lambda batches: (world.interactions, 0) in nexts(batches)))
    world.add_partition(world.interactions)
    world.produce(world.interactions, b"new", 1)
    world.flush()
    batches = read(source, has(1))
    assert values(batches) == [b"new"]
    assert nexts(batches)[world.interactions, 1] == 1
    source.close()


@not_tansu
@pytest.mark.parametrize(("choice", "expected", "lost"), [("earliest", [b"7", b"8", b"9"], 5), ("latest", [], 8)])
def test_what_was_deleted_before_it_was_read_is_counted(
    world: World, choice: str, expected: list[bytes], lost: int
) -> None:
    assert world.delete
    for number in range(10):
        world.produce(world.interactions, b"%d" % number, 0)
    world.flush()
    world.delete(world.interactions, 7)
    key = (world.interactions, 0)
    source = world.open(lambda: {key: 2}, "earliest", choice)
    batches = read(source, lambda batches: nexts(batches).get(key) == 10)
    assert values(batches) == expected
    assert sum((Counter(batch.lost) for batch in batches), Counter()) == {world.interactions: lost}
    assert next(batch.starts[key] for batch in batches if key in batch.nexts) == 2
    source.close()


@not_tansu
def test_what_was_deleted_may_be_a_reason_to_stop(world: World) -> None:
    assert world.delete
    for number in range(10):
        world.produce(world.interactions, b"%d" % number, 0)
    world.flush()
    world.delete(world.interactions, 7)
    source = world.open(lambda: {(world.interactions, 0): 2}, "earliest", "stop")
    with pytest.raises(EventsLost, match="5 events from offset 2 on"):
        read(source, has(1))
    source.close()


@pytest.mark.parametrize("world", ["apache_kafka"], indirect=True)
@pytest.mark.parametrize("how", ["checksum", "records", "compressed", "codec"])
@pytest.mark.parametrize("begin", [None, 12])
def test_a_batch_that_nobody_can_unpack_comes_in_the_place_of_its_records(
    world: World, how: str, begin: int | None
) -> None:
    """Also where the first of its records are stored."""
    assert world.broker
    producer = KafkaProducer(
        bootstrap_servers=world.broker.bootstrap_servers,
        linger_ms=100,
        compression_type="zstd" if how == "compressed" else None,
    )
    for _ in range(3):
        for number in range(10):
            producer.send(world.interactions, b"%d" % number)
        producer.flush()
    producer.close()
    assert break_batch(world.broker, world.interactions, 1, how) == (10, 20)
    key = (world.interactions, 0)
    source = world.open(lambda: {} if begin is None else {key: begin})
    batches = read(source, lambda batches: nexts(batches).get(key) == 30)
    records = [record for batch in batches for record in batch.records]
    first = begin or 0
    passed = max(first, 10)
    assert [record.offset for record in records] == [*range(first, 10), passed, *range(20, 30)]
    broken = [record for record in records if isinstance(record, BrokenBatch)]
    assert [(batch.offset, batch.next_offset, batch.events) for batch in broken] == [(passed, 20, 20 - passed)]
    source.close()


def test_latest_begins_at_the_end_and_says_so_at_once(world: World) -> None:
    world.produce(world.interactions, b"old", 0)
    world.flush()
    source = world.open(dict, "latest")
    batches = read(source, lambda batches: (world.interactions, 0) in nexts(batches))
    assert values(batches) == []
    assert nexts(batches)[world.interactions, 0] == 1
    world.produce(world.interactions, b"new", 0)
    world.flush()
    assert values(read(source, has(1))) == [b"new"]
    source.close()


def test_lag_counts_what_was_not_polled(world: World) -> None:
    for number in range(50):
        world.produce(world.interactions, b"%d" % number, 0)
    world.flush()
    source = world.open(dict)
    seen = 0
    deadline = time.monotonic() + 20
    while seen < 50 and time.monotonic() < deadline:
        seen += len(source.poll(10, 0.2).records)
        if seen:
            assert source.lag() == 50 - seen
    assert source.lag() == 0
    source.close()


def test_close_is_safe_to_repeat(world: World) -> None:
    source = world.open(dict)
    source.poll(1, 0)
    source.close()
    source.close()


def test_lag_in_seconds_is_unknown_or_the_age_of_what_was_read_until_all_is(world: World) -> None:
    for number in range(20):
        world.produce(world.interactions, b"%d" % number, 0)
    world.produce(world.feedback, b"f", 0)
    world.flush()
    source = world.open(dict)
    assert source.lag_seconds(time.time()) == {}
    seen, ahead = 0, 1_000.0
    deadline = time.monotonic() + 20
    while seen < 20 and time.monotonic() < deadline:
        seen += len(values([source.poll(5, 0.2)], world.interactions))
        if 0 < seen < 20:
            assert source.lag_seconds(time.time() + ahead)[world.interactions] == pytest.approx(ahead, abs=100)
    everything = {world.interactions: 0, world.feedback: 0}
    until(lambda: (source.poll(5, 0.1), source.lag_seconds(time.time()))[1] == everything)
    source.close()


@not_tansu
@pytest.mark.parametrize("more", [2, 5, 9])
def test_a_topic_that_was_made_anew_is_read_from_its_beginning(world: World, more: int) -> None:
    """However many events it has: fewer than the other had, as many, or more."""
    assert world.remake
    key, other = (world.interactions, 0), (world.feedback, 0)
    for number in range(5):
        world.produce(world.interactions, b"old %d" % number, 0)
    world.produce(world.feedback, b"f", 0)
    world.flush()
    source = world.open(dict)
    before = read(source, has(6))
    source.close()
    world.remake(world.interactions)
    for number in range(more):
        world.produce(world.interactions, b"new %d" % number, 0)
    world.flush()
    source = world.open(lambda: nexts(before), known=lambda: known(before))
    assert not source.caught_up()
    after = read(source, lambda batches: nexts(batches).get(key) == more)
    assert values(after) == [b"new %d" % number for number in range(more)]
    first = next(batch for batch in after if key in batch.nexts)
    assert first.starts[key] == 5
    assert [topic for batch in after for topic in batch.remade] == [world.interactions]
    assert known(after)[key].topic_id not in (None, known(before)[key].topic_id)
    assert known(after)[key].cluster_id == known(before)[key].cluster_id is not None
    assert other not in nexts(after)  # its offset holds
    source.close()


@not_tansu
def test_a_topic_that_is_made_anew_while_it_is_read(world: World) -> None:
    assert world.remake
    key = (world.interactions, 0)
    for number in range(5):
        world.produce(world.interactions, b"old %d" % number, 0)
    world.flush()
    seen: list[Batch] = []
    source = world.open(lambda: nexts(seen), known=lambda: known(seen))
    seen += read(source, has(5))
    world.remake(world.interactions)
    for number in range(9):
        world.produce(world.interactions, b"new %d" % number, 0)
    world.flush()
    found: set[bytes | None] = set()
    deadline = time.monotonic() + 40
    while len(found) < 9 and time.monotonic() < deadline:
        seen.append(source.poll(100, 0.2))
        found |= set(values(seen[-1:]))
    assert found == {b"new %d" % number for number in range(9)}
    assert nexts(seen)[key] == 9
    source.close()


@not_tansu
def test_a_topic_that_was_made_anew_may_be_a_reason_to_stop(world: World) -> None:
    assert world.remake
    world.produce(world.interactions, b"old", 0)
    world.flush()
    source = world.open(dict)
    before = read(source, has(1))
    source.close()
    world.remake(world.interactions)
    source = world.open(lambda: nexts(before), "earliest", "stop", known=lambda: known(before))
    with pytest.raises(EventsLost, match="recreated"):
        read(source, has(1), 5)
    source.close()


@pytest.mark.parametrize("world", ["apache_kafka"], indirect=True)
def test_another_cluster_is_refused(world: World) -> None:
    world.produce(world.interactions, b"x", 0)
    world.flush()
    key = (world.interactions, 0)
    source = world.open(lambda: {key: 0}, known=lambda: {key: Identity("elsewhere", "t")})
    with pytest.raises(ConfigurationError, match=r"warehouse was filled from.*set kafka\.cluster_id"):
        read(source, has(1))
    source.close()


def test_which_cluster_is_expected() -> None:
    stored = {("in", 0): Identity("a", "t"), ("import:x", 0): Identity(None, None)}
    check_cluster(KafkaSettings(), stored, "a")
    check_cluster(KafkaSettings(), stored, None)
    check_cluster(KafkaSettings(), {}, "b")
    check_cluster(KafkaSettings(cluster_id="b"), stored, "b")
    with pytest.raises(ConfigurationError, match=r"not the cluster in kafka\.cluster_id"):
        check_cluster(KafkaSettings(cluster_id="a"), stored, "b")


@pytest.mark.parametrize(
    ("known", "found", "another"),
    [
        (None, Identity("c", "t"), False),
        (Identity("c", "t"), Identity("c", "t"), False),
        (Identity("c", "t"), Identity("c", "u"), True),
        (Identity("c", "t"), Identity("d", "t"), True),
        (Identity("c", "t"), Identity("c", None), False),
        (Identity(None, "t"), Identity("c", "t"), False),
        (Identity("c", None), Identity("d", None), True),
    ],
)
def test_what_is_another_topic(known: Identity | None, found: Identity, another: bool) -> None:
    assert is_another(known, found) is another
