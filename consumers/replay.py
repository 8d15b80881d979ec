"""Replay: decodes dead letters again after a fix, and stores those that are events now."""

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC
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

# The size of a piece: events wait meanwhile, and megabytes take seconds to redact.
LETTERS, CHARACTERS = 1_000, 2 * 2**20


def replay(ingest: Ingest) -> dict[str, int]:
    """Replays all complete letters; truncated ones and those that are still not events are kept.

    Ingestion continues between two pieces.

    Returns:
        The number of letters `tried` and `replayed`, and of events `stored`: a letter may have several events, and
        duplicates are stored once.

    Raises:
        Busy: some letters are being archived; earlier ones were replayed.
        MemoryLimit: DuckDB's memory limit is too small, after several retries; earlier letters were replayed.
        RetunedError: the thread of `Ingest.run` has no time; earlier letters were replayed.
    """
    total = Counter(tried=0, replayed=0, stored=0)
    for letters in pieces(ingest.warehouse):
        total.update(ingest.run_in_ingest_thread("dead letters", partial(_replay_some, ingest, letters)))
    return dict(total)


def pieces(warehouse: Warehouse) -> Iterator[list[dict[str, Any]]]:
    """Yields the complete letters in pieces, each read on demand."""
    # Letters that arrive meanwhile are left out, including those that are still bad.
    after: dict[str, Any] = {"until": utc_now(), "received_at": None, "key": None}
    while letters := warehouse.rows(QUERIES["letters_to_replay"], after | {"most": LETTERS, "size": CHARACTERS}):
        yield letters
        after |= {"received_at": letters[-1]["received_at"], "key": letters[-1]["key"]}


def decoded(
    letters: list[dict[str, Any]], decoder: Decoder, batch: Batch, seconds: float, pseudonym: Callable[[str], str]
) -> Rows:
    """Decodes letters, and packs their events; letters without bad parts are `replayed`.

    Args:
        batch: the moves of partitions.
        seconds: the deduplication distance of events with the same id.
        pseudonym: returns the pseudonym of a user named by a letter.
    """
    rows = Rows(batch, seconds, utc_now(), pseudonym)
    for letter in letters:
        place, at = (letter["topic"], letter["partition"], letter["offset"]), letter["received_at"].replace(tzinfo=UTC)
        record = FetchedRecord(*place, letter["payload"].encode(), timestamp=at.timestamp())
        parts = decoder.found(record, rows.received_at)
        if any(isinstance(part, BadPart) for part in parts):
            continue
        rows.replayed.append({name: letter[name] for name in ("topic", "partition", "offset", "payload")})
        for part in parts:
            rows.add(part, record)
    rows.pack()
    return rows


def _replay_some(ingest: Ingest, letters: list[dict[str, Any]]) -> Counter[str]:
    writer, seconds = ingest.writer, ingest.settings.ingest.deduplicate_seconds
    rows = decoded(letters, ingest.decoder, Batch(), seconds, writer.pseudonym_or_stored)
    writer.write(rows)
    return Counter(tried=len(letters), replayed=len(rows.replayed), stored=sum(rows.stored.values()))
