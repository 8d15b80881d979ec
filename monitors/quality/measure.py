"""Quality: hallucination, contradiction and helpful rates, latency and tokens of a workload's current window."""

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.common import tool_calls
from retuned.consumers.common.tone import likeness
from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors.answers import words
from retuned.monitors.blindness import note
from retuned.monitors.hallucination.judgeable import is_judgeable
from retuned.monitors.hallucination.opinions import Answer, Opinions
from retuned.monitors.hallucination.rules import grounding
from retuned.monitors.quality.consistency import contradictions, last_question, question
from retuned.monitors.settings import Settings
from retuned.monitors.statistics import clustered_rate, stratified_rate, wilson
from retuned.monitors.windows import Window, sample, windows

QUERIES = named_queries("retuned.monitors.quality", "quality.sql")
ALL_MODELS = "*"
MOST_MODELS = 10
"""So many models of a workload have figures of their own, the busiest of the window; the rest is the model `other`."""
OPINIONS_SEED = "opinions"
RATES = {"hallucination": "hallucination_rate", "helpful": "helpful_rate"}
EVERY_HOUR = timedelta(days=30)
CALIBRATION_DAYS = 90
"""Labels younger than this tell what alarms of the grounding scorer come to."""
CALIBRATION_ANSWERS = 300
"""The latest so many of them."""
CALIBRATION_MINIMUM = 20
"""Of alarms and of other answers alike, so many must be labelled."""
APPROVED_DAYS = 90
"""Answers approved in the last days tell how answers ought to sound."""
APPROVED_ANSWERS, APPROVED_MINIMUM = 300, 20
"""The latest so many of them, and how many it takes."""
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
    within a kind the labelled answers are like the others. Without labels, alarms are no hallucination rate. `llm` and
    `nli` are the configured judge and NLI model (see Opinions), of all models alone; `judge` is feedback that came in.
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
    conversations, needed = found.current.conversations if found else 0, settings.windows.minimum_rows
    what = "conversations in the current window (windows.current_seconds, windows.minimum_rows)"
    note(warehouse, workload, "quality", conversations, needed, what, now)
    if found is None:
        return []
    judgements.follow(warehouse)
    with warehouse.cursor() as cursor:
        window = {"workload": workload, "start": found.current.start, "end": found.current.end}
        cursor.execute(QUERIES["window"], window)
        cursor.execute(QUERIES["busiest"], {"most": MOST_MODELS})
        cursor.execute(QUERIES["name_others"])
        figures = (
            _rates(cursor, workload, found.current, now)
            + _grounding_rates(cursor, settings, workload, found.current, now)
            + _of_texts(cursor, workload, found.current, now)
            + (_opinions(cursor, settings, workload, found.current, now, opinions) if opinions else [])
            + _latency(cursor, workload)
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
    cursor: duckdb.DuckDBPyConnection, settings: Settings, workload: str, window: Window, now: datetime
) -> list[Figure]:
    sample(cursor, "sampled_answers", workload, window, settings.windows.sample_rows, now.isoformat())
    threshold = settings.quality.grounding_threshold
    verdicts: dict[str, list[bool | None]] = defaultdict(list)
    for model, messages, response, context in cursor.execute(QUERIES["grounded"]).fetchall():
        if not words(response):
            continue
        verdict = alarms(messages, response, context, threshold)
        verdicts[model].append(verdict)
        verdicts[ALL_MODELS].append(verdict)
    figures = []
    for model, found in sorted(verdicts.items()):
        judged = [verdict for verdict in found if verdict is not None]
        abstained = wilson(len(found) - len(judged), len(found))
        figures.append(Figure(workload, model, "abstention_rate", "grounding", *abstained, len(found)))
        if judged:
            alarmed = wilson(sum(judged), len(judged))
            figures.append(Figure(workload, model, "alarm_rate", "grounding", *alarmed, len(judged)))
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
        passages, asked, said = _passages(context), last_question(messages), words(response)
        if said:
            grounded = grounding(said, passages, asked) if is_judgeable(said, passages) else None
            answers.append(Answer(identity, asked, passages, said, grounded, settings.objective))
    return [
        Figure(workload, ALL_MODELS, "hallucination_rate", source, *rate)
        for source, rate in opinions.rates(workload, answers, now).items()
    ]


def _passages(context: str) -> tuple[str, ...]:
    return tuple(passage for passage in json.loads(context) if isinstance(passage, str))


def alarms(messages: str, response: str, context: str, threshold: float) -> bool | None:
    """Whether the grounding scorer takes the words of an answer for invented; None: it cannot judge them.

    Args:
        messages, response, context: as they are stored.
    """
    passages, said = _passages(context), words(response)
    if not is_judgeable(said, passages):
        return None
    return grounding(said, passages, last_question(messages)) < threshold


def _calibrated(
    cursor: duckdb.DuckDBPyConnection, measured: list[Figure], workload: str, threshold: float, now: datetime
) -> list[Figure]:
    """The hallucination rate of each model whose alarms and other answers people labelled, post-stratified by alarm."""
    since = now - timedelta(days=CALIBRATION_DAYS)
    wanted = {"workload": workload, "since": since, "most": CALIBRATION_ANSWERS}
    labels: dict[tuple[str, bool], list[bool]] = defaultdict(list)
    for model, messages, response, context, invented in cursor.execute(QUERIES["labelled"], wanted).fetchall():
        verdict = alarms(messages, response, context, threshold)
        if verdict is not None:
            labels[model, verdict].append(invented)
            labels[ALL_MODELS, verdict].append(invented)
    figures = []
    for figure in measured:
        if figure.metric != "alarm_rate":
            continue
        alarmed = round(figure.value * figure.n)
        strata = [
            (size, len(of_kind), sum(of_kind))
            for size, of_kind in (
                (alarmed, labels[figure.model, True]),
                (figure.n - alarmed, labels[figure.model, False]),
            )
        ]
        rate = stratified_rate(strata)
        if rate and all(labelled >= CALIBRATION_MINIMUM for size, labelled, _ in strata if size):
            source = "grounding_calibrated"
            figures.append(Figure(workload, figure.model, "hallucination_rate", source, *rate, figure.n))
    return figures


def _of_texts(cursor: duckdb.DuckDBPyConnection, workload: str, window: Window, now: datetime) -> list[Figure]:
    """What the sampled answers say of each other, and how they sound: those that have words."""
    answers: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for model, messages, context, response in cursor.execute(QUERIES["asked"]).fetchall():
        if not (said := words(response)):
            continue
        for who in (model, ALL_MODELS):
            answers[who].append((question(messages, context), said))
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
    stored = [
        tool_calls.answer_text(json.loads(answer))
        for (answer,) in cursor.execute(QUERIES["approved"], wanted).fetchall()
    ]
    approved = [said for text in stored if (said := words(text))]
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
