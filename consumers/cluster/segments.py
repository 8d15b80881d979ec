"""Segments: a batch of events, redacted, as Parquet files, one for each table; and the names of the files.

`<table>/day=<day>/<topic>-<partition>-<epoch>-<start>-<random>.parquet`, zstd, the layout of the archive. The day is
the one on which the batch was received; topic, partition, epoch and start are of one of the partitions that it moves,
so that whoever finds a file that no segment has can tell whether one can still get it.
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
from retuned.consumers.warehouse.rows import REPLAYED, Rows, Table

TABLES = (*get_args(Table), "dead_letters", REPLAYED)
_NAME = re.compile(r"\w+/day=(\d{4}-\d\d-\d\d)/(.+)-(\d+)-(\d+)-(\d+|none)-[0-9a-f]+\.parquet")


def moves(rows: Rows, epochs: Mapping[Partition, int]) -> list[Move]:
    """How far a batch moves partitions, under the epochs in which it was read."""
    found = []
    for (topic, number), offset in sorted(rows.nexts.items()):
        identity = rows.identities.get(topic, Identity(None, None))
        start = rows.starts.get((topic, number))
        found.append(Move(topic, number, epochs[topic, number], start, offset, *identity))
    return found


def encode(rows: Rows, move: Move) -> list[tuple[File, bytes]]:
    """The files of a batch that is redacted, with their content; they are named after one of its moves."""
    tables: list[tuple[str, Any]] = list(rows.tables.items())
    if rows.dead:
        tables.append(("dead_letters", rows.dead_letters_table()))
    if rows.replayed:
        tables.append((REPLAYED, rows.replayed_table()))
    start = "none" if move.start_offset is None else move.start_offset
    name = f"{move.topic}-{move.partition}-{move.epoch}-{start}-{secrets.token_hex(8)}.parquet"
    found = []
    for table_name, table in tables:
        sink = io.BytesIO()
        pq.write_table(_plain(table), sink, compression="zstd")
        content = sink.getvalue()
        key = f"{table_name}/day={rows.received_at:%Y-%m-%d}/{name}"
        sha256 = hashlib.sha256(content).hexdigest()
        found.append((File(key, table_name, table.num_rows, len(content), sha256), content))
    return found


def counts(rows: Rows) -> dict[str, Any]:
    """What the database keeps of a batch beside its files."""
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
    """The rows of a segment, as they were encoded; `content` is that of its files, in their order."""
    started = time.perf_counter()
    tables = {file.table_name: pq.read_table(io.BytesIO(one)) for file, one in zip(segment.files, content, strict=True)}
    found = Rows.of_segment(
        segment.number, batch, distance_seconds, segment.received_at, segment.counts["messages"], tables
    )
    found.seconds = time.perf_counter() - started
    return found


def listed(key: str) -> Listed | None:
    """What the name of a file says; None: it is none of ours."""
    found = _NAME.fullmatch(key)
    if found is None:
        return None
    day, topic, partition, epoch, start = found.groups()
    try:
        received_on = date.fromisoformat(day)
    except ValueError:
        return None
    return Listed(key, received_on, topic, int(partition), int(epoch), None if start == "none" else int(start))


def _plain(table: Any) -> Any:
    """JSON as text: other engines know no such type."""
    return table.cast(
        pa.schema([pa.field(one.name, getattr(one.type, "storage_type", one.type)) for one in table.schema])
    )
