"""Decisions of people about rows and accounts, which override the rules. A superseded decision is kept as history."""

import json
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow.parquet as pq

from retuned.consumers.common import tool_calls
from retuned.consumers.common.call_forms import in_one_form
from retuned.consumers.errors import RetunedError
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.retrain.data.examples import Example, Rewriter, Statements, read_statements, restored, with_completion
from retuned.retrain.data.table import Decided
from retuned.retrain.settings import DatasetSettings

QUERIES = named_queries("retuned.retrain.data", "overrides.sql")

RowAction = Literal["keep", "drop", "pin", "edit"]
AccountAction = Literal["ban", "trust"]
Release = Literal["release"]
"""Withdraws a decision, so that the rules decide again."""
DROPPED, BANNED = "dropped", "banned"
"""Reasons for the state overruled."""
_IN_WORDS = {"keep": "kept", "drop": DROPPED, "pin": "pinned", "edit": "edited"}
_changing = threading.Lock()


@dataclass(frozen=True)
class Decision:
    """A decision about a row or an account.

    Attributes:
        action: of a row, keep: teach it although a rule sets it aside. drop: never teach it. pin: keep it, and repeat
            it in every dataset. edit: teach `answer` instead. Of an account, ban: ignore its corrections and votes.
            trust: treat it as an expert.
    """

    action: RowAction | AccountAction
    reason: str
    author: str
    decided_at: datetime
    answer: str | None = None

    def __str__(self) -> str:
        return f"{self.author}: {self.reason}"


@dataclass(frozen=True)
class Overrides:
    """The decisions in force for a workload.

    Attributes:
        rows: by feedback id. All votes on the same accepted answer share a decision.
        accounts: by pseudonym.
        answers: those on accepted answers by interaction, for votes that only datasets hold.
    """

    rows: Mapping[str, Decision] = field(default_factory=dict)
    accounts: Mapping[str, Decision] = field(default_factory=dict)
    answers: Mapping[str, Decision] = field(default_factory=dict)

    @classmethod
    def of(cls, warehouse: Warehouse, workload: str) -> "Overrides":
        """Reads the decisions in force."""
        about = {"workload": workload}
        rows = [
            (row.pop("feedback_id"), row.pop("answer_to"), Decision(**row))
            for row in warehouse.rows(QUERIES["rows"], about)
        ]
        return cls(
            {id: decision for id, _, decision in rows},
            {row.pop("user_id"): Decision(**row) for row in warehouse.rows(QUERIES["accounts"], about)},
            {interaction: decision for _, interaction, decision in rows if interaction is not None},
        )

    def _about(self, row: Example) -> Decision | None:
        answer = self.answers.get(row.interaction_id) if row.kind != "correction" else None
        return self.rows.get(row.feedback_id, answer)

    def _action(self, row: Example) -> str | None:
        decision = self._about(row)
        return decision.action if decision is not None else None

    @property
    def banned(self) -> list[str]:
        """The accounts that are banned."""
        return sorted(name for name, one in self.accounts.items() if one.action == "ban")

    def wanted(self, row: Example) -> bool:
        """Returns whether a person wants a row taught, whatever the rules decide."""
        return self._action(row) not in (None, "drop")

    def pinned(self, row: Example) -> bool:
        """Returns whether every dataset repeats a row."""
        return self._action(row) == "pin"

    def replaced(self, row: Example) -> bool:
        """Returns whether a person dropped or edited the answer of a row."""
        return self._action(row) in ("drop", "edit")

    def against(self, row: Example) -> tuple[str, str] | None:
        """Returns why a person excluded a row, as a reason and a detail; None if nobody did."""
        mine = self._about(row)
        if mine is not None:
            return (DROPPED, str(mine)) if mine.action == "drop" else None
        theirs = self.accounts.get(row.user_id) if row.user_id is not None else None
        return (BANNED, str(theirs)) if theirs is not None and theirs.action == "ban" else None

    def why(self, row: Example) -> tuple[str, str]:
        """Returns the decision of a person to include a row, as a reason and a detail; empty if there is none."""
        mine = self._about(row)
        return (_IN_WORDS[mine.action], str(mine)) if mine is not None else ("", "")

    def read(self, warehouse: Warehouse, workload: str, settings: DatasetSettings) -> tuple[Statements, list[Decided]]:
        """Returns the statements with all decisions applied, and the statements that people excluded."""
        read = read_statements(warehouse, workload, settings)
        wanted = [id for id, decision in self.rows.items() if decision.action != "drop"]
        archived = _archived(warehouse, workload, wanted)
        # Whether a model may learn from the answers that they replace is no longer known.
        cut = read.cut.union(row.interaction_id for row in archived)
        return self.applied_to(replace(read, rows=read.rows + archived, cut=cut), settings)

    def applied_to(self, read: Statements, settings: DatasetSettings) -> tuple[Statements, list[Decided]]:
        """Applies all decisions to statements; returns them, and those that people excluded."""
        rewrite = Rewriter(settings)
        excluded = [Decided(row, "overruled", *why) for row in read.learnable if (why := self.against(row)) is not None]
        rows = [self.applied(row, rewrite) for row in read.rows if self.against(row) is None]
        rows.sort(key=lambda row: row.timestamp, reverse=True)
        return replace(read, rows=rows), excluded

    def applied(self, row: Example, rewrite: Rewriter) -> Example:
        """Applies decisions to a row. A kept, pinned or edited row is an expert's correction as of the decision."""
        mine = self._about(row)
        if mine is not None and (row.kind != "declined" or mine.action == "edit"):
            row = replace(
                row if mine.answer is None else _edited(row, mine.answer, rewrite),
                kind="correction",
                source=row.source if row.is_expert else "expert",
                timestamp=max(row.timestamp, mine.decided_at),
                received_at=max(row.received_at, mine.decided_at),
            )
        theirs = self.accounts.get(row.user_id) if row.user_id is not None else None
        if theirs is not None and theirs.action == "trust" and row.source != "demonstration":
            row = replace(row, source="expert")
        return row


def _archived(warehouse: Warehouse, workload: str, ids: Sequence[str]) -> list[Example]:
    """Returns the rows of feedback that is no longer in the warehouse, each from the newest dataset that holds it."""
    found = dict[str, Example]()
    for row in warehouse.rows(QUERIES["archived"], {"workload": workload, "ids": ids}) if ids else ():
        file = Path(row["path"]) / f"{row['split']}.parquet"
        # Retention reduces the files of old datasets.
        held = pq.read_table(file, filters=[("feedback_id", "in", row["ids"])]).to_pylist() if file.is_file() else []
        for values in held:
            found.setdefault(values["feedback_id"], replace(restored(values), origin=None))
    return list(found.values())


def _edited(row: Example, answer: str, rewrite: Rewriter) -> Example:
    """Returns a row with an edited answer: its words rewritten as configured, the arguments of its calls unchanged."""
    words, opening, calls = in_one_form(answer, json.loads(row.tools or "[]")).partition(tool_calls.OPENING)
    return with_completion(row, rewrite(words) + opening + calls)


def decide_rows(
    warehouse: Warehouse,
    action: RowAction | Release,
    ids: Sequence[str],
    reason: str,
    author: str,
    now: datetime,
    answer: str | None = None,
    check: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Stores a decision about the rows of these pieces of feedback; about all of them, or none.

    Args:
        answer: the answer of an edit, without personal data.
        check: called with the workload of each row before anything is stored; raises where it may not be decided about.

    Returns:
        `workload`, `feedback_id`, `action` and `before` of each row; `before` is the action that was in force, if any.

    Raises:
        RetunedError: an id is unknown, feedback to keep or pin approves no answer, feedback to edit has no row, or a
            row to release has no decision, or an edit changes nothing.
    """
    rows = _rows(warehouse, action, list(dict.fromkeys(ids)))
    if check is not None:
        for row in rows.values():
            check(row["workload"])
    of_row = {
        id: {name: row[name] for name in ("workload", "feedback_id", "interaction_id", "accepted")}
        for id, row in rows.items()
    }
    results = []
    with _changing, warehouse.transaction() as cursor:
        # Read before any is superseded: votes on one answer share a decision.
        in_force = {id: _first(cursor, "in_force", keys) for id, keys in of_row.items()}
        for id, row in rows.items():
            keys, before = of_row[id], in_force[id]
            if before is None and action == "release":
                raise RetunedError(f"rows: nobody has decided about {id}; nothing is changed")
            results.append(
                {"workload": row["workload"], "feedback_id": id, "action": action, "before": before and before[1]}
            )
            if before is not None and before[1:] == (action, answer, reason, author):
                continue  # a retry after a lost response
            if answer is not None:
                edited = before[2] if before is not None and before[1] == "edit" else None
                # A form sends the same text with other ends of lines.
                if answer.strip().splitlines() == (edited or _answer(cursor, id) or "").strip().splitlines():
                    raise RetunedError(
                        "rows edit: the answer is unchanged; change the text, or decide otherwise about the row"
                    )
            cursor.execute(QUERIES["supersede_row"], keys | {"now": now})
            insert(
                cursor,
                "row_decisions",
                id=uuid.uuid4().hex,
                user_id=row["user_id"],
                action=action,
                answer=answer,
                reason=reason,
                author=author,
                decided_at=now,
                **keys,
            )
    return results


def _rows(warehouse: Warehouse, action: RowAction | Release, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the rows of these pieces of feedback, by feedback id.

    Raises:
        RetunedError: the action does not apply to all of them.
    """
    known = {row["feedback_id"]: row for row in warehouse.rows(QUERIES["found"], {"ids": ids})}
    if unknown := [id for id in ids if id not in known]:
        raise RetunedError(
            f"rows: no correction or vote has the id {', '.join(unknown)}; nothing is changed. `retuned rows WORKLOAD` "
            "lists the rows by the id of their feedback; a row that neither the warehouse nor a dataset holds any more "
            "cannot be taught"
        )
    if neutral := [id for id in ids if action == "edit" and known[id]["approves"] is None]:
        raise RetunedError(
            f"rows edit: {', '.join(neutral)} rates an answer neither right nor wrong, so there is no row to edit; "
            "nothing is changed"
        )
    if action in ("keep", "pin") and (against := [id for id in ids if not known[id]["approves"]]):
        raise RetunedError(
            f"rows {action}: {', '.join(against)} approves of no answer, so there is nothing to teach; nothing is "
            "changed. To teach another answer, use `retuned rows edit`"
        )
    archived = [row for row in known.values() if action in ("keep", "pin", "edit") and not row["is_event"]]
    if gone := [id for row in archived if not _archived(warehouse, row["workload"], [id := row["feedback_id"]])]:
        raise RetunedError(
            f"rows {action}: {', '.join(gone)} is stored neither in the warehouse nor in a dataset, so it cannot be "
            "taught; nothing is changed"
        )
    return {id: known[id] for id in ids}


def decide_account(
    warehouse: Warehouse,
    action: AccountAction | Release,
    account: str,
    workload: str | None,
    reason: str,
    author: str,
    now: datetime,
    others: Sequence[str] = (),
) -> dict[str, Any]:
    """Bans, trusts or releases an account, for one workload or for all.

    Args:
        others: further names of the account: the pseudonyms of a user under each key. The first that is stored counts.

    Returns:
        `account`, `workload`, `action` and `before`, the action that was in force, if any.

    Raises:
        RetunedError: the account is unknown, or an account to release has no decision.
    """
    names = (name for name in (account, *others) if warehouse.row(QUERIES["known_account"], {"account": name}))
    if (known := next(names, None)) is None:
        raise RetunedError(
            "accounts: nothing is stored of this account; nothing is changed. `retuned rows WORKLOAD` lists the "
            "account of each row, and `retuned pseudonym USER` prints the account of a user"
        )
    account = known
    keys = {"workload": workload, "account": account}
    with _changing, warehouse.transaction() as cursor:
        before = _first(cursor, "account_in_force", keys)
        if before is None and action == "release":
            scope = "all workloads" if workload is None else f"workload {workload}"
            raise RetunedError(f"accounts: nobody has decided about {account} for {scope}; nothing is changed")
        if before != (action, reason, author):
            cursor.execute(QUERIES["supersede_account"], keys | {"now": now})
            insert(
                cursor,
                "account_decisions",
                id=uuid.uuid4().hex,
                workload=workload,
                user_id=account,
                action=action,
                reason=reason,
                author=author,
                decided_at=now,
            )
    return {"account": account, "workload": workload, "action": action, "before": before and before[0]}


def digest(warehouse: Warehouse, workload: str) -> str:
    """Returns a hash of the decisions in force for a workload. It differs after each decision, whatever the clock."""
    row = warehouse.row(QUERIES["digest"], {"workload": workload})
    assert row is not None
    return str(row["digest"])


def kept_interactions(warehouse: Warehouse, workload: str) -> list[str]:
    """Returns the interactions that people decided to teach. Retention keeps them in the warehouse."""
    return [row["interaction_id"] for row in warehouse.rows(QUERIES["kept_interactions"], {"workload": workload})]


def account_decisions(warehouse: Warehouse, workload: str | None) -> list[dict[str, Any]]:
    """Returns the decisions in force about accounts, latest first, for one workload or for all."""
    return warehouse.rows(QUERIES["account_decisions"], {"workload": workload})


def _answer(cursor: duckdb.DuckDBPyConnection, id: str) -> str | None:
    """Returns the answer that feedback is about; None: it is in a dataset alone."""
    found = _first(cursor, "answer", {"id": id})
    return found[0] if found is not None else None


def _first(cursor: duckdb.DuckDBPyConnection, query: str, parameters: dict[str, Any]) -> tuple[Any, ...] | None:
    return cursor.execute(QUERIES[query], parameters).fetchone()
