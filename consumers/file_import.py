"""Import: batches of a file's rows are stored as batches of Kafka's are, and go on where they ended."""

from collections import Counter
from dataclasses import dataclass, field

from retuned.consumers.errors import OutOfStep
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.dead_letters import count_dead_letters
from retuned.consumers.warehouse.rows import Rows, Table
from retuned.consumers.warehouse.writer import stored_offsets

# Files hold years, and an id in them is a duplicate when it is stored at any time: farther apart than events can be.
EVER_SECONDS = 231 * 366 * 86_400.0
EXAMPLES = 5


@dataclass(frozen=True)
class Position:
    """How far a file was taken, in whatever number of imports.

    Attributes:
        next: the next row to take; None when nothing of it was taken.
        refused: how many of its rows were refused, by the dead letters that the warehouse has. Those that were
            replayed or archived meanwhile are not among them.
    """

    next: int | None
    refused: int


@dataclass(frozen=True)
class Refusal:
    """A row of a file that is no event, redacted; the dead letter has the rest."""

    offset: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Taken:
    """What became of a batch of rows: events stored, of each kind, and what was not stored and why.

    Attributes:
        passed_over: what is known to be no event, by the reasons in `dialects.PASSED_OVER`.
    """

    stored: dict[Table, int]
    duplicates: int
    refused: dict[str, int]
    examples: list[Refusal]
    passed_over: dict[str, int] = field(default_factory=dict)


def position(warehouse: Warehouse, topic: str) -> Position:
    """How far a file was taken (`files.EventFile.topic`)."""
    reached = stored_offsets(warehouse).get((topic, 0))
    return Position(reached, 0 if reached is None else count_dead_letters(warehouse, topic))


def take(ingest: Ingest, batch: Batch) -> Taken:
    """Store a batch of rows of one file.

    Pseudonyms stay as they are, and an id that is stored at any time is a duplicate.

    Raises:
        OutOfStep: the batch does not begin where the last one of this file ended. Nothing was stored.
        RetunedError: the thread of `Ingest.run` does not come to it in time; it may store the batch later.
    """
    return ingest.run_in_ingest_thread("import", lambda: _take(ingest, batch))


def _take(ingest: Ingest, batch: Batch) -> Taken:
    stored = stored_offsets(ingest.warehouse)
    for key in batch.nexts:
        if stored.get(key) != batch.starts.get(key):
            raise out_of_step(stored.get(key))
    rows = ingest.decoder.rows(batch, EVER_SECONDS, ingest.writer.pseudonym_or_stored)
    ingest.writer.write(rows)
    ingest.account_for(rows)
    return taken(rows)


def taken(rows: Rows) -> Taken:
    """What became of rows that were written."""
    return Taken(
        rows.stored,
        rows.duplicates,
        dict(Counter(dead.reason for dead in rows.dead)),
        [Refusal(dead.offset, dead.reason, dead.detail) for dead in rows.dead[:EXAMPLES]],
        dict(rows.passed_over),
    )


def out_of_step(stored: int | None) -> OutOfStep:
    """For a batch of a file that does not begin behind the rows that are stored of it."""
    return OutOfStep(
        f"another import of the same file has stored its first {stored or 0:,} rows meanwhile; this one ends, and "
        "stored nothing twice: wait for the other one, then give the command again, which goes on behind what is stored"
    )
