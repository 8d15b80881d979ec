"""`retuned score`: answers scored by a metric or a scorer, and the exam of either."""

import json
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import duckdb

from retuned.consumers import logs
from retuned.consumers.errors import ConfigurationError, RetunedError, WarehouseError
from retuned.consumers.warehouse.connection import utc_now
from retuned.consumers.warehouse.opening import open_existing
from retuned.daemon.cli.known import known_workloads
from retuned.daemon.settings import Settings
from retuned.monitors.hallucination.detector import Detector
from retuned.monitors.hallucination.grounding import Grounding
from retuned.monitors.hallucination.judge import Judge
from retuned.monitors.hallucination.scorer import Abstention, Answer, Scorer, ScorerFailed
from retuned.retrain.scoring import exam
from retuned.retrain.scoring.metric import Chosen, choose, named

MAY_NOT_DECIDE = 4


@dataclass(frozen=True)
class Options:
    """Of the command."""

    file: str | None
    exam: bool
    workload: str | None
    metric: str | None
    scorer: Literal["grounding", "llm", "nli"] | None
    as_json: bool


class WrongCommand(RetunedError):
    """The command line is wrong in a way that its parser does not know."""

    exit_status = 2


@dataclass(frozen=True)
class Row:
    """One scored answer. `score`: 0 to 1; None: abstained. `alarm`: it counts as wrong or invented."""

    id: str
    score: float | None
    abstained: bool
    alarm: bool
    why: str


def score(options: Options, settings: Settings) -> int:
    """Carry the command out.

    Raises:
        RetunedError: a row, the file, the metric or the scorer is not as expected.
    """
    if options.exam == (options.file is not None):
        raise WrongCommand("score: give one of FILE and --exam")
    if options.workload and (known := known_workloads(settings)) and options.workload not in known:
        raise RetunedError(f"workload {options.workload}: unknown; known are {', '.join(known)}")
    own = settings.for_workload(options.workload) if options.workload else settings
    if options.exam:
        return _exam(options, own)
    assert options.file is not None
    rows, scored = list(_rows(options.file, "passages" if options.scorer else "approved")), list[Row]()
    if not rows:
        raise RetunedError(f"score: {options.file} holds no rows")
    if options.scorer:
        found: Iterable[Row] = _by_scorer(_scorer(options.scorer, own), rows)
    else:
        found = _by_metric(_metric(options, own, [row["approved"] for row in rows]), rows)
    for one in found:
        if options.as_json:
            print(json.dumps(vars(one), ensure_ascii=False), flush=True)
        else:
            value = "-" if one.score is None else f"{one.score:.3f}"
            found_to_be = "abstained" if one.abstained else "ALARM" if one.alarm else "no alarm"
            print(f"{one.id}\t{value}\t{found_to_be}\t{one.why}", flush=True)
        scored.append(one)
    judged = [one.score for one in scored if one.score is not None]
    mean = f", mean {fmean(judged):.3f}" if judged else ""
    alarms = sum(one.alarm for one in scored)
    print(f"{len(scored)} rows, {len(judged)} judged{mean}, {alarms} alarms", file=sys.stderr)
    return 0


def _rows(file: str, reference: str) -> Iterator[dict[str, Any]]:
    """The rows of a file, checked.

    Raises:
        RetunedError: it cannot be read, or a row lacks a key or has another type there; with the line and the key.
    """
    name = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read().removeprefix("\ufeff") if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RetunedError(f"score: {name} cannot be read ({error})") from error
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise RetunedError(f"{where}: expected a JSON object ({error})") from error
        if not isinstance(row, dict):
            raise RetunedError(f"{where}: expected a JSON object, not {type(row).__name__}")
        row = {"question": ""} | row
        if isinstance(row.get("id"), int):
            row["id"] = str(row["id"])
        if reference == "passages" and isinstance(row.get("passages"), str):
            row["passages"] = [row["passages"]]
        for key in ("id", "question", reference, "answer"):
            expected: Any = list if key == "passages" else str
            if key not in row:
                raise RetunedError(f"{where}: {key} is missing")
            if not isinstance(row[key], expected):
                kind = "a list of texts" if key == "passages" else "a text"
                raise RetunedError(f"{where}: {key}: expected {kind}, not {type(row[key]).__name__}")
        yield row


def _metric(options: Options, settings: Settings, approved: Sequence[str]) -> Chosen:
    if options.metric and options.metric != "auto":
        return Chosen(named(options.metric, settings, approved), "--metric names it")
    return choose(settings, approved)


def _by_metric(chosen: Chosen, rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    print(chosen, file=sys.stderr)
    for row in rows:
        example = {
            "row_id": row["id"],
            "messages": json.dumps([{"role": "user", "content": row["question"]}]),
            "context": json.dumps(row["passages"]) if row.get("passages") else None,
        }
        found = chosen.metric.score(row["answer"], row["approved"], example)
        wrong = found.value is not None and found.value < chosen.metric.right
        yield Row(row["id"], found.value, found.value is None, wrong, found.detail)


def _scorer(name: str, settings: Settings) -> Scorer:
    quality, stop = settings.quality, threading.Event()
    if name == "grounding":
        return Grounding(quality, stop)
    if name == "llm":
        if quality.judge_url is None:
            raise ConfigurationError("quality.judge_url: null; the scorer llm needs a language model that judges")
        return Judge(quality, stop)
    if quality.detector is None:
        raise ConfigurationError("quality.detector: null; the scorer nli needs a model")
    return Detector(quality.detector, quality.judging_seconds, stop)


def _by_scorer(scorer: Scorer, rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    answers = [Answer(row["id"], row["question"], tuple(map(str, row["passages"])), row["answer"]) for row in rows]
    try:
        found = {id(answer): judged for answer, judged in scorer.judge(answers)}
    except ScorerFailed as error:
        raise RetunedError(f"score: the scorer {scorer.source} judged nothing: {error}") from error
    for answer in answers:
        judged = found.get(id(answer))
        if judged is None:
            yield Row(answer.id, None, True, False, "not judged in time")
        elif isinstance(judged, Abstention):
            yield Row(answer.id, None, True, False, judged.reason)
        else:
            alarm = judged.score < scorer.threshold
            yield Row(answer.id, judged.score, False, alarm, "; ".join(judged.why))


@dataclass(frozen=True)
class _Examined:
    """What is examined, by name and version, and its marks of each source."""

    name: str
    version: str
    marks: dict[str, list[exam.Mark]]


def _exam(options: Options, settings: Settings) -> int:
    workload = options.workload
    with _warehouse(settings, workload) as warehouse:
        pairs = {exam.SHIPPED: exam.shipped()}
        if warehouse is not None and workload is not None:
            pairs[exam.OWN] = exam.own(warehouse, workload)
        found = (
            _of_scorer(options, settings, pairs) if options.scorer else _of_metric(options, settings, pairs, warehouse)
        )
        if warehouse is not None and workload is not None:
            for source, marks in found.marks.items():
                exam.keep(warehouse, workload, found.name, found.version, source, marks, utc_now())
    allowed = exam.may_decide(
        found.name,
        found.marks[exam.SHIPPED],
        found.marks.get(exam.OWN, ()),
        bar=settings.metric.exam_bar,
    )
    for source, marks in found.marks.items():
        for row in exam.summary(marks):
            if options.as_json:
                print(json.dumps({"exam": found.name, "source": source, **row}))
            elif row["pairs"]:
                shares = (f"{row[key]:7.1%}" if row[key] is not None else "      -" for key in ("judged", "agreement"))
                print(f"{source:9}{row['pairs_of']:20}{row['pairs']:5} pairs  judged {'  agreement '.join(shares)}")
    if options.as_json:
        print(json.dumps({"exam": found.name, "may_decide": allowed.granted, "reason": allowed.reason}))
    else:
        print(allowed.reason)
    return 0 if allowed.granted else MAY_NOT_DECIDE


@contextmanager
def _warehouse(settings: Settings, workload: str | None) -> Iterator[duckdb.DuckDBPyConnection | None]:
    """The warehouse, where a workload is examined and no daemon has it open; else None."""
    if workload is None:
        yield None
        return
    try:
        if settings.store.kind == "cluster":
            raise WarehouseError("store.kind is cluster: its daemons alone write to the warehouse")
        warehouse = open_existing(settings.warehouse)
    except WarehouseError as error:
        logs.last_line(f"score: the result is not stored, and pairs of {workload} are left out: {error}")
        yield None
        return
    with closing(warehouse), closing(warehouse.cursor()) as cursor:
        yield cursor


def _of_metric(
    options: Options,
    settings: Settings,
    pairs: Mapping[str, Sequence[exam.Pair]],
    warehouse: duckdb.DuckDBPyConnection | None,
) -> _Examined:
    name = options.metric or settings.metric.name
    workload = options.workload
    kept = exam.kept_metric(warehouse, workload) if warehouse is not None and workload is not None else None
    if name == "auto":
        name = kept["name"] if kept else choose(settings, []).metric.name
    metric = named(name, settings, [pair.approved for pair in pairs[exam.SHIPPED]], kept)
    marks = {exam.SHIPPED: exam.examined(name, settings, pairs[exam.SHIPPED])}
    if exam.OWN in pairs:
        marks[exam.OWN] = exam.examine(pairs[exam.OWN], lambda pair: exam.is_right(metric, pair))
    return _Examined(metric.examined_as or metric.name, metric.version, marks)


def _of_scorer(options: Options, settings: Settings, pairs: Mapping[str, Sequence[exam.Pair]]) -> _Examined:
    """The approved answer is the passage: an answer that means the same invents nothing."""
    assert options.scorer is not None
    scorer = _scorer(options.scorer, settings)
    marks = {}
    for source, those in pairs.items():
        rows = [{"id": p.id, "question": p.question, "passages": [p.approved], "answer": p.answer} for p in those]
        found = {row.id: None if row.abstained else not row.alarm for row in _by_scorer(scorer, rows)}
        marks[source] = exam.examine(those, lambda pair, found=found: found[pair.id])  # type: ignore[misc]
    return _Examined(options.scorer, version("retuned"), marks)
