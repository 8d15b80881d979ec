"""Import: stores batches of a file's rows like batches of Kafka, and continues where the last import ended."""

from collections import Counter
from dataclasses import dataclass, field

from retuned.consumers.errors import OutOfStep
from retuned.consumers.ingest import Ingest
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.warehouse.connection import Warehouse
from retuned.consumers.warehouse.dead_letters import refused_rows
from retuned.consumers.warehouse.packing import Table
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.writer import stored_offsets

# Files may span years, so an id is a duplicate regardless of the time: more than any two events can be apart.
EVER_SECONDS = 231 * 366 * 86_400.0
EXAMPLES = 5


@dataclass(frozen=True)
class Position:
    """The progress of a file over all of its imports.

    Attributes:
        next: the next row to import; None: none was imported.
        refused: the number of refused rows by the dead letters in the warehouse, without replayed and archived ones.
    """

    next: int | None
    refused: int


@dataclass(frozen=True)
class Refusal:
    """A redacted row of a file that is not an event; its dead letter has the content."""

    offset: int
    reason: str
    detail: str


@dataclass(frozen=True)
class Taken:
    """The result of a batch: the stored events of each table, and the rows that were not stored.

    Attributes:
        refused: the number of refused rows by their first reason; a row may hold several events.
        passed_over: the number of skipped rows, by the reasons in `dialects.PASSED_OVER`.
        erased: the number of rows that were kept out because they belong to what was erased.
    """

    stored: dict[Table, int]
    duplicates: int
    refused: dict[str, int]
    examples: list[Refusal]
    passed_over: dict[str, int] = field(default_factory=dict)
    erased: int = 0


def position(warehouse: Warehouse, topic: str) -> Position:
    """Returns the progress of a file (`files.EventFile.topic`)."""
    reached = stored_offsets(warehouse).get((topic, 0))
    return Position(reached, 0 if reached is None else refused_rows(warehouse, topic))


def take(ingest: Ingest, batch: Batch) -> Taken:
    """Stores a batch of rows of one file.

    Pseudonyms are unchanged, and a stored id is a duplicate regardless of its time.

    Raises:
        OutOfStep: the batch does not start at the end of the last one of this file. Nothing was stored.
        RetunedError: the thread of `Ingest.run` has no time; it may store the batch later.
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
    """Returns the result of written rows."""
    refused = list({dead.offset: dead for dead in reversed(rows.dead)}.values())[::-1]
    return Taken(
        rows.stored,
        rows.duplicates,
        dict(Counter(dead.reason for dead in refused)),
        [Refusal(dead.offset, dead.reason, dead.detail) for dead in refused[:EXAMPLES]],
        dict(rows.passed_over),
        rows.erased,
    )


def out_of_step(stored: int | None) -> OutOfStep:
    """Returns the error for a batch that does not continue the stored rows of its file."""
    return OutOfStep(
        f"another import of the same file has stored its first {stored or 0:,} rows meanwhile; this one stops, and has "
        "stored nothing twice: wait for the other one, then run the command again to continue"
    )
