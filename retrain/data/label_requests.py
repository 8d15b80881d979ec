"""Label requests: a few answers per day for experts to label, none twice.

Most are the answers whose label would teach most (see `label_choice`). An expert answers a request by a `correction` or
`helpful` on its interaction, which is feedback like any other. Some are a random sample that calibrates the
hallucination rate; `hallucination` answers those. Others are two different answers to one question; `same` or a
correction answers those.
"""

import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from retuned.consumers.common.calibration import Stratum, draws
from retuned.consumers.common.durable import replace_text
from retuned.consumers.common.times import iso
from retuned.consumers.common.tool_calls import schemas
from retuned.consumers.errors import RetunedError
from retuned.consumers.formats.messages import joined_text
from retuned.consumers.kafka.contract import Publisher
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries, rows_of
from retuned.retrain import versions
from retuned.retrain.data.examples import Example, example, logged_answer
from retuned.retrain.data.label_choice import Candidate, Pick, Taught, choose
from retuned.retrain.scoring.exam import shown
from retuned.retrain.scoring.facts import facts
from retuned.retrain.scoring.metric import restored
from retuned.retrain.settings import Settings

QUERIES = named_queries("retuned.retrain.data", "labels.sql")

POOL = 1_000
"""How many of the newest answers are considered, and of the newest known questions that they are compared with."""
SETTLE_DISTANCE = timedelta(hours=1)
"""Feedback that is stored while its request is written was received up to this long before."""
CALIBRATION_SHARE = 0.2
"""The share of the requests that calibrate the hallucination rate."""
CALIBRATION_ENOUGH = 100
"""This many calibration labels within CALIBRATION_DAYS are enough."""
CALIBRATION_DAYS = 90
_CALIBRATION = (
    "Drawn at random, to measure how often answers are invented: does the answer state anything that the context does "
    "not support? Reply with hallucination, true or false."
)

ANSWERS: Mapping[str | None, tuple[str, ...]] = {
    "calibration": ("hallucination",),
    "conflict": ("same", "correction"),
    None: ("helpful", "correction"),
}
"""The feedback that answers a request, by its reason; None: any other reason. Keep the query `settle` in step."""
CONFLICT_SHARE = 0.2
"""The maximum share of the requests for conflicting answers."""
_CONFLICT = (
    "People answer this differently, and nobody knows which answer is right. Do both answers mean the same? Reply with "
    "same, true or false, or with a correction: the right answer."
)


def request(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> int:
    """Chooses answers within the daily budget and stores a request for each in one transaction. Returns how many.

    `announce_pending` publishes them, so an unavailable broker delays them, and no answer is requested twice.
    """
    per_day = settings.labels.per_day
    today, lately = (
        warehouse.row(QUERIES["asked"], {"workload": workload, "since": now - timedelta(days=days)}) or {}
        for days in (1, CALIBRATION_DAYS)
    )
    days = 1 + (now - (lately["first_at"] or now)) // timedelta(days=1)
    left: int = per_day - today["requests"]
    if left <= 0:
        return 0

    def quota(share: float, reason: str) -> int:
        """Returns how many may have a reason: a share of the day's requests and, as a day may have few, of the last
        days'."""
        most: int = min(
            left, math.ceil(share * per_day) - today[reason], math.ceil(share * per_day * days) - lately[reason]
        )
        return max(most, 0)

    drawn = _draw(warehouse, workload, quota(CALIBRATION_SHARE, "calibration"), now)
    left -= len(drawn)
    ids = {row["interaction_id"] for row in drawn}
    most = quota(CONFLICT_SHARE, "conflict")
    conflicts = warehouse.rows(QUERIES["conflicts"], {"workload": workload, "most": most})
    conflicts = [row for row in conflicts if row["interaction_id"] not in ids]
    left -= len(conflicts)
    ids |= {row["interaction_id"] for row in conflicts}
    requests = [{"reason": "calibration", "detail": _CALIBRATION, "score": None, **row} for row in drawn]
    requests += [{"reason": "conflict", "detail": _CONFLICT, "score": None, **row} for row in conflicts]
    requests += [
        {
            "interaction_id": pick.example.interaction_id,
            "reason": pick.reason,
            "detail": pick.detail,
            "score": pick.score,
        }
        for pick in _picks(warehouse, settings, workload, ids, left, now)
    ]
    shared = {"created_at": now, "workload": workload, "announced": False}
    with warehouse.transaction() as cursor:
        for row in requests:
            insert(cursor, "label_requests", id=uuid.uuid4().hex, **shared, **row)
    return len(requests)


def _picks(
    warehouse: Warehouse, settings: Settings, workload: str, requested: set[str], count: int, now: datetime
) -> list[Pick]:
    """Chooses among the newest answers; `requested` are interactions for which there is a request already."""
    candidates = [
        Candidate(answer, row["good"], row["bad"], row["settled"] or row["id"] in requested)
        for row in _newest(warehouse, workload, now)
        if (answer := _example(row)) is not None
    ]
    rows = warehouse.rows(QUERIES["known"], {"workload": workload, "limit": POOL})
    known = [answer for row in rows if (answer := _example(row)) is not None]
    newest = warehouse.row(versions.QUERIES["latest_dataset"], {"workload": workload})
    kept = json.loads(newest["card"]).get("metric") if newest else None
    metric = restored(settings, kept, [one.example.completion for one in candidates])
    similarity = settings.dataset.near_duplicate_similarity
    return choose(candidates, known, _taught_to(warehouse, workload), count, similarity, metric)


def _newest(warehouse: Warehouse, workload: str, now: datetime) -> list[dict[str, Any]]:
    """Returns the newest answers of the champion, with the votes on each."""
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        cursor.execute(QUERIES["newest"], {"workload": workload, "limit": POOL})
        start, end = cursor.execute(QUERIES["span"]).fetchall()[0]
        if start is None:
            return []
        judgements.comparable_votes(cursor, workload, start, end, now=now)
        return rows_of(cursor.execute(QUERIES["candidates"], {"workload": workload}))


def _draw(warehouse: Warehouse, workload: str, most: int, now: datetime) -> list[dict[str, Any]]:
    """Returns random samples of alarms and of other answers, with the sizes of `calibration.draws`.

    Experts are not shown which of the two an answer is.
    """
    since = now - timedelta(days=CALIBRATION_DAYS)
    strata = [Stratum(**row) for row in warehouse.rows(QUERIES["strata"], {"workload": workload, "since": since})]
    most = min(most, CALIBRATION_ENOUGH - sum(stratum.labelled for stratum in strata))
    drawn = draws(strata, max(most, 0))
    wanted = {"workload": workload, "seed": now.isoformat(), "alarms": drawn[True], "others": drawn[False]}
    return warehouse.rows(QUERIES["draw"], wanted)


def settle(warehouse: Warehouse) -> None:
    """Marks the requests that experts have answered."""
    oldest = warehouse.row(QUERIES["oldest_open"]) or {}
    if oldest["created_at"] is not None:
        warehouse.execute(QUERIES["settle"], {"since": oldest["created_at"] - SETTLE_DISTANCE})


def forget(warehouse: Warehouse, workloads: Sequence[str], old: datetime) -> int:
    """Deletes the requests from before `old` whose answers are archived, and what experts did with them. Returns how
    many."""
    count = warehouse.delete(QUERIES["forget"], {"workloads": workloads, "old": old})
    warehouse.delete(QUERIES["forget_work"], {})
    return count


def announce_pending(warehouse: Warehouse, publisher: Publisher, topic: str) -> int:
    """Publishes the open requests that are not published yet, oldest first. Returns how many.

    A crash between publishing a message and marking it publishes the message twice, with the same id.

    Raises:
        BrokerUnavailable: the remaining requests stay pending.
    """
    rows = warehouse.rows(QUERIES["open"], {"workload": None, "pending": True, "id": None})
    for row in rows:
        publisher.publish(topic, row["interaction_id"], _message(row))
        warehouse.execute(QUERIES["announced"], {"id": row["id"]})
    return len(rows)


def open_requests(warehouse: Warehouse, workload: str | None = None) -> list[dict[str, Any]]:
    """Returns the open requests as published messages, oldest first, of a workload or of all."""
    given = {"workload": workload, "pending": False, "id": None}
    return [_message(row) for row in warehouse.rows(QUERIES["open"], given)]


def find(warehouse: Warehouse, id: str) -> dict[str, Any] | None:
    """Returns a request as a published message, even if it is answered; None: its interaction is not here."""
    rows = warehouse.rows(QUERIES["open"], {"workload": None, "pending": False, "id": id})
    return _message(rows[0]) if rows else None


def write_files(warehouse: Warehouse, settings: Settings, erased: Iterable[str] = (), *, create: bool = True) -> None:
    """Writes the open requests of each workload to its `labels.file`, one per line. Files are replaced atomically.

    Args:
        erased: workloads whose file is written even if no request is left.
        create: whether to write files that do not exist.

    Raises:
        RetunedError: a file cannot be written.
    """
    names = {*counts(warehouse), *erased}
    files = {workload: settings.for_workload(workload).labels.file for workload in names}
    lines: dict[Path, list[str]] = {file: [] for file in (settings.labels.file, *files.values()) if file is not None}
    for row in open_requests(warehouse) if lines else ():
        if (file := files.get(row["workload"])) is not None:
            lines[file].append(json.dumps(row, ensure_ascii=False) + "\n")
    for file, own in lines.items():
        if not create and not file.exists():
            continue
        try:
            replace_text(file, "".join(own))
        except OSError as error:
            raise RetunedError(f"labels.file: {file} cannot be written ({error.strerror})") from error


def counts(warehouse: Warehouse) -> dict[str, dict[str, int]]:
    """Returns the numbers of `open` and `answered` requests, by workload."""
    return {row.pop("workload"): row for row in warehouse.rows(QUERIES["counts"])}


def _taught_to(warehouse: Warehouse, workload: str) -> Taught:
    """Returns what the champion was trained on; nothing if the base model serves or the dataset is gone."""
    champion = versions.champion(warehouse, workload)
    row = champion and warehouse.row(
        versions.QUERIES["dataset"], {"workload": workload, "version": champion.dataset_version}
    )
    return _taught(row["path"]) if row and Path(row["path"]).is_dir() else Taught()


@lru_cache(maxsize=8)
def _taught(folder: str) -> Taught:
    """Reads what a dataset teaches. Cached, because datasets never change."""
    table = pq.read_table(Path(folder) / "train.parquet", columns=["question", "completion"])
    stated: set[str] = set()
    for completion in set(table["completion"].to_pylist()):
        stated |= facts(completion)
    return Taught(tuple(sorted(set(table["question"].to_pylist()))), frozenset(stated))


def _example(row: dict[str, Any]) -> Example | None:
    return example(
        **{name: row[name] for name in ("messages", "response", "context", "tools", "calls", "timestamp")},
        completion=row["response"],
        kind="accepted",
        source="app",
        interaction_id=row["id"],
        feedback_id="",
        received_at=row["timestamp"],
    )


def _message(row: dict[str, Any]) -> dict[str, Any]:
    messages = json.loads(row["messages"])
    asked = [turn.get("content") or "" for turn in messages if turn["role"] == "user"]
    return {
        "id": row["id"],
        "timestamp": iso(row["created_at"]),
        "workload": row["workload"],
        "interaction_id": row["interaction_id"],
        "model": row["model"],
        "messages": messages,
        "question": joined_text(asked[-1]) if asked else None,
        "answer": logged_answer(row["response"], row["calls"])[1],
        "answers": row["answers"] and [shown(**one) for one in row["answers"]],
        "tools": schemas(json.loads(row["tools"])) if row["tools"] else [],
        "context": json.loads(row["context"]) if row["context"] else None,
        "reason": row["reason"],
        "detail": row["detail"],
        "score": row["score"],
    }
