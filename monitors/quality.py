"""Quality: hallucination, contradiction and helpful rates, latency and tokens of a workload's current window."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.tone import likeness
from retuned.consumers.warehouse import Warehouse, insert, named_queries
from retuned.monitors.consistency import contradictions, last_question, question
from retuned.monitors.grounding import grounding
from retuned.monitors.opinions import Answer, Opinions
from retuned.monitors.settings import Settings
from retuned.monitors.statistics import corrected_rate, wilson
from retuned.monitors.windows import SQL, Window, sample, windows

QUERIES = named_queries(SQL, "quality.sql")
ALL_MODELS = "*"
OPINIONS_SEED = "opinions"
RATES = {"hallucination": "hallucination_rate", "helpful": "helpful_rate"}
EVERY_MINUTE, EVERY_HOUR = timedelta(days=2), timedelta(days=90)
CALIBRATION_DAYS = 90
"""Labels younger than this tell how well the grounding scorer does."""
CALIBRATION_ANSWERS = 300
"""The latest so many of them."""
CALIBRATION_MINIMUM = 20
"""Of invented and of right answers alike, so many must be labelled."""
APPROVED_DAYS = 90
"""Answers approved in the last days tell how answers ought to sound."""
APPROVED_ANSWERS, APPROVED_MINIMUM = 300, 20
"""The latest so many of them, and how many it takes."""
QUANTILES = {0.5: "latency_p50_seconds", 0.95: "latency_p95_seconds", 0.99: "latency_p99_seconds"}


@dataclass(frozen=True)
class Figure:
    """One figure of one model, or of all (`*`), with its 95% interval and what it was counted from.

    Metrics: `hallucination_rate` (sources user, expert, judge, app, grounding, grounding_calibrated, llm, nli),
    `contradiction_rate` (of pairs of answers to the same question; source grounding), `tone_likeness` (to approved
    answers, in tone and format, see `tone.likeness`; source features), `helpful_rate` (sources as in
    feedback), `latency_p50_seconds`, `latency_p95_seconds`, `latency_p99_seconds`, `input_tokens` and `output_tokens`
    (means of one interaction; source app). Sources are never mixed. `n` is at least 1, and no value is ever NaN.

    `grounding_calibrated` is the grounding scorer's rate, corrected for its errors as answers that people labelled show
    them: `hallucination` by experts or, where no expert looked, by users. It needs enough labels of both kinds, and
    rests on the labelled answers being no harder to tell than the others. `llm` and `nli` are the configured judge and
    NLI model (see Opinions), of all models alone; `judge` is feedback that came in.
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
    warehouse: Warehouse, settings: Settings, workload: str, now: datetime, opinions: Opinions | None = None
) -> list[Figure]:
    """Measure the current window of a workload and store the figures in `quality`.

    What has no observation has no figure.

    Raises:
        Cancelled: the opinions' stop was set; nothing was stored.
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
            + _of_texts(cursor, workload, found.current, now)
            + (_opinions(cursor, settings, workload, found.current, now, opinions) if opinions else [])
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
    threshold = settings.quality.grounding_threshold
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for model, messages, response, context in cursor.execute(QUERIES["grounded"]).fetchall():
        invented = is_invented(messages, response, context, threshold)
        verdicts[model].append(invented)
        verdicts[ALL_MODELS].append(invented)
    figures = [
        Figure(workload, model, "hallucination_rate", "grounding", *wilson(sum(invented), len(invented)), len(invented))
        for model, invented in sorted(verdicts.items())
    ]
    return figures + _calibrated(cursor, figures, workload, threshold, now)


def _opinions(
    cursor: duckdb.DuckDBPyConnection,
    settings: Settings,
    workload: str,
    window: Window,
    now: datetime,
    opinions: Opinions,
) -> list[Figure]:
    # The same seed each time: what was shown once stays in the sample for as long as it is in the window.
    sample(cursor, "shown_answers", workload, window, settings.windows.sample_rows, OPINIONS_SEED)
    answers = []
    for identity, messages, response, context in cursor.execute(QUERIES["shown"], {"seed": OPINIONS_SEED}).fetchall():
        passages, asked = _passages(context), last_question(messages)
        answers.append(Answer(identity, asked, passages, response, grounding(response, passages, asked)))
    return [
        Figure(workload, ALL_MODELS, "hallucination_rate", source, *rate)
        for source, rate in opinions.rates(workload, answers, now).items()
    ]


def _passages(context: str) -> tuple[str, ...]:
    return tuple(passage for passage in json.loads(context) if isinstance(passage, str))


def is_invented(messages: str, response: str, context: str, threshold: float) -> bool:
    """Whether the grounding scorer calls an answer invented; messages and context as they are stored."""
    return grounding(response, _passages(context), last_question(messages)) < threshold


def _calibrated(
    cursor: duckdb.DuckDBPyConnection, measured: list[Figure], workload: str, threshold: float, now: datetime
) -> list[Figure]:
    labelled = cursor.execute(
        QUERIES["labelled"],
        {"workload": workload, "since": now - timedelta(days=CALIBRATION_DAYS), "most": CALIBRATION_ANSWERS},
    ).fetchall()
    verdicts: dict[bool, list[bool]] = {True: [], False: []}
    for messages, response, context, label in labelled:
        verdicts[label].append(is_invented(messages, response, context, threshold))
    positives, negatives = verdicts[True], verdicts[False]
    if min(len(positives), len(negatives)) < CALIBRATION_MINIMUM:
        return []
    errors = sum(positives), len(positives), len(negatives) - sum(negatives), len(negatives)
    return [
        replace(figure, source="grounding_calibrated", value=rate[0], low=rate[1], high=rate[2])
        for figure in measured
        if (rate := corrected_rate(round(figure.value * figure.n), figure.n, *errors)) is not None
    ]


def _of_texts(cursor: duckdb.DuckDBPyConnection, workload: str, window: Window, now: datetime) -> list[Figure]:
    """What the sampled answers say of each other, and how they sound."""
    answers: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for model, messages, context, response in cursor.execute(QUERIES["asked"]).fetchall():
        for who in (model, ALL_MODELS):
            answers[who].append((question(messages, context), response))
    return _contradictions(workload, answers) + _tone(cursor, workload, window, now, answers)


def _contradictions(workload: str, answers: dict[str, list[tuple[str, str]]]) -> list[Figure]:
    counted = {model: contradictions(given) for model, given in sorted(answers.items())}
    return [
        Figure(workload, model, "contradiction_rate", "grounding", *wilson(contradicting, pairs), pairs)
        for model, (contradicting, pairs) in counted.items()
        if pairs
    ]


def _tone(
    cursor: duckdb.DuckDBPyConnection,
    workload: str,
    window: Window,
    now: datetime,
    answers: dict[str, list[tuple[str, str]]],
) -> list[Figure]:
    since = now - timedelta(days=APPROVED_DAYS)
    wanted = {"workload": workload, "since": since, "start": window.start, "most": APPROVED_ANSWERS}
    approved = [text for (text,) in cursor.execute(QUERIES["approved"], wanted).fetchall()]
    if len(approved) < APPROVED_MINIMUM:
        return []
    found = {model: likeness([text for _, text in given], approved) for model, given in sorted(answers.items())}
    return [
        Figure(workload, model, "tone_likeness", "features", *like, len(answers[model]))
        for model, like in found.items()
        if like is not None
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
