"""The inbox of label requests: what an expert sees, and what becomes of an answer."""

import difflib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.console.inbox import Status, Work, agreement, status

QUERIES = named_queries("retuned.daemon.console", "teach.sql")
SHOWN = 12
NOBODY = "expert"
"""Who teaches where no principals are configured."""
OPEN: tuple[Status, ...] = ("mine", "disputed", "open", "skipped")
"""What an expert may answer, in this order."""
WHY = {
    "uncertain": "called wrong, or hesitant",
    "unreadable": "programs cannot read it",
    "ungrounded": "states what no source has",
    "new topic": "a new kind of question",
    "disagreeing": "answered differently before",
    "calibration": "drawn at random, to measure",
    "conflict": "two answers differ",
}


@dataclass(frozen=True)
class About:
    """A request, and what experts did with it."""

    id: str
    interaction_id: str
    workload: str
    reason: str
    open: bool
    work: Sequence[Work]

    @property
    def answers(self) -> list[Work]:
        return [one for one in self.work if one.state == "answered"]


@dataclass(frozen=True)
class Item:
    """A request in the queue; `why` it is asked, in a few words."""

    request_id: str
    interaction_id: str
    workload: str
    reason: str
    question: str
    status: Status
    work: Sequence[Work]
    why: str


@dataclass(frozen=True)
class Inbox:
    """The queue of one expert.

    Attributes:
        items: the first that this expert may answer, at most SHOWN.
        waiting: how many there are.
        by_status: of all open requests.
        today: answers of the last 24 hours, by expert.
        agreement: of the requests that several experts answered, on how many they agree; and how many they are.
    """

    items: list[Item]
    waiting: int
    by_status: dict[Status, int]
    today: dict[str, int]
    agreement: tuple[int, int]


def inbox(
    warehouse: Warehouse, workloads: Sequence[str] | None, expert: str, now: datetime, opinions: Callable[[str], int]
) -> Inbox:
    """Returns the queue of an expert.

    Args:
        workloads: None: all.
        opinions: how many experts must agree in a workload.
    """
    found: list[Item] = []
    for row in warehouse.rows(QUERIES["queue"], {"workloads": workloads}):
        work = [Work(**one) for one in row.pop("work")]
        of = status(work, expert, now, opinions(row["workload"]))
        why = WHY.get(row["reason"], row["reason"].replace("_", " "))
        found.append(Item(row["id"], row["interaction_id"], row["workload"], row["reason"], "", of, work, why))
    mine = sorted((one for one in found if one.status in OPEN), key=lambda one: OPEN.index(one.status))
    shown = mine[:SHOWN]
    asked = warehouse.rows(QUERIES["questions"], {"ids": [one.interaction_id for one in shown]})
    questions = {row["id"]: row["question"] or "" for row in asked}
    counts: dict[Status, int] = {}
    for one in found:
        counts[one.status] = counts.get(one.status, 0) + 1
    today = warehouse.rows(QUERIES["progress"], {"since": now - timedelta(days=1)})
    return Inbox(
        [replace(one, question=questions.get(one.interaction_id, "")) for one in shown],
        len(mine),
        counts,
        {row["expert"]: row["answers"] for row in today},
        agreement(one.work for one in found),
    )


def about(warehouse: Warehouse, id: str, expert: str) -> list[About]:
    """Returns the requests that an expert may answer, open or answered by them: the one with this id, or those about
    the interaction with this id."""
    found = [
        About(**row | {"work": [Work(**one) for one in row["work"]]})
        for row in warehouse.rows(QUERIES["about"], {"id": id})
    ]
    return [one for one in found if one.open or any(work.expert == expert for work in one.answers)]


def write(warehouse: Warehouse, request: str, work: Work) -> None:
    """Keeps what an expert did with a request, in the place of what they did before."""
    given = {"request": request, "expert": work.expert, "state": work.state, "since": work.since}
    warehouse.execute(QUERIES["write"], given | {"name": work.name, "value": work.value, "sent": work.sent})


def diff(before: str, after: str) -> list[tuple[str, str]]:
    """Returns the words of both texts as (equal, delete or insert; text), for an expert who edits an answer."""
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    found = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("equal", "".join(old[a:b])))
            continue
        found += [(name, text) for name, text in (("delete", "".join(old[a:b])), ("insert", "".join(new[c:d]))) if text]
    return found


def mine(warehouse: Warehouse, expert: str) -> list[dict[str, Any]]:
    """Returns the latest answers of an expert, each with what became of it."""
    found = warehouse.rows(QUERIES["mine"], {"expert": expert})
    for row in found:
        row["value"] = json.loads(row["value"]) if row["value"] else None
        row["diff"] = diff(row["response"] or "", row["value"]) if row["name"] == "correction" else []
    return found
