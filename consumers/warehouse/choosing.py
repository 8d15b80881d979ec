"""Chooses the events of a selection: in the warehouse, in the archive, in a cluster's segments, and in datasets."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from retuned.consumers.common.text import first_line
from retuned.consumers.warehouse import rewriting
from retuned.consumers.warehouse.connection import Warehouse, literal, parameters_of
from retuned.consumers.warehouse.packing import SCHEMAS, Table, fitted
from retuned.consumers.warehouse.selection import Selection
from retuned.consumers.warehouse.tombstones import QUERIES, TEXTS, Kind, Tombstone

_ANSWERS = ("id", "timestamp", "workload", "conversation_id", "user_id", "attributes", "messages", "context")
_VOTES = ("id", "timestamp", "interaction_id", "user_id", "value")
"""The columns by which events are chosen."""
TOGETHER_BYTES = 16 << 20
"""The bytes of segments that are compared with a selection at once. One file after the other, 2,000 files with 100
events each took 18 s on two busy cores, and 4 s with this."""
SEGMENT_TABLES = ("interactions", "feedback", "shadow_answers")
"""The tables whose segments have events that a selection may choose."""
Segments = Callable[[], Iterable[tuple[str, str, bytes]]]
"""Returns the files of segments of `SEGMENT_TABLES`: table, key, content."""
_KEPT = ("interaction_id", "feedback_id", "user_id", "conversation", "messages", "context")
_DATASET = pa.schema(
    [(name, pa.string()) for name in _KEPT] + [(name, pa.timestamp("us")) for name in ("timestamp", "received_at")]
)
"""What the rows of a dataset keep of events. The user and the time are those of the feedback."""


@dataclass(frozen=True)
class Chosen:
    """What a selection chooses: tombstones, interactions, conversations of which nothing is left, the workloads, the
    users (pseudonyms), whether some feedback belongs to no workload because its answer is unknown, the time of the
    first event (None: there is none), the files of the archive, of datasets and of segments that cannot be read, each
    with the reason, and how many chosen rows each other file of a segment has."""

    tombstones: list[Tombstone]
    interactions: list[str]
    conversations: list[str]
    workloads: list[str]
    users: list[str]
    is_unplaced: bool
    first: datetime | None
    unread: dict[Path, str]
    unread_segments: dict[str, str]
    in_segments: dict[str, int]


def choose(
    warehouse: Warehouse,
    selection: Selection,
    archive: Path,
    now: datetime,
    before: datetime | None = None,
    segments: Segments = tuple,
    datasets: Iterable[tuple[str, Path]] = (),
) -> Chosen:
    """Finds the events of a selection in the warehouse, in the archive, in segments and in datasets: each may have
    events that the others do not have any more or not yet.

    Args:
        now: until when events of its users and conversations are erased.
        before: only events that were received before this time; None: all.
        datasets: the files of datasets, each with its workload.
    """
    files = sorted(archive.glob("*/day=*/*.parquet"))
    with warehouse.cursor() as cursor:
        choosing = _Choosing(cursor, selection, now, before)
        choosing.read_segments(segments())
        choosing.read_datasets(datasets)
        try:
            return choosing.chosen(files, {})
        except duckdb.FatalException:
            raise
        except duckdb.Error:
            unread = {file: problem for file in files if (problem := rewriting.problem_of(file))}
            if not unread:
                raise
        return choosing.chosen([file for file in files if file not in unread], unread)


class _Choosing:
    """Chooses events. Of those in segments and datasets it keeps ids, times and names, not texts, in tables that DuckDB
    may move to disk."""

    def __init__(
        self, cursor: duckdb.DuckDBPyConnection, selection: Selection, now: datetime, before: datetime | None
    ) -> None:
        self._cursor, self._selection, self._now = cursor, selection, now
        self._received = f" WHERE received_at < {literal(before)}::TIMESTAMP" if before else ""
        self._unread_segments: dict[str, str] = {}
        self._unread_datasets: dict[Path, str] = {}
        self._segments: list[str] = []
        self._given = {
            "users": list(selection.users),
            "interactions": list(selection.interactions),
            "conversations": list(selection.conversations),
            "by_fields": bool(selection.workload or selection.after or selection.before or selection.attributes),
            "workload": selection.workload,
            "after": selection.after,
            "before": selection.before,
            "names": list(selection.attributes),
            "values": list(selection.attributes.values()),
        }
        for name in ("segment_interactions", "segment_feedback"):
            cursor.execute(QUERIES[name])

    def read_segments(self, files: Iterable[tuple[str, str, bytes]]) -> None:
        """Adds the events of segments."""
        waiting: dict[str, list[Any]] = {"interactions": [], "feedback": []}
        size = 0
        for table, key, content in files:
            kind, columns = ("interactions", _ANSWERS) if table == "interactions" else ("feedback", _VOTES)
            try:
                events = _columns(table, (*columns, "received_at"), content)
            except rewriting.UNREADABLE as error:
                self._unread_segments[key] = first_line(error)
                continue
            number = pa.array([len(self._segments)] * len(events), pa.int32())
            waiting[kind].append(events.append_column("file", number))
            self._segments.append(key)
            size += events.nbytes
            if size >= TOGETHER_BYTES:
                self._add_waiting(waiting)
                size = 0
        self._add_waiting(waiting)

    def read_datasets(self, files: Iterable[tuple[str, Path]]) -> None:
        """Adds what rows of datasets keep of events that retention may have deleted.

        Interactions are not chosen by their user, time and attributes, which such rows do not have.
        """
        named = pa.array(self._given["conversations"], pa.string())
        for workload, path in files:
            try:
                rows = _fields(path, _DATASET)
            except FileNotFoundError:  # retention has removed it
                continue
            except rewriting.UNREADABLE as error:
                self._unread_datasets[path] = first_line(error)
                continue
            conversation = rows["conversation"]
            answers = pa.table(
                {name: rows[name] for name in ("messages", "context", "received_at")}
                | {"id": rows["interaction_id"], "workload": pa.array([workload] * len(rows), pa.string())}
                # Without a time, no row shows from when on a conversation repeats it, unless all of it is erased.
                | {"conversation_id": pc.if_else(pc.is_in(conversation, value_set=named), conversation, None)}
            )
            votes = rows.drop_columns(["messages", "context"]).rename_columns({"feedback_id": "id"})
            self._add("interactions", _ANSWERS, [_of_dataset(answers, "interactions", _ANSWERS)])
            self._add("feedback", _VOTES, [_of_dataset(votes, "feedback", _VOTES)])

    def _add_waiting(self, waiting: dict[str, list[Any]]) -> None:
        self._add("interactions", _ANSWERS, waiting["interactions"])
        self._add("feedback", _VOTES, waiting["feedback"])
        for tables in waiting.values():
            tables.clear()

    def _add(self, kind: str, columns: Sequence[str], tables: Sequence[Any]) -> None:
        if tables:
            self._cursor.register("segments", pa.concat_tables(tables))
            events = f"SELECT {', '.join(columns)}, file FROM segments{self._received}"
            self._execute(f"INSERT INTO segment_{kind} {QUERIES[f'matching_{kind}']}", events=events)
            self._cursor.unregister("segments")

    def chosen(self, files: Sequence[Path], unread: dict[Path, str]) -> Chosen:
        """Returns what is chosen in the warehouse, in these files of the archive, and in the segments that were read.

        Args:
            unread: the other files of the archive.
        """
        interactions = self._everywhere(("interactions",), _ANSWERS, files)
        feedback = self._everywhere(("feedback", "shadow_answers"), _VOTES, files)
        self._execute(QUERIES["chosen"], matching=QUERIES["matching_interactions"].format(events=interactions))
        self._execute(QUERIES["chosen_feedback"], matching=QUERIES["matching_feedback"].format(events=feedback))
        chosen = self._rows("SELECT DISTINCT id FROM chosen")
        feedbacks = self._rows("SELECT DISTINCT id FROM chosen_feedback")
        everywhere = QUERIES["everywhere"].format(events=interactions)
        workloads = self._rows(QUERIES["workloads"], interactions=everywhere)
        conversations = self._rows(QUERIES["chosen_conversations"], interactions=everywhere)
        users = self._rows(QUERIES["chosen_users"])
        ((is_unplaced,),) = self._rows(QUERIES["unplaced"], interactions=everywhere)
        in_segments = self._rows(QUERIES["chosen_in_segments"])
        starts = self._rows(QUERIES["starts"])
        ((first,),) = self._rows(QUERIES["first"])
        found: list[Tombstone] = [("interaction", id, None, None) for (id,) in chosen]
        found += [("feedback", id, None, None) for (id,) in feedbacks]
        found += [("conversation", id, since, None) for id, since in starts]
        return Chosen(
            [*found, *named(self._selection, self._now)],
            [*self._selection.interactions, *(id for (id,) in chosen)],
            [*self._selection.conversations, *(id for (id,) in conversations)],
            [workload for (workload,) in workloads],
            [*self._selection.users, *(user for (user,) in users)],
            is_unplaced,
            first,
            unread | self._unread_datasets,
            self._unread_segments,
            {self._segments[file]: rows for file, rows in in_segments},
        )

    def _everywhere(self, tables: Sequence[str], columns: Sequence[str], files: Sequence[Path]) -> str:
        """Returns the query of all rows of tables of events, archived ones included. JSON columns are texts."""
        casts = [f"{name}::VARCHAR AS {name}" if name in TEXTS else name for name in columns]
        cast = ", ".join([*casts, "NULL::INTEGER AS file"])
        sources = [f"SELECT {cast} FROM {table}{self._received}" for table in tables]
        for table in tables:
            if own := [file for file in files if file.parts[-3] == table]:
                names = ", ".join(map(literal, own))
                read = f"read_parquet([{names}], union_by_name = true, hive_partitioning = false)"
                sources.append(f"SELECT {cast} FROM {read}{self._received}")
        return " UNION ALL ".join(sources)

    def _execute(self, query: str, **parts: str) -> None:
        sql = query.format(**parts)
        self._cursor.execute(sql, parameters_of(sql, self._given))

    def _rows(self, query: str, **parts: str) -> list[tuple[Any, ...]]:
        self._execute(query, **parts)
        return self._cursor.fetchall()


def _columns(table: str, names: Sequence[str], content: bytes) -> Any:
    """Returns columns of a segment's file; those that an earlier release did not write are null."""
    return _fields(io.BytesIO(content), _schema(table, names))


def _of_dataset(rows: Any, table: Table, names: Sequence[str]) -> Any:
    """Returns rows of a dataset as events of a table, without those of no event; what they do not have is null."""
    events = fitted(rows, _schema(table, (*names, "received_at")))
    events = events.filter(pc.greater(pc.utf8_length(pc.fill_null(events["id"], "")), 0))
    return events.append_column("file", pa.nulls(len(events), pa.int32()))


def _schema(table: str, names: Sequence[str]) -> Any:
    return pa.schema([field for field in SCHEMAS[cast("Table", table)] if field.name in names])


def _fields(source: Path | BinaryIO, schema: Any) -> Any:
    """Returns columns of a Parquet file; those that it does not have are null."""
    file = pq.ParquetFile(source)
    return fitted(file.read(columns=[name for name in schema.names if name in file.schema_arrow.names]), schema)


def named(selection: Selection, now: datetime) -> list[Tombstone]:
    """Returns the tombstones of the ids that a selection names."""
    # What is of that id is not known before it arrives.
    kinds: tuple[Kind, ...] = ("interaction", "feedback")
    found: list[Tombstone] = [(kind, id, None, None) for id in selection.interactions for kind in kinds]
    found += [("user", id, None, now) for id in selection.users]
    found += [("conversation", id, None, None) for id in selection.conversations]
    return found
