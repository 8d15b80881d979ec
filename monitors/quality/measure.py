"""Quality: hallucination, contradiction and helpful rates, tone, latency and tokens of a workload's current window."""

import json
import math
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Any

import duckdb

from retuned.consumers.common.calibration import Stratum
from retuned.consumers.common.tone import Features, likeness
from retuned.consumers.formats.messages import texts_of
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors.answers import words
from retuned.monitors.blindness import note
from retuned.monitors.hallucination.grounding import Grounding
from retuned.monitors.hallucination.opinions import Opinions
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement
from retuned.monitors.quality import cascade
from retuned.monitors.quality.consistency import contradictions, last_question
from retuned.monitors.quality.figure import ALL_MODELS, Figure
from retuned.monitors.quality.readings import APPROVED_MINIMUM, Key, Reading, Readings, has_passages, sampled, texts
from retuned.monitors.rates.estimate import rate
from retuned.monitors.rates.votes import read_votes
from retuned.monitors.settings import Settings
from retuned.monitors.statistics import stratified_rate, wilson
from retuned.monitors.windows import Window, current, sample

QUERIES = named_queries("retuned.monitors.quality", "quality.sql")
MOST_MODELS = 10
"""The busiest models of a window have figures of their own; all others together are the model `other`."""
SEED = "quality"
"""A fixed seed: an answer that was judged stays in the sample while it is in the window."""
Rows = defaultdict[str, list[dict[str, Any]]]
"""Rows by workload."""
RATES = {"hallucination": "hallucination_rate", "helpful": "helpful_rate"}
EVERY_HOUR = timedelta(days=30)
CALIBRATION_DAYS = 90
"""Alarms are calibrated by the labels of this many days."""
CALIBRATION_ANSWERS = 300
"""The most labels used, the latest first."""
GROUNDINGS_DAYS = 7
"""Older groundings and detections of answers without a label are removed, unless the window is longer."""
QUANTILES = {0.5: "latency_p50_seconds", 0.95: "latency_p95_seconds", 0.99: "latency_p99_seconds"}


def measure(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    now: datetime,
    opinions: Opinions | None = None,
    readings: Readings | None = None,
    least_helpful: float | None = None,
) -> list[Figure]:
    """Measures the current window of a workload and stores the figures in `quality`.

    A metric without observations has no figure.

    Args:
        opinions: of these the stored verdicts count, see `judge`.
        readings: a cache of texts that were read by earlier measurements; None: no cache.
        least_helpful: `cascade.helpful_rate`.

    Raises:
        Cancelled: the opinions' stop was set; nothing was stored.
    """
    window = current(warehouse, settings.windows, workload, now)
    conversations, needed = window.conversations if window else 0, settings.windows.minimum_rows
    what = "conversations in the current window (windows.current_seconds, windows.minimum_rows)"
    note(warehouse, workload, "quality", conversations, needed, what, now)
    if window is None:
        return []
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        _sample(cursor, settings, workload, window, now)
        readings = Readings() if readings is None else readings
        read = readings.sampled(cursor, workload)
        approved = readings.approved(cursor, workload, window.start, now)
        stop = opinions.stop if opinions is not None else None
        figures = (
            _counts(cursor, workload, window)
            + _rates(cursor, workload, window, now)
            + cascade.figures(warehouse, cursor, workload, window, now, least_helpful)
            + _grounding_rates(warehouse, cursor, settings, workload, read, now, stop)
            + (_alarm_rates(cursor, workload, opinions) if opinions else [])
            + _calibrated(warehouse, cursor, workload, now)
            + _text_figures(cursor, workload, read, approved)
            + _latency(cursor, workload, window)
            + _tokens(cursor, workload)
        )
    if figures:
        rows = [{"created_at": now, **asdict(figure)} for figure in figures]
        with warehouse.transaction() as cursor:
            cursor.execute(QUERIES["ahead"], {"workload": workload, "now": now})
            cursor.execute(QUERIES["store"], {"rows": rows})
    return figures


def judge(warehouse: Warehouse, settings: Settings, workload: str, now: datetime, opinions: Opinions) -> None:
    """Asks the judge and the detector that are due about new answers of a workload, labelled ones first, and stores
    their verdicts.

    Raises:
        Cancelled: the opinions' stop was set.
    """
    window = current(warehouse, settings.windows, workload, now)
    if window is None or not window.conversations:
        return
    due = list(opinions.due(workload, now))
    if not due:
        return
    waiting = []
    with warehouse.cursor() as cursor:  # closed while a judge is asked: what needs the warehouse alone need not wait
        _sample(cursor, settings, workload, window, now)
        keys = [(identity, timestamp) for identity, timestamp, _ in sampled(cursor)]
        with_words = [
            identity
            for identity, _, _, response, context in texts(cursor, workload, keys)
            if has_passages(context) and words(response)
        ]
        for opinion in due:
            given = {"workload": workload, "scorer": opinion.scorer.source, "model": opinion.model}
            wanted = given | {"seed": SEED, "with_passages": with_words, "most": settings.quality.judged_answers}
            keys = cursor.execute(QUERIES["undetected"], wanted).fetchall()
            waiting.append((opinion, given, _answers(cursor, workload, keys, settings.objective)))
    for opinion, given, answers in waiting:
        detections = opinions.ask(opinion, answers) if answers else []
        if detections:
            rows = [given | {"created_at": now, **asdict(detection)} for detection in detections]
            _replace(warehouse, "detections", rows)


def latest(warehouse: Warehouse, workloads: Iterable[str]) -> Rows:
    """Returns the figures of the latest measurement by workload, with `created_at` and `since`, the ends of its window.

    Figures from before the promotion of the champion are left out: they are of other answers than its own.
    """
    found: Rows = defaultdict(list)
    for row in warehouse.rows(QUERIES["latest"], {"workloads": list(workloads)}):
        found[row.pop("workload")].append(row)
    return found


def thin(warehouse: Warehouse, workloads: Sequence[str], recent: datetime, now: datetime, window: timedelta) -> int:
    """Deletes old figures, and returns how many.

    All figures since `recent` are kept, the last of each hour for EVERY_HOUR, and the last of each day before that.

    Args:
        window: what was found of an answer is kept while the answer may be in the current window of this length.
    """
    old = now - max(timedelta(days=GROUNDINGS_DAYS), window)
    for query in ("thin_groundings", "thin_detections"):
        warehouse.delete(QUERIES[query], {"workloads": workloads, "old": old})
    bounds = {"recent": recent, "old": min(recent, now - EVERY_HOUR)}
    return warehouse.delete(QUERIES["thin"], {"workloads": workloads} | bounds)


def _sample(
    cursor: duckdb.DuckDBPyConnection, settings: Settings, workload: str, window: Window, now: datetime
) -> None:
    """Makes the temporary tables of the models that answer, of the sampled answers and of the labelled ones."""
    cursor.execute(QUERIES["answered"], _span(workload, window))
    cursor.execute(QUERIES["busiest"], {"most": MOST_MODELS})
    cursor.execute(QUERIES["name_others"])
    most = settings.windows.sample_rows
    sample(cursor, "sampled_answers", workload, window, most, SEED, columns="id, timestamp, model")
    cursor.execute(QUERIES["name_sampled"])
    since = now - timedelta(days=CALIBRATION_DAYS)
    cursor.execute(QUERIES["labels"], {"workload": workload, "since": since, "most": CALIBRATION_ANSWERS})


def _counts(cursor: duckdb.DuckDBPyConnection, workload: str, window: Window) -> list[Figure]:
    """Returns the length of the window, with the number of answers that all figures are of."""
    seconds = (window.end - window.start).total_seconds()
    return [
        Figure(workload, model, "window_seconds", "app", seconds, seconds, seconds, answers)
        for model, answers in cursor.execute(QUERIES["counted"]).fetchall()
    ]


def _rates(cursor: duckdb.DuckDBPyConnection, workload: str, window: Window, now: datetime) -> list[Figure]:
    """Returns the rates of votes of people, judges and apps, with intervals for clustered votes."""
    judgements.comparable_votes(cursor, workload, window.start, window.end, now=now)
    cursor.execute(QUERIES["votes"])
    return [
        Figure(workload, model, RATES[name], source, *rate(votes), round(votes.sums[1]))
        for (name, source, model), votes in read_votes(cursor).items()
    ]


def _grounding_rates(
    warehouse: Warehouse,
    cursor: duckdb.DuckDBPyConnection,
    settings: Settings,
    workload: str,
    read: Mapping[Key, Reading],
    now: datetime,
    stop: threading.Event | None,
) -> list[Figure]:
    _ground(warehouse, cursor, settings, workload, read, now, stop or threading.Event())
    figures = []
    for model, n, abstained, alarms in cursor.execute(QUERIES["grounding"], {"workload": workload}).fetchall():
        figures.append(Figure(workload, model, "abstention_rate", "grounding", *wilson(abstained, n), n))
        judged = n - abstained
        if judged:
            figures.append(Figure(workload, model, "alarm_rate", "grounding", *wilson(alarms, judged), judged))
    return figures


def _ground(
    warehouse: Warehouse,
    cursor: duckdb.DuckDBPyConnection,
    settings: Settings,
    workload: str,
    read: Mapping[Key, Reading],
    now: datetime,
    stop: threading.Event,
) -> None:
    """Scores the answers that the grounding scorer has not judged."""
    unscored = cursor.execute(
        QUERIES["unscored"], {"workload": workload, "with_passages": _with_passages(read)}
    ).fetchall()
    if not unscored:
        return
    scorer = Grounding(settings.quality, stop)
    rows = []
    for answer, found in scorer.judge(_answers(cursor, workload, unscored)):
        score = found.score if isinstance(found, Judgement) else None
        rows.append(
            {
                "interaction_id": answer.id,
                "workload": workload,
                "created_at": now,
                "score": score,
                "alarm": None if score is None else score < scorer.threshold,
                "abstained": found.reason if isinstance(found, Abstention) else None,
                "method": "values",
            }
        )
    if rows:
        _replace(warehouse, "groundings", rows)


def _calibrated(warehouse: Warehouse, cursor: duckdb.DuckDBPyConnection, workload: str, now: datetime) -> list[Figure]:
    """Returns the share of invented answers by labels, weighted by stratum; models with too few labels have none."""
    strata: dict[str, list[Stratum]] = defaultdict(list)
    for model, *row in cursor.execute(QUERIES["strata"], {"workload": workload}).fetchall():
        strata[model].append(Stratum(*row))
    overall = strata[ALL_MODELS]
    needed, missing = sum(stratum.needed for stratum in overall), sum(stratum.missing for stratum in overall)
    what = (
        f"labels; the hallucination rate is not calibrated: {missing} more labels of answers drawn at random "
        "(label requests with the reason calibration)"
    )
    note(warehouse, workload, "hallucination", needed - missing, needed, what, now)
    figures = []
    for model, both in strata.items():
        n = sum(stratum.size for stratum in both)
        rate = stratified_rate([(stratum.size, stratum.labelled, stratum.invented) for stratum in both])
        if n and rate and not any(stratum.missing for stratum in both):
            figures.append(Figure(workload, model, "hallucination_rate", "grounding_calibrated", *rate, n))
    return figures


def _alarm_rates(cursor: duckdb.DuckDBPyConnection, workload: str, opinions: Opinions) -> list[Figure]:
    figures = []
    for opinion in opinions.all:
        source = opinion.scorer.source
        given = {"workload": workload, "scorer": source, "model": opinion.model}
        for n, alarms in cursor.execute(QUERIES["detected"], given).fetchall():
            figures.append(Figure(workload, ALL_MODELS, "alarm_rate", source, *wilson(alarms, n), n))
    return figures


def _replace(warehouse: Warehouse, table: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Stores the results for answers, replacing earlier ones."""
    with warehouse.transaction() as cursor:
        cursor.execute(QUERIES[f"replace_{table}"], {"rows": rows})
        cursor.execute(QUERIES[f"keep_{table}"], {"rows": rows})


def _with_passages(read: Mapping[Key, Reading]) -> list[str]:
    return [identity for (identity, _), reading in read.items() if reading.has_passages]


def _answers(
    cursor: duckdb.DuckDBPyConnection, workload: str, keys: Sequence[Key], objective: str = ""
) -> list[Answer]:
    """Reads the words of answers in the order of the keys, with their passages and conversations."""
    place = {key: number for number, key in enumerate(keys)}
    return [
        Answer(
            identity,
            last_question(messages),
            tuple(passage for passage in json.loads(context or "[]") if isinstance(passage, str)),
            words(response),
            objective,
            tuple(texts_of(message.get("content")) or "" for message in json.loads(messages)),
        )
        for identity, _, messages, response, context in sorted(
            texts(cursor, workload, keys), key=lambda row: place[row[0], row[1]]
        )
    ]


def _text_figures(
    cursor: duckdb.DuckDBPyConnection, workload: str, read: Mapping[Key, Reading], approved: Sequence[Features]
) -> list[Figure]:
    """Returns contradiction rates and tone likeness of the sampled answers with words."""
    answers: dict[str, list[Reading]] = defaultdict(list)
    for identity, timestamp, model in sampled(cursor):
        reading = read.get((identity, timestamp))
        if reading is not None and reading.tone is not None:
            for name in (model, ALL_MODELS):
                answers[name].append(reading)
    return _contradictions(workload, answers) + _tone(workload, answers, approved)


def _contradictions(workload: str, answers: Mapping[str, Sequence[Reading]]) -> list[Figure]:
    counts = {
        model: contradictions((reading.question, reading.claims) for reading in own if reading.claims is not None)
        for model, own in sorted(answers.items())
    }
    return [
        Figure(workload, model, "contradiction_rate", "grounding", *wilson(contradicting, pairs), pairs)
        for model, (contradicting, pairs) in counts.items()
        if pairs
    ]


def _tone(workload: str, answers: Mapping[str, Sequence[Reading]], approved: Sequence[Features]) -> list[Figure]:
    if len(approved) < APPROVED_MINIMUM:
        return []
    by_model = {
        model: likeness([reading.tone for reading in own if reading.tone is not None], approved)
        for model, own in sorted(answers.items())
    }
    return [
        Figure(workload, model, "tone_likeness", "features", *interval, len(answers[model]))
        for model, interval in by_model.items()
        if interval is not None
    ]


def _latency(cursor: duckdb.DuckDBPyConnection, workload: str, window: Window) -> list[Figure]:
    span = _span(workload, window)
    cursor.execute(QUERIES["timed"], {"start": window.start})
    counts = dict(cursor.execute(QUERIES["timed_answers"], span).fetchall())
    figures: list[Figure] = []
    for model, n in sorted({**counts, ALL_MODELS: sum(counts.values())}.items()):
        if len(counts) == 1 and figures:
            figures += [replace(figure, model=model) for figure in figures]
        elif n:
            ranks = [rank for quantile in QUANTILES for rank in _ranks(quantile, n)]
            wanted = {"ranks": [(rank - 0.5) / n for rank in ranks], "model": None if model == ALL_MODELS else model}
            ((latencies,),) = cursor.execute(QUERIES["latencies"], span | wanted).fetchall()
            for place, metric in enumerate(QUANTILES.values()):
                value, low, high = latencies[3 * place : 3 * place + 3]
                figures.append(Figure(workload, model, metric, "app", value, low, high, n))
    return figures


def _span(workload: str, window: Window) -> dict[str, object]:
    return {"workload": workload, "start": window.start, "end": window.end}


def _ranks(quantile: float, n: int) -> tuple[int, int, int]:
    """Returns the rank of a quantile of n values, and of its distribution-free 95% interval (Conover 1999, 3.2)."""
    reach = 1.96 * math.sqrt(n * quantile * (1 - quantile))
    low, high = math.floor(n * quantile - reach), math.ceil(n * quantile + reach)
    return math.ceil(n * quantile), max(1, low), min(n, high)


def _tokens(cursor: duckdb.DuckDBPyConnection, workload: str) -> list[Figure]:
    rows = cursor.execute(QUERIES["tokens"]).fetchall()
    return [
        Figure(workload, model, kind, "app", mean, max(mean - half, 0.0), mean + half, n)
        for model, kind, n, mean, half in rows
    ]
