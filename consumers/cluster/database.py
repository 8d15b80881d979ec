"""What ingesters and daemons of a cluster share, in PostgreSQL: how far partitions are read, which segments exist, and
the numbers of placeholders.

Every change is one statement outside of any transaction, so that a process that is stopped at any moment holds no lock.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from itertools import count
from typing import Any, NamedTuple

from psycopg.types.json import Jsonb

from retuned.consumers.cluster.postgres import Postgres, sql
from retuned.consumers.errors import ConfigurationError
from retuned.consumers.kafka.contract import Identities, Identity, Offsets, Partition
from retuned.consumers.settings import StoreSettings

NO_KEY = (
    "privacy.user_key_file: is not set; all ingesters and daemons of a cluster need the same key, for example that of "
    "the daemon so far, which lies beside its warehouse (warehouse.path with .key)"
)

KEEP_DAYS = 7
"""How long the numbers of placeholders are kept after their last use: feedback may come some days after its answer, and
of no conversation is it known for longer than that what it held."""
MOST_KEPT = 100_000
"""Numbers of one batch that are kept: a batch that holds little but personal data must not take minutes."""
AT_ONCE = 10_000
"""Rows of numbers in one statement, which has to end long before `postgres.STATEMENT_SECONDS`."""


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
        gone: why its files are not there any more; None: they are.
        gone_rows: how many rows they had.
    """

    number: int
    received_at: datetime
    counts: dict[str, Any]
    moves: Sequence[Move]
    files: Sequence[File]
    messages_after: int
    next_received_at: datetime | None
    gone: str | None = None
    gone_rows: int = 0


@dataclass(frozen=True)
class Expired:
    """All segments up to a number, which have expired.

    Attributes:
        rows: how many they had.
        moves: how far they had moved each partition.
        next_received_at: of the segment after them, naive UTC; None: there is none.
    """

    number: int
    rows: int
    moves: Sequence[Move]
    next_received_at: datetime | None


@dataclass(frozen=True)
class Listed:
    """A file that object storage has, and what its key holds: when its batch came, where that began, who read it."""

    key: str
    day: date
    topic: str
    partition: int
    epoch: int
    start_offset: int | None


class Wanted(NamedTuple):
    """The number of a value that is wanted, in the scope of a conversation; ids are keyed hashes.

    Attributes:
        value: empty: the numbers up to `taken` are not to be given, since placeholders with them stand in a text.
    """

    scope: bytes
    value: bytes
    kind: str
    taken: int = 0


class Database:
    """The control tables. Threads may share it; it connects when it is asked, and again after a failure."""

    def __init__(self, settings: StoreSettings) -> None:
        """
        Raises:
            ConfigurationError: store.postgres_url is not set, or cannot be read.
        """
        self._postgres = Postgres(settings)

    def claim(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Be the one who reads these partitions. Returns the epoch of each; nothing of an earlier one is recorded.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        keys = {"topics": [topic for topic, _ in partitions], "partitions": [number for _, number in partitions]}
        return {(topic, number): epoch for topic, number, epoch in self._postgres.rows("claim", keys)}

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
        if len(self._postgres.rows("seed", columns)) != len(offsets):
            raise ConfigurationError(
                "store.postgres_url: ingesters have read into this database already; use another one for this warehouse"
            )

    def offsets(self) -> Offsets:
        """The next offset of each partition; raises as `claim`."""
        return {(topic, number): offset for topic, number, offset, _, _ in self._postgres.rows("partitions")}

    def identities(self) -> Identities:
        """Of which topic each stored offset is; raises as `claim`."""
        return {(row[0], row[1]): Identity(row[3], row[4]) for row in self._postgres.rows("partitions")}

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
        return int(self._postgres.rows("record", parameters)[0][0])

    def last_segment(self) -> int:
        """The number of the last one; 0: there is none. Raises as `claim`."""
        return int(self._postgres.rows("last_segment")[0][0])

    def segment(self, number: int) -> Segment | None:
        """The segment of a number; None: it is not recorded yet. Raises as `claim`."""
        found = self._postgres.rows("segment", {"number": number})
        if not found:
            return None
        _, received_at, counts, moves, files, after, gone, gone_rows, next_received_at = found[0]
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
            gone,
            int(gone_rows or 0),
        )

    def expired(self, number: int) -> Expired | None:
        """What has expired behind the segment of a number; None: that segment has not. Raises as `claim`."""
        found = self._postgres.rows("expired", {"number": number})
        if not found:
            return None
        last, rows, moves, next_received_at = found[0]
        return Expired(
            last,
            rows,
            [Move(epoch=0, start_offset=None, **move) for move in moves or ()],
            next_received_at and _naive(next_received_at),
        )

    def expire(self, days: int, up_to: int) -> int:
        """Let segments of so many days ago expire, up to one of these. Returns how many did; raises as `claim`."""
        return int(self._postgres.rows("expire", {"days": days, "up_to": up_to})[0][0])

    def gone_files(self) -> list[str]:
        """The keys of some files that are to be deleted; raises as `claim`."""
        return [key for (key,) in self._postgres.rows("gone_files", {"some": AT_ONCE})]

    def note_deleted(self, keys: Sequence[str]) -> None:
        """These of them are deleted; raises as `claim`."""
        self._postgres.rows("delete_gone_files", {"keys": list(keys)})

    def swept_on(self) -> tuple[date | None, date]:
        """The day up to which `sweep` has looked at files, None: never; and today, in UTC. Raises as `claim`."""
        return self._postgres.rows("swept_on")[0]

    def note_sweep(self, day: date) -> None:
        """It has looked at the files up to a day; raises as `claim`."""
        self._postgres.rows("note_sweep", {"day": day})

    def unrecorded(self, listed: Sequence[Listed]) -> dict[str, bool]:
        """The keys of those that are in no segment, and whether none can get them any more; raises as `claim`."""
        columns = {
            "keys": [file.key for file in listed],
            "topics": [file.topic for file in listed],
            "partitions": [file.partition for file in listed],
            "epochs": [file.epoch for file in listed],
            "starts": [file.start_offset for file in listed],
        }
        return dict(self._postgres.rows("unrecorded", columns))

    def placeholder_numbers(self, wanted: Sequence[Wanted], events: Mapping[bytes, bytes]) -> list[int]:
        """The numbers, old and new, which are kept at once; 0 for an empty value. Raises as `claim`.

        What is beyond MOST_KEPT gets numbers that no other value has, and that are not kept.

        Args:
            wanted: each at most once, in the order in which new numbers count up.
            events: the scopes of interactions, by the keyed hashes of their ids.
        """
        kept, known = wanted[:MOST_KEPT], list(events.items())
        numbers = [0] * len(kept)
        for start in range(0, max(len(kept), len(known)), AT_ONCE):
            some, some_known = kept[start : start + AT_ONCE], known[start : start + AT_ONCE]
            columns = {
                "events": [event for event, _ in some_known],
                "event_scopes": [scope for _, scope in some_known],
                "scopes": [one.scope for one in some],
                "values": [one.value for one in some],
                "kinds": [one.kind for one in some],
                "taken": [one.taken for one in some],
            }
            for place, number in self._postgres.rows("number_placeholders", columns):
                numbers[start + place - 1] = number
        return numbers + self._unkept_numbers(wanted[MOST_KEPT:])

    def _unkept_numbers(self, wanted: Sequence[Wanted]) -> list[int]:
        skipped = list(Counter((one.scope, one.kind) for one in wanted).items())
        following: dict[tuple[bytes, str], Iterator[int]] = {}
        for start in range(0, len(skipped), AT_ONCE):
            some = dict(skipped[start : start + AT_ONCE])
            columns = {
                "scopes": [scope for scope, _ in some],
                "kinds": [kind for _, kind in some],
                "skipped": list(some.values()),
            }
            for scope, kind, last in self._postgres.rows("skip_placeholders", columns):
                following[scope, kind] = count(last - some[scope, kind] + 1)
        return [next(following[one.scope, one.kind]) for one in wanted]

    def numbered_scopes(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """The scopes of those ids that are known, of conversations and of events; raises as `claim`."""
        return dict(self._postgres.rows("numbered_scopes", {"ids": list(ids)}))

    def forget_placeholders(self) -> int:
        """Delete numbers that were not used for KEEP_DAYS. Returns how many rows went; raises as `claim`."""
        deleted = 0
        for query in ("forget_placeholders", "forget_last_placeholders", "forget_numbered_events"):
            some = AT_ONCE
            while some == AT_ONCE:
                some = self._forget(query)
                deleted += some
        return deleted

    def _forget(self, query: str) -> int:
        return int(self._postgres.rows(query, {"days": KEEP_DAYS, "some": AT_ONCE})[0][0])

    def share_user_keys(self, key_ids: Sequence[str]) -> None:
        """Make sure that users have the same pseudonyms everywhere: keys are added only beside one that is known.

        Raises:
            ConfigurationError: none of them is one under which users are stored here.
            StoreUnavailable: the database does not answer.
        """
        with self._postgres.transaction() as connection:
            connection.execute(sql("lock_user_keys"))
            for name in ("add_user_keys", "shares_user_key"):
                cursor = connection.execute(sql(name), {"key_ids": list(key_ids)})
            shares = bool(cursor.fetchall()[0][0])
        if not shares:
            raise ConfigurationError(
                "privacy.user_key: none of these keys is one under which users are stored in this cluster; give all "
                "ingesters and daemons the same keys (a new one goes before the old ones)"
            )

    def close(self) -> None:
        """Safe to repeat."""
        self._postgres.close()


def _naive(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None)
