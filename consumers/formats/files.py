"""Files of events, read row by row whatever their size, as batches that the ingest loop takes.

A file is a partition: its topic is a hash of its content, and a row's number is its offset. So a file that is imported
again, under any name, goes on where it stopped, or is known to be done.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.errors import BadFile
from retuned.consumers.formats import demonstrations
from retuned.consumers.formats.demonstrations import NoWorkload
from retuned.consumers.formats.dialects import is_foreign
from retuned.consumers.formats.documents import sections
from retuned.consumers.formats.events import STRINGS, BadEvent, Kind
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
# What tables hold as text, and what it is.
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("messages", "context"), list),
    "attributes": dict,
    **dict.fromkeys(("latency_seconds", "time_to_first_token_seconds", "cost"), int | float),
    **dict.fromkeys(("input_tokens", "output_tokens"), int),
    "value": bool | int | float | str,
}


_TOO_LONG = "longer than an event may be (ingest.max_event_bytes)"


class BadRow(str):
    """Why what stands in a file at this place is no row."""


Row = bytes | dict[str, Any] | BadRow | None  # JSON as it stands, columns by name, nothing to read, an empty line


class EventFile:
    """A file to import.

    Attributes:
        topic: what tells its content, read in this way, from any other.
        share: how much of it was read, 0 to 1.
        rows: how many rows were read, empty lines not among them.
        attributes: the columns of demonstrations and preferences that became attributes, as they mean nothing else.
    """

    def __init__(self, path: Path, format: str | None, workload: str | None, max_event_bytes: int) -> None:
        """Reads the file once, for its topic. Without a format, the file's name tells it.

        Raises:
            BadFile: it cannot be read, or its format is not known.
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
            found = hashlib.blake2b(f"{self.format}\0{workload or ''}\0".encode(), digest_size=8)
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    found.update(chunk)
        self.topic = TOPIC + found.hexdigest()
        self.share, self.rows, self.attributes = 0.0, 0, set[str]()
        self._cut = False  # of the line that was read last, there was more

    def batches(self, start: int | None, most: int) -> Iterator[Batch]:
        """The file from a row on, in batches of `most` rows or fewer; None: it was never begun.

        Raises:
            BadFile: the rest cannot be read; what came before is in the batches.
        """
        key = (self.topic, 0)
        reached, number, size = start, start or 0, 0
        records: list[FetchedRecord] = []
        failed: BadFile | None = None
        try:
            with self._readable(lambda: number):
                for row in self._rows(number):
                    if row is not None:
                        made = self._records(row, number)
                        records += made
                        size += sum(len(record.value or b"") for record in made)
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
            payloads = [row if isinstance(row, bytes) else b""]  # the decoder says what is wrong with it
        except NoWorkload as error:
            if not offset:
                raise BadFile(f"{self.path}: row 1 {error.detail}") from error
            return [FetchedRecord(self.topic, 0, offset, _bytes(row), problem=error.detail)]
        except BadEvent as error:
            return [FetchedRecord(self.topic, 0, offset, _bytes(row), problem=error.detail)]
        return [FetchedRecord(self.topic, 0, offset, payload) for payload in payloads]

    def _payloads(self, value: Any, row: bytes | dict[str, Any]) -> list[bytes]:
        """The events in a row as they go on, filled in where the file may speak for the row."""
        if not isinstance(value, dict):
            return [_bytes(row)]
        kind = _kind(value)
        if kind and value.keys() >= {*_REQUIRED[kind]} and isinstance(value["timestamp"], str):
            return [_bytes(row)]  # nothing is missing
        if is_foreign(value):
            around = without_nothing({"specversion": "1.0", "time": self._modified, "workload": self._workload})
            return [_bytes(around | value if "specversion" in value else {**around, "data": value})]
        if kind is None:
            if isinstance(row, bytes):  # the columns of a table were renamed with its header
                value = dict(zip(demonstrations.renamed(list(value)), value.values(), strict=True))
            events = demonstrations.events(value, self._workload, self._modified)
            self.attributes.update({demonstrations.column(name) for name in value} & {*events[0].get("attributes", ())})
            return [_bytes(event) for event in events]
        own = without_nothing(value)
        if kind == "interactions":
            own = without_nothing({"workload": self._workload}) | own
            if "workload" not in own:
                raise NoWorkload
        own = {"id": content_hash(own), "timestamp": self._modified} | own
        return [_bytes(own | {"timestamp": demonstrations.time(own["timestamp"])})]

    # Files to rows

    def _rows(self, start: int) -> Iterator[Row]:
        """The rows from one on."""
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
        """JSON Lines, or one array."""
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
                    raise BadFile(f"{self.path}: more stands after the end of its array")
                return
            try:
                value, at = decode(buffer, at)
            except (json.JSONDecodeError, RecursionError) as error:
                if ended or len(buffer) - at > self._most:
                    where = f"element {self.rows + 1} of the array"
                    raise BadFile(
                        f"{self.path}: {where} is no JSON ({getattr(error, 'msg', 'too deep')}), or {_TOO_LONG}"
                    ) from error
                chunk = stream.read(CHUNK_BYTES)
                buffer, at, ended = buffer[at:] + utf8.decode(chunk, final=not chunk), 0, not chunk
                continue
            try:
                yield msgspec.json.encode(value)
            except UnicodeEncodeError:
                yield BadRow("no JSON: it holds half a character (a lone surrogate)")

    def _csv(self, stream: io.BufferedReader) -> Iterator[Row]:
        lines = self._texts(stream)
        head = next(lines, "")
        delimiter = max(",;\t", key=head.count)
        csv.field_size_limit(self._most)  # of the whole process, and of nothing else in it
        rows = csv.reader(chain([head], lines), delimiter=delimiter, strict=True)
        try:
            names = next(rows, [])
        except csv.Error as error:
            raise BadFile(f"{self.path}: its first line is no header ({error})") from error
        names = self._checked(names)
        while True:
            try:
                values = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadRow(f"no CSV: {error}")
                continue
            if self._cut:
                self._cut = False
                yield BadRow(_TOO_LONG)
            elif not values:
                yield None
            elif len(values) != len(names):
                yield BadRow(f"{len(values)} fields, where the header names {len(names)}")
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
            for group in range(file.num_row_groups):  # those before are not even read
                rows = file.metadata.row_group(group).num_rows
                if first + rows <= start and not groups:
                    first += rows
                else:
                    groups.append(group)
            number = first
            for batch in file.iter_batches(1_000, groups):
                for row in batch.rename_columns(names).to_pylist():
                    if number >= start:
                        yield _typed(row)
                    number += 1
                self.share = number / max(file.metadata.num_rows, 1)

    def _lines(self, stream: io.BufferedReader) -> Iterator[bytes]:
        """Lines, and the beginning of one that is longer than an event may be."""
        while line := stream.readline(self._most + 2):
            if len(line) == self._most + 2 and not line.endswith(b"\n"):
                self._cut = True
                while (rest := stream.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
                    pass
            yield line

    def _texts(self, stream: io.BufferedReader) -> Iterator[str]:
        return (line.decode(errors="replace" if self._cut else "strict") for line in self._lines(stream))

    def _checked(self, names: list[str]) -> list[str]:
        """The columns by the names under which their cells are read."""
        own = demonstrations.renamed(names)
        columns = {*own}
        foreign = is_foreign({name: {} for name in names})
        if len(columns) < len(names):
            raise BadFile(f"{self.path}: two columns have one name: {', '.join(names)}")
        if not (_kind(dict.fromkeys(names, "")) or foreign or demonstrations.understood(columns)):
            raise BadFile(
                f"{self.path}: the columns {', '.join(name[:40] for name in names[:20]) or '(none)'} mean nothing "
                f"here. Expected a question ({', '.join(demonstrations.QUESTIONS)}) and an answer "
                f"({', '.join((*demonstrations.ANSWERS, *demonstrations.CLASSES))}), or the fields of an event; is the "
                "first row a header?"
            )
        if not self._workload and not foreign and not columns & {"workload", "interaction_id"}:
            raise BadFile(f"{self.path}: has no column workload; name one for the file with --workload")
        return names if foreign or _kind(dict.fromkeys(names, "")) else own

    @contextmanager
    def _readable(self, number: Callable[[], int] = lambda: 0) -> Iterator[None]:
        """What goes wrong with the file as one line."""
        try:
            yield
        except OSError as error:
            if isinstance(error, gzip.BadGzipFile):
                raise BadFile(f"{self.path}: is no gzip file ({error})") from error
            raise BadFile(f"{self.path}: cannot be read ({error.strerror})") from error
        except (EOFError, zlib.error) as error:
            raise BadFile(f"{self.path}: is cut or damaged after row {number()}; import it again when whole") from error
        except UnicodeDecodeError as error:
            raise BadFile(
                f"{self.path}: row {number() + 1} is not UTF-8; make it so, for example: iconv -f LATIN1 -t UTF-8"
            ) from error
        except pa.ArrowException as error:
            raise BadFile(f"{self.path}: is no whole Parquet file ({str(error).splitlines()[0]})") from error


def _kind(value: dict[str, Any]) -> Kind | None:
    """Which of our events it is, as far as its fields tell."""
    if value.keys() >= {"interaction_id", "name"}:
        return "feedback"
    if value.keys() >= {"messages", "response", "model"}:
        return "interactions"
    return None


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a table as JSON has it: what is nested stands in tables as text, and numbers in CSV too."""
    typed = {}
    for name, value in row.items():
        if value is None or (value == "" and name != "response"):
            continue
        if isinstance(value, str) and name in _TYPES:
            wanted = str if name == "value" and row.get("name") in STRINGS else _TYPES[name]
            try:
                decoded = msgspec.json.decode(value)
                value = decoded if isinstance(decoded, wanted) else value
            except msgspec.DecodeError:
                pass  # it is a text
            if name == "context" and isinstance(value, str):
                value = [value]
        elif name == "messages" and isinstance(value, list):  # fields that only other messages have
            value = [without_nothing(item) if isinstance(item, dict) else item for item in value]
        typed[name] = value
    return typed


def _bytes(row: bytes | dict[str, Any]) -> bytes:
    return row if isinstance(row, bytes) else msgspec.json.encode(row)
