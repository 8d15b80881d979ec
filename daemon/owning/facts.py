"""Reads from the warehouse what a plan is computed from."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from retuned.consumers.warehouse.connection import Warehouse, named_queries

QUERIES = named_queries("retuned.daemon.owning", "facts.sql")
WINDOW_DAYS = 30
SAMPLE = 10_000
"""The newest answers from which tokens and costs are read."""
BYTES_PER_TOKEN = 4
"""Of UTF-8, where an event has no tokens: English has 4 to 5 in most tokenizers, other scripts 3 to 6."""


@dataclass(frozen=True)
class Traffic:
    """The answers of the last WINDOW_DAYS before the newest one.

    Attributes:
        days: at least 1, so that a busy hour is not projected to a day.
        sampled: the number of answers behind the means; `known`: those of them with tokens.
        input, output: mean tokens of an answer; `longest`: the 99th percentile of both together.
        bought: the number of sampled answers that no own model gave; `priced` of them have a cost, together `cost`.
        unpriced_input, unpriced_output: the tokens of the others, together.
        bought_input, bought_output: mean tokens of those that were bought.
    """

    newest: datetime
    days: float
    answers: int
    busiest_hour: int
    sampled: int
    known: int
    input: float
    output: float
    longest: float
    bought: int
    priced: int
    cost: float
    unpriced_input: float
    unpriced_output: float
    bought_input: float
    bought_output: float


@dataclass(frozen=True)
class Judged:
    """Conversations by what users and experts stated about their answers: at any time, and in the last `days`.

    Attributes:
        good: nothing was corrected, and an answer called good; `good_of_incumbent` of them are the incumbent's.
        bad: nothing was corrected, and an answer called bad; another one of it may be called good.
        rated: any of these.
    """

    demonstrated: int
    corrected: int
    good: int
    good_of_incumbent: int
    bad: int
    rated: int
    corrected_lately: int
    good_lately: int
    days: float


@dataclass(frozen=True)
class Trained:
    """A training of the workload: its base model, the tokens that it computed, and its seconds."""

    base_model: str
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Facts:
    """What the warehouse knows.

    Attributes:
        traffic: None: there are demonstrations alone.
        feedback: the number of answers by name and source, and of those that it calls good or bad.
        dataset: the new questions that the last dataset teaches (train) and holds out (holdout), and its created_at;
            None: there is none.
        judged_then: what was judged when that dataset was made.
    """

    traffic: Traffic | None
    feedback: list[dict[str, Any]]
    judged: Judged
    dataset: dict[str, Any] | None
    trained: list[Trained]
    judged_then: Judged | None = None


def facts(warehouse: Warehouse, workload: str, incumbent: str | None) -> Facts:
    """Reads what is known of a workload.

    Args:
        incumbent: its model, by which logs name its answers.
    """
    found = judged(warehouse, workload, incumbent, _traffic(warehouse, workload))
    of = {"workload": workload}
    return replace(
        found,
        feedback=warehouse.rows(QUERIES["feedback"], of),
        trained=[Trained(**row) for row in warehouse.rows(QUERIES["trained"], of)],
    )


def judged(warehouse: Warehouse, workload: str, incumbent: str | None, traffic: Traffic | None = None) -> Facts:
    """Reads what people stated about the answers of a workload; the other facts are those that are passed in.

    Args:
        incumbent: its model, by which logs name its answers.
    """
    of = {"workload": workload}
    since = traffic.newest - timedelta(days=WINDOW_DAYS) if traffic else None
    dataset = warehouse.row(QUERIES["dataset"], of)

    def stated(until: datetime | None) -> Judged:
        row = warehouse.row(QUERIES["judged"], of | {"since": since, "incumbent": incumbent, "until": until}) or {}
        return Judged(**row, days=traffic.days if traffic else 1.0)

    return Facts(
        traffic,
        feedback=[],
        judged=stated(until=None),
        dataset=dataset,
        trained=[],
        judged_then=stated(until=dataset["created_at"]) if dataset else None,
    )


def _traffic(warehouse: Warehouse, workload: str) -> Traffic | None:
    newest = (warehouse.row(QUERIES["newest"], {"workload": workload}) or {}).get("timestamp")
    if newest is None:
        return None
    recent = {"workload": workload, "since": newest - timedelta(days=WINDOW_DAYS)}
    counted = warehouse.row(QUERIES["traffic"], recent) or {}
    means = warehouse.row(QUERIES["tokens"], recent | {"sample": SAMPLE, "bytes": BYTES_PER_TOKEN}) or {}
    means["sampled"] = means.pop("answers")
    return Traffic(
        newest=newest,
        days=max((newest - counted["first_at"]) / timedelta(days=1), 1.0),
        answers=counted["answers"],
        busiest_hour=counted["busiest_hour"],
        **means,
    )
