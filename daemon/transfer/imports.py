"""`retuned import`: imports files into the warehouse, with or without a running daemon."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TextIO

import msgspec

from retuned.consumers.decoding import Decoder
from retuned.consumers.errors import RetunedError, TooManyDeadLetters
from retuned.consumers.file_import import EVER_SECONDS, EXAMPLES, Position, Refusal, Taken, taken
from retuned.consumers.formats.dialects import PASSED_OVER
from retuned.consumers.formats.files import BATCH_BYTES, EventFile
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.kafka.records import FetchedRecord
from retuned.consumers.privacy.redactor import Redactor
from retuned.daemon.settings import Settings


class Destination(Protocol):
    """The destination of rows, in this process or a running daemon."""

    def position(self, topic: str) -> Position:
        """See `file_import.position`."""

    def take(self, batch: Batch) -> Taken:
        """See `file_import.take`."""


class DryRun:
    """Reads, translates and redacts rows as an import does, and stores nothing."""

    def __init__(self, settings: Settings) -> None:
        self._decoder, self._redactor = Decoder(settings), Redactor(settings.privacy)

    def position(self, topic: str) -> Position:  # noqa: ARG002
        """Returns the start of the file, whatever was stored of it."""
        return Position(None, 0)

    def take(self, batch: Batch) -> Taken:
        """Counts the events of rows."""
        rows = self._decoder.rows(batch, EVER_SECONDS, str)
        rows.redact(self._redactor, str)
        rows.stored = {kind: table.num_rows for kind, table in rows.tables.items()}
        return taken(rows)


class _Packed(msgspec.Struct, array_like=True):
    start: int | None
    next: int
    records: list[tuple[int, bytes | None, str | None]]


def most_bytes(settings: Settings) -> int:
    """Returns the limit of a batch's body: its last row may become two events of the maximum size, plus encoding."""
    return BATCH_BYTES + 3 * settings.ingest.max_event_bytes


def to_bytes(batch: Batch) -> bytes:
    """Encodes a batch of one file for transmission."""
    ((key, end),) = batch.nexts.items()
    records = [(r.offset, r.value, None if r.problem is None else str(r.problem)) for r in batch.records]
    return msgspec.msgpack.encode(_Packed(batch.starts.get(key), end, records))


def from_bytes(topic: str, body: bytes) -> Batch:
    """Decodes a batch.

    Raises:
        ValueError: the body is not a valid batch.
    """
    packed = msgspec.msgpack.decode(body, type=_Packed)
    first = packed.start or 0
    if not 0 <= first <= packed.next < 2**63:
        raise ValueError("it ends before it begins")
    if not all(first <= offset < packed.next for offset, _, _ in packed.records):
        raise ValueError("a row lies outside of its batch")
    key = (topic, 0)
    records = [FetchedRecord(topic, 0, offset, value, problem=problem) for offset, value, problem in packed.records]
    return Batch(records, {} if packed.start is None else {key: packed.start}, {key: packed.next})


def import_files(
    paths: list[Path], format: str | None, workload: str | None, settings: Settings, destination: Destination
) -> int:
    """Imports files one after the other and reports on each.

    Returns:
        The exit status: 1 if a row of any file was refused, now or in an earlier import of the same file.

    Raises:
        RetunedError: a file cannot be read (nothing is stored if this is found before the first row), or too many of
            its rows are refused, including earlier imports. Stored rows stay, and the same command continues after
            them, once fewer rows are refused or `ingest.dead_letter_share_limit` is higher.
    """
    most = settings.ingest.max_event_bytes
    files = [EventFile(path, format, workload, most) for path in paths]  # all, before the first row is stored
    return max(_import(file, settings, destination) for file in files)


def _import(file: EventFile, settings: Settings, destination: Destination) -> int:
    before = destination.position(file.topic)
    report = _Report(file, before, isinstance(destination, DryRun))
    _check_share(file, before.next or 0, before.refused, settings)
    try:
        with _Progress(file, sys.stderr) as show:
            for number, batch in enumerate(file.batches(before.next, settings.ingest.batch_events)):
                if before.next and not number:
                    print(f"{file.path}: continues after row {before.next:,}; {_earlier(before)}", file=sys.stderr)
                try:
                    taken = destination.take(batch)
                except RetunedError as error:
                    raise type(error)(f"{file.path}: {error}") from error
                report.add(taken, batch)
                show()
                _check_share(file, (before.next or 0) + file.rows, before.refused + report.refused.total(), settings)
    finally:
        if file.rows:
            print("\n".join(report.lines()))
    if not file.rows:
        print(f"{file.path}: {f'nothing is left to import; {_earlier(before)}' if before.next else 'is empty'}")
    return 1 if before.refused or report.refused else 0


def _earlier(before: Position) -> str:
    """Describes the result of earlier imports of a file."""
    if not before.refused:
        return f"the {before.next:,} earlier rows are stored"
    return f"of the {before.next:,} earlier rows {before.refused:,} were refused: see retuned dead-letters list"


def _check_share(file: EventFile, rows: int, refused: int, settings: Settings) -> None:
    ingest = settings.ingest
    if rows >= ingest.dead_letter_window and refused > ingest.dead_letter_share_limit * rows:
        raise TooManyDeadLetters(
            f"{file.path}: stopped: {refused:,} of {rows:,} rows are not events "
            f"(ingest.dead_letter_share_limit {ingest.dead_letter_share_limit:g}); correct the file and import it again"
            ", or raise the limit to import the rest as it is"
        )


class _Report:
    """Counts the results of a file's rows for the report, which is printed however the import ends."""

    def __init__(self, file: EventFile, before: Position, is_dry: bool) -> None:
        self._file, self._before, self._is_dry = file, before, is_dry
        self._stored, self._passed_over = Counter[str](), Counter[str]()
        self.refused = Counter[str]()
        self._duplicates, self._erased, self._examples = 0, 0, list[Refusal]()
        self._answered, self._reached = 0, before.next or 0
        self._began = time.monotonic()

    def add(self, taken: Taken, batch: Batch) -> None:
        """Adds the results of a batch, after which all rows read so far are stored or refused."""
        (self._reached,) = batch.nexts.values()
        self._stored.update(taken.stored)
        self.refused.update(taken.refused)
        self._passed_over.update(taken.passed_over)
        self._duplicates += taken.duplicates
        self._erased += taken.erased
        self._examples = (self._examples + taken.examples)[:EXAMPLES]
        self._answered = self._file.rows

    def lines(self) -> list[str]:
        file, before, refused, dry = self._file, self._before, self.refused, self._is_dry
        took = time.monotonic() - self._began
        lines = [
            f"{file.path}: {file.rows:,} rows read in {took:.1f} s ({file.rows / max(took, 0.001):,.0f}/s)",
            f"  recognised  {', '.join(f'{count:,} {form}' for form, count in file.forms.most_common()) or 'nothing'}",
            f"  {'would store' if dry else 'stored     '} {self._stored['interactions']:,} interactions, "
            f"{self._stored['feedback']:,} feedback",
            f"  duplicates  {self._duplicates:,}{' within a batch; others are not looked up' if dry else ''}",
            f"  refused     {refused.total():,}",
        ]
        if refused and not dry:
            lines[-1] += f", kept as dead letters of {file.topic}"
        lines += [f"    {count:,} {reason}" for reason, count in refused.most_common()]
        lines += [f"    row {example.offset + 1}: {example.reason}: {example.detail}" for example in self._examples]
        if unused := sorted(file.attributes - {"tools", "tool_calls"}):
            lines.append(f"  attributes  {', '.join(unused[:20])}: stored, but not learned from")
        if passed_over := self._passed_over:
            lines += [f"  passed over {passed_over.total():,}"]
            lines += [f"    {count:,} {reason}: {PASSED_OVER[reason]}" for reason, count in passed_over.most_common()]
        if self._erased:
            lines.append(f"  erased      {self._erased:,}: they belong to what was erased, and are kept out")
        if unanswered := file.rows - self._answered:
            lines.append(
                f"  not known   {unanswered:,} rows were sent last, and may or may not be stored; the same command "
                "continues after the stored rows"
            )
        if before.next:
            lines.append(
                f"  in all      the file up to row {self._reached:,}, "
                f"{before.refused + refused.total():,} of its rows refused"
            )
        return lines


class _Progress:
    """Shows a progress bar on a terminal, and nothing elsewhere."""

    def __init__(self, file: EventFile, stream: TextIO) -> None:
        self._file, self._stream, self._began = file, stream, time.monotonic()
        self._shown = 0.0

    def __enter__(self) -> Callable[[], None]:
        return self._show if self._stream.isatty() else lambda: None

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print("\r\033[K", end="", file=self._stream, flush=True)

    def _show(self) -> None:
        now = time.monotonic()
        if now - self._shown < 0.1:
            return
        self._shown = now
        done, pace = self._file.share, self._file.rows / max(now - self._began, 0.001)
        bar = f"{'█' * round(24 * done):░<24}"
        line = f"\r\033[K{bar} {done:4.0%}  {self._file.rows:,} rows  {pace:,.0f}/s  {self._file.path.name}"
        print(line, end="", file=self._stream, flush=True)
