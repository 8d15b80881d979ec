"""The exam that a metric or scorer must pass before it may decide, on labelled pairs of answers.

A person has labelled for each pair whether both answers have the same meaning. 520 pairs ship with the package
(`exam.jsonl`). A workload adds its own by feedback named `same` on answers with a correction.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb

from retuned.consumers.common import reasoning
from retuned.consumers.common.tool_calls import answer_text, are_calls
from retuned.consumers.warehouse.connection import Warehouse, insert, named_queries
from retuned.retrain.scoring.metric import named
from retuned.retrain.scoring.score import Metric, Score
from retuned.retrain.settings import Settings

SHIPPED, OWN = "shipped", "workload"
FEWEST = 20
"""The minimum number of judged pairs. With fewer, nine right answers in ten may be chance."""

FILE = "exam.json"
"""The file in the folder of an evaluation with the marks of its metric."""
BY_FORM = frozenset({"label", "exact", "json", "tool_calls"})
_KIND_OF = {"label": "labels", "exact": "labels", "json": "json", "code": "code", "tool_calls": "tool_calls"}
"""The kind of pairs for the exam of a metric for one form. Other metrics are examined on all other pairs."""
_AT_ONCE = 4
_QUERIES = named_queries("retuned.retrain.scoring", "exam.sql")

Judge = Callable[["Pair"], bool | None]
"""Returns whether the answer of a pair is right; None abstains."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one question. `same` is a person's label: a customer would learn the same from both."""

    id: str
    kind: str
    language: str
    question: str
    approved: str
    answer: str
    same: bool


@dataclass(frozen=True)
class Mark:
    """The numbers of pairs of a kind and language: all, those judged, and those judged as the label says."""

    kind: str
    language: str
    pairs: int
    judged: int
    agreed: int


@dataclass(frozen=True)
class Permission:
    """Whether a metric or scorer may decide, and the reason as text."""

    granted: bool
    reason: str


def may_decide(name: str, shipped: Sequence[Mark], own: Sequence[Mark] = (), *, bar: float) -> Permission:
    """Returns whether a metric may decide about promotions; otherwise it is for information. Pure.

    It may decide if it judges at least FEWEST pairs and agrees with a share of `bar` of their labels. The workload's
    own pairs replace the shipped ones once FEWEST of them are judged. Metrics of answers for programs (BY_FORM) need no
    exam: a text with the same meaning as the right label is still no label that a program knows.

    Args:
        shipped, own: its newest marks (see `newest`); empty if it was never examined.
        bar: `metric.exam_bar`.
    """
    source, marks = (OWN, own) if sum(mark.judged for mark in own) >= FEWEST else (SHIPPED, shipped)
    judged, agreed = sum(mark.judged for mark in marks), sum(mark.agreed for mark in marks)
    if name in BY_FORM:
        return Permission(True, f"{name} may decide: it compares what programs read, where only the form counts")
    if judged < FEWEST:
        return Permission(
            False,
            f"{name} may not decide: it judges {judged} pairs of the exam, fewer than {FEWEST} (retuned score --exam)",
        )
    which = "shipped pairs" if source == SHIPPED else "pairs of the workload"
    result = f"of the {judged} {which} that it judges, it agrees with people on {agreed / judged:.1%}"
    if agreed < bar * judged:
        return Permission(False, f"{name} may not decide: {result}, below metric.exam_bar ({bar:.0%})")
    return Permission(True, f"{name} may decide: {result}")


def examine(pairs: Iterable[Pair], judge: Judge) -> list[Mark]:
    """Returns the marks of a judge, one for each kind and language. Judges several pairs concurrently."""
    pairs = list(pairs)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        verdicts = list(pool.map(judge, pairs))
    total, judged, agreed = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for pair, verdict in zip(pairs, verdicts, strict=True):
        group = pair.kind, pair.language
        total[group] += 1
        judged[group] += verdict is not None
        agreed[group] += verdict is pair.same
    return [Mark(*group, total[group], judged[group], agreed[group]) for group in sorted(total)]


def due(warehouse: Warehouse, workload: str, metric: Metric) -> dict[str, list[Pair]]:
    """Returns the pairs for the exam of a workload's metric, by source; empty for BY_FORM.

    The shipped pairs are due once for each version of a metric, the workload's own each time, because labels are added
    continuously.
    """
    name = metric.examined_as or metric.name
    if name in BY_FORM:
        return {}
    with warehouse.cursor() as cursor:
        pairs = {OWN: own(cursor, workload)}
        about = {"workload": workload, "metric": name, "source": SHIPPED}
        if cursor.execute(_QUERIES["version"], about).fetchall() != [(metric.version,)]:
            pairs[SHIPPED] = _fitting(metric.name, shipped())
    return pairs


def taken(metric: Metric, pairs: Mapping[str, Sequence[Pair]]) -> tuple[dict[str, list[Mark]], int]:
    """Returns the marks of a metric by source, and the tokens that a judge was paid for."""
    paid: list[int] = []

    def judge(pair: Pair) -> bool | None:
        score = _score(metric, pair)
        paid.append(score.tokens)
        return _right(metric, score)

    return {source: examine(own, judge) for source, own in pairs.items()}, sum(paid)


def read(folder: Path) -> dict[str, list[Mark]]:
    """Reads the marks in the folder of an evaluation, by source; empty if an earlier version wrote it."""
    file = folder / FILE
    marks = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {source: [Mark(**mark) for mark in own] for source, own in marks.items()}


def permission(
    warehouse: duckdb.DuckDBPyConnection,
    workload: str,
    metric: Metric,
    marks: Mapping[str, Sequence[Mark]],
    bar: float,
    now: datetime,
) -> Permission:
    """Returns whether the metric of a workload may decide, by its newest exam. Stores the marks on the shipped pairs.

    Args:
        marks: the marks on the pairs that were `due` (see `taken`).
        bar: `metric.exam_bar`.
    """
    name = metric.examined_as or metric.name
    keep(warehouse, workload, name, metric.version, SHIPPED, marks.get(SHIPPED, ()), now)
    return may_decide(name, newest(warehouse, workload, name, SHIPPED), marks.get(OWN, ()), bar=bar)


def examined(name: str, settings: Settings, pairs: Sequence[Pair]) -> list[Mark]:
    """Returns the marks of a metric on the pairs of its kinds.

    Raises:
        ConfigurationError: there is no such metric, or it lacks something.
    """
    fitting = _fitting(name, pairs)
    metric = named(name, settings, [pair.approved for pair in fitting])
    return examine(fitting, lambda pair: is_right(metric, pair))


def is_right(metric: Metric, pair: Pair) -> bool | None:
    """Returns whether a metric scores the answer of a pair as right; None if it abstains."""
    return _right(metric, _score(metric, pair))


def _right(metric: Metric, score: Score) -> bool | None:
    return None if score.value is None else score.value >= metric.right


def _score(metric: Metric, pair: Pair) -> Score:
    messages = json.dumps([{"role": "user", "content": pair.question}])
    return metric.score(pair.answer, pair.approved, {"row_id": pair.id, "messages": messages, "context": None})


def _fitting(name: str, pairs: Iterable[Pair]) -> list[Pair]:
    """Returns the pairs of a metric's kinds."""
    taken = set(_KIND_OF.values())
    return [pair for pair in pairs if (pair.kind == _KIND_OF[name] if name in _KIND_OF else pair.kind not in taken)]


def shipped() -> list[Pair]:
    """Returns the pairs that ship with the package."""
    text = (files("retuned.retrain.scoring") / "exam.jsonl").read_text(encoding="utf-8")
    return [Pair(**json.loads(line)) for line in text.splitlines()]


def own(warehouse: duckdb.DuckDBPyConnection, workload: str) -> list[Pair]:
    """Returns the labelled pairs of a workload: answers with a correction, or the two answers of a label request."""
    rows = warehouse.execute(_QUERIES["pairs"], {"workload": workload}).fetchall()
    return [
        Pair(identity, OWN, language or "", question or "", shown(**approved), shown(**answer), bool(same))
        for identity, language, question, approved, answer, same in rows
    ]


def shown(correction: str | None, response: str | None, calls: str | None) -> str:
    """Returns the text of an answer as experts see it, without its reasoning; empty if the answer is archived.

    Args:
        correction: JSON; None: the answer is a response.
        calls: the tool calls of the response, JSON.
    """
    logged = json.loads(calls) if calls else None
    given: Any = {"content": response, "tool_calls": logged} if are_calls(logged) else response or ""
    return reasoning.split(answer_text(given if correction is None else json.loads(correction)))[1]


def kept_metric(warehouse: duckdb.DuckDBPyConnection, workload: str) -> dict[str, Any] | None:
    """Returns the metric of a workload's newest dataset, as `Chosen.as_dict()`; None if there is none."""
    row = warehouse.execute(_QUERIES["metric"], {"workload": workload}).fetchone()
    metric: dict[str, Any] | None = json.loads(row[0]) if row and row[0] else None
    return metric


def keep(
    warehouse: duckdb.DuckDBPyConnection,
    workload: str,
    metric: str,
    version: str,
    source: str,
    marks: Iterable[Mark],
    now: datetime,
) -> None:
    """Stores the marks of an exam. `metric` may be a scorer; `version` is `Metric.version`; `source` SHIPPED or OWN."""
    for mark in marks:
        about = {"workload": workload, "metric": metric, "version": version, "source": source, "taken_at": now}
        insert(warehouse, "exams", **about, **asdict(mark))


def newest(warehouse: duckdb.DuckDBPyConnection, workload: str, metric: str, source: str) -> list[Mark]:
    """Returns the marks of the newest exam; empty if there was none."""
    rows = warehouse.execute(_QUERIES["newest"], {"workload": workload, "metric": metric, "source": source}).fetchall()
    return [Mark(*row) for row in rows]


def summary(marks: Sequence[Mark]) -> list[dict[str, Any]]:
    """Returns rows for display: all pairs, those of each kind, and those of each language."""
    groups: dict[str, list[Mark]] = {"all": list(marks)}
    for mark in marks:
        groups.setdefault(f"kind {mark.kind}", []).append(mark)
    for mark in sorted(marks, key=lambda mark: mark.language):
        groups.setdefault(f"language {mark.language}", []).append(mark)
    rows = []
    for name, own in groups.items():
        pairs, judged, agreed = (sum(getattr(mark, key) for mark in own) for key in ("pairs", "judged", "agreed"))
        shares = {"judged": judged / pairs if pairs else None, "agreement": agreed / judged if judged else None}
        rows.append({"pairs_of": name, "pairs": pairs, **shares})
    return rows
