"""Segments: redacted batches of events as Parquet files, one for each table, and the names of the files.

Files are `<table>/day=<day>/<topic>-<partition>-<epoch>-<start>-<random>.parquet`, compressed with zstd, in the layout
of the archive. The day is the one on which the batch was received. Topic, partition, epoch and start belong to one of
its partitions: with them, `sweep` decides whether a segment can still get a file.
"""

import hashlib
import io
import re
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.cluster.database import File, Listed, Move, Segment
from retuned.consumers.kafka.contract import Batch, Identity, Partition
from retuned.consumers.kafka.records import BrokenBatch
from retuned.consumers.warehouse.packing import Table
from retuned.consumers.warehouse.rows import REPLAYED, Rows

TABLES = (*get_args(Table), "dead_letters", REPLAYED)
_NAME = re.compile(r"\w+/day=(\d{4}-\d\d-\d\d)/(.+)-(\d+)-(\d+)-(\d+|none)-[0-9a-f]+\.parquet")


def moves(rows: Rows, epochs: Mapping[Partition, int]) -> list[Move]:
    """Returns the moves of a batch's partitions under their epochs."""
    moves = []
    for (topic, number), offset in sorted(rows.nexts.items()):
        identity = rows.identities.get(topic, Identity(None, None))
        start = rows.starts.get((topic, number))
        moves.append(Move(topic, number, epochs[topic, number], start, offset, *identity))
    return moves


def encode(rows: Rows, move: Move) -> list[tuple[File, bytes]]:
    """Returns the files of a redacted batch with their content, named after one of its moves."""
    tables: list[tuple[str, Any]] = list(rows.tables.items())
    if rows.dead:
        tables.append(("dead_letters", rows.dead_letters_table()))
    if rows.replayed:
        tables.append((REPLAYED, rows.replayed_table()))
    start = "none" if move.start_offset is None else move.start_offset
    name = f"{move.topic}-{move.partition}-{move.epoch}-{start}-{secrets.token_hex(8)}.parquet"
    files = []
    for table_name, table in tables:
        sink = io.BytesIO()
        pq.write_table(_plain(table), sink, compression="zstd")
        content = sink.getvalue()
        key = f"{table_name}/day={rows.received_at:%Y-%m-%d}/{name}"
        sha256 = hashlib.sha256(content).hexdigest()
        files.append((File(key, table_name, table.num_rows, len(content), sha256), content))
    return files


def counts(rows: Rows) -> dict[str, Any]:
    """Returns the counts of a batch that the database stores."""
    lost = Counter(rows.lost)
    for record, _ in rows.bad:
        if isinstance(record, BrokenBatch):
            lost[record.topic] += record.events
    return {
        "messages": dict(rows.messages),
        "passed_over": dict(rows.passed_over),
        "redactions": dict(rows.redactions),
        "duplicates": rows.duplicates,
        "lost": dict(lost),
        "remade": list(rows.remade),
    }


def rows(batch: Batch, segment: Segment, content: Sequence[bytes], distance_seconds: float) -> Rows:
    """Decodes the rows of a segment.

    Args:
        content: the content of its files, in order.
    """
    started = time.perf_counter()
    tables = {
        file.table_name: pq.read_table(io.BytesIO(data)) for file, data in zip(segment.files, content, strict=True)
    }
    decoded = Rows.of_segment(
        segment.number, batch, distance_seconds, segment.received_at, segment.counts["messages"], tables
    )
    decoded.seconds = time.perf_counter() - started
    return decoded


def listed(key: str) -> Listed | None:
    """Parses the key of a file; None: it is not a segment's."""
    match = _NAME.fullmatch(key)
    if match is None:
        return None
    day, topic, partition, epoch, start = match.groups()
    try:
        received_on = date.fromisoformat(day)
    except ValueError:
        return None
    return Listed(key, received_on, topic, int(partition), int(epoch), None if start == "none" else int(start))


def _plain(table: Any) -> Any:
    """Converts JSON columns to text, because other engines do not have this type."""
    return table.cast(
        pa.schema([pa.field(field.name, getattr(field.type, "storage_type", field.type)) for field in table.schema])
    )
