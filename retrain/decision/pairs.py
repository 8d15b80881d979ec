"""What the gate compares: the answers of two models to the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol


class Measured(Protocol):
    """What the gate reads of an evaluation: of one model's answer to one row."""

    @property
    def row_id(self) -> str: ...
    @property
    def score(self) -> float | None: ...
    @property
    def valid(self) -> bool | None: ...
    @property
    def answered(self) -> str | None: ...
    @property
    def hallucinated(self) -> bool | None: ...
    @property
    def refused(self) -> bool: ...
    @property
    def length_ratio(self) -> float: ...
    @property
    def latency_seconds(self) -> float | None: ...
    @property
    def seconds_per_token(self) -> float | None: ...
    @property
    def slices(self) -> Sequence[str]: ...
    @property
    def origin(self) -> str | None: ...
    @property
    def kind(self) -> str | None: ...
    @property
    def verdict(self) -> str | None: ...
    @property
    def agreement(self) -> float | None: ...


@dataclass(frozen=True)
class Decision:
    """What was decided, each reason as a sentence with its figures, and the figures alone."""

    outcome: bool
    reasons: list[str]
    figures: dict[str, float]


Pairs = list[tuple[Measured, Measured]]


def paired(champion: Sequence[Measured], candidate: Sequence[Measured]) -> Pairs:
    """The rows that both answered."""
    answered = {row.row_id: row for row in candidate}
    return [(row, answered[row.row_id]) for row in champion if row.row_id in answered]


def with_scores(pairs: Pairs) -> Pairs:
    """Without those on which the metric abstains: they are no examples."""
    return [(old, new) for old, new in pairs if old.score is not None and new.score is not None]


def score(row: Measured) -> float:
    """Of a row among those of `with_scores`."""
    assert row.score is not None
    return row.score


def by_part(parts: Mapping[str, Pairs], name: str) -> dict[str, float]:
    """Scores on parts of the rows, under names such as `score_candidate[language:de]`."""
    figures = {}
    for part, pairs in parts.items():
        figures[f"{name}_champion[{part}]"] = fmean(score(old) for old, _ in pairs)
        figures[f"{name}_candidate[{part}]"] = fmean(score(new) for _, new in pairs)
        figures[f"{name}_examples[{part}]"] = float(len(pairs))
    return figures


def percent(share: float) -> str:
    """A share as people read it: 0.975 is 97.5%."""
    return f"{100 * share:.4g}%"
