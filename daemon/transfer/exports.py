"""`retuned export`: writes tables and training sets as JSON Lines or Parquet, with or without a running
daemon."""

import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.common.durable import replaced
from retuned.consumers.common.times import utc
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries, parameters_of
from retuned.daemon import workloads
from retuned.daemon.jsontext import strict
from retuned.daemon.settings import Settings
from retuned.retrain.data.export import FORMS, training_sets

QUERIES = named_queries("retuned.daemon.transfer", "exports.sql")
TEXTS = {"evaluations": "evaluation_texts"}
"""The query of the texts of a table."""
TABLES = tuple(name for name in QUERIES if name not in TEXTS.values())
FORMATS = ("jsonl", "parquet")
ROWS = 5_000  # read at a time, and in a row group
MEMORY_BYTES = 8 * 2**20
"""The part of an export that is held in memory. The rest waits in a file for who reads it."""
FREE_BYTES = 2**30
"""The bytes that such a file leaves free on the disk of the warehouse."""
PIECE_BYTES = 2**20

_CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
    ]
)
_MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("name", pa.string()),
        ("tool_calls", pa.list_(_CALL)),
        ("tool_call_id", pa.string()),
    ]
)
_MESSAGES = pa.list_(_MESSAGE)
_WEIGHTED = pa.list_(pa.struct([*_MESSAGE, ("weight", pa.int64())]))
_TOOLS = ("tools", pa.string())  # as JSON, because schemas differ
_SCHEMAS = {
    "chat": pa.schema([("messages", _WEIGHTED), _TOOLS]),
    "preference": pa.schema([("prompt", _MESSAGES), ("chosen", _MESSAGES), ("rejected", _MESSAGES), _TOOLS]),
    "kto": pa.schema([("prompt", _MESSAGES), ("completion", _MESSAGES), ("label", pa.bool_()), _TOOLS]),
}


@dataclass(frozen=True)
class Export:
    """An export request. Times are ISO 8601, UTC unless they have an offset. `until` is exclusive.

    Attributes:
        texts: of evaluations, one row for each question, with the answers side by side.
    """

    what: str
    format: str = "jsonl"
    workload: str | None = None
    since: str | None = None
    until: str | None = None
    texts: bool = False

    @property
    def query(self) -> str | None:
        """The name of its query; None: it is a training set."""
        return TEXTS[self.what] if self.texts else self.what if self.what in TABLES else None

    def check(self) -> None:
        """Validates the request.

        Raises:
            RetunedError: the request is invalid; the text names the wrong part and what to use.
        """
        if self.what == "routing":
            raise RetunedError(
                "export: routing is no longer exported; send requests through the gateway, or read models and shares "
                "from GET /api/v1/routes"
            )
        if self.what not in (*TABLES, *FORMS):
            raise RetunedError(f"export: {self.what} is none of {', '.join((*TABLES, *FORMS))}")
        if self.format not in FORMATS:
            raise RetunedError(f"export: the format {self.format} is none of {', '.join(FORMATS)}")
        if self.texts and self.what not in TEXTS:
            raise RetunedError(f"export: {self.what} has no texts to put side by side; they are of {', '.join(TEXTS)}")
        query = QUERIES[self.query] if self.query else "$workload $since"
        if self.workload is not None and "$workload" not in query:
            raise RetunedError(f"export: rows of {self.what} have no workload; remove --workload")
        if (self.since or self.until) and "$since" not in query:
            raise RetunedError(f"export: rows of {self.what} have no time; remove --since and --until")
        utc("export: since", self.since)
        utc("export: until", self.until)


def content(export: Export, warehouse: Warehouse, settings: Settings) -> Iterator[bytes]:
    """Returns the bytes of an export piece by piece, as of the moment when the first piece is requested."""
    export.check()
    if export.query:
        return _aside(_table(QUERIES[export.query], export, warehouse), warehouse.path.parent)
    rows = _training_rows(export, warehouse, settings)
    if export.format == "jsonl":
        return _joined(msgspec.json.encode(row) + b"\n" for row in rows)
    schema = _SCHEMAS[export.what]
    rows = (row | ({"tools": msgspec.json.encode(row["tools"]).decode()} if "tools" in row else {}) for row in rows)
    return _parquet(schema, (pa.RecordBatch.from_pylist(chunk, schema) for chunk in _chunks(rows)))


def write(pieces: Iterable[bytes], path: Path | None) -> None:
    """Writes an export to a file atomically; None: to standard output.

    Raises:
        RetunedError: the file cannot be written.
    """
    if path is None:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
        with _reported(path), path.open("wb") as file:
            file.writelines(pieces)
        return
    path = path.resolve()  # replaces the target of a link
    with _reported(path), replaced(path) as aside, aside.open("wb") as file:
        file.writelines(pieces)


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RetunedError(f"export: {path} cannot be written ({error.strerror})") from error


def _table(query: str, export: Export, warehouse: Warehouse) -> Iterator[bytes]:
    bounds = {
        "workload": export.workload,
        "since": utc("export: since", export.since),
        "until": utc("export: until", export.until),
    }
    parameters = parameters_of(query, bounds)
    with warehouse.cursor() as cursor:
        types = cursor.execute(f"DESCRIBE {query}", parameters).fetchall()
        if export.format == "jsonl":
            plain = [
                f'strftime("{name}", \'%Y-%m-%dT%H:%M:%S.%fZ\') AS "{name}"'
                for name, type, *_ in types
                if type == "TIMESTAMP"
            ]
            cursor.execute(f"SELECT to_json(t)::VARCHAR FROM (SELECT {_replaced(plain)} FROM ({query})) t", parameters)
            while rows := cursor.fetchmany(ROWS):
                yield ("\n".join(strict(row[0]) for row in rows) + "\n").encode()
            return
        plain = [f'"{name}"::VARCHAR AS "{name}"' for name, type, *_ in types if type == "JSON"]
        # `sql` streams; Arrow from `execute` holds the whole result.
        reader = cursor.sql(f"SELECT {_replaced(plain)} FROM ({query})", params=parameters).to_arrow_reader(ROWS)
        yield from _parquet(reader.schema, reader)


def _aside(pieces: Iterator[bytes], folder: Path) -> Iterator[bytes]:
    """Yields pieces once all of them are read, so that no cursor stays open while a slow client reads.

    They wait in a file without a name, which is gone with the process.

    Raises:
        RetunedError: the disk has no room for them.
    """
    advice = "free disk space, or narrow the export by a workload or a time"
    with tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES, dir=str(folder)) as file:
        try:
            for piece in pieces:
                if file.tell() + len(piece) > MEMORY_BYTES and shutil.disk_usage(folder).free < FREE_BYTES + len(piece):
                    raise RetunedError(f"export: less than {FREE_BYTES >> 20} MiB are free in {folder}; {advice}")
                file.write(piece)
        except OSError as error:
            raise RetunedError(f"export: cannot be written to {folder} ({error.strerror}); {advice}") from error
        file.seek(0)
        while piece := file.read(PIECE_BYTES):
            yield piece


def _replaced(columns: list[str]) -> str:
    return f"* REPLACE ({', '.join(columns)})" if columns else "*"


def _training_rows(export: Export, warehouse: Warehouse, settings: Settings) -> Iterator[dict[str, Any]]:
    named = workloads.known(warehouse) if export.workload is None else [export.workload]
    return training_sets(
        warehouse,
        {workload: settings.for_workload(workload) for workload in named},
        export.what,
        utc("export: since", export.since),
        utc("export: until", export.until),
    )


def _parquet(schema: Any, batches: Iterable[Any]) -> Iterator[bytes]:
    sink = _Sink()
    with pq.ParquetWriter(pa.PythonFile(sink, "w"), schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            yield sink.take()
    yield sink.take()


class _Sink:
    """A file object in memory whose content is taken piece by piece."""

    closed = False

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in _chunks(lines):
        yield b"".join(chunk)


def _chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while chunk := list(islice(rows, ROWS)):
        yield chunk
