"""What the page of one workload shows."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon import overrides
from retuned.daemon.console.chart import Frame, Point
from retuned.daemon.console.overview import HALLUCINATION_SOURCES
from retuned.daemon.settings import Settings

QUERIES = named_queries("retuned.daemon.console", "workload.sql")
BUCKETS = 240
"""So many points has a chart at most."""
GUARDS = {
    "gain": "Score on held-out questions",
    "logged": "Against the answers that production gave",
    "hallucination": "Invented values",
    "refusal": "Refusals",
    "regression": "Answers that were right before",
    "slices": "Worst slice",
    "latency": "Seconds per token",
    "length": "Length of answers",
    "traffic": "Answers that nobody rated",
    "general": "Unrelated prompts",
    "labels": "Labels",
    "judge": "Verdicts of the judge",
    "form": "Form that programs read",
    "validity": "Form that programs read",
    "exam": "Exam of the metric",
}
SHARES = {
    "gain": ("score_candidate", "score_champion"),
    "logged": ("score_candidate", "score_logged"),
    "hallucination": ("hallucination_candidate", "hallucination_champion"),
    "refusal": ("refusal_candidate", "refusal_champion"),
    "general": ("general_candidate", "general_base"),
    "regression": ("regression_candidate", "regression_champion"),
    "validity": ("invalid_candidate", "invalid_champion"),
    "latency": ("token_candidate_seconds", "token_champion_seconds"),
    "length": ("length_candidate", "length_champion"),
    "labels": ("macro_f1_candidate", "macro_f1_champion"),
}


Outcome = Literal["passed", "refused", "not measured"]


@dataclass(frozen=True)
class Guard:
    """One comparison that the gate made.

    Attributes:
        refuses: it refused the candidate, perhaps because it could not be measured.
        candidate, opponent: None: not known.
        limit: what the candidate is compared with; None: none, or by an earlier version of retuned.
        examples: the number of examples; None: not known.
        low, high: the 95% interval of the difference; None: none was computed.
    """

    name: str
    outcome: Outcome
    refuses: bool
    candidate: float | None
    opponent: float | None
    limit: float | None
    examples: float | None
    low: float | None
    high: float | None


def compared(figures: Mapping[str, float]) -> dict[str, Any]:
    """Returns the `guards` of a decision, and how far from 0 the intervals reach that are drawn side by side."""
    found = guards(figures)
    ends = [abs(end) for one in found for end in (one.low, one.high) if end is not None]
    return {"guards": found, "reach": max([*ends, 0.01])}


def guards(figures: Mapping[str, float]) -> list[Guard]:
    """Returns the comparisons of a decision of the gate: those that refused, were not measured, and passed."""
    found = []
    names = [key.partition("[")[2][:-1] for key in figures if key.startswith(("passed[", "not_measured["))]
    for guard in dict.fromkeys(names):
        candidate, opponent = SHARES.get(guard, ("", ""))
        gain = {"gain": "gain", "logged": "gain_over_logged"}.get(guard, "")
        refuses = figures.get(f"passed[{guard}]") == 0
        measured: Outcome = "refused" if refuses else "passed"
        found.append(
            Guard(
                GUARDS.get(guard, guard),
                "not measured" if f"not_measured[{guard}]" in figures else measured,
                refuses,
                figures.get(candidate),
                figures.get(opponent),
                figures.get(f"limit[{guard}]"),
                figures.get(f"examples[{guard}]"),
                figures.get(f"{gain}_low"),
                figures.get(f"{gain}_high"),
            )
        )
    return sorted(found, key=lambda one: (not one.refuses, one.outcome == "passed"))


@dataclass(frozen=True)
class Chosen:
    """A setting that is not the default.

    Attributes:
        source: the entry of `workloads` that sets it; None: it is set for all workloads.
    """

    name: str
    value: Any
    default: Any
    source: str | None


def chosen(settings: Settings, workload: str) -> list[Chosen]:
    """Returns the settings in force for a workload that differ from the defaults."""
    own = settings.for_workload(workload)
    found = []
    for section in overrides.SECTIONS:
        mine = getattr(own, section)
        ours, usual = mine.model_dump(mode="json"), type(mine)().model_dump(mode="json")
        found += [
            Chosen(f"{section}.{key}", value, usual[key], settings.origin(workload, section, key))
            for key, value in ours.items()
            if value != usual[key]
        ]
    return found


def measured_since(warehouse: Warehouse, workload: str, start: datetime, end: datetime) -> datetime:
    """Returns when a stretch of time begins to have figures; its start if it has none."""
    row = warehouse.row(QUERIES["first"], {"workload": workload, "start": start, "end": end})
    return row["first"] if row and row["first"] else start


def shown(warehouse: Warehouse, workload: str, start: datetime, end: datetime) -> dict[str, Any]:
    """Returns what the page of a workload shows of a stretch of time. Times are naive UTC."""
    frame = Frame(start, end)
    seconds = max(int(frame.seconds / BUCKETS), 1)
    span = {"workload": workload, "start": start, "end": end}

    def rows(query: str, **more: Any) -> list[dict[str, Any]]:
        given = {key: value for key, value in (span | more).items() if f"${key}" in QUERIES[query]}
        found = warehouse.rows(QUERIES[query], given)
        for row in found:
            for name in ("reasons", "figures", "features", "estimate", "scores"):
                if isinstance(row.get(name), str):
                    row[name] = json.loads(row[name])
        return found

    with warehouse.snapshot():
        series, corrections, memory = (rows(name, seconds=seconds) for name in ("series", "corrections", "memory"))
        found = {name: rows(name) for name in ("promotions", "checks", "runs", "decisions", "policy")}
    for check in found["checks"]:  # prompts are for those who may read conversations
        check["features"] = [{k: v for k, v in one.items() if k != "example"} for one in check["features"] or ()]
    for decision in found["decisions"]:
        decision |= compared(decision.pop("figures") or {})
    sources = {row["source"] for row in series if row["metric"] == "hallucination_rate"}
    source = next((one for one in HALLUCINATION_SOURCES if one in sources), None)
    return found | {
        "frame": frame,
        "bucket_seconds": seconds,
        "helpful": _points(series, "helpful_rate", "user"),
        "invented": _points(series, "hallucination_rate", source),
        "invented_source": source,
        "corrections": [(row["bucket"] + timedelta(seconds=seconds / 2), row["corrections"]) for row in corrections],
        "memory": [row | {"at": row.pop("bucket") + timedelta(seconds=seconds / 2)} for row in memory],
    }


def _points(series: list[dict[str, Any]], metric: str, source: str | None) -> list[Point]:
    return [Point(row["at"], **row["rate"]) for row in series if (row["metric"], row["source"]) == (metric, source)]
