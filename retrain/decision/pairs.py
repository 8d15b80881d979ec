"""Pairs of answers by two models to the same row, and their means over clusters."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Protocol


class Measured(Protocol):
    """The fields of an evaluation that the gate reads: one model's answer to one row."""

    @property
    def row_id(self) -> str: ...
    @property
    def cluster(self) -> str | None: ...
    @property
    def asked(self) -> int: ...
    @property
    def score(self) -> float | None: ...
    @property
    def detail(self) -> str: ...
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
class Refusal:
    """Why one comparison refuses a candidate.

    Attributes:
        by: the name of the comparison.
        because: what was found, as a clause.
        takes: what would change it, as a noun phrase.
    """

    by: str
    because: str
    takes: str


@dataclass(frozen=True)
class Decision:
    """An outcome, the reasons for it as sentences with figures, and the figures by name.

    The first reason of a refusal is what refused the candidate, why, and what would change that. `refusals` has the
    parts of that sentence; it is empty for a decision that was read from the warehouse.
    """

    outcome: bool
    reasons: list[str]
    figures: dict[str, float]
    refusals: tuple[Refusal, ...] = ()

    def refused(self, *refusals: Refusal) -> "Decision":
        """Returns the decision with these refusals before its others; itself if there are none."""
        if not refusals:
            return self
        every = (*refusals, *self.refusals)
        text = (
            f"Refused by {_listed([one.by for one in every])}, because "
            f"{', and because '.join(one.because for one in every)}; it would take "
            f"{', and '.join(dict.fromkeys(one.takes for one in every))}."
        )
        return replace(self, outcome=False, reasons=[text, *self.reasons[bool(self.refusals) :]], refusals=every)


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([*([", ".join(parts[:-1])] if parts[1:] else []), parts[-1]])


@dataclass(frozen=True)
class Check:
    """One comparison of the gate.

    Attributes:
        passed: None: not measured.
        reasons: sentences with figures.
        figures: by name.
        examples: the examples that it rests on, each a cluster; if it was not measured, those that it could have had.
        limit: what its result is compared with; None: several or none.
        because, takes: of a refusal (see `Refusal`).
    """

    passed: bool | None
    reasons: list[str]
    figures: dict[str, float]
    examples: int = 0
    limit: float | None = None
    because: str = ""
    takes: str = ""

    def figures_as(self, name: str) -> dict[str, float]:
        """Returns the figures for the decision: of a comparison that was not measured, no `passed[name]`."""
        if self.passed is None:
            return {f"not_measured[{name}]": 1.0, **self.figures}
        limit = {} if self.limit is None else {f"limit[{name}]": self.limit}
        return {
            f"passed[{name}]": float(self.passed),
            f"examples[{name}]": float(self.examples),
            **limit,
            **self.figures,
        }


def not_measured(reason: str, available: int = 0, figures: dict[str, float] | None = None) -> Check:
    """Returns a comparison without a result.

    Args:
        available: the examples on which it could have been measured.
    """
    return Check(None, [reason], figures or {}, available, because=f"{reason[0].lower()}{reason[1:].rstrip('.')}")


def not_measured_in(figures: Mapping[str, float]) -> list[str]:
    """Returns the names of the comparisons of a decision that were not measured."""
    return [name[len("not_measured[") : -1] for name in figures if name.startswith("not_measured[")]


MEASURED = 0.5
"""A comparison that can judge a smaller share of its examples is not measured."""

Pairs = list[tuple[Measured, Measured]]


def paired(champion: Sequence[Measured], candidate: Sequence[Measured]) -> Pairs:
    """Returns the answers to the rows that both models answered."""
    answered = {row.row_id: row for row in candidate}
    return [(row, answered[row.row_id]) for row in champion if row.row_id in answered]


def with_scores(pairs: Pairs) -> Pairs:
    """Returns the pairs without those on which the metric abstains."""
    return [(old, new) for old, new in pairs if old.score is not None and new.score is not None]


def at_worst(pairs: Pairs) -> Pairs:
    """Returns the pairs of which at least one answer has a score, with the worst score for the candidate in place of a
    missing one: 0 for its own answer, 1 for the other one.

    A metric may abstain on wrong answers more often than on right ones. Without these pairs, a loss could look like a
    gain, and harm like none (worst-case bounds, Manski 1990, "Nonparametric bounds on treatment effects").
    """
    return [
        (
            old if old.score is not None else _with_score(old, 1.0),
            new if new.score is not None else _with_score(new, 0.0),
        )
        for old, new in pairs
        if old.score is not None or new.score is not None
    ]


def _with_score(row: Measured, score: float) -> Measured:
    return replace(row, score=score)  # type: ignore[type-var]


def score(row: Measured) -> float:
    """Returns the score of a row from `with_scores` or `at_worst`."""
    assert row.score is not None
    return row.score


Cluster = tuple[str, str]


def cluster_of(row: Measured) -> Cluster:
    """Returns the conversation, document or other group of dependent rows. A row without one is its own cluster."""
    return ("", row.row_id) if row.cluster is None else (row.cluster, "")


def cluster_means(rows: Iterable[tuple[Measured, float]]) -> dict[Cluster, float]:
    """Returns the mean value of each cluster.

    The cluster is the unit of all intervals and tests, and counts once, however many rows it has (cluster-level
    analysis, Donner and Klar 2000). So the means are independent and have the bounds of the rows, whatever the
    correlation within a cluster.
    """
    values: dict[Cluster, list[float]] = defaultdict(list)
    for row, value in rows:
        values[cluster_of(row)].append(value)
    return {cluster: sum(own) / len(own) for cluster, own in values.items()}


def by_cluster(pairs: Pairs, difference: Callable[[Measured, Measured], float]) -> dict[Cluster, float]:
    """Returns the mean difference of each cluster."""
    return cluster_means((new, difference(old, new)) for old, new in pairs)


def cluster_mean(pairs: Pairs, side: int, value: Callable[[Measured], float]) -> float:
    """Returns the mean over clusters of a value of one side of the pairs."""
    return fmean(cluster_means((pair[1], value(pair[side])) for pair in pairs).values())


def of_clusters(pairs: Pairs) -> str:
    """Returns a phrase with the number of clusters; empty if each row is its own cluster."""
    groups = len({cluster_of(new) for _, new in pairs})
    return f" of {groups} conversations or documents, each of which counts once" if groups < len(pairs) else ""


def mean_scores(pairs: Pairs) -> tuple[float, float]:
    """Returns the mean score over clusters, of the old and the new model."""
    return cluster_mean(pairs, 0, score), cluster_mean(pairs, 1, score)


def drop(old: Measured, new: Measured) -> float:
    """Returns the drop in score of a pair from `with_scores` or `at_worst`."""
    return score(old) - score(new)


def by_part(parts: Mapping[str, Pairs], name: str) -> dict[str, float]:
    """Returns the mean scores of parts of the rows, under names such as `score_candidate[language:de]`."""
    figures = {}
    for part, pairs in parts.items():
        figures[f"{name}_champion[{part}]"], figures[f"{name}_candidate[{part}]"] = mean_scores(pairs)
        figures[f"{name}_examples[{part}]"] = float(len(pairs))
    return figures


def percent(share: float) -> str:
    """Formats a share: 0.975 as 97.5%."""
    return f"{100 * share:.4g}%"
