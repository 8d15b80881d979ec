"""The audit: who or what changed something, and who read conversations, as rows of a chain of hashes.

A row's hash covers its columns and the hash of the row before it. So whoever changes, removes or reorders rows has to
replace all later ones; signed checkpoints (`checkpoints.py`) reveal that, and a missing end.

Code that changes something calls nothing of this module: an operation runs within `caused_by`, and the first
transaction in it writes its entry, too. Rules add entries to their own transactions by `Trail.note`.

The hash is the SHA-256 of the row without `hash`, as JSON in UTF-8: keys sorted, no white space, non-ASCII characters
as they are, null for what is absent, `created_at` as `2026-03-02T09:00:00.000Z`, `details` as the text that is stored.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from retuned.consumers.common.times import iso

if TYPE_CHECKING:
    import duckdb

    from retuned.consumers.warehouse.connection import Warehouse

Kind = Literal["principal", "rule", "local"]
Outcome = Literal["done", "refused", "failed"]
START = "0" * 64
"""`previous` of the first row."""
COLUMNS = (
    "sequence", "created_at", "actor", "actor_kind", "action", "outcome", "workload", "subject", "request_id", "reason",
    "details", "previous", "hash",
)  # fmt: skip
_INSERT = f"INSERT INTO audit VALUES ({', '.join('?' * len(COLUMNS))})"


@dataclass(frozen=True)
class Entry:
    """What happened.

    Attributes:
        actor: the principal, the rule, or the user of the machine.
        action: the name of an operation or an event.
        subject: what it was done to.
        request_id: shared by all entries of one request.
        details: values that JSON has. No text of a conversation: the audit outlives erasure.
    """

    actor: str
    actor_kind: Kind
    action: str
    outcome: Outcome = "done"
    workload: str | None = None
    subject: str | None = None
    request_id: str | None = None
    reason: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Cause:
    """A request under way, and whether its entry is written."""

    entry: Entry
    written: bool = False


_cause: ContextVar[Cause | None] = ContextVar("cause", default=None)


@contextmanager
def caused_by(entry: Entry) -> Iterator[Cause]:
    """Within the block, the first transaction of this thread writes the entry, too."""
    cause = Cause(entry)
    token = _cause.set(cause)
    try:
        yield cause
    finally:
        _cause.reset(token)


def by_rule(rule: str, action: str, **more: Any) -> Entry:
    """Returns the entry of a change that a rule makes by itself."""
    return Entry(rule, "rule", action, **more)


def by_request(actor: str, action: str, kind: Kind = "local", **more: Any) -> Entry:
    """Returns the entry of a change that the request under way causes; without one, an actor of this kind does."""
    cause = _cause.get()
    if cause is None:
        return Entry(actor, kind, action, **more)
    asked = cause.entry
    return Entry(asked.actor, asked.actor_kind, action, request_id=asked.request_id, **more)


def sealed(entry: Entry, at: datetime, sequence: int, previous: str) -> dict[str, Any]:
    """Returns the row of an entry.

    Args:
        at: naive UTC, cut to milliseconds.
        sequence, previous: its number, and the hash of the row before.
    """
    row = {name: getattr(entry, name, None) for name in COLUMNS} | {
        "sequence": sequence,
        "created_at": at.replace(microsecond=at.microsecond // 1000 * 1000),
        "details": _canonical(entry.details),
        "previous": previous,
    }
    return row | {"hash": digest(row)}


def digest(row: Mapping[str, Any]) -> str:
    """Returns the hash of a row, in hexadecimal. `created_at` is naive UTC, or the text that JSON has."""
    covered = {name: row.get(name) for name in COLUMNS if name != "hash"}
    if isinstance(covered["created_at"], datetime):
        covered["created_at"] = iso(covered["created_at"])
    return hashlib.sha256(_canonical(covered).encode()).hexdigest()


class Trail:
    """The audit of an open warehouse; thread-safe. One process writes it: in a cluster, the leader.

    Attributes:
        elsewhere: stores the entries of a daemon that stands by, until the leader writes them; None: no cluster.
    """

    def __init__(self, warehouse: "Warehouse") -> None:
        self._warehouse = warehouse
        self._lock = threading.RLock()  # from reading the last row to the commit of the next one
        self._head: tuple[int, str] | None = None
        self._notes: dict[int, list[Entry]] = {}
        self.elsewhere: Callable[[Entry], None] | None = None

    def record(self, entry: Entry) -> None:
        """Writes an entry in its own transaction, or hands it to the leader.

        Raises:
            RetunedError: it cannot be stored.
        """
        if self.elsewhere is not None and self._stands_by:
            self.elsewhere(entry)
            return
        with self._warehouse.transaction() as cursor:
            self.note(cursor, entry)

    def note(self, cursor: "duckdb.DuckDBPyConnection", entry: Entry) -> None:
        """Writes an entry with a transaction under way."""
        self._notes.setdefault(id(cursor), []).append(entry)

    @contextmanager
    def committing(self, cursor: "duckdb.DuckDBPyConnection") -> Iterator[None]:
        """Appends the entries of a transaction, which the block commits."""
        entries, cause = self._notes.pop(id(cursor), []), _cause.get()
        cause = None if cause is None or cause.written or self._stands_by else cause
        entries = [*([cause.entry] if cause else []), *entries]
        if not entries:
            yield
            return
        with self._lock:
            sequence, previous = self._head or self.head()
            at = datetime.now(UTC).replace(tzinfo=None)
            for entry in entries:
                row = sealed(entry, at, sequence + 1, previous)
                cursor.execute(_INSERT, list(row.values()))
                sequence, previous = row["sequence"], row["hash"]
            yield
            self._head = sequence, previous
        if cause:
            cause.written = True

    def drop(self, cursor: "duckdb.DuckDBPyConnection") -> None:
        """Drops the entries of a transaction that failed."""
        self._notes.pop(id(cursor), None)

    def reread(self) -> None:
        """Has the last row read again, because another daemon may have written some."""
        self._head = None

    def head(self) -> tuple[int, str]:
        """Returns the number of the last row, and its hash."""
        with self._warehouse.cursor() as cursor:
            last = cursor.execute("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1").fetchone()
        return (last[0], last[1]) if last else (0, START)

    @property
    def _stands_by(self) -> bool:
        return self._warehouse.journal is not None and not self._warehouse.journal.leads


def unsuccessful(entry: Entry, outcome: Outcome, problem: str) -> Entry:
    """Returns the entry of a request that was not, or not entirely, carried out."""
    return replace(entry, outcome=outcome, details={**entry.details, "problem": problem})


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
