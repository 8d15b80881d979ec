"""`retuned export`: tables and training sets as JSON Lines or Parquet, and the routing of what serves, by way of the
running daemon or without one."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.common.durable import replaced
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, named_queries, parameters_of
from retuned.daemon import workloads
from retuned.daemon.jsontext import strict
from retuned.daemon.settings import Settings
from retuned.daemon.transfer import routing
from retuned.retrain.data.export import FORMS, training_sets

QUERIES = named_queries("retuned.daemon.transfer", "exports.sql")
TABLES = tuple(QUERIES)
FORMATS = ("jsonl", "parquet")
ROWS = 5_000  # at a time, and in a row group

_CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
    ]
)
_MESSAGES = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("name", pa.string()),
            ("tool_calls", pa.list_(_CALL)),
            ("tool_call_id", pa.string()),
        ]
    )
)
_TOOLS = ("tools", pa.string())  # JSON: their schemas differ
_SCHEMAS = {
    "chat": pa.schema([("messages", _MESSAGES), _TOOLS]),
    "preference": pa.schema([("prompt", _MESSAGES), ("chosen", _MESSAGES), ("rejected", _MESSAGES), _TOOLS]),
    "kto": pa.schema([("prompt", _MESSAGES), ("completion", _MESSAGES), ("label", pa.bool_()), _TOOLS]),
}


@dataclass(frozen=True)
class Export:
    """What is asked for. Times are ISO 8601; one without an offset is UTC. `until` itself is not in it."""

    what: str
    format: str = "jsonl"
    workload: str | None = None
    since: str | None = None
    until: str | None = None

    def check(self) -> None:
        """Raises a RetunedError that names what cannot be exported so."""
        if self.what == "routing":
            if self.format not in routing.FORMATS:
                raise RetunedError(
                    f"export: routing has the formats {', '.join(routing.FORMATS)}, not {self.format}; name one with "
                    "--format"
                )
            if self.since or self.until:
                raise RetunedError("export: routing is what serves now; leave --since and --until out")
            return
        if self.what not in (*TABLES, *FORMS):
            raise RetunedError(f"export: {self.what} is none of {', '.join((*TABLES, *FORMS, 'routing'))}")
        if self.format not in FORMATS:
            raise RetunedError(f"export: the format {self.format} is none of {', '.join(FORMATS)}")
        query = QUERIES.get(self.what, "$workload $since")
        if self.workload is not None and "$workload" not in query:
            raise RetunedError(f"export: rows of {self.what} have no workload; leave --workload out")
        if (self.since or self.until) and "$since" not in query:
            raise RetunedError(f"export: rows of {self.what} have no time; leave --since and --until out")
        utc("export: since", self.since)
        utc("export: until", self.until)


def content(export: Export, warehouse: Warehouse, settings: Settings) -> Iterator[bytes]:
    """The bytes of an export, piece by piece, of the warehouse as it is when the first is asked for."""
    export.check()
    if export.what == "routing":
        return iter([routing.routing(export.format, warehouse, settings, export.workload)])
    if export.what in TABLES:
        return _table(export, warehouse)
    rows = _training_rows(export, warehouse, settings)
    if export.format == "jsonl":
        return _joined(msgspec.json.encode(row) + b"\n" for row in rows)
    schema = _SCHEMAS[export.what]
    rows = (row | ({"tools": msgspec.json.encode(row["tools"]).decode()} if "tools" in row else {}) for row in rows)
    return _parquet(schema, (pa.RecordBatch.from_pylist(some, schema) for some in _some(rows)))


def write(pieces: Iterable[bytes], path: Path | None) -> None:
    """Into a file that is there whole or not at all; None: to the standard output.

    Raises:
        RetunedError: the file cannot be written.
    """
    if path is None:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    if path.exists() and not path.is_file():  # a pipe or a device is written to, not replaced
        with _naming(path), path.open("wb") as file:
            file.writelines(pieces)
        return
    path = path.resolve()  # a link stays one
    with _naming(path), replaced(path) as aside, aside.open("wb") as file:
        file.writelines(pieces)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RetunedError(f"export: {path} cannot be written ({error.strerror})") from error


def _table(export: Export, warehouse: Warehouse) -> Iterator[bytes]:
    query = QUERIES[export.what]
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
        # By way of `sql`: Arrow from `execute` holds the whole result.
        reader = cursor.sql(f"SELECT {_replaced(plain)} FROM ({query})", params=parameters).to_arrow_reader(ROWS)
        yield from _parquet(reader.schema, reader)


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
    """A file that nobody keeps: what was written is taken away piece by piece."""

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
    for some in _some(lines):
        yield b"".join(some)


def _some(rows: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(rows)
    while some := list(islice(rows, ROWS)):
        yield some


def utc(name: str, text: str | None) -> datetime | None:
    """A time as the warehouse keeps it. Raises a RetunedError with the name of what it is of."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time
    except (ValueError, OverflowError) as error:
        raise RetunedError(f"{name}: expected a date or a time such as 2026-11-24T09:30, got {text!r}") from error
