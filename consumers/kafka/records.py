"""Kafka's record batches, read faster than kafka-python reads them.

The client (3.0.12) spends some 4 µs of Python on a record: two objects, six calls for numbers, properties, sizes for
its metrics. What we need of one is its offset, value and headers, so the records of a batch are read here in one loop.
The client keeps everything else: fetching, checksums, codecs, transactions, positions.
Source of the format: https://kafka.apache.org/documentation/#recordbatch
"""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from kafka import errors as kafka_errors
from kafka.consumer.fetcher import Fetcher, IsolationLevel

from retuned.consumers.common.text import first_line


class FetchedRecord(msgspec.Struct, frozen=True, gc=False):
    """One message, as it lies in a partition, or a row of a file.

    Attributes:
        problem: why it is no event, where the reader knows better than the decoder; else None.
        timestamp: Unix seconds, of the newest record of its batch; None: not known.
    """

    topic: str
    partition: int
    offset: int
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    problem: str | None = None
    timestamp: float | None = None


class BrokenBatch(msgspec.Struct, frozen=True):
    """A batch that nobody can unpack, in the place of its records.

    Attributes:
        offset: of the first event that is passed over.
        next_offset: where the next batch begins.
        why: what is wrong with it, for a person.
    """

    topic: str
    partition: int
    offset: int
    next_offset: int
    why: str
    value: None = None
    headers: tuple[()] = ()
    timestamp: None = None

    @property
    def events(self) -> int:
        """How many events are passed over, going by the offsets."""
        return self.next_offset - self.offset

    @property
    def problem(self) -> str:
        """The same for a person."""
        return (
            f"kafka topic {self.topic} partition {self.partition}: the batch of offsets {self.offset} to "
            f"{self.next_offset - 1} cannot be unpacked: {self.why}"
        )


class EndlessBatch(kafka_errors.CorruptRecordError):  # type: ignore[misc]
    """A batch so broken that where the next one begins is unknown."""

    def __init__(self, topic: str, partition: int, offset: int) -> None:
        super().__init__(
            f"topic {topic} partition {partition}: the batch at offset {offset} is broken, and where it ends cannot be "
            "told; delete the records up to the next whole one (kafka-delete-records.sh) and start again"
        )


def read_batch(
    buffer: bytes, count: int, base_offset: int, topic: str, partition: int, timestamp: float | None
) -> list[FetchedRecord]:
    """The records of a batch of format 2, from its uncompressed body.

    Raises:
        CorruptRecordError: it does not hold so many records, or not only them.
    """
    messages: list[FetchedRecord] = []
    append = messages.append
    at = 0
    try:
        for _ in range(count):
            # Numbers are zigzag varints. The ones that are nearly always one or two bytes are read in place.
            byte = buffer[at]
            at += 1
            if byte < 0x80:
                end = at + (byte >> 1)
            elif (second := buffer[at]) < 0x80:
                at += 1
                end = at + ((byte & 0x7F | second << 7) >> 1)
            else:
                length, at = _varint(buffer, at - 1)
                end = at + length
            at += 1  # attributes, which are not used
            while buffer[at] >= 0x80:  # time since the first record
                at += 1
            at += 1
            byte = buffer[at]
            at += 1
            if byte < 0x80:
                delta = byte >> 1
            elif (second := buffer[at]) < 0x80:
                at += 1
                delta = (byte & 0x7F | second << 7) >> 1
            else:
                delta, at = _varint(buffer, at - 1)
            byte = buffer[at]
            at += 1
            if byte >= 0x80:
                key, at = _varint(buffer, at - 1)
                at += key
            elif byte != 1:  # 1 is -1: no key
                at += byte >> 1
            byte = buffer[at]
            at += 1
            if byte < 0x80:
                size = (byte >> 1) ^ -(byte & 1)
            elif (second := buffer[at]) < 0x80:
                at += 1
                size = (byte & 0x7F | second << 7) >> 1
            else:
                size, at = _varint(buffer, at - 1)
            if size >= 0:
                value = buffer[at : at + size]
                at += size
            else:
                value = None
            if buffer[at] == 0:
                at += 1
                append(FetchedRecord(topic, partition, base_offset + delta, value, (), None, timestamp))
            else:
                headers, at = _headers(buffer, at)
                append(FetchedRecord(topic, partition, base_offset + delta, value, headers, None, timestamp))
            if at != end:
                raise kafka_errors.CorruptRecordError(f"a record ends {at - end} bytes beside its end")
    except (IndexError, UnicodeDecodeError) as error:
        raise kafka_errors.CorruptRecordError(f"a record cannot be read ({error})") from error
    if at != len(buffer):
        raise kafka_errors.CorruptRecordError(f"{len(buffer) - at} bytes after the last record of a batch")
    return messages


def _seconds(milliseconds: int | None) -> float | None:
    """Kafka's time of a record; below zero: it has none."""
    return None if milliseconds is None or milliseconds < 0 else milliseconds / 1000


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    """A zigzag varint, and where it ends."""
    number = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
        shift += 7


def _headers(buffer: bytes, at: int) -> tuple[list[tuple[str, bytes | None]], int]:
    count, at = _varint(buffer, at)
    headers: list[tuple[str, bytes | None]] = []
    for _ in range(count):
        size, at = _varint(buffer, at)
        name = buffer[at : at + size].decode()
        size, at = _varint(buffer, at + size)
        if size >= 0:
            headers.append((name, buffer[at : at + size]))
            at += size
        else:
            headers.append((name, None))
    return headers, at


class FastRecords(Fetcher.PartitionRecords):  # type: ignore[misc]
    """What was fetched of one partition, in the client's place for it."""

    def take(self, n: int | None = None) -> list[FetchedRecord | BrokenBatch]:
        """At most `n` records."""
        taken: list[FetchedRecord | BrokenBatch] = super().take(n)
        if taken:  # a batch whose end was reached has set it farther
            self.next_fetch_offset: int = max(self.next_fetch_offset, taken[-1].offset + 1)
        return taken

    def _unpack_records(self, tp: Any, records: Any, *_: Any) -> Iterator[FetchedRecord | BrokenBatch]:
        while (batch := records.next_batch()) is not None:
            if batch.magic < 2:  # kept by brokers older than 0.11, or never rewritten since
                if self.check_crcs and not batch.validate_crc():
                    raise EndlessBatch(tp.topic, tp.partition, batch.base_offset)
                for record in batch:
                    written_at = _seconds(record.timestamp)
                    yield FetchedRecord(tp.topic, tp.partition, record.offset, record.value, timestamp=written_at)
                continue
            self.leader_epoch = batch.leader_epoch
            try:
                messages = self._messages(batch, tp)
            except kafka_errors.CorruptRecordError as error:
                first = max(batch.base_offset, self.fetch_offset)
                # Nothing in a header with a wrong checksum can be trusted, but two numbers do not break alike.
                if batch.next_offset <= first or batch.records_count != batch.last_offset_delta + 1:
                    raise EndlessBatch(tp.topic, tp.partition, first) from error
                self.next_fetch_offset = batch.next_offset
                yield BrokenBatch(tp.topic, tp.partition, first, batch.next_offset, error.args[0])
                continue
            yield from messages
            self.records_read += len(messages)
            self.next_fetch_offset = batch.next_offset  # the last ones may have been compacted away
        self.drain()

    def _messages(self, batch: Any, tp: Any) -> list[FetchedRecord]:
        """The records of a batch; none of one that is hidden.

        Raises:
            CorruptRecordError: the batch is broken.
            UnsupportedCodecError: the library of its codec is not installed here.
        """
        if self.check_crcs and not batch.validate_crc():
            raise kafka_errors.CorruptRecordError("the checksum is wrong")
        if self._is_hidden(batch):
            return []
        if batch.compression_type > batch.CODEC_ZSTD:
            raise kafka_errors.CorruptRecordError(f"there is no compression codec {batch.compression_type}")
        try:
            batch._maybe_uncompress()
        except (kafka_errors.UnsupportedCodecError, MemoryError):
            raise
        except Exception as error:  # each codec has errors of its own
            raise kafka_errors.CorruptRecordError(f"it cannot be decompressed ({first_line(error)})") from error
        body = bytes(memoryview(batch._buffer)[batch._pos :])
        self.bytes_read += len(body)
        written_at = _seconds(batch.max_timestamp)
        return read_batch(body, batch.records_count, batch.base_offset, tp.topic, tp.partition, written_at)

    def _is_hidden(self, batch: Any) -> bool:
        """Whether a batch is a marker of a transaction or, where only what was committed is read, of one aborted."""
        if self.isolation_level == IsolationLevel.READ_COMMITTED and batch.has_producer_id():
            self._consume_aborted_transactions_up_to(batch.last_offset)
            if self._contains_abort_marker(batch):
                self.aborted_producer_ids.discard(batch.producer_id)
            elif self._is_batch_aborted(batch):
                return True
        return bool(batch.is_control_batch)
