"""Quality: hallucination and helpful rates, latency and tokens of the current window of a workload."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.warehouse import Warehouse, insert, named_queries
from retuned.monitors.grounding import grounding
from retuned.monitors.settings import Settings
from retuned.monitors.statistics import wilson
from retuned.monitors.windows import SQL, Window, sample, windows

QUERIES = named_queries(SQL, "quality.sql")
ALL_MODELS = "*"
RATES = {"hallucination": "hallucination_rate", "helpful": "helpful_rate"}
EVERY_MINUTE, EVERY_HOUR = timedelta(days=2), timedelta(days=90)
QUANTILES = {0.5: "latency_p50_seconds", 0.95: "latency_p95_seconds", 0.99: "latency_p99_seconds"}


@dataclass(frozen=True)
class Figure:
    """One figure of one model, or of all (`*`), with its 95% interval and what it was counted from.

    Metrics: `hallucination_rate` (sources user, expert, judge, app, and grounding), `helpful_rate` (sources as in
    feedback), `latency_p50_seconds`, `latency_p95_seconds`, `latency_p99_seconds`, `input_tokens` and `output_tokens`
    (means of one interaction; source app). Sources are never mixed. `n` is at least 1, and no value is ever NaN.
    """

    workload: str
    model: str
    metric: str
    source: str
    value: float
    low: float
    high: float
    n: int


def measure(warehouse: Warehouse, settings: Settings, workload: str, now: datetime) -> list[Figure]:
    """Measure the current window of a workload and store the figures in `quality`.

    What has no observation has no figure.
    """
    found = windows(warehouse, settings.windows, workload, now)
    if found is None:
        return []
    with warehouse.cursor() as cursor:
        window = {"workload": workload, "start": found.current.start, "end": found.current.end}
        cursor.execute(QUERIES["window"], window)
        figures = (
            _rates(cursor, workload, found.current.start)
            + _grounding_rates(cursor, settings, workload, found.current, now)
            + _latency(cursor, workload)
            + _tokens(cursor, workload)
        )
    with warehouse.transaction() as cursor:
        for figure in figures:
            insert(cursor, "quality", created_at=now, **asdict(figure))
    return figures


def latest(warehouse: Warehouse, workload: str) -> list[Figure]:
    """The figures of the latest measurement of a workload."""
    return [Figure(**row) for row in warehouse.rows(QUERIES["latest"], {"workload": workload})]


def thin(warehouse: Warehouse, now: datetime) -> None:
    """Keep each minute's figures for EVERY_MINUTE, then each hour's last for EVERY_HOUR, then each day's."""
    warehouse.execute(QUERIES["thin"], {"recent": now - EVERY_MINUTE, "old": now - EVERY_HOUR})


def _rates(cursor: duckdb.DuckDBPyConnection, workload: str, start: datetime) -> list[Figure]:
    rows = cursor.execute(QUERIES["votes"], {"start": start}).fetchall()
    return [Figure(workload, model, RATES[name], source, *wilson(yes, n), n) for name, source, model, yes, n in rows]


def _grounding_rates(
    cursor: duckdb.DuckDBPyConnection, settings: Settings, workload: str, window: Window, now: datetime
) -> list[Figure]:
    sample(cursor, "sampled_answers", workload, window, settings.windows.sample_rows, now.isoformat())
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for model, response, context in cursor.execute(QUERIES["grounded"]).fetchall():
        passages = [passage for passage in json.loads(context) if isinstance(passage, str)]
        invented = grounding(response, passages) < settings.quality.grounding_threshold
        verdicts[model].append(invented)
        verdicts[ALL_MODELS].append(invented)
    return [
        Figure(workload, model, "hallucination_rate", "grounding", *wilson(sum(invented), len(invented)), len(invented))
        for model, invented in sorted(verdicts.items())
    ]


def _latency(cursor: duckdb.DuckDBPyConnection, workload: str) -> list[Figure]:
    rows = cursor.execute(QUERIES["latency"]).fetchall()
    return [
        Figure(workload, model, QUANTILES[float(quantile)], "app", value, low, high, n)
        for model, quantile, n, value, low, high in rows
    ]


def _tokens(cursor: duckdb.DuckDBPyConnection, workload: str) -> list[Figure]:
    rows = cursor.execute(QUERIES["tokens"]).fetchall()
    return [
        Figure(workload, model, kind, "app", mean, max(mean - half, 0.0), mean + half, n)
        for model, kind, n, mean, half in rows
    ]
