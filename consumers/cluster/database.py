"""What ingesters and daemons of a cluster share, in PostgreSQL: how far partitions are read, and which segments exist.

Every change is one statement outside of any transaction, so that a process that is stopped at any moment holds no lock.
"""

import logging
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from retuned.consumers.common.text import first_line
from retuned.consumers.errors import ConfigurationError, Reassigned, StoreUnavailable
from retuned.consumers.kafka.contract import Identities, Identity, Offsets, Partition
from retuned.consumers.settings import StoreSettings
from retuned.consumers.warehouse.connection import named_queries

log = logging.getLogger(__name__)

QUERIES = named_queries("retuned.consumers.cluster", "database.sql")
MIGRATIONS = files("retuned.consumers.cluster") / "migrations"
MIGRATION_LOCK = 8_321_001
"""Key of the advisory lock under which the schema is changed."""
DAEMON_LOCK = 8_321_002
"""Key of the advisory lock of the one daemon that follows."""
CONNECT_SECONDS = 5
STATEMENT_SECONDS = 30
FENCED = "RT001"
# Connections, resources, operator intervention, system errors, rolled back by a conflict, a standby: they pass.
_PASSING = ("08", "40", "53", "57", "58", "25006")


@dataclass(frozen=True)
class File:
    """A Parquet file of a segment.

    Attributes:
        key: below store.objects_url.
    """

    key: str
    table_name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Move:
    """How far a segment moves a partition; start_offset None: nothing of it was stored before."""

    topic: str
    partition: int
    epoch: int
    start_offset: int | None
    next_offset: int
    cluster_id: str | None
    topic_id: str | None


@dataclass(frozen=True)
class Segment:
    """A segment as it is recorded.

    Attributes:
        received_at, next_received_at: naive UTC; None: there is no next one.
        counts: as `segments.counts` made them.
        messages_after: messages in the segments that come after it.
    """

    number: int
    received_at: datetime
    counts: dict[str, Any]
    moves: Sequence[Move]
    files: Sequence[File]
    messages_after: int
    next_received_at: datetime | None


@dataclass(frozen=True)
class Listed:
    """A file that object storage has, and what its key says: where its batch began, read by whom."""

    key: str
    topic: str
    partition: int
    epoch: int
    start_offset: int | None


class Database:
    """The control tables. Threads may share it; it connects when it is asked, and again after a failure."""

    def __init__(self, settings: StoreSettings) -> None:
        """
        Raises:
            ConfigurationError: store.postgres_url is not set, or cannot be read.
        """
        url = settings.postgres()
        if url is None:
            raise ConfigurationError("store.postgres_url: is not set; name the database, or a file that has its URL")
        self._url = url
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None
        self._following: psycopg.Connection[tuple[Any, ...]] | None = None  # on which the daemon's lock is held
        self._migrated = False

    def claim(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Be the one who reads these partitions. Returns the epoch of each; nothing of an earlier one is recorded.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        keys = {"topics": [topic for topic, _ in partitions], "partitions": [number for _, number in partitions]}
        return {(topic, number): epoch for topic, number, epoch in self._rows("claim", keys)}

    def seed(self, offsets: Offsets, identities: Identities) -> None:
        """Have ingesters begin where a warehouse ends; raises as `claim`, and:

        Raises:
            ConfigurationError: partitions are read there already.
        """
        found = [identities.get(key, Identity(None, None)) for key in offsets]
        columns = {
            "topics": [topic for topic, _ in offsets],
            "partitions": [number for _, number in offsets],
            "nexts": list(offsets.values()),
            "cluster_ids": [identity.cluster_id for identity in found],
            "topic_ids": [identity.topic_id for identity in found],
        }
        if len(self._rows("seed", columns)) != len(offsets):
            raise ConfigurationError(
                "store.postgres_url: ingesters have read into this database already; use another one for this warehouse"
            )

    def offsets(self) -> Offsets:
        """The next offset of each partition; raises as `claim`."""
        return {(topic, number): offset for topic, number, offset, _, _ in self._rows("partitions")}

    def identities(self) -> Identities:
        """Of which topic each stored offset is; raises as `claim`."""
        return {(row[0], row[1]): Identity(row[3], row[4]) for row in self._rows("partitions")}

    def record(
        self, moves: Sequence[Move], files: Sequence[File], received_at: datetime, counts: dict[str, Any]
    ) -> int:
        """Move the partitions and record the files, all or nothing. Returns the number of the segment.

        Args:
            received_at: naive UTC.

        Raises:
            Reassigned: another ingester has claimed or moved a partition, or this very batch is recorded already.
            StoreUnavailable: the database does not answer; the segment may be recorded or not.
        """
        parameters = {
            "moved": Jsonb([asdict(move) for move in moves]),
            "files": Jsonb([asdict(file) for file in files]),
            "received_at": received_at.replace(tzinfo=UTC),
            "counts": Jsonb(counts),
            "messages": sum(counts["messages"].values()),
        }
        return int(self._rows("record", parameters)[0][0])

    def follows_alone(self) -> bool:
        """Whether this is the one daemon that follows segments, from the first time on until its connection ends.

        Raises as `claim`.
        """
        with self._lock:
            connection = self._connected()
            if self._following is not connection:
                try:
                    found = connection.execute(_sql("lock_daemon"), {"key": DAEMON_LOCK}).fetchone()
                except psycopg.Error as error:
                    raise self._translated(error) from error
                if found != (True,):
                    return False
                self._following = connection
            return True

    def segment(self, number: int) -> Segment | None:
        """The segment of a number; None: it is not recorded yet. Raises as `claim`."""
        found = self._rows("segment", {"number": number})
        if not found:
            return None
        _, received_at, counts, moves, files, after, next_received_at = found[0]
        for row in (*moves, *(files or ())):
            del row["number"]
        return Segment(
            number,
            _naive(received_at),
            counts,
            [Move(epoch=0, **move) for move in moves],
            [File(**file) for file in files or ()],
            after,
            next_received_at and _naive(next_received_at),
        )

    def dead_files(self, listed: Sequence[Listed]) -> list[str]:
        """The keys of those that are in no segment and cannot come into one any more; raises as `claim`."""
        columns = {
            "keys": [file.key for file in listed],
            "topics": [file.topic for file in listed],
            "partitions": [file.partition for file in listed],
            "epochs": [file.epoch for file in listed],
            "starts": [file.start_offset for file in listed],
        }
        return [key for (key,) in self._rows("dead_files", columns)]

    def share_user_keys(self, key_ids: Sequence[str]) -> None:
        """Make sure that users have the same pseudonyms everywhere: keys are added only beside one that is known.

        Raises:
            ConfigurationError: none of them is one under which users are stored here.
            StoreUnavailable: the database does not answer.
        """
        with self._lock:
            connection = self._connected()
            try:
                with connection.transaction():
                    for name in ("lock_user_keys", "add_user_keys", "shares_user_key"):
                        cursor = connection.execute(
                            _sql(name), None if name.startswith("lock") else {"key_ids": list(key_ids)}
                        )
                    shares = bool(cursor.fetchall()[0][0])
            except psycopg.Error as error:
                raise self._translated(error) from error
        if not shares:
            raise ConfigurationError(
                "privacy.user_key: none of these keys is one under which users are stored in this cluster; give all "
                "ingesters and daemons the same keys (a new one goes before the old ones)"
            )

    def close(self) -> None:
        """Safe to repeat."""
        with self._lock:
            self._drop()

    # Inside

    def _rows(self, name: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        with self._lock:
            connection = self._connected()
            try:
                return connection.execute(_sql(name), parameters).fetchall()
            except psycopg.Error as error:
                raise self._translated(error) from error

    def _connected(self) -> "psycopg.Connection[tuple[Any, ...]]":
        if self._connection is None:
            try:
                self._connection = psycopg.connect(
                    self._url,
                    autocommit=True,
                    connect_timeout=CONNECT_SECONDS,
                    tcp_user_timeout=1000 * STATEMENT_SECONDS,
                    application_name="retuned",
                    options=f"-c statement_timeout={STATEMENT_SECONDS}s "
                    f"-c idle_in_transaction_session_timeout={STATEMENT_SECONDS}s "
                    # The server ends the session of a machine that is gone, and with it the daemon's lock.
                    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
                )
                if not self._migrated:
                    _migrate(self._connection)
                    self._migrated = True
            except psycopg.Error as error:
                raise self._translated(error) from error
        return self._connection

    def _translated(self, error: psycopg.Error) -> Exception:
        """Ours for PostgreSQL's. After what may pass, the next call connects anew."""
        state = error.sqlstate or ""
        if state == FENCED:
            return Reassigned(f"{first_line(error)}: what was read is read again from where it is stored")
        self._drop()
        # What fails before there is a connection has no state: so has a wrong password, which may be about to change.
        if isinstance(error, psycopg.OperationalError) or state.startswith(_PASSING):
            return StoreUnavailable(f"store.postgres_url: the database does not answer ({first_line(error)})")
        return ConfigurationError(
            f"store.postgres_url: the database refuses ({first_line(error)}); check its user's rights and its schema"
        )

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(psycopg.Error):
                self._connection.close()
            self._connection = self._following = None


def _naive(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None)


def _sql(name: str) -> bytes:
    return QUERIES[name].encode()  # psycopg takes no str that is not a literal


def _migrate(connection: "psycopg.Connection[tuple[Any, ...]]") -> None:
    """Bring the schema up to date, one process at a time.

    Raises:
        ConfigurationError: a newer retuned has changed it.
    """
    known = {int(file.name[:3]): file for file in MIGRATIONS.iterdir() if re.match(r"\d{3}_.*\.sql$", file.name)}
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [MIGRATION_LOCK])
        connection.execute("CREATE SCHEMA IF NOT EXISTS retuned")
        connection.execute("CREATE TABLE IF NOT EXISTS retuned.migrations (number INTEGER PRIMARY KEY)")
        applied = {number for (number,) in connection.execute(_sql("applied")).fetchall()}
        if newer := applied - known.keys():
            raise ConfigurationError(
                f"store.postgres_url: the schema is {max(newer)}, of a newer retuned than this one ({max(known)}); "
                "install that version"
            )
        for number in sorted(known.keys() - applied):
            connection.execute(known[number].read_bytes())
            connection.execute("INSERT INTO retuned.migrations VALUES (%s)", [number])
            log.info("store: schema %d", number)
