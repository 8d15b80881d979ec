"""Reads entries of the memory: for gateways, and for people."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from retuned.consumers.errors import RetunedError
from retuned.consumers.privacy.redactor import Redactor
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain.memory.consensus import Approved
from retuned.retrain.memory.entries import QUERIES
from retuned.retrain.memory.keys import question
from retuned.retrain.settings import Settings

_JSON = ("messages", "context", "tools", "feedback_ids")


def feed(
    warehouse: Warehouse,
    settings: Settings,
    workloads: Iterable[str],
    after: int,
    limit: int,
    bounds: Sequence[str] | None = None,
    may_see: Callable[[str], bool] = lambda _: True,
) -> dict[str, Any]:
    """Returns the entries that changed after a sequence, in the form of the operation `memory_feed`.

    Entries of all workloads are included that the caller may see, also of those without events, and of those whose
    memory is off, as it may be switched on later: the sequence passes each change once.

    Args:
        workloads: those whose settings are included, besides those with entries.
        bounds: the names and globs of the workloads that the caller is bound to; None: all. Other bounds begin another
            epoch, since changes of other workloads are missing before.
        may_see: whether the caller may see a workload.
    """
    with warehouse.snapshot():
        epoch = epoch_of(warehouse)
        last = warehouse.row(QUERIES["last_sequence"])
        named = {*workloads, *(row["workload"] for row in warehouse.rows(QUERIES["workloads"]))}
        visible = sorted(filter(may_see, named))
        parameters = {"after": after, "workloads": visible, "limit": limit + 1}
        entries = warehouse.rows(QUERIES["feed"], parameters)
    more, entries = len(entries) > limit, entries[:limit]
    assert last is not None
    scope = json.dumps([epoch, None if bounds is None else sorted(bounds)])
    return {
        "epoch": epoch and hashlib.sha256(scope.encode()).hexdigest()[:32],
        "entries": entries,
        "sequence": entries[-1]["sequence"] if more else max(last["last"], after),
        "more": more,
        "modes": {workload: in_force(settings, workload, epoch) for workload in visible},
    }


def in_force(settings: Settings, workload: str, epoch: str) -> dict[str, Any]:
    """Returns the settings of a workload as gateways use them."""
    own = settings.for_workload(workload).memory
    return {
        **own.model_dump(include={"mode", "holdout_share", "similar", "error_rate"}),
        "salt": hashlib.sha256(f"{epoch} {workload}".encode()).hexdigest()[:16],
    }


def epoch_of(warehouse: Warehouse) -> str:
    """Returns the epoch of sequences; empty before the first entry."""
    row = warehouse.row(QUERIES["epoch"])
    return row["epoch"] if row else ""


def listed(warehouse: Warehouse, workload: str, state: str | None = None, limit: int = 1_000) -> list[dict[str, Any]]:
    """Returns the entries of a workload, the latest change first."""
    return warehouse.rows(QUERIES["listed"], {"workload": workload, "state": state, "limit": limit})


def detail(warehouse: Warehouse, id: str) -> dict[str, Any] | None:
    """Returns an entry with its conversation; None: there is none with this id."""
    row = warehouse.row(QUERIES["of_ids"], {"ids": [id]})
    return row and row | {name: json.loads(row[name]) if row[name] else None for name in _JSON}


def redacted(
    redactor: Redactor,
    messages: list[dict[str, Any]],
    context: list[str] | None,
    tools: list[dict[str, Any]] | None,
) -> tuple[list[dict[str, Any]], list[str] | None, list[dict[str, Any]] | None]:
    """Returns all that identifies a question, redacted as in events."""
    scope = redactor.scope([messages, context, tools])
    return redactor.value(messages, scope), redactor.value(context, scope), redactor.value(tools, scope)


def stated(
    redactor: Redactor,
    messages: list[dict[str, Any]],
    context: list[str] | None,
    tools: list[dict[str, Any]] | None,
    answer: str,
    author: str,
    now: datetime,
) -> Approved:
    """Returns what a person states about a question, redacted as in events.

    Raises:
        RetunedError: the conversation asks nothing, or something was redacted in it.
    """
    messages, context, tools = redacted(redactor, messages, context, tools)
    asked = question(messages, context, tools)
    if asked is None:
        raise RetunedError(
            "memory add: expected messages with a question of a user in text, and without personal data: the answer to "
            "a question about one person is given to nobody else"
        )
    return Approved(
        key=asked.key.hex(),
        messages=json.dumps(messages, ensure_ascii=False),
        question=asked.text,
        context=json.dumps(context, ensure_ascii=False) if context else None,
        tools=json.dumps(tools, ensure_ascii=False) if tools else None,
        answer=answer,
        source="person",
        author=author,
        feedback_ids=(),
        since=now,
    )
