"""Replay: dead letters are decoded again, after a fix, and those that are events now are moved to where they belong."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from retuned.consumers.decoding import Decoder
from retuned.consumers.formats.dialects import BadPart
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.kafka.records import FetchedRecord
from retuned.consumers.warehouse.connection import Warehouse, utc_now
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
        MemoryLimit: DuckDB may not have as much as it needs, tried for some seconds; those before them were replayed.
        RetunedError: the thread of `Ingest.run` does not come to it in time; those before them were replayed.
    """
    total = Counter(tried=0, replayed=0, stored=0)
    for letters in pieces(ingest.warehouse):
        total.update(ingest.run_in_ingest_thread("dead letters", partial(_replay_some, ingest, letters)))
    return dict(total)


def pieces(warehouse: Warehouse) -> Iterator[list[dict[str, Any]]]:
    """The letters that are whole, some at a time, each piece read when it is asked for."""
    # Those that come meanwhile are new, and so are those that are still bad.
    after: dict[str, Any] = {"until": utc_now(), "received_at": None, "key": None}
    while letters := warehouse.rows(QUERIES["letters_to_replay"], after | {"most": LETTERS, "size": CHARACTERS}):
        yield letters
        after |= {"received_at": letters[-1]["received_at"], "key": letters[-1]["key"]}


def decoded(
    letters: list[dict[str, Any]], decoder: Decoder, batch: Batch, seconds: float, pseudonym: Callable[[str], str]
) -> Rows:
    """The events that letters are now, packed; those letters are `replayed`.

    Args:
        batch: what of partitions moves with them.
        seconds: how far apart two events with one id may be and still be one.
        pseudonym: of a user as the letters name one.
    """
    rows = Rows(batch, seconds, utc_now(), pseudonym)
    for letter in letters:
        record = FetchedRecord(letter["topic"], letter["partition"], letter["offset"], letter["payload"].encode())
        found = decoder.found(record, rows.received_at)
        if any(isinstance(part, BadPart) for part in found):
            continue
        rows.replayed.append({name: letter[name] for name in ("topic", "partition", "offset", "payload")})
        for part in found:
            rows.add(part, record)
    rows.pack()
    return rows


def _replay_some(ingest: Ingest, letters: list[dict[str, Any]]) -> Counter[str]:
    writer, seconds = ingest.writer, ingest.settings.ingest.deduplicate_seconds
    rows = decoded(letters, ingest.decoder, Batch(), seconds, writer.pseudonym_or_stored)
    writer.write(rows)
    return Counter(tried=len(letters), replayed=len(rows.replayed), stored=sum(rows.stored.values()))
