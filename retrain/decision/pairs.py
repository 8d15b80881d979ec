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
class Decision:
    """An outcome, the reasons for it as sentences with figures, and the figures by name."""

    outcome: bool
    reasons: list[str]
    figures: dict[str, float]


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
    gain (worst-case bounds, Manski 1990, "Nonparametric bounds on treatment effects").
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
