"""Operations on the audit: who changed what, and who read conversations."""

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import Field

from retuned.daemon.operations.answers import AuditRow
from retuned.daemon.operations.fields import Nothing
from retuned.daemon.operations.operation import STREAM_SECONDS, Caller, Request, operation

if TYPE_CHECKING:
    from retuned.daemon.operations.local import Local

PART = 1_000


class AuditRows(Request):
    workload: Annotated[str | None, Field(description="only rows about this workload")] = None
    actor: Annotated[str | None, Field(description="only rows of this principal, rule or user")] = None
    action: Annotated[str | None, Field(description="only rows of this action, for example promote")] = None
    outcome: Annotated[Literal["done", "refused", "failed"] | None, Field(description="only rows of this outcome")] = (
        None
    )
    limit: Annotated[int, Field(ge=1, le=10_000, description="the most rows to list, newest first")] = 100


@operation("GET", "/audit", least="admin", bound="never")
def audit(local: "Local", request: AuditRows, caller: Caller) -> list[AuditRow]:
    """List the latest rows of the audit, newest first."""
    rows = local.warehouse.rows(_queries()["latest"], request.model_dump())
    return cast("list[AuditRow]", rows)


@operation(
    "GET",
    "/audit/log",
    least="admin",
    seconds=STREAM_SECONDS,
    bound="never",
    media=lambda _: "application/jsonl",
    media_types=("application/jsonl",),
)
def audit_log(local: "Local", request: Nothing, caller: Caller) -> Iterable[bytes]:
    """Export all rows of the audit, oldest first, as JSON Lines that can be verified."""
    return _lines(local)


def _lines(local: "Local") -> Iterator[bytes]:
    from retuned.daemon.jsontext import plain

    query, done = _queries()["part"], 0
    while True:  # rows are only appended: no transaction stays open while a slow client reads
        part = local.warehouse.rows(query, {"done": done, "part": PART})
        if not part:
            return
        yield "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in part).encode()
        done = part[-1]["sequence"]


def _queries() -> dict[str, str]:
    from retuned.consumers.warehouse.connection import named_queries

    return named_queries("retuned.daemon.operations", "audit.sql")
