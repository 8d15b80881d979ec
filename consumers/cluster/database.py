"""The state shared by ingesters and daemons of a cluster in PostgreSQL: offsets, segments and placeholder numbers.

Every change is one statement outside of any transaction, so a process that is stopped at any moment holds no lock.
"""

import json
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
    "privacy.user_key_file: not set; all ingesters and daemons of a cluster need the same key, for example the one of "
    "the existing daemon, beside its warehouse (warehouse.path with .key)"
)

KEEP_DAYS = 7
"""The days for which placeholder numbers are kept after their last use: feedback may come days after its answer, and
values of a conversation should not stay linkable for longer."""
MOST_KEPT = 100_000
"""The most numbers of a batch that are kept, so that a batch full of personal data does not take minutes."""
AT_ONCE = 10_000
"""The most numbers in one statement, which has to end long before `postgres.STATEMENT_SECONDS`."""


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
    """The move of a partition by a segment; start_offset None: the partition's first segment."""

    topic: str
    partition: int
    epoch: int
    start_offset: int | None
    next_offset: int
    cluster_id: str | None
    topic_id: str | None


@dataclass(frozen=True)
class Segment:
    """A recorded segment.

    Attributes:
        received_at, next_received_at: of this and the next segment, naive UTC; None: there is no next one.
        counts: see `segments.counts`.
        messages_after: the number of messages in later segments.
        gone: why its files no longer exist; None: they exist.
        gone_rows: the number of rows in these files.
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
        rows: the number of their rows.
        moves: their total move of each partition.
        next_received_at: of the segment after them, naive UTC; None: there is none.
    """

    number: int
    rows: int
    moves: Sequence[Move]
    next_received_at: datetime | None


@dataclass(frozen=True)
class Listed:
    """A file in object storage, with the content of its key: day, partition, epoch and start of its batch."""

    key: str
    day: date
    topic: str
    partition: int
    epoch: int
    start_offset: int | None


class Wanted(NamedTuple):
    """A request for the number of a value in the scope of a conversation; ids are keyed hashes.

    Attributes:
        value: empty: reserves the numbers up to `taken`, because placeholders in a text have them.
    """

    scope: bytes
    value: bytes
    kind: str
    taken: int = 0


class Database:
    """The shared state; thread-safe. It connects on the first call, and again after a failure."""

    def __init__(self, settings: StoreSettings) -> None:
        """Creates a client of the database.

        Raises:
            ConfigurationError: store.postgres_url is not set, or cannot be read.
        """
        self._postgres = Postgres(settings)

    def claim(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Claims partitions, and returns their new epochs; segments of earlier epochs are rejected.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        keys = {"topics": [topic for topic, _ in partitions], "partitions": [number for _, number in partitions]}
        return {(topic, number): epoch for topic, number, epoch in self._postgres.rows("claim", keys)}

    def seed(self, offsets: Offsets, identities: Identities) -> None:
        """Makes ingesters begin at the offsets of a warehouse; raises like `claim`, and:

        Raises:
            ConfigurationError: ingesters have already read partitions.
        """
        topics = [identities.get(key, Identity(None, None)) for key in offsets]
        columns = {
            "topics": [topic for topic, _ in offsets],
            "partitions": [number for _, number in offsets],
            "nexts": list(offsets.values()),
            "cluster_ids": [identity.cluster_id for identity in topics],
            "topic_ids": [identity.topic_id for identity in topics],
        }
        if len(self._postgres.rows("seed", columns)) != len(offsets):
            raise ConfigurationError(
                "store.postgres_url: ingesters have already used this database; use another one for this warehouse"
            )

    def offsets(self) -> Offsets:
        """Returns the next offset of each partition; raises like `claim`."""
        return {(topic, number): offset for topic, number, offset, _, _ in self._postgres.rows("partitions")}

    def identities(self) -> Identities:
        """Returns the topic of each stored offset; raises like `claim`."""
        return {(row[0], row[1]): Identity(row[3], row[4]) for row in self._postgres.rows("partitions")}

    def record(
        self,
        moves: Sequence[Move],
        files: Sequence[File],
        received_at: datetime,
        counts: dict[str, Any],
        tombstones: int,
        requests: Sequence[dict[str, Any]] = (),
    ) -> int:
        """Records a segment: moves the partitions, records the files and leaves requests to erase events for the
        leader, all or nothing. Returns its number.

        Args:
            received_at: naive UTC.
            tombstones: the last change of those that are known to have no event in the files.
            requests: rows of the table `erasures`.

        Raises:
            Reassigned: another ingester has claimed or moved a partition, or this batch is already recorded.
            ErasedMeanwhile: there are more tombstones.
            StoreUnavailable: the database does not answer; the segment may be recorded or not.
        """
        parameters = {
            "moved": Jsonb([asdict(move) for move in moves]),
            "files": Jsonb([asdict(file) for file in files]),
            "received_at": received_at.replace(tzinfo=UTC),
            "counts": Jsonb(counts),
            # As texts: JSONB refuses \u0000, which people may write.
            "request_ids": [row["id"] for row in requests],
            "requests": [json.dumps(row | {"requested_at": row["requested_at"].isoformat()}) for row in requests],
            "messages": sum(counts["messages"].values()),
            "tombstones": tombstones,
        }
        return int(self._postgres.rows("record", parameters)[0][0])

    def last_segment(self) -> int:
        """Returns the number of the last segment; 0: there is none. Raises like `claim`."""
        return int(self._postgres.rows("last_segment")[0][0])

    def segment(self, number: int) -> Segment | None:
        """Returns a segment; None: it is not recorded yet. Raises like `claim`."""
        rows = self._postgres.rows("segment", {"number": number})
        if not rows:
            return None
        _, received_at, counts, moves, files, after, gone, gone_rows, next_received_at = rows[0]
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
        """Returns the expired segments if they reach beyond a number; None: they do not. Raises like `claim`."""
        rows = self._postgres.rows("expired", {"number": number})
        if not rows:
            return None
        last, expired_rows, moves, next_received_at = rows[0]
        return Expired(
            last,
            expired_rows,
            [Move(epoch=0, start_offset=None, **move) for move in moves or ()],
            next_received_at and _naive(next_received_at),
        )

    def expire(self, days: int, up_to: int) -> int:
        """Expires segments older than `days`, up to a number, and returns how many; raises like `claim`."""
        return int(self._postgres.rows("expire", {"days": days, "up_to": up_to})[0][0])

    def gone_files(self) -> list[str]:
        """Returns the keys of some files that have to be deleted, and which no segment gets from now on; raises like
        `claim`."""
        return [key for (key,) in self._postgres.rows("gone_files", {"some": AT_ONCE})]

    def files_of_segments(self) -> list[File]:
        """Returns the files of all segments; raises like `claim`.

        A segment that is recorded later was read with all tombstones that the database has now.
        """
        return [File(*row) for row in self._postgres.rows("files_of_segments")]

    def announce_file(self, key: str) -> None:
        """Records that a file will be written for `exchange_file`, and is to be deleted until then; raises like
        `claim`."""
        self._postgres.rows("announce_file", {"key": key})

    def exchange_file(self, old: File, new: File) -> bool:
        """Replaces a file of a segment by one that was announced. Returns False if another process has replaced it, it
        is gone, or a sweep deletes the new one. What is not in a segment then is deleted by the next sweep; raises like
        `claim`."""
        given = {"old": old.key, "new": new.key, "rows": new.rows, "bytes": new.bytes, "sha256": new.sha256}
        return bool(self._postgres.rows("exchange_file", given)[0][0])

    def tombstones(self, known: int | None) -> tuple[int, list[tuple[Any, ...]]] | None:
        """Returns the number of the last change of the tombstones, and the tombstones: kind, key_id, hash, since,
        until; None: the last change is `known`. Raises like `claim`."""
        [(number,)] = self._postgres.rows("state_of_tombstones")
        if number == known:
            return None
        rows = (json.loads(row) for (row,) in self._postgres.rows("tombstones"))
        # A leader of an older release writes no `since`.
        return int(number), [
            (row["kind"], row["key_id"], row["hash"], _parsed(row.get("since")), _parsed(row["until"])) for row in rows
        ]

    def note_deleted(self, keys: Sequence[str]) -> None:
        """Records that these files are deleted; raises like `claim`."""
        self._postgres.rows("delete_gone_files", {"keys": list(keys)})

    def swept_on(self) -> tuple[date | None, date]:
        """Returns the day of the last sweep (None: never), and today, in UTC; raises like `claim`."""
        return self._postgres.rows("swept_on")[0]

    def note_sweep(self, day: date) -> None:
        """Records a sweep of the files up to a day; raises like `claim`."""
        self._postgres.rows("note_sweep", {"day": day})

    def unrecorded(self, listed: Sequence[Listed]) -> dict[str, bool]:
        """Returns the files without a segment, and whether no segment can get them any more; raises like `claim`."""
        columns = {
            "keys": [file.key for file in listed],
            "topics": [file.topic for file in listed],
            "partitions": [file.partition for file in listed],
            "epochs": [file.epoch for file in listed],
            "starts": [file.start_offset for file in listed],
        }
        return dict(self._postgres.rows("unrecorded", columns))

    def placeholder_numbers(self, wanted: Sequence[Wanted], events: Mapping[bytes, bytes]) -> list[int]:
        """Assigns and returns placeholder numbers; 0 for an empty value. Raises like `claim`.

        Values beyond MOST_KEPT get unique numbers that are not kept.

        Args:
            wanted: without duplicates, in the order of new numbers.
            events: the scopes of interactions, by the keyed hashes of their ids.
        """
        kept, known = wanted[:MOST_KEPT], list(events.items())
        numbers = [0] * len(kept)
        for start in range(0, max(len(kept), len(known)), AT_ONCE):
            part, part_known = kept[start : start + AT_ONCE], known[start : start + AT_ONCE]
            columns = {
                "events": [event for event, _ in part_known],
                "event_scopes": [scope for _, scope in part_known],
                "scopes": [value.scope for value in part],
                "values": [value.value for value in part],
                "kinds": [value.kind for value in part],
                "taken": [value.taken for value in part],
            }
            for place, number in self._postgres.rows("number_placeholders", columns):
                numbers[start + place - 1] = number
        return numbers + self._unkept_numbers(wanted[MOST_KEPT:])

    def _unkept_numbers(self, wanted: Sequence[Wanted]) -> list[int]:
        skipped = list(Counter((value.scope, value.kind) for value in wanted).items())
        following: dict[tuple[bytes, str], Iterator[int]] = {}
        for start in range(0, len(skipped), AT_ONCE):
            part = dict(skipped[start : start + AT_ONCE])
            columns = {
                "scopes": [scope for scope, _ in part],
                "kinds": [kind for _, kind in part],
                "skipped": list(part.values()),
            }
            for scope, kind, last in self._postgres.rows("skip_placeholders", columns):
                following[scope, kind] = count(last - part[scope, kind] + 1)
        return [next(following[value.scope, value.kind]) for value in wanted]

    def numbered_scopes(self, ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Returns the scopes of the known ids of conversations and events; raises like `claim`."""
        return dict(self._postgres.rows("numbered_scopes", {"ids": list(ids)}))

    def forget_placeholders(self) -> int:
        """Deletes numbers unused for KEEP_DAYS, and returns the number of rows; raises like `claim`."""
        deleted = 0
        for query in ("forget_placeholders", "forget_last_placeholders", "forget_numbered_events"):
            part = AT_ONCE
            while part == AT_ONCE:
                part = self._forget(query)
                deleted += part
        return deleted

    def erase_placeholders(self, ids: Sequence[bytes]) -> None:
        """Deletes the numbers of interactions and conversations, by their look-up keys; raises like `claim`."""
        for start in range(0, len(ids), AT_ONCE):
            self._postgres.rows("erase_placeholders", {"ids": list(ids[start : start + AT_ONCE])})

    def _forget(self, query: str) -> int:
        return int(self._postgres.rows(query, {"days": KEEP_DAYS, "some": AT_ONCE})[0][0])

    def share_user_keys(self, key_ids: Sequence[str]) -> None:
        """Ensures that all processes use the same pseudonyms: new keys are only added together with a known one.

        Raises:
            ConfigurationError: none of the keys is known in this cluster.
            StoreUnavailable: the database does not answer.
        """
        with self._postgres.transaction() as connection:
            connection.execute(sql("lock_user_keys"))
            for name in ("add_user_keys", "shares_user_key"):
                cursor = connection.execute(sql(name), {"key_ids": list(key_ids)})
            shares = bool(cursor.fetchall()[0][0])
        if not shares:
            raise ConfigurationError(
                "privacy.user_key: none of these keys is used in this cluster; give all ingesters and daemons the same "
                "keys (a new key goes before the old ones)"
            )

    def close(self) -> None:
        """Disconnects; safe to repeat."""
        self._postgres.close()


def _naive(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(tzinfo=None)


def _parsed(time: str | None) -> datetime | None:
    return datetime.fromisoformat(time) if time else None
