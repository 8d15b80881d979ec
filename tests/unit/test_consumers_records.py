"""Kafka's record batches: ours reads what the client reads, and says no to what is broken."""

import random
import time
from typing import Any

import pytest
from kafka.errors import CorruptRecordError, UnsupportedCodecError
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from kafka.structs import TopicPartition

from retuned.consumers.kafka.records import BrokenBatch, FastRecords, FetchedRecord, read_batch

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
Row = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]


def batch(rows: list[Row], codec: int = 0, **more: Any) -> bytes:
    """As a broker keeps it; each row is milliseconds, key, value, headers."""
    builder = MemoryRecordsBuilder(2, codec, 2**24, **more)
    for row in rows:
        builder.append(*row)
    builder.close()
    return bytes(builder._buffer)


def rows_of(number: int) -> list[Row]:
    """Every size of number that the format has, in every place, at random."""
    rng = random.Random(number)

    def some(*sizes: int) -> bytes | None:
        size = rng.choice((None, *sizes))
        return None if size is None else rng.randbytes(size)

    return [
        (
            1_700_000_000_000 + rng.choice((0, 1, 63, 64, 8_191, 8_192, 10**9, -5)),
            some(0, 1, 63, 64, 200, 9_000),
            some(0, 1, 63, 64, 965, 8_191, 8_192, 70_000),
            [(f"näme{n}", some(0, 5, 100)) for n in range(rng.choice((0, 0, 0, 1, 3)))],
        )
        for _ in range(rng.choice((1, 2, 70, 300)))
    ]


def fetched(data: bytes, offset: int = 0, **more: Any) -> FastRecords:
    return FastRecords(offset, TopicPartition("t", 3), MemoryRecords(data), **more)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("number", range(8))
def test_it_reads_what_the_client_reads(codec: str, number: int) -> None:
    data = batch(rows_of(number), CODECS[codec])
    expected = [(r.offset, r.value, r.headers) for r in MemoryRecords(data).next_batch()]
    found = fetched(data).take()
    assert [(r.offset, r.value, list(r.headers)) for r in found] == expected
    assert {(r.topic, r.partition) for r in found} == {("t", 3)}
    assert all(type(r.value) in (bytes, type(None)) for r in found)


def test_it_begins_and_goes_on_where_it_is_told() -> None:
    rows: list[Row] = [(0, None, b"%d" % number, []) for number in range(10)]
    part = fetched(batch(rows) + batch(rows, offset=10), offset=4)
    assert [record.offset for record in part.take(3)] == [4, 5, 6]
    assert part.next_fetch_offset == 7
    assert [record.offset for record in part.take(8)] == [7, 8, 9, 10, 11, 12, 13, 14]
    assert [record.offset for record in part.take()] == [15, 16, 17, 18, 19]
    assert (part.next_fetch_offset, bool(part), part.records_read) == (20, False, 20)


def test_a_time_that_no_clock_shows_is_unknown() -> None:
    """A producer sets any number of 64 bits: here none, nanoseconds, the largest one, and what is far ahead."""
    now = int(time.time() * 1000)
    for milliseconds in (-1, time.time_ns(), 2**63 - 1, now + 2 * 86_400_000):
        assert [record.timestamp for record in fetched(batch([(milliseconds, None, b"x", [])])).take()] == [None]
    for milliseconds in (0, now, now + 3_600_000):
        (record,) = fetched(batch([(milliseconds, None, b"x", [])])).take()
        assert record.timestamp == milliseconds / 1000


def test_records_that_were_compacted_away_leave_gaps() -> None:
    builder = MemoryRecordsBuilder(2, 0, 2**20)
    builder.append(0, None, b"0", [])
    builder.skip(5)
    builder.append(0, None, b"6", [])
    builder.close()
    part = fetched(bytes(builder._buffer))
    assert [record.offset for record in part.take()] == [0, 6]
    assert part.next_fetch_offset == 7


ROWS: list[Row] = [(0, None, b"x" * 50, []), (0, None, b"y" * 50, [])]


def test_a_batch_with_a_broken_checksum_stands_for_its_records() -> None:
    data = bytearray(b"".join(offset.to_bytes(8) + batch(ROWS)[8:] for offset in (0, 2, 4)))
    data[len(data) // 2] ^= 1
    part = fetched(bytes(data))
    found = part.take()
    assert [(type(record), record.offset) for record in found] == [
        (FetchedRecord, 0), (FetchedRecord, 1), (BrokenBatch, 2), (FetchedRecord, 4), (FetchedRecord, 5),
    ]  # fmt: skip
    assert found[2].problem == (
        "kafka topic t partition 3: the batch of offsets 2 to 3 cannot be unpacked: the checksum is wrong"
    )
    assert (part.next_fetch_offset, bool(part)) == (6, False)


@pytest.mark.parametrize("byte", [23, 26])
def test_a_batch_that_does_not_say_where_it_ends_is_an_error(byte: int) -> None:
    data = bytearray(batch(ROWS))
    data[byte] ^= 0x80  # the last offset is below the first, or too far away
    with pytest.raises(CorruptRecordError, match="batch at offset 0 is broken, and its end is unknown; delete"):
        fetched(bytes(data)).take()


def test_a_codec_that_is_not_installed_here_passes_over_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kafka.codec.zstd", None)
    data = batch(ROWS)
    zstd = bytearray(data)
    zstd[22] |= CODECS["zstd"]
    with pytest.raises(UnsupportedCodecError, match="zstd"):
        fetched(bytes(zstd), check_crcs=False).take()


def body(rows: list[Row]) -> bytes:
    return batch(rows)[61:]


@pytest.mark.parametrize("cut", [1, 2, 5, 30])
def test_a_body_that_ends_early_is_told(cut: int) -> None:
    with pytest.raises(CorruptRecordError):
        read_batch(body([(0, b"key", b"x" * 50, [("a", b"b")])])[:-cut], 1, 0, "t", 0, None)


def test_a_body_that_holds_more_or_less_is_told() -> None:
    two = body([(0, None, b"x", []), (0, None, b"y", [])])
    with pytest.raises(CorruptRecordError, match="after the last record"):
        read_batch(two, 1, 0, "t", 0, None)
    with pytest.raises(CorruptRecordError, match="cannot be read"):
        read_batch(two, 3, 0, "t", 0, None)


def test_a_header_whose_name_has_a_negative_size_is_broken() -> None:
    """It would lead back to itself, once for each of as many headers as the record claims to have."""
    with pytest.raises(CorruptRecordError):
        read_batch(b"\x0e\0\0\0\x01\x01\x02\x03", 1, 0, "t", 0, None)


def test_a_number_that_does_not_end_is_broken() -> None:
    """Read to its end, it would take the square of its length: an hour for ten megabytes."""
    with pytest.raises(CorruptRecordError, match="more than ten bytes"):
        read_batch(b"\xff" * 1_000, 1, 0, "t", 0, None)


def test_no_broken_body_brings_anything_but_the_error() -> None:
    rng = random.Random(0)
    good = body(rows_of(3)[:20])
    for _ in range(2_000):
        broken = bytearray(good)
        for _ in range(rng.choice((1, 2, 5))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            read_batch(bytes(broken), 20, 0, "t", 0, None)
        except CorruptRecordError:
            continue
