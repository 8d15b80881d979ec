"""The inbox of label requests: what an expert sees, and what becomes of an answer."""

import difflib
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.console.inbox import Status, Work, agreeing, agreement, status
from retuned.retrain.data.examples import logged_answer

QUERIES = named_queries("retuned.daemon.console", "teach.sql")
SHOWN = 12
MOST_COMPARED = 4_000_000
"""Pairs of words that are compared for one page: seconds. In the browser, console.js has the same bound."""
NOBODY = "expert"
"""Who teaches where no principals are configured."""
OPEN: tuple[Status, ...] = ("mine", "disputed", "open", "skipped")
"""What an expert may answer, in this order."""
WHY = {
    "uncertain": "called wrong, or the model was unsure",
    "unreadable": "programs cannot read it",
    "ungrounded": "states what no source has",
    "new topic": "a new kind of question",
    "disagreeing": "answered differently before",
    "calibration": "drawn at random, to measure",
    "conflict": "two answers differ",
}


@dataclass(frozen=True)
class About:
    """A request, the answer that it is about, and what experts did with it."""

    id: str
    interaction_id: str
    workload: str
    reason: str
    open: bool
    answer: str
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
        items: those that this expert may answer, at most SHOWN, with the one that is asked for among them.
        waiting: how many there are.
        earlier, later: the id of the first of the SHOWN before these, and of those after them; None: there are none.
        next: the id of the one after the one that is asked for; None: that is the last.
        skipped: the id of the first that this expert passed over.
        by_status: of all open requests.
        today: answers of the last 24 hours, by expert.
        agreement: of the requests that several experts answered, on how many they agree; and how many they are.
    """

    items: list[Item]
    waiting: int
    earlier: str | None
    later: str | None
    next: str | None
    skipped: str | None
    by_status: dict[Status, int]
    today: dict[str, int]
    agreement: tuple[int, int]


def inbox(
    warehouse: Warehouse,
    workloads: Sequence[str] | None,
    expert: str,
    now: datetime,
    opinions: Callable[[str], int],
    wanted: str | None = None,
) -> Inbox:
    """Returns the queue of an expert.

    Args:
        workloads: None: all.
        opinions: how many experts must agree in a workload.
        wanted: the id of the request that is asked for; None, or not among those that wait: the first.
    """
    found: list[Item] = []
    for row in warehouse.rows(QUERIES["queue"], {"workloads": workloads}):
        work = [Work(**one) for one in row.pop("work")]
        of = status(work, expert, now, opinions(row["workload"]))
        why = WHY.get(row["reason"], row["reason"].replace("_", " "))
        found.append(Item(row["id"], row["interaction_id"], row["workload"], row["reason"], "", of, work, why))
    mine = sorted((one for one in found if one.status in OPEN), key=lambda one: OPEN.index(one.status))
    ids = [one.request_id for one in mine]
    place = ids.index(wanted) if wanted in ids else 0
    start = place // SHOWN * SHOWN
    shown = mine[start : start + SHOWN]
    asked = warehouse.rows(QUERIES["questions"], {"ids": [one.interaction_id for one in shown]})
    questions = {row["id"]: row["question"] or "" for row in asked}
    counts: dict[Status, int] = {}
    for one in found:
        counts[one.status] = counts.get(one.status, 0) + 1
    today = warehouse.rows(QUERIES["progress"], {"since": now - timedelta(days=1), "workloads": workloads})
    return Inbox(
        [replace(one, question=questions.get(one.interaction_id, "")) for one in shown],
        len(mine),
        ids[start - SHOWN] if start else None,
        next(iter(ids[start + SHOWN :]), None),
        next(iter(ids[place + 1 :]), None),
        next((one.request_id for one in mine if one.status == "skipped"), None),
        counts,
        {row["expert"]: row["answers"] for row in today},
        agreement(one.work for one in found),
    )


def about(warehouse: Warehouse, id: str, expert: str) -> list[About]:
    """Returns the requests that an expert may answer, open or answered by them: the one with this id, or those about
    the interaction with this id."""
    found = []
    for row in warehouse.rows(QUERIES["about"], {"id": id}):
        answer, work = logged_answer(row.pop("response"), row.pop("calls"))[1], [Work(**one) for one in row["work"]]
        found.append(About(**row | {"answer": answer, "work": work}))
    return [one for one in found if one.open or any(work.expert == expert for work in one.answers)]


def write(warehouse: Warehouse, request: str, work: Work) -> bool:
    """Keeps what an expert did with a request, in the place of what they did before. Returns whether it is kept.

    A claim or a skip of a request that the expert has answered is not: the answer stays.
    """
    with warehouse.transaction() as cursor:
        (written,) = cursor.execute(QUERIES["write"], {"request": request, **asdict(work)}).fetchall()[0]
    return bool(written)


def feedback_id(request: str, work: Work, *part: str) -> str:
    """Returns the id of the feedback as which an answer is published, or a part of it such as its comment. It is the
    same whenever this answer is published, and another one if the expert gives the same answer later again."""
    moment = int((work.since - datetime(1970, 1, 1)) / timedelta(microseconds=1))  # noqa: DTZ001
    text = " ".join((request, work.expert, str(moment), *part))
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def withdraw(warehouse: Warehouse, asked: About, before: Work, after: Work) -> bool:
    """Decides that what an expert sent before is not taught, if it is a correction that they give no longer.

    Of verdicts the last one counts by itself. Returns whether anything changed: what a person decided about the row
    stays.
    """
    if not before.sent or before.name != "correction" or after in agreeing([before, after], before):
        return False
    given = {
        "id": uuid.uuid4().hex,
        "workload": asked.workload,
        "feedback": feedback_id(asked.id, before),
        "interaction": asked.interaction_id,
        "reason": "the expert has answered the request otherwise since",
        "author": before.expert,
        "now": after.since,
    }
    with warehouse.transaction() as cursor:
        (written,) = cursor.execute(QUERIES["withdraw"], given).fetchall()[0]
    return bool(written)


def diff(before: str, after: str) -> list[tuple[str, str]]:
    """Returns the words of both texts as (equal, delete or insert; text), for an expert who edits an answer."""
    old, new = _words(before), _words(after)
    found = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("equal", "".join(old[a:b])))
            continue
        found += [(name, text) for name, text in (("delete", "".join(old[a:b])), ("insert", "".join(new[c:d]))) if text]
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def mine(
    warehouse: Warehouse, expert: str, workloads: Sequence[str] | None, id: str | None = None
) -> list[dict[str, Any]]:
    """Returns the latest answers of an expert, or that to the request with this id, each with what became of it.

    `diff` compares a correction with what the model answered, the latest first, until all together would compare more
    than `MOST_COMPARED`.

    Args:
        workloads: None: all.
    """
    found = warehouse.rows(QUERIES["mine"], {"expert": expert, "workloads": workloads, "id": id})
    left = MOST_COMPARED
    for row in found:
        row["value"], row["diff"] = json.loads(row["value"]) if row["value"] else None, []
        if row["name"] == "correction":
            answer = row["response"] or ""
            pairs = len(_words(answer)) * len(_words(row["value"]))
            if pairs <= left:
                row["diff"], left = diff(answer, row["value"]), left - pairs
    return found
