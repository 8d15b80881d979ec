"""The control tables of a cluster: what its leader changes in its warehouse, PostgreSQL has first, and others follow.

A transaction of the leader that changes rows of a control table is recorded row by row. Before its commit one statement
puts them into PostgreSQL, if no other daemon leads by then. So what PostgreSQL has is what counts: whatever fails after
it, the warehouse is brought up to it, as that of a daemon that stands by is all the time.
"""

import json
import logging
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    "aliases": ("workload", "alias"),
    "approvals": ("id",),
    "artifacts": ("id",),
    "blindness": ("workload", "monitor"),
    "dataset_rows": ("dataset_version", "row_id", "split"),
    "datasets": ("version",),
    "decisions": ("id",),
    "deployments": ("workload", "version"),
    "drift_checks": ("id",),
    "drift_references": ("workload", "created_at"),
    "evaluations": ("run_id", "model", "split", "row_id"),
    "groundings": ("interaction_id",),
    "label_requests": ("id",),
    "ledger": ("id",),
    "ledger_left_out": ("created_at", "workload", "item"),
    "ledger_moments": ("workload", "version", "promotion", "hour"),
    "ledger_outcomes": ("workload", "day", "outcome"),
    "ledger_position": (),
    "models": ("workload", "version"),
    "pauses": ("workload", "created_at"),
    "promotions": ("id",),
    "quality": ("created_at", "workload", "model", "metric", "source"),
    "quarantine": ("workload", "feedback_id", "interaction_id", "reason"),
    "rollout_checks": ("id",),
    "rollouts": ("id",),
    "runs": ("id",),
    "shadow_scores": ("experiment", "interaction_id"),
    "watch_checks": ("id",),
    "webhook_models": ("url", "model"),
}
"""The control tables, and what no two rows of one share. All others each daemon makes from the segments."""
CHANGE_ROWS = 20_000
"""Rows in one statement, where all are published."""
KEPT_POSITIONS = 1_000
_COMMENT = re.compile(r"--.*")
_CHANGE = re.compile(r"\b(INSERT(?:\s+OR\s+\w+)?\s+INTO|UPDATE|DELETE\s+FROM)\s+\"?(\w+)", re.IGNORECASE)


@dataclass(frozen=True)
class _Table:
    """How rows of a control table are written as text.

    Attributes:
        columns: name to type.
    """

    columns: Mapping[str, str]
    key: str
    row: str


Change = tuple[str, str, str | None]
"""A row of a control table: the table, its key, and the row; None: it is deleted."""


class Recording:
    """A cursor that keeps which rows of control tables its statements change."""

    def __init__(self, cursor: duckdb.DuckDBPyConnection, tables: Mapping[str, _Table]) -> None:
        self._cursor, self._tables = cursor, tables
        self._changes: dict[tuple[str, str], str | None] = {}

    @property
    def changes(self) -> list[Change]:
        """Each row once, as it is now."""
        return [(table, key, row) for (table, key), row in self._changes.items()]

    def execute(self, statement: str, parameters: Any = None) -> duckdb.DuckDBPyConnection:
        """As DuckDB's; the result of a statement that changes a control table is how many rows it changed."""
        found = _CHANGE.search(_COMMENT.sub("", statement))
        table = self._tables.get(found[2]) if found else None
        if found is None or table is None:
            return self._cursor.execute(statement, parameters)
        returning = f"{statement.rstrip().removesuffix(';')}\nRETURNING {table.key}, {table.row}"
        changed = self._cursor.execute(returning, parameters).fetchall()
        deleted = found[1].upper().startswith("DELETE")
        for key, row in changed:
            # Taken out first, so that the last change comes last.
            self._changes.pop((found[2], key), None)
            self._changes[found[2], key] = None if deleted else row
        return self._cursor.execute("SELECT $1::BIGINT", [len(changed)])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)


class Control:
    """The control tables of one warehouse. Threads may share it.

    Attributes:
        epoch: under which this daemon leads; None: it does not.
        leader: who does, in words, as far as is known.
    """

    def __init__(self, postgres: Postgres, warehouse: Warehouse) -> None:
        """From now on, all changes of the warehouse's control tables go through this."""
        self._postgres, self._warehouse = postgres, warehouse
        self._changing = threading.Lock()  # of the order of changes: held from PostgreSQL's commit to DuckDB's
        self.epoch: int | None = None
        self.leader = "no daemon leads yet"
        self._tables = _tables(warehouse)
        found = warehouse.row("SELECT number, change FROM control_positions ORDER BY number DESC LIMIT 1")
        self._number: int = found["number"] if found else 0
        self._change: str | None = found["change"] if found else None  # the id of that change; None: it is not known
        warehouse.journal = self

    @property
    def number(self) -> int:
        """Of the last change that the warehouse has."""
        return self._number

    def recording(self, cursor: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
        """A cursor for a transaction; see `warehouse.connection.Journal`."""
        return cast("duckdb.DuckDBPyConnection", Recording(cursor, self._tables))

    def commit(self, recording: duckdb.DuckDBPyConnection) -> None:
        """Commit a transaction; one that changes control tables goes to PostgreSQL first.

        Raises:
            StandsBy: this daemon does not lead. As for the next ones, nothing was written.
            LeadershipLost: another one leads by now.
            OutdatedWarehouse: a change before this one was not known here; it is now.
            StoreUnavailable: PostgreSQL does not answer. It may have the change; then the warehouse gets it with the
                next one.
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
                log.warning("a change of the control tables is read again from PostgreSQL: %s", error)
                recording.rollback()
                self._follow()  # PostgreSQL has the change, so it was made
            else:
                self._number, self._change = number, change
            if number % KEPT_POSITIONS == 0:
                with self._warehouse.transaction(recorded=False) as cursor:
                    cursor.execute("DELETE FROM control_positions WHERE number < ?", [number])

    def follow(self) -> int:
        """Bring the warehouse up to PostgreSQL. Returns how many rows were taken over.

        Raises:
            StoreUnavailable: PostgreSQL does not answer.
            ConfigurationError: a newer retuned wrote there, it was set back to an older state, or the warehouse has
                control tables of its own.
            WarehouseError: the warehouse cannot be written.
        """
        with self._changing:
            return self._follow()

    def publish_all(self, on_part: Callable[[], object] = lambda: None) -> None:
        """Write all rows of the warehouse to PostgreSQL, where it has none yet or those of an older schema.

        Args:
            on_part: called after each part of them, since there may be many.

        Raises: as `commit`.
        """
        with self._changing:
            version = schema.latest()
            if self._published_schema() == version:
                return
            for changes in _parts(self.all_rows()):
                self._advance(*self._publish(changes))
                on_part()
            self._advance(*self._publish((), version))
            log.info("store: the control tables are in PostgreSQL, by schema %d", version)

    def forget_deleted(self) -> None:
        """Forget rows that were deleted a month ago, and the ids of changes: who lacks that much reads all anew."""
        self._postgres.rows("forget_deleted")
        self._postgres.rows("forget_changes")

    def all_rows(self) -> Iterator[Change]:
        """The rows of the warehouse, as PostgreSQL has them."""
        for name, table in self._tables.items():
            with self._warehouse.cursor() as cursor:
                cursor.execute(f"SELECT {table.key}, {table.row} FROM {name}")
                while some := cursor.fetchmany(CHANGE_ROWS):
                    yield from ((name, key, row) for key, row in some)

    # Inside; `_changing` is held

    def _publish(self, changes: Iterable[Change], version: int | None = None) -> tuple[int, str]:
        """Returns the number and the id of the change."""
        tables, keys, rows = [list(column) for column in zip(*changes, strict=True)] or ([], [], [])
        given: dict[str, Any] = {"tables": tables, "keys": keys, "rows": rows, "schema": version}
        change = uuid.uuid4().hex
        given |= {"change": change, "epoch": self.epoch, "number": self._number, "after": self._change}
        try:
            [(number,)] = self._postgres.rows("change", given)
        except StoreUnavailable:  # its connection may be of before the database was started anew
            [(number,)] = self._postgres.rows("change", given)
        return int(number), change

    def _advance(self, number: int, change: str) -> None:
        with self._warehouse.transaction(recorded=False) as cursor:
            cursor.execute("INSERT INTO control_positions VALUES (?, ?)", [number, change])
        self._number, self._change = number, change

    def _published_schema(self) -> int | None:
        found: int | None = self._postgres.rows("last_change")[0][2]
        return found

    def _follow(self) -> int:
        [(number, change, _, _)] = self._postgres.rows("last_change")
        if number == self._number and (self._change is None or change == self._change):
            return 0
        with self._postgres.transaction() as connection:
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            number, change, version, deleted_until = connection.execute(sql("last_change")).fetchall()[0]
            found = connection.execute(sql("change_of"), {"number": self._number}).fetchone()
            if version is not None and version > schema.latest():
                raise ConfigurationError(
                    f"store.postgres_url: the control tables are of schema {version}, of a newer retuned than this one "
                    f"({schema.latest()}); install that version"
                )
            if self._number == 0:
                self._refuse_own_rows()
            elif number < self._number or (found and self._change is not None and found[0] != self._change):
                raise ConfigurationError(
                    f"store.postgres_url: the database has changes up to {number}, and not the change {self._number} "
                    f"that warehouse {self._warehouse.path} has: it was set back, or a replica took over that lacked "
                    "it; set the warehouses of all daemons back to backups of before (retuned restore), or begin with "
                    "new ones"
                )
            is_known = self._number >= deleted_until and (found is not None or self._change is None)
            known = self._number if is_known else 0
            changes: list[Change] = connection.execute(sql("changes"), {"number": known}).fetchall()
        with self._warehouse.transaction(recorded=False) as cursor:
            for name, table in self._tables.items():
                if known == 0:
                    cursor.execute(f"DELETE FROM {name}")
                own = [(key, row) for table_name, key, row in changes if table_name == name]
                for some in _parts(own):
                    _take_over(cursor, name, table, some)
            cursor.execute("DELETE FROM control_positions")
            cursor.execute("INSERT INTO control_positions VALUES (?, ?)", [number, change])
        self._number, self._change = number, change
        return len(changes)

    def _refuse_own_rows(self) -> None:
        """A warehouse that never followed has nothing that would be lost."""
        for name in KEYS.keys() - {"ledger_position"}:  # which has one row from the beginning
            if self._warehouse.row(f"SELECT 1 AS found FROM {name} LIMIT 1") is not None:
                raise ConfigurationError(
                    f"warehouse {self._warehouse.path}: it has {name} of its own, which this cluster does not know; "
                    "begin with a new warehouse, or with a backup of a daemon of this cluster (warehouse.path)"
                )


def _parts(changes: Iterable[T]) -> Iterator[list[T]]:
    waiting = iter(changes)
    while some := list(islice(waiting, CHANGE_ROWS)):
        yield some


def _take_over(
    cursor: duckdb.DuckDBPyConnection, name: str, table: _Table, changes: Iterable[tuple[str, str | None]]
) -> None:
    """Rows as PostgreSQL has them, in the place of those that are there."""
    keys = [key for key, _ in changes]
    rows = [row for _, row in changes if row is not None]
    cursor.execute(f"DELETE FROM {name} WHERE {table.key} IN (SELECT unnest($keys::VARCHAR[]))", {"keys": keys})
    if rows:
        # A leader of an older version knows fewer columns: the others have their defaults.
        told = json.loads(rows[0]).keys()
        columns = {column: kind for column, kind in table.columns.items() if column in told}
        cursor.execute(
            f"INSERT INTO {name} BY NAME SELECT unnest(from_json(row, $structure)) "
            "FROM (SELECT unnest($rows::VARCHAR[]) AS row)",
            {"structure": json.dumps(columns), "rows": rows},
        )


def _tables(warehouse: Warehouse) -> dict[str, _Table]:
    columns: dict[str, dict[str, str]] = {name: {} for name in KEYS}
    for row in warehouse.rows(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() "
        "WHERE database_name = current_database() AND list_contains($tables, table_name) ORDER BY column_index",
        {"tables": list(KEYS)},
    ):
        # JSON is kept as the text that it is, to the letter.
        columns[row["table_name"]][row["column_name"]] = row["data_type"].replace("JSON", "VARCHAR")
    return {
        name: _Table(
            of,
            # The columns of a table, never input.
            "to_json([" + ", ".join(f'"{column}"::VARCHAR' for column in KEYS[name]) + "]::VARCHAR[])::VARCHAR",
            "to_json({" + ", ".join(f"'{column}': \"{column}\"::{kind}" for column, kind in of.items()) + "})::VARCHAR",
        )
        for name, of in columns.items()
    }
