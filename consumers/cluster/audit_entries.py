"""The audit in a cluster: daemons that stand by leave entries in PostgreSQL, and the leader appends them."""

import json
import uuid
from dataclasses import asdict

from retuned.consumers.cluster.postgres import Postgres
from retuned.consumers.warehouse.audit import Entry
from retuned.consumers.warehouse.connection import Warehouse, utc_now


def leave(postgres: Postgres, entry: Entry) -> None:
    """Leaves an entry for the leader. Its row has the time at which it was left in its details.

    Raises:
        StoreUnavailable: PostgreSQL does not answer.
    """
    left = {**entry.details, "left_at": f"{utc_now().isoformat(timespec='milliseconds')}Z"}
    id = entry.request_id or uuid.uuid4().hex
    # Half of a surrogate pair, which no row of the audit can hold, is refused here.
    content = json.dumps(asdict(entry) | {"details": left, "request_id": id}, ensure_ascii=False)
    postgres.rows("leave_entry", {"id": f"{id} {entry.action} {entry.outcome}", "entry": content})


def take(postgres: Postgres, warehouse: Warehouse) -> int:
    """Appends the entries that were left, each once; returns how many.

    Raises:
        RetunedError: this daemon does not lead, or PostgreSQL does not answer. The next call goes on.
    """
    rows = postgres.rows("entries_left")
    if not rows:
        return 0
    left = [Entry(**content) for _, content in rows]
    # Of a call that was killed between the two databases.
    known = {
        (row["request_id"], row["action"], row["outcome"])
        for row in warehouse.rows(
            "SELECT request_id, action, outcome FROM audit WHERE list_contains($ids::VARCHAR[], request_id)",
            {"ids": [entry.request_id for entry in left]},
        )
    }
    new = [entry for entry in left if (entry.request_id, entry.action, entry.outcome) not in known]
    if new:
        with warehouse.transaction() as cursor:
            for entry in new:
                warehouse.trail.note(cursor, entry)
    postgres.rows("take_entries", {"ids": [id for id, _ in rows]})
    return len(new)
