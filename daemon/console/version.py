"""What a person reads before a version goes into service: the answers side by side, and what the gate compared."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq

from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.daemon.console.workload import compared

QUERIES = named_queries("retuned.daemon.console", "version.sql")
Change = Literal["worse", "better", "wrong", "right", "unknown"]
CHANGES: dict[Change, str] = {
    "worse": "Worse",
    "better": "Better",
    "wrong": "Both wrong",
    "right": "Both right",
    "unknown": "Not scored",
}
RIGHT = 0.5
"""A score from here on counts as right."""


@dataclass(frozen=True)
class Pair:
    """A held-out question with the approved answer and those of the models.

    Attributes:
        before, after: of the model in service, or else the base model, and of the version.
        score_before, score_after: 0 to 1; None: the metric abstains.
        detail: why the version's answer has its score.
    """

    question: str
    approved: str
    source: str
    before: str
    after: str
    score_before: float | None
    score_after: float | None
    detail: str

    @property
    def change(self) -> Change:
        """What the version changes for this question."""
        if self.score_before is None or self.score_after is None:
            return "unknown"
        was, now = self.score_before >= RIGHT, self.score_after >= RIGHT
        return ("right" if now else "worse") if was else "better" if now else "wrong"


def shown(warehouse: Warehouse, workload: str, version: str) -> dict[str, Any] | None:
    """Returns what is known of a version, compared with the one that it began from; None: there is no such version."""
    found = warehouse.row(QUERIES["version"], {"workload": workload, "version": version})
    if found is None:
        return None
    run = {"run": found["run_id"]}
    decision = warehouse.row(QUERIES["decision"], run)
    if decision is not None:
        decision |= {
            **compared(json.loads(decision.pop("figures") or "{}")),
            "reasons": json.loads(decision["reasons"]),
        }
    outputs = {
        row["row_id"]: {one["model"]: one for one in row["outputs"]} for row in warehouse.rows(QUERIES["outputs"], run)
    }
    others = {model for answers in outputs.values() for model in answers} - {version, "base", "logged"}
    opponent = next(iter(others), "base")
    pairs = sorted(
        _pairs(found["dataset"], outputs, version, opponent), key=lambda one: list(CHANGES).index(one.change)
    )
    return {
        "version": found,
        "decision": decision,
        "pairs": pairs,
        "counts": {change: sum(one.change == change for one in pairs) for change in CHANGES},
        "changes_of": warehouse.rows(QUERIES["changes"], {"workload": workload, "version": version}),
        "learned": warehouse.rows(QUERIES["learned"], {"dataset": found["dataset_version"]}),
        "opponent": opponent,
    }


def _pairs(
    dataset: str | None, outputs: Mapping[str, Mapping[str, Mapping[str, Any]]], version: str, opponent: str
) -> list[Pair]:
    file = Path(dataset) / "holdout.parquet" if dataset else None
    if file is None or not file.exists():  # retention removed it
        return []
    rows = pq.read_table(file, columns=["row_id", "question", "completion", "source"]).to_pylist()
    found = []
    for row in rows:
        models = outputs.get(row["row_id"], {})
        before, after = models.get(opponent), models.get(version)
        if before is None or after is None:
            continue
        found.append(
            Pair(
                row["question"],
                row["completion"],
                row["source"],
                before["output"],
                after["output"],
                before["score"],
                after["score"],
                after["detail"] or "",
            )
        )
    return found
