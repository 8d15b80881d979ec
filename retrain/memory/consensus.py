"""The approved answer to a question, by the same rules as for datasets."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from retuned.consumers.common.tool_calls import OPENING
from retuned.consumers.warehouse.connection import Warehouse
from retuned.retrain import versions
from retuned.retrain.data.evidence import decided
from retuned.retrain.data.examples import Example
from retuned.retrain.data.overrides import Overrides
from retuned.retrain.data.table import Decided, Table
from retuned.retrain.memory import statements
from retuned.retrain.scoring.metric import Chosen, restored
from retuned.retrain.settings import Settings

INDEPENDENT = 2
"""The accounts that must give the same answer where no expert does."""


@dataclass(frozen=True)
class Approved:
    """The approved answer to a question.

    Attributes:
        messages, context, tools, extras: JSON, as in `Example`.
        author: keyed hash of the account; None if unknown.
        feedback_ids: the feedback that states this answer; of an edited entry, the feedback that its question is from.
        since: the time of the newest of these statements.
    """

    key: str
    messages: str
    question: str
    context: str | None
    tools: str | None
    answer: str
    source: str
    author: str | None
    feedback_ids: tuple[str, ...]
    since: datetime
    extras: str | None = None


@dataclass(frozen=True)
class Findings:
    """The result for some questions.

    Attributes:
        approved: by key; a question without a correction that is upheld is missing.
        states: the decision on each stored statement, by the id of its feedback; None: the statement does not count any
            more, for example because its events are deleted.
    """

    approved: Mapping[str, Approved]
    states: Mapping[str, Decided | None]


def find(warehouse: Warehouse, settings: Settings, workload: str, keys: Collection[str]) -> Findings:
    """Decides which answer to each question is approved.

    An expert's correction is approved at once. Corrections of users are approved if the table of statements upholds
    them, in view of what their accounts state on other questions, and INDEPENDENT accounts that are not new give the
    same answer. A dataset is stricter about who copies whom, as it sees all statements. Demonstrations and answers that
    call tools are left to training.
    """
    read, key_of, sought = statements.read(warehouse, workload, settings.dataset, keys)
    overrides = Overrides.of(warehouse, workload)
    read, overruled = overrides.applied_to(read, settings.dataset)
    table = decided(
        warehouse, read, metric_of(warehouse, settings, workload, read.learnable), settings.dataset, overrides
    )
    states: dict[str, Decided | None] = dict.fromkeys(sought)
    states |= {one.row.feedback_id: one for one in (*table.decided, *overruled)}
    taught: dict[str, list[Example]] = {}
    for one in table.decided:
        key = key_of[one.row.interaction_id]
        if one.state == "taught" and key in keys:
            taught.setdefault(key, []).append(one.row)
    approved = {}
    for row in table.rows:
        key = key_of[row.interaction_id]
        upheld = taught.get(key, [])
        corrections = [one for one in upheld if one.kind == "correction" and one.source != "demonstration"]
        if key in keys and corrections and OPENING not in row.completion and _is_borne_out(upheld, table, settings):
            approved[key] = _approved(key, row, corrections)
    return Findings(approved, states)


def metric_of(warehouse: Warehouse, settings: Settings, workload: str, rows: Collection[Example] = ()) -> Chosen:
    """Returns the metric of the workload's newest dataset; without one, the metric that fits the answers."""
    newest = warehouse.row(versions.QUERIES["latest_dataset"], {"workload": workload})
    kept = json.loads(newest["card"]).get("metric") if newest else None
    return restored(settings, kept, [row.completion for row in rows])


def form_of(metric: Chosen) -> str:
    """Returns a fingerprint of the form that programs read: of the labels or the schema; empty if there are none."""
    form = metric.metric.learned
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:16] if form else ""


def _is_borne_out(upheld: Sequence[Example], table: Table, settings: Settings) -> bool:
    if not settings.dataset.quarantine or any(row.is_expert for row in upheld):
        return True
    named = [(row.user_id, row.timestamp) for row in upheld if row.user_id is not None]
    return table.crowd.independent(named) >= INDEPENDENT


def _approved(key: str, row: Example, corrections: list[Example]) -> Approved:
    by_expert = [one for one in corrections if one.is_expert]
    said = max(by_expert or corrections, key=lambda one: (one.timestamp, one.feedback_id))
    turns: list[dict[str, Any]] = json.loads(row.messages)
    return Approved(
        key=key,
        messages=row.messages,
        question=next(str(turn["content"]) for turn in reversed(turns) if turn["role"] == "user"),
        context=row.context,
        tools=row.tools,
        answer=row.completion,
        source="expert" if by_expert else "users",
        author=row.user_id or said.user_id,
        feedback_ids=tuple(sorted(one.feedback_id for one in corrections)),
        since=said.timestamp,
        extras=row.extras,
    )
