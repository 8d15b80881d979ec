"""Reads files of events of any size, row by row, as batches for the ingest loop.

A file is a partition: its topic is a hash of its content, and a row's number is its offset. So the import of the same
file, under any name, continues where it stopped, or has nothing to do.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.errors import BadFile
from retuned.consumers.formats import demonstrations
from retuned.consumers.formats.demonstrations import NoWorkload
from retuned.consumers.formats.dialects import foreign
from retuned.consumers.formats.documents import sections
from retuned.consumers.formats.events import BOOLEANS, STRINGS, BadEvent, Kind
from retuned.consumers.formats.messages import content_hash, without_nothing
from retuned.consumers.kafka.contract import Batch
from retuned.consumers.kafka.records import FetchedRecord

SUFFIXES = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet",
    ".md": "text", ".markdown": "text", ".txt": "text",
}  # fmt: skip

TOPIC = "import:"
BATCH_BYTES = 8 * 2**20
CHUNK_BYTES = 2**20

_REQUIRED: dict[Kind, tuple[str, ...]] = {
    "interactions": ("id", "timestamp", "workload", "model", "messages", "response"),
    "feedback": ("id", "timestamp", "interaction_id", "name", "value"),
}
_BETWEEN = re.compile(r"[\s,]*")
# The types of fields that tables hold as text.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("messages", "context"), list),
    "attributes": dict,
    **dict.fromkeys(("latency_seconds", "time_to_first_token_seconds", "cost"), int | float),
    **dict.fromkeys(("input_tokens", "output_tokens"), int | float),  # of a column with gaps, 12.0
    "value": bool | int | float | str,
}
_STATEMENTS: dict[Any, Any] = {**dict.fromkeys(STRINGS, str), "correction": str | dict | list}
"""The types of `value` by the name of the feedback, where they differ."""


LEAST_EVENTS = 2  # of a row: an interaction and its feedback, which the decoder measures
_TOO_MANY = (
    "a conversation whose answers, each with all messages before it, take more than two events may "
    "(ingest.max_event_bytes): split it, or set the weight of some answers to 0"
)
_TOO_LONG = "longer than an event may be (ingest.max_event_bytes)"


class BadRow(str):
    """The reason for which a row of the file cannot be read."""


Row = bytes | dict[str, Any] | BadRow | None  # JSON text, columns by name, an unreadable row, an empty line


class EventFile:
    """A file to import.

    Attributes:
        topic: identifies the content, and the way it is read.
        share: the share of the file that was read, 0 to 1.
        rows: the number of rows that were read, without empty lines.
        forms: the number of rows by the form in which they were read, refused ones too.
        attributes: the columns of demonstrations and preferences without another meaning, kept as attributes.
    """

    def __init__(self, path: Path, format: str | None, workload: str | None, max_event_bytes: int) -> None:
        """Reads the file once, for its topic. The default format is that of the file's suffix.

        Raises:
            BadFile: the file cannot be read, or its format is unknown.
        """
        self.path, self._workload, self._most = path, workload, max_event_bytes
        self._packed = path.suffix == ".gz"
        suffix = (path.with_suffix("") if self._packed else path).suffix.lower()
        self.format = format or SUFFIXES.get(suffix, "")
        if not self.format:
            known = ", ".join(SUFFIXES)
            raise BadFile(f"{path}: unknown format {suffix or '(no suffix)'}; known are {known} (and .gz); or --format")
        with self._readable():
            if path.is_dir():
                raise BadFile(f"{path}: is a folder; name the files in it")
            self._modified = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
            self._size = max(path.stat().st_size, 1)
            digest = hashlib.blake2b(f"{self.format}\0{workload or ''}\0".encode(), digest_size=8)
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
        self.topic = TOPIC + digest.hexdigest()
        self.share, self.rows, self.attributes = 0.0, 0, set[str]()
        self.forms = Counter[str]()
        self._cut = False  # whether the last line was longer than what was read of it

    def batches(self, start: int | None, most: int) -> Iterator[Batch]:
        """Yields the rows from `start` in batches of at most `most` rows; None: the import is new.

        Raises:
            BadFile: the rest cannot be read; the batches hold all rows before it.
        """
        key = (self.topic, 0)
        reached, number, size = start, start or 0, 0
        records: list[FetchedRecord] = []
        failed: BadFile | None = None
        try:
            with self._readable(lambda: number):
                for row in self._rows(number):
                    if row is not None:
                        of_row = self._records(row, number)
                        records += of_row
                        size += sum(len(record.value or b"") for record in of_row)
                        self.rows += 1
                    number += 1
                    if number - (reached or 0) >= most or size >= BATCH_BYTES:
                        yield Batch(records, {} if reached is None else {key: reached}, {key: number})
                        reached, records, size = number, [], 0
        except BadFile as error:
            failed = error
        if number != (reached or 0):
            yield Batch(records, {} if reached is None else {key: reached}, {key: number})
        if failed is not None:
            raise failed
        self.share = 1.0

    # Rows to records

    def _records(self, row: bytes | dict[str, Any] | BadRow, offset: int) -> list[FetchedRecord]:
        if isinstance(row, BadRow):
            return [FetchedRecord(self.topic, 0, offset, None, problem=row)]
        try:
            value = msgspec.json.decode(row) if isinstance(row, bytes) else row
            payloads = self._payloads(value, row)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            payloads = [row if isinstance(row, bytes) else b""]  # the decoder reports the error
        except NoWorkload as error:
            if not offset:
                raise BadFile(f"{self.path}: row 1 {error.detail}") from error
            return [FetchedRecord(self.topic, 0, offset, _bytes(row), problem=error.detail)]
        except BadEvent as error:
            return [FetchedRecord(self.topic, 0, offset, _bytes(row), problem=error.detail)]
        return [FetchedRecord(self.topic, 0, offset, payload) for payload in payloads]

    def _payloads(self, value: Any, row: bytes | dict[str, Any]) -> list[bytes]:
        """Returns the events of a row, with defaults of the file for fields that the row lacks."""
        if not isinstance(value, dict):
            return [_bytes(row)]
        kind = _kind(value)
        if kind:
            self.forms["events"] += 1
        if kind and value.keys() >= {*_REQUIRED[kind]} and isinstance(value["timestamp"], str):
            return [_bytes(row)]  # nothing is missing
        if (name := foreign(value)) is not None:
            self.forms[name] += 1
            around = without_nothing({"specversion": "1.0", "time": self._modified, "workload": self._workload})
            return [_bytes(around | value if "specversion" in value else {**around, "data": value})]
        if kind is None:
            self.forms[demonstrations.form({demonstrations.column(name) for name in value})] += 1
            if isinstance(row, bytes):  # the columns of a table were renamed with its header
                value = dict(zip(demonstrations.renamed(list(value)), value.values(), strict=True))
            return self._shown(value)
        own = without_nothing(value)
        if kind == "interactions":
            own = without_nothing({"workload": self._workload}) | own
            if "workload" not in own:
                raise NoWorkload
        own = {"id": content_hash(own), "timestamp": self._modified} | own
        return [_bytes(own | {"timestamp": demonstrations.time(own["timestamp"])})]

    def _shown(self, value: dict[str, Any]) -> list[bytes]:
        """Returns the events of a row that is none, up to the size of two events."""
        names, payloads, size = {demonstrations.column(name) for name in value}, list[bytes](), 0
        for event in demonstrations.events(value, self._workload, self._modified):
            self.attributes.update(names & {*event.get("attributes", ())})
            payloads.append(_bytes(event))
            size += len(payloads[-1])
            if size > 2 * self._most and len(payloads) > LEAST_EVENTS:
                raise BadEvent("too_large", _TOO_MANY)
        return payloads

    # Files to rows

    def _rows(self, start: int) -> Iterator[Row]:
        """Yields the rows from `start` on."""
        if self.format == "parquet":
            yield from self._parquet(start)
            return
        with self.path.open("rb") as raw:
            stream: io.BufferedReader = io.BufferedReader(gzip.GzipFile(fileobj=raw)) if self._packed else raw
            first = stream.read(3)
            if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise BadFile(f"{self.path}: is UTF-16; make it UTF-8: iconv -f UTF-16 -t UTF-8")
            stream.seek(3 if first == codecs.BOM_UTF8 else 0)
            reader = {"json": self._json, "csv": self._csv, "text": self._text}[self.format]
            for number, row in enumerate(reader(stream)):
                if number >= start:
                    if not number % 100:
                        self.share = raw.tell() / self._size
                    yield row

    def _json(self, stream: io.BufferedReader) -> Iterator[Row]:
        """Yields the rows of JSON Lines, or of one array."""
        if stream.peek(1).lstrip()[:1] == b"[":
            yield from self._array(stream)
            return
        for line in self._lines(stream):
            text = line.strip()
            if text == b"{" and not self.rows:
                raise BadFile(f"{self.path}: expected an object on each line, or one array of objects; try: jq -c .")
            yield text or None

    def _array(self, stream: io.BufferedReader) -> Iterator[Row]:
        decode, utf8 = json.JSONDecoder().raw_decode, codecs.getincrementaldecoder("utf-8")()
        buffer, at, ended = "", 0, False
        while stream.read(1) != b"[":
            pass
        while True:
            at = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]
            if buffer.startswith("]", at):
                if (buffer[at + 1 :] + utf8.decode(stream.read(CHUNK_BYTES))).strip():
                    raise BadFile(f"{self.path}: has content after the end of its array")
                return
            try:
                value, at = decode(buffer, at)
            except (json.JSONDecodeError, RecursionError) as error:
                if ended or len(buffer) - at > self._most:
                    where = f"element {self.rows + 1} of the array"
                    raise BadFile(
                        f"{self.path}: {where} is not valid JSON ({getattr(error, 'msg', 'too deep')}), or {_TOO_LONG}"
                    ) from error
                chunk = stream.read(CHUNK_BYTES)
                buffer, at, ended = buffer[at:] + utf8.decode(chunk, final=not chunk), 0, not chunk
                continue
            try:
                yield msgspec.json.encode(value)
            except UnicodeEncodeError:
                yield BadRow("invalid JSON: it has half a character (a lone surrogate)")

    def _csv(self, stream: io.BufferedReader) -> Iterator[Row]:
        lines = self._texts(stream)
        head = next(lines, "")
        delimiter = max(",;\t", key=head.count)
        csv.field_size_limit(self._most)  # a setting of the process, used here alone
        rows = csv.reader(chain([head], lines), delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
        except csv.Error as error:
            raise BadFile(f"{self.path}: its first line is not a header ({error})") from error
        names = self._checked(names)
        while True:
            try:
                values = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(f"invalid CSV: {error}")
                continue
            if self._cut:
                self._cut = False
                yield BadRow(_TOO_LONG)
            elif not values:
                yield None
            elif len(values) != len(names):
                yield BadRow(f"{len(values)} fields, but the header has {len(names)}")
            else:
                yield _typed(dict(zip(names, values, strict=True)))

    def _text(self, stream: io.BufferedReader) -> Iterator[Row]:
        for section in sections(self._texts(stream), self._most):
            if self._cut:
                raise BadFile(f"{self.path}: one of its lines is {_TOO_LONG}")
            yield BadRow(section) if isinstance(section, str) else section

    def _parquet(self, start: int) -> Iterator[Row]:
        with pq.ParquetFile(self.path) as file:
            names = self._checked(file.schema_arrow.names)
            first, groups = 0, list[int]()
            for group in range(file.num_row_groups):  # earlier groups are not read
                rows = file.metadata.row_group(group).num_rows
                if first + rows <= start and not groups:
                    first += rows
                else:
                    groups.append(group)
            number = first
            for batch in file.iter_batches(1_000, groups):
                for row in batch.rename_columns(names).to_pylist(maps_as_pydicts="lossy"):
                    if number >= start:
                        yield _typed(_plain(row))
                    number += 1
                self.share = number / max(file.metadata.num_rows, 1)

    def _lines(self, stream: io.BufferedReader) -> Iterator[bytes]:
        """Yields lines; of one that is longer than an event may be, its beginning."""
        while line := stream.readline(self._most + 2):
            if len(line) == self._most + 2 and not line.endswith(b"\n"):
                self._cut = True
                while (rest := stream.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
                    pass
            yield line

    def _texts(self, stream: io.BufferedReader) -> Iterator[str]:
        return (line.decode(errors="replace" if self._cut else "strict") for line in self._lines(stream))

    def _checked(self, names: list[str]) -> list[str]:
        """Returns the names under which the columns are read."""
        own = demonstrations.renamed(names)
        columns = {*own}
        is_foreign = foreign({name: {} for name in names}) is not None
        if len(columns) < len(names):
            raise BadFile(f"{self.path}: two columns have one name: {', '.join(names)}")
        if not (_kind(dict.fromkeys(names, "")) or is_foreign or demonstrations.understood(columns)):
            raise BadFile(
                f"{self.path}: the columns {', '.join(name[:40] for name in names[:20]) or '(none)'} mean nothing "
                f"here. Expected a question ({', '.join(demonstrations.QUESTIONS)}) and an answer "
                f"({', '.join((*demonstrations.ANSWERS, *demonstrations.CLASSES))}), or the fields of an event; is the "
                "first row a header?"
            )
        if not self._workload and not is_foreign and not columns & {"workload", "interaction_id"}:
            raise BadFile(f"{self.path}: has no column workload; name one for the file with --workload")
        return names if is_foreign or _kind(dict.fromkeys(names, "")) else own

    @contextmanager
    def _readable(self, number: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """Reports every error of the file in one line."""
        try:
            yield
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile):
                raise BadFile(f"{self.path}: is not a gzip file ({error})") from error
            raise BadFile(f"{self.path}: cannot be read ({error.strerror})") from error
        except (EOFError, zlib.error) as error:
            raise BadFile(f"{self.path}: is truncated or damaged after row {number()}; import a whole copy") from error
        except UnicodeDecodeError as error:
            raise BadFile(
                f"{self.path}: row {number() + 1} is not UTF-8; convert the file, for example: iconv -f LATIN1 -t UTF-8"
            ) from error
        except pa.ArrowException as error:
            raise BadFile(f"{self.path}: is not a complete Parquet file ({str(error).splitlines()[0]})") from error


def _kind(value: dict[str, Any]) -> Kind | None:
    """Returns the kind of our event that the fields indicate."""
    if value.keys() >= {"interaction_id", "name"}:
        return "feedback"
    if value.keys() >= {"messages", "response", "model"}:
        return "interactions"
    return None


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a table's row with the types of JSON: tables hold nested values as text, and CSV also numbers."""
    typed = {}
    for name, value in row.items():
        if value is None or (value == "" and name != "response"):
            continue
        if isinstance(value, str) and name in _TYPES:
            wanted, text = _TYPES[name], value
            if name == "value":
                wanted = _STATEMENTS.get(row.get("name"), wanted)
                text = value.lower() if row.get("name") in BOOLEANS else value  # True, TRUE
            try:
                decoded = msgspec.json.decode(text)
                if isinstance(decoded, wanted) and not (name == "value" and decoded in ([], {})):  # no correction
                    value = decoded
            except msgspec.DecodeError:
                pass  # it is a text
            if name == "context" and isinstance(value, str):
                value = [value]
        typed[name] = demonstrations.time(value) if name == "timestamp" else value
    return typed


def _plain(value: Any) -> Any:
    """Returns a value of Parquet as JSON has it: times as ISO 8601, durations in seconds, and no null fields.

    A struct has the fields of all rows, and those that a row lacks are null.
    """
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, date):  # a datetime, too
        return value.isoformat()
    return value.total_seconds() if isinstance(value, timedelta) else value


def _bytes(row: bytes | dict[str, Any]) -> bytes:
    return row if isinstance(row, bytes) else msgspec.json.encode(row)
