"""Deduplication by a filter: it forgets no id, is rarely wrong, and knows what it does not know."""

from datetime import datetime, timedelta
from hashlib import blake2b

import pytest

from retuned.consumers.warehouse import duplicates
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.duplicates import BloomFilter, Stored

NOON = datetime(2026, 11, 24, 12)
HOUR = timedelta(hours=1)


def unsalted(id: str) -> int:
    return int.from_bytes(blake2b(id.encode(), digest_size=8).digest(), signed=True)


def store(warehouse: Warehouse, ids: list[str], at: datetime) -> None:
    """One row a second, the last one at the given time."""
    warehouse.execute(
        "INSERT INTO feedback SELECT id, ?::TIMESTAMP - to_seconds(len($2::VARCHAR[]) - n), 'i', 'helpful', 'true', "
        "'user', NULL, 't', 0, n, now(), NULL "
        "FROM (SELECT unnest($2::VARCHAR[]) AS id, generate_subscripts($2, 1) AS n)",
        [at, ids],
    )


def test_no_id_is_forgotten_and_few_are_mistaken() -> None:
    known = BloomFilter(50_000)
    ids = [f"id-{number}" for number in range(50_000)]
    known.add(ids[:25_000])
    known.add(ids[25_000:])
    assert known.count == 50_000
    assert known.add(ids).all()
    strangers = known.add([f"other-{number}" for number in range(100_000)])
    assert strangers.sum() <= 10  # 2.5 are to be expected when it is full


def test_an_empty_batch() -> None:
    known = BloomFilter(10)
    assert known.add([]).tolist() == []


def test_what_is_stored_is_known_after_a_start(warehouse: Warehouse) -> None:
    store(warehouse, ["a", "b"], NOON)
    stored = Stored(warehouse, "feedback", HOUR)
    assert stored.may_have(["a", "x", "b"], NOON - HOUR).tolist() == [True, False, True]
    assert stored.may_have(["x", "y"], NOON - HOUR).tolist() == [True, False]  # x was about to be stored


def test_nothing_is_sure_of_a_time_that_it_does_not_remember(warehouse: Warehouse) -> None:
    store(warehouse, ["old"], NOON - 5 * HOUR)
    store(warehouse, ["new"], NOON)
    stored = Stored(warehouse, "feedback", HOUR)
    assert stored.may_have(["x"], NOON - HOUR).tolist() == [False]
    assert stored.may_have(["y"], NOON - 6 * HOUR).tolist() == [True]


def test_all_is_remembered_of_an_empty_table(warehouse: Warehouse) -> None:
    stored = Stored(warehouse, "feedback", HOUR)
    assert stored.may_have(["x"], datetime(1971, 1, 1)).tolist() == [False]
    assert stored.may_have(["x"], datetime(1971, 1, 1)).tolist() == [True]


def test_what_could_not_be_read_whole_is_read_again(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"{number}" for number in range(15_000)]
    store(warehouse, ids, NOON)
    stored = Stored(warehouse, "feedback", 24 * HOUR)
    add, calls = BloomFilter.add, []

    def fails_at_the_second(self: BloomFilter, some: list[str]) -> object:
        calls.append(len(some))
        if len(calls) == 2:
            raise OSError("the disk is gone")
        return add(self, some)

    monkeypatch.setattr(BloomFilter, "add", fails_at_the_second)
    with pytest.raises(OSError, match="the disk is gone"):
        stored.may_have(["x"], NOON - HOUR)
    assert stored.may_have(ids, NOON - HOUR).all()
    assert calls[:2] == [10_000, 5_000]


def test_when_it_is_full_it_begins_again_with_the_newest(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "SMALLEST", 64)
    monkeypatch.setattr(duplicates, "LARGEST", 256)
    # Python salts its own: in one run of some twenty it errs about one of these two thousand.
    monkeypatch.setattr(duplicates, "hash", unsalted, raising=False)
    stored = Stored(warehouse, "feedback", HOUR)
    ids: list[str] = []
    for round in range(40):
        more = [f"{round}-{number}" for number in range(50)]
        at = NOON + round * timedelta(minutes=10)
        assert not stored.may_have(more, at - timedelta(minutes=15)).any()
        store(warehouse, more, at)
        ids += more
    assert stored.may_have(ids[-50:], NOON + timedelta(minutes=375)).all()
    assert stored._filter is not None
    assert stored._filter.count <= 256
    # All of its life at most 128 were remembered: of older times it is sure of nothing.
    assert stored.may_have(["stranger"], NOON).all()
