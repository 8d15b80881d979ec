"""Replay: dead letters are decoded again, after a fix, and those that are events now are moved to where they belong."""

from collections import Counter
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa

from retuned.consumers.errors import Busy
from retuned.consumers.formats.dialects import BadPart
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.kafka.records import FetchedRecord
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.writer import QUERIES

# At a time: events wait meanwhile, and some megabytes take seconds to redact.
LETTERS, CHARACTERS = 1_000, 2 * 2**20


def replay(ingest: Ingest) -> dict[str, int]:
    """Replay all letters that are whole; those that are still no events are kept, as are those that were cut.

    Ingestion goes on between two pieces.

    Returns:
        How many letters were `tried` and how many `replayed`, and how many events were `stored`: one letter may hold
        several, and a duplicate is stored once.

    Raises:
        Busy: some letters are being archived; those before them were replayed.
        RetunedError: the thread of `Ingest.run` does not come to it in time; those before them were replayed.
    """
    total = Counter(tried=0, replayed=0, stored=0)
    # Those that come meanwhile are new, and so are those that are still bad.
    after: dict[str, Any] = {"until": utc_now(), "received_at": None, "key": None}
    while letters := ingest.warehouse.rows(QUERIES["letters_to_replay"], after | {"most": LETTERS, "size": CHARACTERS}):
        work = partial(_replay_some, ingest, letters)
        total.update(ingest.run_in_ingest_thread("dead letters", work))
        after |= {"received_at": letters[-1]["received_at"], "key": letters[-1]["key"]}
    return dict(total)


def _replay_some(ingest: Ingest, letters: list[dict[str, Any]]) -> Counter[str]:
    writer = ingest.writer
    rows = Rows(Batch(), ingest.settings.ingest.deduplicate_seconds, utc_now(), writer.pseudonym_or_stored)
    done = []
    for letter in letters:
        record = FetchedRecord(letter["topic"], letter["partition"], letter["offset"], letter["payload"].encode())
        found = ingest.decoder.found(record, rows.received_at)
        if any(isinstance(part, BadPart) for part in found):
            continue
        done.append({name: letter[name] for name in ("topic", "partition", "offset", "payload")})
        for part in found:
            rows.add(part, record)
    rows.pack()
    writer.redact(rows)
    replayed = 0

    def delete_replayed(cursor: duckdb.DuckDBPyConnection) -> None:
        nonlocal replayed
        still_bad = {(dead.topic, dead.partition, dead.offset) for dead in rows.dead}
        gone = [letter for letter in done if (letter["topic"], letter["partition"], letter["offset"]) not in still_bad]
        replayed = len(gone)
        if gone:
            cursor.register("batch_replayed", pa.Table.from_pylist(gone))
            cursor.execute(QUERIES["delete_replayed"])

    try:
        writer.store(rows, delete_replayed)
    except duckdb.TransactionException as error:
        raise Busy(
            "dead letters: some are being archived just now, and they and the rest were not replayed; ask again"
        ) from error
    return Counter(tried=len(letters), replayed=replayed, stored=sum(rows.stored.values()))
