"""The control tables of a cluster: the leader's changes go to PostgreSQL first, and other daemons follow them.

The changed rows of a leader's transaction are recorded. Before the commit, one statement writes them to PostgreSQL,
unless another daemon leads by then. PostgreSQL is authoritative: if anything fails afterwards, the warehouse follows
PostgreSQL, like the warehouses of all other daemons.
"""

import json
import logging
import re
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar, cast

import duckdb

from retuned.consumers.cluster.postgres import Postgres, sql
from retuned.consumers.errors import ConfigurationError, OutdatedWarehouse, StandsBy, StoreUnavailable
from retuned.consumers.warehouse import schema
from retuned.consumers.warehouse.connection import Warehouse

log = logging.getLogger(__name__)
T = TypeVar("T")

KEYS: Mapping[str, tuple[str, ...]] = {
    "account_decisions": ("id",),
    "aliases": ("workload", "alias"),
    "approvals": ("id",),
    "artifacts": ("id",),
    "audit": ("sequence",),
    "blindness": ("workload", "monitor"),
    "dataset_rows": ("dataset_version", "row_id", "split"),
    "datasets": ("version",),
    "decisions": ("id",),
    "deployments": ("workload", "version"),
    "detections": ("scorer", "interaction_id"),
    "drift_checks": ("id",),
    "drift_references": ("workload", "created_at"),
    "exams": ("workload", "metric", "source", "taken_at", "kind", "language"),
    "erased_kept": ("workload", "created_at"),
    "erasure_datasets": ("erasure_id", "dataset_version"),
    "erasure_versions": ("erasure_id", "workload", "version"),
    "erasures": ("id",),
    "evaluations": ("run_id", "model", "split", "row_id"),
    "groundings": ("interaction_id",),
    "holds": ("id",),
    "label_requests": ("id",),
    "label_work": ("request_id", "expert"),
    "ledger": ("id",),
    "ledger_left_out": ("created_at", "workload", "item"),
    "ledger_moments": ("workload", "version", "promotion", "hour"),
    "ledger_outcomes": ("workload", "day", "outcome"),
    "ledger_position": (),
    "memory_entries": ("id",),
    "memory_epoch": (),
    "memory_positions": ("workload",),
    "memory_statements": ("workload", "feedback_id"),
    "models": ("workload", "version"),
    "pauses": ("workload", "created_at"),
    "promotions": ("id",),
    "quality": ("created_at", "workload", "model", "metric", "source"),
    "rollout_checks": ("id",),
    "rollouts": ("id",),
    "row_decisions": ("id",),
    "row_states": ("workload", "feedback_id"),
    "runs": ("id",),
    "shadow_scores": ("experiment", "interaction_id"),
    "tombstones": ("erasure_id", "kind", "key_id", "hash"),
    "watch_checks": ("id",),
    "webhook_models": ("url", "model"),
}
"""The control tables with their keys. Each daemon derives all other tables from the segments."""
CHANGE_ROWS = 20_000
"""The most rows in one statement when all rows are published."""
KEPT_POSITIONS = 1_000
_COMMENT = re.compile(r"--.*")
_TARGETS = {
    duckdb.StatementType.INSERT: re.compile(r"\bINTO\s+\"?(\w+)", re.IGNORECASE),
    duckdb.StatementType.UPDATE: re.compile(r"\bUPDATE\s+\"?(\w+)", re.IGNORECASE),
    duckdb.StatementType.DELETE: re.compile(r"\bDELETE\s+FROM\s+\"?(\w+)", re.IGNORECASE),
}
"""The name of the changed table, by the type of the statement as DuckDB parses it."""


@dataclass(frozen=True)
class _Table:
    """The text form of rows of a control table.

    Attributes:
        columns: the type of each column.
        key, row: SQL expressions of the key and of the row as JSON.
    """

    columns: Mapping[str, str]
    key: str
    row: str


Change = tuple[str, str, str | None]
"""The table, the key and the content of a changed row; None: deleted."""


class Recording:
    """A cursor that records the changes of its statements to control tables."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, tables: Mapping[str, _Table]) -> None:
        self._cursor, self._tables = cursor, tables
        self._changes: dict[tuple[str, str], str | None] = {}

    @property
    def changes(self) -> list[Change]:
        """The changed rows, each once with its latest content."""
        return [(table, key, row) for (table, key), row in self._changes.items()]

    def execute(self, statement: str, parameters: Any = None) -> duckdb.DuckDBPyConnection:
        """Executes a statement like DuckDB; a change of a control table returns the number of changed rows."""
        kinds = {parsed.type for parsed in self._cursor.extract_statements(statement)} & _TARGETS.keys()
        target = next((match for kind in kinds if (match := _TARGETS[kind].search(_COMMENT.sub("", statement)))), None)
        if target is None or target[1] not in self._tables:
            return self._cursor.execute(statement, parameters)
        name, table = target[1], self._tables[target[1]]
        returning = f"{statement.rstrip().removesuffix(';')}\nRETURNING {table.key}, {table.row}"
        changed = self._cursor.execute(returning, parameters).fetchall()
        for key, row in changed:
            self._changes.pop((name, key), None)  # so that the latest change comes last
            self._changes[name, key] = None if duckdb.StatementType.DELETE in kinds else row
        return self._cursor.execute("SELECT $1::BIGINT", [len(changed)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class Control:
    """The control tables of one warehouse; thread-safe.

    Attributes:
        epoch: the epoch under which this daemon leads; None: it does not lead.
        leader: the known leader, for a person.
    """

    def __init__(self, postgres: Postgres, warehouse: Warehouse) -> None:
        """Becomes the journal of the warehouse: all changes of its control tables are recorded."""
        self._postgres, self._warehouse = postgres, warehouse
        self._changing = threading.Lock()  # orders changes: held from PostgreSQL's commit to DuckDB's
        self.epoch: int | None = None
        self.leader = "no daemon leads yet"
        self._tables = _tables(warehouse)
        position = warehouse.row("SELECT number, change FROM control_positions ORDER BY number DESC LIMIT 1")
        self._number: int = position["number"] if position else 0
        self._change: str | None = position["change"] if position else None  # the id of the change; None: unknown
        warehouse.journal = self

    @property
    def leads(self) -> bool:
        """Whether this daemon leads."""
        return self.epoch is not None

    @property
    def recorded(self) -> Collection[str]:
        """The names of the control tables."""
        return self._tables.keys()

    @property
    def number(self) -> int:
        """The number of the last change in the warehouse."""
        return self._number

    def recording(self, cursor: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        """Returns a recording cursor for a transaction; see `warehouse.connection.Journal`."""
        return cast("duckdb.DuckDBPyConnection", Recording(cursor, self._tables))

    def commit(self, recording: duckdb.DuckDBPyConnection) -> None:
        """Commits a transaction; changes of control tables go to PostgreSQL first. After an error, nothing was written.

        Raises:
            StandsBy: this daemon does not lead.
            LeadershipLost: another daemon leads by now.
            OutdatedWarehouse: the warehouse lacked an earlier change, which it has now.
            StoreUnavailable: PostgreSQL does not answer. If it has the change, the warehouse gets it with the next one.
        """
        assert isinstance(recording, Recording)
        changes = recording.changes
        if not changes:
            recording.commit()
            return
        if self.epoch is None:
            raise StandsBy(f"this daemon stands by and changes nothing: {self.leader}")
        with self._changing:
            try:
                number, change = self._publish(changes)
            except OutdatedWarehouse:
                self._follow()
                raise
            recording.execute("INSERT INTO control_positions VALUES (?, ?)", [number, change])
            try:
                recording.commit()
            except duckdb.Error as error:
                log.warning("a change of the control tables is restored from PostgreSQL: %s", error)
                recording.rollback()
                self._follow()  # PostgreSQL has the change, so it is valid
            else:
                self._number, self._change = number, change
            if number % KEPT_POSITIONS == 0:
                with self._warehouse.transaction(recorded=False) as cursor:
                    cursor.execute("DELETE FROM control_positions WHERE number < ?", [number])

    def follow(self) -> int:
        """Applies PostgreSQL's changes to the warehouse, and returns the number of rows.

        Raises:
            StoreUnavailable: PostgreSQL does not answer.
            ConfigurationError: a newer release wrote the database, the database was reset to an older state, or the
                warehouse has its own control rows.
            WarehouseError: the warehouse cannot be written.
        """
        with self._in_turn():
            return self._follow()

    def publish_all(self, on_part: Callable[[], object] = lambda: None) -> None:
        """Writes all rows of the warehouse to PostgreSQL if it has none, or those of an older schema.

        Args:
            on_part: called after each part, as there may be many rows.

        Raises: see `commit`.
        """
        with self._in_turn():
            version = schema.latest()
            if self._published_schema() == version:
                return
            for changes in _parts(self.all_rows()):
                self._advance(*self._publish(changes))
                on_part()
            self._advance(*self._publish((), version))
            log.info("store: the control tables are in PostgreSQL with schema %d", version)

    def forget_deleted(self) -> None:
        """Removes rows deleted a month ago and old ids of changes; daemons further behind reload all rows."""
        self._postgres.rows("forget_deleted")
        self._postgres.rows("forget_changes")

    def all_rows(self) -> Iterator[Change]:
        """Yields the rows of the warehouse in the form of PostgreSQL."""
        for name, table in self._tables.items():
            with self._warehouse.cursor() as cursor:
                cursor.execute(f"SELECT {table.key}, {table.row} FROM {name}")
                while part := cursor.fetchmany(CHANGE_ROWS):
                    yield from ((name, key, row) for key, row in part)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Holds `_changing`. A cursor is opened first, as before a commit: a thread that uses the warehouse alone and
        commits must not wait for one that waits for a cursor."""
        with self._warehouse.cursor(), self._changing:
            yield

    # The methods below require `_changing`.

    def _publish(self, changes: Iterable[Change], version: int | None = None) -> tuple[int, str]:
        """Writes changes to PostgreSQL, and returns the number and the id of the change."""
        tables, keys, rows = [list(column) for column in zip(*changes, strict=True)] or ([], [], [])
        given: dict[str, Any] = {"tables": tables, "keys": keys, "rows": rows, "schema": version}
        change = uuid.uuid4().hex
        given |= {"change": change, "epoch": self.epoch, "number": self._number, "after": self._change}
        try:
            [(number,)] = self._postgres.rows("change", given)
        except StoreUnavailable:  # the connection may predate a restart of the database
            [(number,)] = self._postgres.rows("change", given)
        return int(number), change

    def _advance(self, number: int, change: str) -> None:
        with self._warehouse.transaction(recorded=False) as cursor:
            cursor.execute("INSERT INTO control_positions VALUES (?, ?)", [number, change])
        self._number, self._change = number, change

    def _published_schema(self) -> int | None:
        version: int | None = self._postgres.rows("last_change")[0][2]
        return version

    def _follow(self) -> int:
        [(number, change, _, _)] = self._postgres.rows("last_change")
        if number == self._number and (self._change is None or change == self._change):
            return 0
        with self._postgres.transaction() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            number, change, version, deleted_until = connection.execute(sql("last_change")).fetchall()[0]
            known = connection.execute(sql("change_of"), {"number": self._number}).fetchone()
            self._check_history(number, version, known[0] if known else None)
            continues = self._number >= deleted_until and (known is not None or self._change is None)
            start = self._number if continues else 0
            changes: list[Change] = connection.execute(sql("changes"), {"number": start}).fetchall()
        with self._warehouse.transaction(recorded=False) as cursor:
            for name, table in self._tables.items():
                if start == 0:
                    cursor.execute(f"DELETE FROM {name}")
                own = [(key, row) for table_name, key, row in changes if table_name == name]
                for part in _parts(own):
                    _apply(cursor, name, table, part)
            cursor.execute("DELETE FROM control_positions")
            cursor.execute("INSERT INTO control_positions VALUES (?, ?)", [number, change])
        self._number, self._change = number, change
        self._warehouse.trail.reread()
        return len(changes)

    def _check_history(self, number: int, version: int | None, change: str | None) -> None:
        """Checks that the warehouse can follow the database.

        Args:
            number, version: the last change of the database, and its schema.
            change: the id in the database of the warehouse's last change; None: unknown.
        """
        if version is not None and version > schema.latest():
            raise ConfigurationError(
                f"store.postgres_url: the control tables have schema {version}, which is newer than this retuned "
                f"({schema.latest()}); upgrade retuned"
            )
        if self._number == 0:
            self._refuse_own_rows()
        elif number < self._number or (change is not None and self._change is not None and change != self._change):
            raise ConfigurationError(
                f"store.postgres_url: the database has changes up to {number}, but not the change {self._number} "
                f"of warehouse {self._warehouse.path}: it was reset, or a replica without the change took over; "
                "restore the warehouses of all daemons from earlier backups (retuned restore), or start with new ones"
            )

    def _refuse_own_rows(self) -> None:
        """Raises an error if a warehouse that never followed has control rows, which following would delete."""
        for name in KEYS.keys() - {"ledger_position"}:  # always has one row
            if self._warehouse.row(f"SELECT 1 AS found FROM {name} LIMIT 1") is not None:
                raise ConfigurationError(
                    f"warehouse {self._warehouse.path}: it has {name} of its own, which are not part of this cluster; "
                    "start with a new warehouse, or with a backup of a daemon of this cluster (warehouse.path)"
                )


def _parts(changes: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(changes)
    while part := list(islice(iterator, CHANGE_ROWS)):
        yield part


def _apply(
    cursor: duckdb.DuckDBPyConnection, name: str, table: _Table, changes: Iterable[tuple[str, str | None]]
) -> None:
    """Replaces rows by those of PostgreSQL."""
    keys = [key for key, _ in changes]
    rows = [row for _, row in changes if row is not None]
    cursor.execute(f"DELETE FROM {name} WHERE {table.key} IN (SELECT unnest($keys::VARCHAR[]))", {"keys": keys})
    # Rows that a leader of an older release wrote have fewer columns; the others get their defaults.
    of_columns: dict[frozenset[str], list[str]] = defaultdict(list)
    for row in rows:
        of_columns[frozenset(json.loads(row))].append(row)
    for known, alike in of_columns.items():
        columns = {column: kind for column, kind in table.columns.items() if column in known}
        cursor.execute(
            f"INSERT INTO {name} BY NAME SELECT unnest(from_json(row, $structure)) "
            "FROM (SELECT unnest($rows::VARCHAR[]) AS row)",
            {"structure": json.dumps(columns), "rows": alike},
        )


def _tables(warehouse: Warehouse) -> dict[str, _Table]:
    columns: dict[str, dict[str, str]] = {name: {} for name in KEYS}
    for row in warehouse.rows(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE database_name = current_database() AND list_contains($tables, table_name) ORDER BY column_index",
        {"tables": list(KEYS)},
    ):
        # JSON is kept as text, unchanged.
        columns[row["table_name"]][row["column_name"]] = row["data_type"].replace("JSON", "VARCHAR")
    return {
        name: _Table(
            own,
            # Names of columns, never input.
            "to_json([" + ", ".join(f'"{column}"::VARCHAR' for column in KEYS[name]) + "]::VARCHAR[])::VARCHAR",
            "to_json({"
            + ", ".join(f"'{column}': \"{column}\"::{kind}" for column, kind in own.items())
            + "})::VARCHAR",
        )
        for name, own in columns.items()
    }
