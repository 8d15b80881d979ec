"""A connection to the PostgreSQL database of a cluster: its schema, and translation of its errors."""

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import conninfo

from retuned.consumers.common.text import first_line
from retuned.consumers.errors import (
    ConfigurationError,
    ErasedMeanwhile,
    LeadershipLost,
    OutdatedWarehouse,
    Reassigned,
    StoreUnavailable,
)
from retuned.consumers.settings import StoreSettings
from retuned.consumers.warehouse.connection import named_queries

log = logging.getLogger(__name__)

QUERIES = {
    **named_queries("retuned.consumers.cluster", "database.sql"),
    **named_queries("retuned.consumers.cluster", "control.sql"),
}
MIGRATIONS = files("retuned.consumers.cluster") / "migrations"
MIGRATION_LOCK = 8_321_001
"""The key of the advisory lock for changes of the schema."""
CONNECT_SECONDS = 5
CLOSE_SECONDS = 1.0
STATEMENT_SECONDS = 30
_OURS: Mapping[str, tuple[type[Exception], str]] = {
    "RT001": (Reassigned, "the events are read again from the stored offsets"),
    "RT002": (LeadershipLost, "this one must not change anything any more: restart it to stand by"),
    "RT003": (OutdatedWarehouse, "they are read now, and the change can be retried"),
    "RT004": (ErasedMeanwhile, "the batch is stored without them"),
}
"""The errors of the schema's functions, by SQLSTATE."""
# Transient errors: connections, resources, operator intervention, system errors, conflicts, standby servers.
_TRANSIENT = ("08", "40", "53", "57", "58", "25006")


class Postgres:
    """One connection; thread-safe. It connects on the first call, and again after a failure."""

    def __init__(
        self, settings: StoreSettings, *, migrate: bool = True, answer_seconds: int = STATEMENT_SECONDS
    ) -> None:
        """Creates a client; does not connect.

        Args:
            answer_seconds: the timeout of statements and of a silent server.
            migrate: whether to migrate the schema on the first connection.

        Raises:
            ConfigurationError: store.postgres_url is not set, cannot be read, or is not a URL.
        """
        url = settings.postgres()
        if url is None:
            raise ConfigurationError("store.postgres_url: not set; set the URL of the database, or a file with it")
        try:
            conninfo.conninfo_to_dict(url)
        except psycopg.ProgrammingError:  # its text contains the password
            raise ConfigurationError(
                "store.postgres_url: not a database URL; expected postgresql://user:password@host:5432/database"
            ) from None
        self._url, self._migrates, self._answer_seconds = url, migrate, answer_seconds
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._migrated = False

    def rows(self, name: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Returns the result of a named query, outside of any transaction.

        Raises:
            StoreUnavailable: the database does not answer; the statement may have been executed.
            ConfigurationError: the database rejects the statement.
            Reassigned, LeadershipLost, OutdatedWarehouse, ErasedMeanwhile: raised by a function of the schema.
        """
        with self._asked() as connection:
            return connection.execute(sql(name), parameters).fetchall()

    @contextmanager
    def transaction(self) -> Iterator["psycopg.Connection[tuple[Any, ...]]"]:
        """Runs several statements in a transaction; raises like `rows`."""
        with self._asked() as connection, connection.transaction():
            yield connection

    def close(self) -> None:
        """Disconnects; safe to repeat. Does not wait long for a statement of another thread."""
        if self._lock.acquire(timeout=CLOSE_SECONDS):
            try:
                self._drop()
            finally:
                self._lock.release()

    @contextmanager
    def _asked(self) -> Iterator["psycopg.Connection[tuple[Any, ...]]"]:
        with self._lock:
            try:
                yield self._connected()
            except psycopg.Error as error:
                raise self._translated(error) from error

    def _connected(self) -> "psycopg.Connection[tuple[Any, ...]]":
        if self._connection is None:
            self._connection = psycopg.connect(
                self._url,
                autocommit=True,
                connect_timeout=CONNECT_SECONDS,
                tcp_user_timeout=1000 * self._answer_seconds,
                application_name="retuned",
                options=f"-c statement_timeout={self._answer_seconds}s "
                f"-c idle_in_transaction_session_timeout={self._answer_seconds}s "
                # Makes the server end the session of a dead machine.
                "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
            )
            if self._migrates and not self._migrated:
                _migrate(self._connection)
                self._migrated = True
        return self._connection

    def _translated(self, error: psycopg.Error) -> Exception:
        """Translates an error of PostgreSQL; after most errors, the next call reconnects."""
        state, connected = error.sqlstate or "", self._connection is not None
        if state in _OURS:
            kind, advice = _OURS[state]
            return kind(f"{first_line(error)}: {advice}")
        self._drop()
        # Errors of connecting have no state, even a wrong password, which may be about to change.
        if isinstance(error, psycopg.OperationalError) or state.startswith(_TRANSIENT):
            what = "the database does not answer" if connected else "no connection to the database"
            return StoreUnavailable(f"store.postgres_url: {what} ({first_line(error)})")
        return ConfigurationError(
            f"store.postgres_url: the database rejects it ({first_line(error)}); check the user's rights and the schema"
        )

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = None


def sql(name: str) -> bytes:
    """Returns a named query as bytes, which psycopg accepts for non-literal texts."""
    return QUERIES[name].encode()


def _migrate(connection: "psycopg.Connection[tuple[Any, ...]]") -> None:
    """Migrates the schema, one process at a time.

    Raises:
        ConfigurationError: a newer release migrated it, or one before 1.0.
    """
    known = {int(file.name[:3]): file for file in MIGRATIONS.iterdir() if re.match(r"\d{3}_.*\.sql$", file.name)}
    with connection.transaction():
        connection.execute(f"SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'".encode())
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
        connection.execute("CREATE SCHEMA IF NOT EXISTS retuned")
        connection.execute("CREATE TABLE IF NOT EXISTS retuned.migrations (number INTEGER PRIMARY KEY)")
        ((now,),) = connection.execute("SELECT coalesce(max(number), 0) FROM retuned.migrations").fetchall()
        if now > max(known):
            raise ConfigurationError(
                f"store.postgres_url: the schema ({now}) is newer than this retuned knows ({max(known)}); "
                "upgrade retuned"
            )
        if 0 < now < min(known):
            raise ConfigurationError(
                f"store.postgres_url: the schema ({now}) is from before retuned 1.0; migrate it with retuned 1.0 first "
                "(`retuned migrate`)"
            )
        for number in sorted(number for number in known if number > now):
            connection.execute(known[number].read_bytes())
            connection.execute("INSERT INTO retuned.migrations VALUES (%s)", [number])
            log.info("store: schema %d", number)
