"""Quality: hallucination, contradiction and helpful rates, latency and tokens of a workload's current window."""

import json
import math
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.common.tone import Features, likeness
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors.answers import words
from retuned.monitors.blindness import note
from retuned.monitors.hallucination.grounding import Grounding
from retuned.monitors.hallucination.opinions import Opinions
from retuned.monitors.hallucination.scorer import Abstention, Answer, Judgement
from retuned.monitors.quality.consistency import contradictions, last_question
from retuned.monitors.quality.readings import APPROVED_MINIMUM, Key, Reading, Readings, sampled, texts
from retuned.monitors.settings import Settings
from retuned.monitors.statistics import clustered_rate, stratified_rate, wilson
from retuned.monitors.windows import Window, current, sample

QUERIES = named_queries("retuned.monitors.quality", "quality.sql")
ALL_MODELS = "*"
MOST_MODELS = 10
"""So many models of a workload have figures of their own, the busiest of the window; the rest is the model `other`."""
SEED = "quality"
"""The sample is the same one each time: what was judged once stays in it for as long as it is in the window."""
RATES = {"hallucination": "hallucination_rate", "helpful": "helpful_rate"}
EVERY_HOUR = timedelta(days=30)
CALIBRATION_DAYS = 90
"""Labels younger than this tell what alarms of the grounding scorer come to."""
CALIBRATION_ANSWERS = 300
"""The latest so many of them."""
CALIBRATION_MINIMUM = 20
"""Of alarms and of other answers alike, so many must be labelled."""
GROUNDINGS_DAYS = 7
"""Older groundings of answers without a label are removed."""
QUANTILES = {0.5: "latency_p50_seconds", 0.95: "latency_p95_seconds", 0.99: "latency_p99_seconds"}


@dataclass(frozen=True)
class Figure:
    """One figure of one model, or of all (`*`), with its 95% interval and what it was counted from.

    Metrics: `hallucination_rate` (sources user, expert, judge, app, grounding_calibrated, llm, nli), `alarm_rate` (of
    the answers that the grounding scorer can judge, the share on which it alarms; source grounding), `abstention_rate`
    (of the answers with passages, the share that it cannot judge; source grounding), `contradiction_rate` (of pairs of
    answers to the same question; source grounding), `tone_likeness` (to approved answers, in tone and format, see
    `tone.likeness`; source features), `helpful_rate` (sources as in feedback; of votes, as of `hallucination_rate` by
    user, expert, judge and app, see `judgements.comparable_votes`), `latency_p50_seconds`,
    `latency_p95_seconds`, `latency_p99_seconds`, `input_tokens` and `output_tokens` (means of one interaction; source
    app). Sources are never mixed. `n` is at least 1, and no value is ever NaN.

    `grounding_calibrated` is the share that labels (`hallucination` by experts or, where no expert looked, by users)
    and alarms amount to: labelled alarms and other labelled answers, each weighed by how many of their kind there are,
    so it may be alarms that people mostly label. It needs CALIBRATION_MINIMUM labels of each kind, and assumes that
    within a kind the labelled answers are like the others: where experts labelled as many that were drawn at random
    (label requests with the reason calibration), these alone count. Without labels, alarms are no hallucination rate.
    `llm` and `nli` are the configured judge and NLI model (see Opinions), of all models alone; `judge` is feedback that
    came in.
    """

    workload: str
    model: str
    metric: str
    source: str
    value: float
    low: float
    high: float
    n: int


def measure(
    warehouse: Warehouse,
    settings: Settings,
    workload: str,
    now: datetime,
    opinions: Opinions | None = None,
    readings: Readings | None = None,
) -> list[Figure]:
    """Measure the current window of a workload and store the figures in `quality`.

    What has no observation has no figure.

    Args:
        readings: what was read of answers at earlier looks; None: this is the only one.

    Raises:
        Cancelled: the opinions' stop was set; nothing was stored.
    """
    found = current(warehouse, settings.windows, workload, now)
    conversations, needed = found.conversations if found else 0, settings.windows.minimum_rows
    what = "conversations in the current window (windows.current_seconds, windows.minimum_rows)"
    note(warehouse, workload, "quality", conversations, needed, what, now)
    if found is None:
        return []
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        cursor.execute(QUERIES["answered"], _span(workload, found))
        cursor.execute(QUERIES["busiest"], {"most": MOST_MODELS})
        cursor.execute(QUERIES["name_others"])
        most = settings.windows.sample_rows
        sample(cursor, "sampled_answers", workload, found, most, SEED, columns="id, timestamp, model")
        cursor.execute(QUERIES["name_sampled"])
        readings = Readings() if readings is None else readings
        read = readings.sampled(cursor, workload)
        approved = readings.approved(cursor, workload, found.start, now)
        stop = opinions.stop if opinions is not None else None
        figures = (
            _rates(cursor, workload, found, now)
            + _grounding_rates(warehouse, cursor, settings, workload, read, now, stop)
            + _of_texts(cursor, workload, read, approved)
            + (_opinions(cursor, settings, workload, read, now, opinions) if opinions else [])
            + _latency(cursor, workload, found)
            + _tokens(cursor, workload)
        )
    if figures:
        rows = [{"created_at": now, **asdict(figure)} for figure in figures]
        warehouse.execute(QUERIES["store"], {"rows": rows})
    return figures


def latest(warehouse: Warehouse, workload: str) -> list[Figure]:
    """The figures of the latest measurement of a workload."""
    return [Figure(**row) for row in warehouse.rows(QUERIES["latest"], {"workload": workload})]


def thin(warehouse: Warehouse, recent: datetime, now: datetime) -> int:
    """Keep all figures since `recent`, then each hour's last for EVERY_HOUR, then each day's; how many were deleted."""
    warehouse.delete(QUERIES["thin_groundings"], {"old": now - timedelta(days=GROUNDINGS_DAYS)})
    return warehouse.delete(QUERIES["thin"], {"recent": recent, "old": min(recent, now - EVERY_HOUR)})


def _rates(cursor: duckdb.DuckDBPyConnection, workload: str, window: Window, now: datetime) -> list[Figure]:
    """What people, judges and apps voted, with intervals for votes of which those of one account are alike."""
    judgements.comparable_votes(cursor, workload, window.start, window.end, now=now)
    units: dict[tuple[str, str, str], dict[tuple[int, int], int]] = defaultdict(dict)
    for name, source, model, yes, n, count in cursor.execute(QUERIES["votes"]).fetchall():
        units[name, source, model][yes, n] = count
    return [
        Figure(
            workload, model, RATES[name], source, *clustered_rate(of), sum(n * count for (_, n), count in of.items())
        )
        for (name, source, model), of in units.items()
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
    since = now - timedelta(days=CALIBRATION_DAYS)
    cursor.execute(QUERIES["labels"], {"workload": workload, "since": since, "most": CALIBRATION_ANSWERS})
    _ground(warehouse, cursor, settings, workload, read, now, stop or threading.Event())
    wanted = {"workload": workload, "threshold": settings.quality.grounding_threshold}
    labels: dict[str, list[_Labels]] = defaultdict(list)
    for model, *row in cursor.execute(QUERIES["calibration"], wanted).fetchall():
        labels[model].append(_Labels(*row))
    figures = []
    for model, n, abstained, alarms in cursor.execute(QUERIES["grounding"], wanted).fetchall():
        figures.append(Figure(workload, model, "abstention_rate", "grounding", *wilson(abstained, n), n))
        judged = n - abstained
        if judged:
            figures.append(Figure(workload, model, "alarm_rate", "grounding", *wilson(alarms, judged), judged))
            rate = _calibrated(alarms, judged, labels[model])
            if rate:
                figures.append(Figure(workload, model, "hallucination_rate", "grounding_calibrated", *rate, judged))
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
    """Have the grounding rules look at what they have not seen."""
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
            }
        )
    if rows:
        warehouse.execute(QUERIES["keep_groundings"], {"rows": rows})


@dataclass(frozen=True)
class _Labels:
    """Labelled answers of one kind, and how many of them are invented."""

    alarm: bool
    requested: bool
    labelled: int
    invented: int


def _calibrated(alarms: int, judged: int, labels: list[_Labels]) -> tuple[float, float, float] | None:
    """The share of invented answers, of labels post-stratified by alarm; None: there are too few of either kind."""
    for chosen in ([one for one in labels if one.requested], labels):
        strata = []
        for alarm, size in ((True, alarms), (False, judged - alarms)):
            of_kind = [one for one in chosen if one.alarm is alarm]
            strata.append((size, sum(one.labelled for one in of_kind), sum(one.invented for one in of_kind)))
        if all(labelled >= CALIBRATION_MINIMUM for size, labelled, _ in strata if size):
            return stratified_rate(strata)
    return None


def _opinions(
    cursor: duckdb.DuckDBPyConnection,
    settings: Settings,
    workload: str,
    read: Mapping[Key, Reading],
    now: datetime,
    opinions: Opinions,
) -> list[Figure]:
    kinds: dict[bool, list[str]] = {True: [], False: []}
    times: dict[str, datetime] = {}
    given = {"workload": workload, "seed": SEED, "with_passages": _with_passages(read)}
    for identity, timestamp, doubtful in cursor.execute(QUERIES["shown"], given).fetchall():
        reading = read.get((identity, timestamp))
        if reading is not None and reading.tone is not None:
            kinds[doubtful].append(identity)
            times[identity] = timestamp

    def answers(identities: Sequence[str]) -> list[Answer]:
        keys = [(identity, times[identity]) for identity in identities]
        by_id = {answer.id: answer for answer in _answers(cursor, workload, keys, settings.objective)}
        return [by_id[identity] for identity in identities if identity in by_id]

    return [
        Figure(workload, ALL_MODELS, "hallucination_rate", source, *rate)
        for source, rate in opinions.rates(workload, kinds[True], kinds[False], now, answers).items()
    ]


def _with_passages(read: Mapping[Key, Reading]) -> list[str]:
    return [identity for (identity, _), reading in read.items() if reading.has_passages]


def _answers(
    cursor: duckdb.DuckDBPyConnection, workload: str, keys: Sequence[Key], objective: str = ""
) -> list[Answer]:
    """The words of answers as they are stored, with their passages."""
    return [
        Answer(
            identity,
            last_question(messages),
            tuple(passage for passage in json.loads(context or "[]") if isinstance(passage, str)),
            words(response),
            objective,
        )
        for identity, _, messages, response, context in texts(cursor, workload, keys)
    ]


def _of_texts(
    cursor: duckdb.DuckDBPyConnection, workload: str, read: Mapping[Key, Reading], approved: Sequence[Features]
) -> list[Figure]:
    """What the sampled answers say of each other, and how they sound: those that have words."""
    answers: dict[str, list[Reading]] = defaultdict(list)
    for identity, timestamp, model in sampled(cursor):
        reading = read.get((identity, timestamp))
        if reading is not None and reading.tone is not None:
            for who in (model, ALL_MODELS):
                answers[who].append(reading)
    return _contradictions(workload, answers) + _tone(workload, answers, approved)


def _contradictions(workload: str, answers: Mapping[str, Sequence[Reading]]) -> list[Figure]:
    counted = {
        model: contradictions((one.question, one.claims) for one in given if one.claims is not None)
        for model, given in sorted(answers.items())
    }
    return [
        Figure(workload, model, "contradiction_rate", "grounding", *wilson(contradicting, pairs), pairs)
        for model, (contradicting, pairs) in counted.items()
        if pairs
    ]


def _tone(workload: str, answers: Mapping[str, Sequence[Reading]], approved: Sequence[Features]) -> list[Figure]:
    if len(approved) < APPROVED_MINIMUM:
        return []
    found = {
        model: likeness([one.tone for one in given if one.tone is not None], approved)
        for model, given in sorted(answers.items())
    }
    return [
        Figure(workload, model, "tone_likeness", "features", *like, len(answers[model]))
        for model, like in found.items()
        if like is not None
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
            ((found,),) = cursor.execute(QUERIES["latencies"], span | wanted).fetchall()
            for place, metric in enumerate(QUANTILES.values()):
                value, low, high = found[3 * place : 3 * place + 3]
                figures.append(Figure(workload, model, metric, "app", value, low, high, n))
    return figures


def _span(workload: str, window: Window) -> dict[str, object]:
    return {"workload": workload, "start": window.start, "end": window.end}


def _ranks(quantile: float, n: int) -> tuple[int, int, int]:
    """The rank of a quantile of n values, and those of its distribution-free 95% interval (Conover 1999, 3.2)."""
    reach = 1.96 * math.sqrt(n * quantile * (1 - quantile))
    low, high = math.floor(n * quantile - reach), math.ceil(n * quantile + reach)
    return math.ceil(n * quantile), max(1, low), min(n, high)


def _tokens(cursor: duckdb.DuckDBPyConnection, workload: str) -> list[Figure]:
    rows = cursor.execute(QUERIES["tokens"]).fetchall()
    return [
        Figure(workload, model, kind, "app", mean, max(mean - half, 0.0), mean + half, n)
        for model, kind, n, mean, half in rows
    ]
