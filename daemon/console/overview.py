"""The facts of each workload that the overview shows."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.console.inbox import Work, status
from retuned.monitors.quality.figure import ALL_MODELS
from retuned.monitors.quality.measure import RATES, latest

QUERIES = named_queries("retuned.daemon.console", "overview.sql")
HISTORY_DAYS = 28
COMPARED_DAYS = 7
CALIBRATED = "grounding_calibrated"
"""The source that estimates a rate; all others are ratings of single answers."""
HALLUCINATION_SOURCES = (CALIBRATED, "expert", "judge", "user", "app")
"""The first one that has a figure is shown."""


@dataclass(frozen=True)
class Rate:
    """A share from 0 to 1 with its 95% interval, from n votes or answers."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Facts:
    """What is known of a workload.

    Attributes:
        answers: of the last 24 hours.
        counted: the answers that the latest figures are of, by model; `*`: all.
        since: the beginning of their window; None: nothing was measured since the champion was promoted.
        rated: whether anybody rated one of them.
        helpful: votes of users on them.
        history: the last helpful rate of each day, oldest first, at most `HISTORY_DAYS` days.
        fell_at: since when all helpful rates lie below the interval of the last day that is `COMPARED_DAYS` old; None:
            the latest does not.
        drift: id, created_at, drifted, severity (with severity_low, severity_high) of the latest check.
        service: champion, champion_since, has_previous, previous, canary, share, rollout, event, changed, changed_at,
            change_reason.
        approvals: id, kind, version, expires_at, the first to expire first.
        labels: open label requests, without those that enough experts have answered.
        run: id, state, started_at, finished_at, version, error and refusal (by the gate) of the run under way or in
            line, else of the latest.
        blind: monitor, found, needed, what.
        earned: gains less costs of this month; None: nothing is booked.
        paused: actor and reason.
    """

    workload: str
    answers: int = 0
    counted: Mapping[str, int] = field(default_factory=dict)
    since: datetime | None = None
    rated: bool = False
    helpful: Rate | None = None
    history: tuple[tuple[date, Rate], ...] = ()
    fell_at: datetime | None = None
    hallucination: Rate | None = None
    drift: dict[str, Any] | None = None
    service: dict[str, Any] | None = None
    approvals: tuple[dict[str, Any], ...] = ()
    run: dict[str, Any] | None = None
    labels: int = 0
    blind: tuple[dict[str, Any], ...] = ()
    earned: float | None = None
    paused: dict[str, Any] | None = None


def facts(
    warehouse: Warehouse, workloads: Iterable[str], now: datetime, opinions: Callable[[str], int] = lambda _: 1
) -> list[Facts]:
    """Returns the facts of each workload, in the given order, all of one moment.

    Args:
        opinions: how many experts must agree in a workload.
    """
    names = list(workloads)
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)

    def rows(query: str, **more: datetime) -> defaultdict[str | None, list[dict[str, Any]]]:
        grouped = defaultdict[str | None, list[dict[str, Any]]](list)
        given = {"workloads": names} if query != "pauses" else {}
        for row in warehouse.rows(QUERIES[query], given | more):
            grouped[row.pop("workload")].append(row)
        return grouped

    with warehouse.snapshot():
        week = day - timedelta(days=COMPARED_DAYS)
        figures = latest(warehouse, names)
        rates = rows("rates", since=day - timedelta(days=HISTORY_DAYS - 1), week=week)
        drift, service, approvals, runs = rows("drift"), rows("service"), rows("approvals"), rows("runs")
        labels, blind, pauses = rows("labels"), rows("blind"), rows("pauses")
        money, answers = rows("money", month=day.replace(day=1)), rows("answers", day=now - timedelta(days=1))
    return [
        Facts(
            workload=name,
            answers=_first(answers[name], "answers") or 0,
            counted={row["model"]: row["n"] for row in figures[name] if row["metric"] == "window_seconds"},
            since=_first(figures[name], "since"),
            rated=any(row["metric"] in RATES.values() and row["source"] != CALIBRATED for row in figures[name]),
            helpful=_current(figures[name], "helpful_rate", ("user",)),
            history=_history(rates[name]),
            fell_at=_first(rates[name], "fell_at"),
            hallucination=_current(figures[name], "hallucination_rate", HALLUCINATION_SOURCES),
            drift=next(iter(drift[name]), None),
            service=next(iter(service[name]), None),
            approvals=tuple(approvals[name]),
            run=next(iter(runs[name]), None),
            labels=sum(row["requests"] for row in labels[name] if _waits(row["work"], now, opinions(name))),
            blind=tuple(blind[name]),
            earned=_first(money[name], "earned"),
            paused=next(iter(pauses[name] or pauses[None]), None),
        )
        for name in names
    ]


def _history(rows: list[dict[str, Any]]) -> tuple[tuple[date, Rate], ...]:
    columns = ("days", "values", "lows", "highs", "ns")
    return tuple(
        (day, Rate(*rate)) for row in rows for day, *rate in zip(*(row[name] for name in columns), strict=True)
    )


def _waits(work: list[dict[str, Any]], now: datetime, opinions: int) -> bool:
    """Whether a request still needs an answer."""
    return not work or status([Work(**one) for one in work], "", now, opinions) != "answered"


def _first(rows: list[dict[str, Any]], column: str) -> Any:
    return rows[0][column] if rows else None


def _current(rows: list[dict[str, Any]], metric: str, sources: tuple[str, ...]) -> Rate | None:
    """The figure of all models, by the first of the sources that has one."""
    current = {
        row["source"]: Rate(row["value"], row["low"], row["high"], row["n"])
        for row in rows
        if (row["metric"], row["model"]) == (metric, ALL_MODELS)
    }
    return next((current[source] for source in sources if source in current), None)
