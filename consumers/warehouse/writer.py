"""Writes batches: events, dead letters and offsets in one transaction."""

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, get_args

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from retuned.consumers.common.text import first_line
from retuned.consumers.errors import Busy, Fenced, MemoryLimit
from retuned.consumers.kafka.contract import Identities, Identity, Offsets
from retuned.consumers.privacy.pseudonyms import load_user_keys
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.settings import Settings
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.consumers.warehouse.duplicates import Stored
from retuned.consumers.warehouse.packing import Table
from retuned.consumers.warehouse.rows import Rows
from retuned.consumers.warehouse.tombstones import Tombstones

log = logging.getLogger(__name__)

QUERIES = named_queries("retuned.consumers.warehouse", "ingest.sql")
# Smaller costs time, larger costs memory; measured with `make bench`.
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds
# DuckDB's errors for the content of rows, not for a file, a transaction or its own state.
REFUSED_BY_DUCKDB = (duckdb.DataError, duckdb.ProgrammingError, duckdb.NotSupportedError)


def stored_offsets(warehouse: Warehouse) -> Offsets:
    """Returns the next offset of each partition, for a source."""
    rows = warehouse.rows(QUERIES["stored_offsets"])
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


def stored_identities(warehouse: Warehouse) -> Identities:
    """Returns the topic of each stored offset, as far as known."""
    rows = warehouse.rows(QUERIES["stored_identities"])
    return {(row["topic"], row["partition"]): Identity(row["cluster_id"], row["topic_id"]) for row in rows}


def stored_key_ids(warehouse: Warehouse) -> set[str]:
    """Returns the ids of the keys of stored pseudonyms (`UserKeys.ids`). Reads a column of all events."""
    return {row["key_id"] for row in warehouse.rows(QUERIES["stored_key_ids"])}


class Writer:
    """Redacts and stores batches. For one thread at a time, as it keeps track of the stored ids."""

    def __init__(self, warehouse: Warehouse, settings: Settings, progress: Callable[[], None] = lambda: None) -> None:
        """Creates a writer.

        Args:
            progress: called while a batch is redacted.

        Raises:
            ConfigurationError: the key of the user hash cannot be read or created, or privacy.names lacks its extra.
        """
        self._warehouse, self._group = warehouse, settings.kafka.group_id
        self._redactor = Redactor(settings.privacy, progress=progress)
        keys = load_user_keys(settings.privacy, warehouse.path)
        self.pseudonym, self.pseudonym_or_stored = keys.pseudonym, keys.pseudonym_or_stored
        distance = timedelta(seconds=settings.ingest.deduplicate_seconds)
        self._stored = {table: Stored(warehouse, table, distance) for table in get_args(Table)}
        self._keys, self._tombstones = keys, Tombstones(keys)

    def redact(self, rows: Rows) -> None:
        """Removes personal data."""
        rows.redact(self._redactor, self.pseudonym_or_stored, self._keys.seal_key)

    def write(self, rows: Rows) -> Rows:
        """Redacts and stores a batch with its offsets. After an error, nothing of it is stored.

        Raises:
            Fenced: another consumer of the group is active.
            MemoryLimit: DuckDB's memory limit is too small, after several retries.
            Busy: replayed letters are being archived, after several retries.
            WarehouseError: the warehouse cannot be written.
        """
        started = time.perf_counter()
        self.redact(rows)
        pa.default_memory_pool().release_unused()  # the memory of redaction, which is per thread

        requests = rows.erasures(self._keys)

        def finish(cursor: duckdb.DuckDBPyConnection) -> None:
            rows.keep_bad_letters()
            for request in requests:
                cursor.execute(QUERIES["insert_erasure"], request)
            if rows.replayed:
                cursor.register("batch_replayed", rows.replayed_table())
                cursor.execute(QUERIES["delete_replayed"])
            if rows.dead:
                cursor.register("batch_dead_letters", rows.dead_letters_table())
                cursor.execute(QUERIES["insert_dead_letters"])
            self._move_offsets(cursor, rows)

        try:
            self._store_patiently(rows, finish)
        except (duckdb.TransactionException, duckdb.ConstraintException) as error:
            if rows.replayed and isinstance(error, duckdb.TransactionException):
                raise Busy(
                    "dead letters: some are being archived now, so these and the rest were not replayed; try again"
                ) from error
            raise Fenced(f"another consumer is moving the offsets of this batch ({first_line(error)})") from error
        rows.seconds += time.perf_counter() - started
        return rows

    def _store_patiently(self, rows: Rows, finish: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        """Like `_store`, with retries if memory is short, for example during a large query, or if replayed letters are
        being archived."""
        for pause in PAUSES:
            try:
                return self._store(rows, finish)
            except MemoryLimit as error:
                log.warning("%s; trying again in %g s", error, pause)
            except duckdb.TransactionException:
                if not rows.replayed:
                    raise
                log.warning("replayed dead letters are being archived now; trying again in %g s", pause)
            time.sleep(pause)
        return self._store(rows, finish)

    def _store(self, rows: Rows, finish: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        """Stores the redacted events and runs `finish` in one transaction.

        If DuckDB rejects rows, they become dead letters, and the transaction is repeated with the others.
        """
        try:
            self._insert_all(rows, finish)
        except REFUSED_BY_DUCKDB:
            if any(self._refusal(kind, table.slice(0, 0)) for kind, table in rows.tables.items()):
                raise  # the content of rows is not the cause
            for kind, table in list(rows.tables.items()):
                rows.reject(kind, self._refused(kind, table))
            self._insert_all(rows, finish)

    def _insert_all(self, rows: Rows, finish: Callable[[duckdb.DuckDBPyConnection], None]) -> None:
        with self._warehouse.transaction() as cursor:
            self._tombstones.refresh(cursor)  # here: whoever adds some waits until no transaction is open
            self._tombstones.take_out(rows)
            batch = self._batch(cursor, rows)
            known = {name: self._insert(cursor, name, rows, batch) for name in rows.tables}
            finish(cursor)
        rows.stored = {name: rows.tables[name].num_rows - known[name] for name in known}
        rows.duplicates += sum(known.values())

    @staticmethod
    def _batch(cursor: duckdb.DuckDBPyConnection, rows: Rows) -> int:
        """Returns the number that the events of a batch get. Positions in these numbers pass from leader to leader."""
        if rows.segment is not None:
            return number_in(cursor.execute(QUERIES["batch_of_segment"], {"number": rows.segment}))
        return number_in(cursor.execute(QUERIES["next_batch"])) if rows.tables else 0

    def _refused(self, name: Table, table: Any, start: int = 0) -> dict[int, Exception]:
        """Returns the rows of a table that DuckDB rejects, found by bisection."""
        refusal = self._refusal(name, table)
        if refusal is None:
            return {}
        if table.num_rows == 1:
            return {start: refusal}
        middle = table.num_rows // 2
        return {
            **self._refused(name, table.slice(0, middle), start),
            **self._refused(name, table.slice(middle), start + middle),
        }

    def _refusal(self, name: Table, table: Any) -> Exception | None:
        """Returns why DuckDB rejects a table, by a transaction that is rolled back; None: it does not."""
        with self._warehouse.cursor() as cursor:
            cursor.begin()
            try:
                cursor.register("batch_events", table)
                cursor.execute(QUERIES["insert_events"].format(table=name), {"batch": 0})
            except REFUSED_BY_DUCKDB as error:
                return error
            finally:
                cursor.rollback()
        return None

    def _insert(self, cursor: duckdb.DuckDBPyConnection, name: Table, rows: Rows, batch: int) -> int:
        """Inserts the events of one table, and returns the number of duplicates."""
        table, ids, known = rows.tables[name], rows.ids[name], 0
        if rows.with_archive:
            cursor.register("batch_ids", table.select(["id"]))
            archived = [id for (id,) in cursor.execute(QUERIES["archived_ids"], {"table": name}).fetchall()]
            if archived:
                table = table.filter(pc.invert(pc.is_in(table["id"], pa.array(archived, pa.string()))))
                known, ids = len(ids) - table.num_rows, table["id"].to_pylist()
        if not table.num_rows:
            return known
        doubted = self._stored[name].may_have(ids, rows.bounds(table)["low"])
        if doubted.any():
            doubtful, table = table.filter(pa.array(doubted)), table.filter(pa.array(~doubted))
            cursor.register("batch_events", doubtful)
            insert_new = QUERIES["insert_new_events"].format(table=name)
            new = number_in(cursor.execute(insert_new, rows.bounds(doubtful) | {"batch": batch}))
            known += doubtful.num_rows - new
        if table.num_rows:
            cursor.register("batch_events", table)
            cursor.execute(QUERIES["insert_events"].format(table=name), {"batch": batch})
        return known

    def _move_offsets(self, cursor: duckdb.DuckDBPyConnection, rows: Rows) -> None:
        starts, nexts = rows.starts, rows.nexts
        first = {key: offset for key, offset in nexts.items() if key not in starts}
        updated = 0
        if starts:
            moved = {"starts": list(starts.values()), **_columns({key: nexts[key] for key in starts}, rows.identities)}
            updated = number_in(cursor.execute(QUERIES["move_offsets"], moved))
        if first:
            # The primary key rejects a second first offset.
            cursor.execute(QUERIES["first_offsets"], _columns(first, rows.identities))
        followed = rows.segment is None or number_in(
            cursor.execute(QUERIES["follow_segment"], {"number": rows.segment, "expired": rows.expired})
        )
        if rows.segment is not None and (updated != len(starts) or not followed):
            raise Fenced(
                f"segment {rows.segment} does not continue warehouse {self._warehouse.path}: nothing of it was stored; "
                "follow the segments with the warehouse that the cluster was created from (retuned migrate --to "
                "cluster), with a backup of it, or with a new one if there was none"
            )
        if updated != len(starts):
            raise Fenced(
                f"another consumer of group {self._group!r} moved the offsets of "
                f"{', '.join(f'{topic}[{partition}]' for topic, partition in nexts)}: nothing of this batch was "
                "stored; run one daemon for each warehouse"
            )


def _columns(offsets: Offsets, identities: dict[str, Identity]) -> dict[str, list[Any]]:
    topics = [identities.get(topic, Identity(None, None)) for topic, _ in offsets]
    return {
        "topics": [topic for topic, _ in offsets],
        "partitions": [partition for _, partition in offsets],
        "nexts": list(offsets.values()),
        "cluster_ids": [identity.cluster_id for identity in topics],
        "topic_ids": [identity.topic_id for identity in topics],
    }


def number_in(cursor: duckdb.DuckDBPyConnection) -> int:
    """Returns the single number of a result, such as the number of changed rows."""
    row = cursor.fetchone()
    return int(row[0]) if row else 0
