"""Made-up traffic, put straight into a warehouse: for tests of what looks at events, not of how they come in."""

import json
import random
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from retuned.consumers.settings import WarehouseSettings
from retuned.consumers.warehouse.connection import Warehouse, insert
from retuned.consumers.warehouse.opening import open_warehouse

START = datetime(2026, 3, 2, 9, 0, 0)
MINUTE = timedelta(minutes=1)
ASKED = {
    "refund": ("how do I get my money back for order {n}", "the {thing} I bought is wrong, I want to return it"),
    "delivery": (
        "where is my parcel {n}",
        "how long does shipping to {city} take",
        "deliver the {thing} to {city} please",
    ),
    "account": ("I cannot log in any more", "how do I change my password", "please delete my account"),
    "billing": ("why was I charged {n} euros", "can I pay the {thing} by card", "send me the invoice of order {n}"),
    "warranty": ("the {thing} is broken, who repairs it", "does the guarantee cover a broken {thing}"),
}
THINGS = ("lamp", "chair", "kettle", "desk", "phone", "tent", "bicycle", "coat")
CITIES = ("Berlin", "Paris", "Rome", "Oslo", "Madrid")


def new_warehouse(folder: Path) -> Warehouse:
    """The warehouse in a folder; an empty one where there is none."""
    return open_warehouse(WarehouseSettings(path=folder / "retuned.duckdb", memory_limit="512MB"))


def prompts(count: int, rng: random.Random, weights: Sequence[float] = (3, 3, 2, 2, 1)) -> list[str]:
    """Questions of customers, drawn by topic; one word in each comes from a long tail of made-up names."""
    made = []
    for topic in rng.choices(list(ASKED), weights, k=count):
        text = rng.choice(ASKED[topic]).format(
            n=rng.randint(10, 9999), thing=rng.choice(THINGS), city=rng.choice(CITIES)
        )
        name = "".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(1 + int(rng.expovariate(1.0))))
        made.append(f"{rng.choice(('', 'Hello, ', 'Hi there. '))}{text}{rng.choice(('', '?', ' thanks'))} {name}")
    return made


def interactions(warehouse: Warehouse, asked: Sequence[str], rng: random.Random, **more: Any) -> list[str]:
    """Store one interaction for each prompt and return their ids. Further arguments are those of `answered`."""
    rows = answered(asked, rng, **more)
    store(warehouse, "interactions", rows)
    return [str(row["id"]) for row in rows]


def answered(
    asked: Sequence[str],
    rng: random.Random,
    *,
    start: datetime = START,
    step: timedelta = MINUTE,
    workload: str = "support",
    answer_length: float = 1.0,
    offset: int = 0,
    **columns: Any,
) -> list[dict[str, Any]]:
    """The row of an interaction for each prompt. Further columns override what is drawn."""
    rows = []
    for number, prompt in enumerate(asked):
        when = start + number * step
        rows.append(
            {
                "id": f"{workload}-{offset + number}",
                "timestamp": when,
                "workload": workload,
                "model": "base",
                "messages": json.dumps(
                    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
                ),
                "response": "You find it in the app. " * max(1, int(rng.gauss(4, 1.5) * answer_length)),
                "context": json.dumps(["You find it in the app."]) if rng.random() < 0.5 else None,
                "latency_seconds": rng.lognormvariate(0, 0.4),
                "input_tokens": 20,
                "output_tokens": 10,
                "topic": "interactions",
                "partition": 0,
                "offset": offset + number,
                "received_at": when,
            }
            | columns
        )
    return rows


def feedback(
    warehouse: Warehouse,
    about: Iterable[str],
    name: str,
    value: Any,
    *,
    source: str = "user",
    when: datetime = START,
    offset: int = 0,
    user_id: str | None = None,
) -> None:
    """Store one feedback for each interaction id."""
    rows = [
        {
            "id": f"feedback-{offset + number}",
            "timestamp": when,
            "interaction_id": interaction,
            "name": name,
            "value": json.dumps(value),
            "source": source,
            "user_id": user_id,
            "topic": "feedback",
            "partition": 0,
            "offset": offset + number,
            "received_at": when,
        }
        for number, interaction in enumerate(about)
    ]
    store(warehouse, "feedback", rows)


def promoted(
    warehouse: Warehouse, name: str, version: str | None, previous: str | None, when: datetime, **columns: Any
) -> None:
    """Store a change of the champion."""
    row = {
        "id": name,
        "created_at": when,
        "workload": "support",
        "event": "promoted",
        "version": version,
        "previous_version": previous,
        "actor": "gate",
        "reason": "better",
        "announced": True,
    }
    warehouse.insert("promotions", **(row | columns))


def serves(warehouse: Warehouse, version: str | None, since: datetime, workload: str = "support") -> None:
    """Make a version the champion in place of any other."""
    champion = {"workload": workload, "alias": "champion"}
    warehouse.execute("DELETE FROM aliases WHERE workload = $workload AND alias = $alias", champion)
    warehouse.insert("aliases", **champion, version=version, created_at=since)


def store(warehouse: Warehouse, table: str, rows: list[dict[str, Any]]) -> None:
    """Insert rows, by the names of their columns; events in one batch."""
    with warehouse.transaction() as cursor:
        if table in {"interactions", "feedback", "shadow_answers"}:
            batch = _next_batch(cursor)
            rows = [{"batch": batch} | row for row in rows]
        cursor.register("incoming", pa.Table.from_pylist(rows))
        cursor.execute(f"INSERT INTO {table} BY NAME SELECT * FROM incoming")


def insert_event(warehouse: Warehouse, table: str, **values: Any) -> None:
    """Insert one, in a batch of its own."""
    with warehouse.transaction() as cursor:
        insert(cursor, table, **values, batch=_next_batch(cursor))


def _next_batch(cursor: duckdb.DuckDBPyConnection) -> int:
    (batch,) = cursor.execute("UPDATE batches SET last = last + 1 RETURNING last").fetchone() or (0,)
    return int(batch)


def registered(warehouse: Warehouse, version: str, workload: str = "support") -> None:
    """A version."""
    warehouse.insert(
        "models",
        version=version,
        workload=workload,
        created_at=START,
        path=f"/models/{workload}/{version}",
        base_model="gpt-4.1-mini",
        base_hash="0" * 16,
        dataset_version="d1",
        run_id="r1",
        manifest="{}",
    )
