"""`retuned import`: files into the warehouse, by way of the running daemon or without one."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TextIO

import msgspec

from retuned.consumers.errors import TooManyDeadLetters
from retuned.consumers.file_import import EXAMPLES, Refusal, Taken
from retuned.consumers.formats.dialects import PASSED_OVER
from retuned.consumers.formats.files import BATCH_BYTES, EventFile
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.kafka.records import FetchedRecord
from retuned.daemon.settings import Settings


class Destination(Protocol):
    """Where rows go: `daemon.service.Service`."""

    def position(self, topic: str) -> int | None:
        """The next row to take of a file; None when nothing of it was taken."""

    def take(self, batch: Batch) -> Taken:
        """See `Ingest.take`."""


class _Packed(msgspec.Struct, array_like=True):
    start: int | None
    next: int
    records: list[tuple[int, bytes | None, str | None]]


def most_bytes(settings: Settings) -> int:
    """The largest body of a batch: what was read last may be an event, which makes two, and is packed."""
    return BATCH_BYTES + 3 * settings.ingest.max_event_bytes


def to_bytes(batch: Batch) -> bytes:
    """A batch of one file as it is sent."""
    ((key, end),) = batch.nexts.items()
    records = [(r.offset, r.value, None if r.problem is None else str(r.problem)) for r in batch.records]
    return msgspec.msgpack.encode(_Packed(batch.starts.get(key), end, records))


def from_bytes(topic: str, body: bytes) -> Batch:
    """A batch that was sent.

    Raises:
        ValueError: it is none.
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
    """Import files one after the other and report on each.

    Returns:
        The exit status: 1 when a row was refused, in any of them.

    Raises:
        RetunedError: a file cannot be read (nothing is stored when that shows before the first row), or most of its
            rows are refused. What was stored stays, and the same command goes on from there.
    """
    most = settings.ingest.max_event_bytes
    files = [EventFile(path, format, workload, most) for path in paths]  # all, before the first row is stored
    return max(_import(file, settings, destination) for file in files)


def _import(file: EventFile, settings: Settings, destination: Destination) -> int:
    position = destination.position(file.topic)
    stored: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    passed_over: Counter[str] = Counter()
    duplicates, examples = 0, list[Refusal]()
    began = time.monotonic()
    try:
        with _Progress(file, sys.stderr) as show:
            for number, batch in enumerate(file.batches(position, settings.ingest.batch_events)):
                if position and not number:
                    print(f"{file.path}: goes on after row {position:,}; what comes before is stored", file=sys.stderr)
                taken = destination.take(batch)
                stored.update(taken.stored)
                refused.update(taken.refused)
                passed_over.update(taken.passed_over)
                duplicates += taken.duplicates
                examples = (examples + taken.examples)[:EXAMPLES]
                show()
                _check_share(file, refused.total(), settings)
    finally:
        if file.rows:
            print(
                "\n".join(_report(file, stored, duplicates, refused, examples, passed_over, time.monotonic() - began))
            )
    if not file.rows:
        print(f"{file.path}: {'nothing is left to import' if position else 'is empty'}")
    return 1 if refused else 0


def _check_share(file: EventFile, refused: int, settings: Settings) -> None:
    ingest = settings.ingest
    if file.rows >= ingest.dead_letter_window and refused > ingest.dead_letter_share_limit * file.rows:
        raise TooManyDeadLetters(
            f"{file.path}: stopped: {refused:,} of {file.rows:,} rows are no events "
            f"(ingest.dead_letter_share_limit {ingest.dead_letter_share_limit:g}); correct the file and import it again"
        )


def _report(
    file: EventFile,
    stored: Counter[str],
    duplicates: int,
    refused: Counter[str],
    examples: list[Refusal],
    passed_over: Counter[str],
    took: float,
) -> list[str]:
    lines = [
        f"{file.path}: {file.rows:,} rows read in {took:.1f} s ({file.rows / max(took, 0.001):,.0f}/s)",
        f"  stored      {stored['interactions']:,} interactions, {stored['feedback']:,} feedback",
        f"  duplicates  {duplicates:,}",
        f"  refused     {refused.total():,}",
    ]
    if refused:
        lines[-1] += f", kept as dead letters of {file.topic}"
    lines += [f"    {count:,} {reason}" for reason, count in refused.most_common()]
    lines += [f"    row {example.offset + 1}: {example.reason}: {example.detail}" for example in examples]
    if unused := sorted(file.attributes - {"tools", "tool_calls"}):
        lines.append(f"  attributes  {', '.join(unused[:20])}: kept, and nothing is learned from them")
    if passed_over:
        lines += [f"  passed over {passed_over.total():,}"]
        lines += [f"    {count:,} {reason}: {PASSED_OVER[reason]}" for reason, count in passed_over.most_common()]
    return lines


class _Progress:
    """A line that moves, at a terminal; nothing anywhere else."""

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
