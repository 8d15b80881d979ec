"""Counters and histograms of answers since the start: their number, latencies and tokens.

Each bucket of a histogram has the latest answer in it as exemplar, which OpenMetrics exposes.
"""

import sys
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Exemplar, HistogramMetricFamily, Metric

from retuned.consumers.common.series import exemplar_labels

LATENCY_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
MOST_SERIES = 32
"""The most pairs of workload and model with series of their own; producers may send any names."""
MOST_RESTS = 50
"""The most workloads with a series of their other models: the sum over a workload's series has all its answers."""
IDLE = timedelta(hours=6)
"""A pair without answers for this long, such as a replaced model, makes room for a new one."""
OTHER = "other"

_LABELS = ("workload", "model_name")


@dataclass
class _Histogram:
    edges: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    total: float = 0.0
    exemplars: dict[int, Exemplar] = field(default_factory=dict)

    @classmethod
    def empty(cls, edges: tuple[float, ...]) -> "_Histogram":
        return cls(np.asarray(edges), np.zeros(len(edges) + 1, np.int64))

    def add(self, other: "_Spread", group: int) -> None:
        self.counts += other.counts[group]
        self.total += other.totals[group]
        self.exemplars |= other.exemplars[group]

    def buckets(self) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        names = [*map(str, self.edges.tolist()), "+Inf"]
        buckets = list[tuple[str, float] | tuple[str, float, Exemplar]]()
        for place, (name, count) in enumerate(zip(names, self.counts.cumsum().astype(float).tolist(), strict=True)):
            exemplar = self.exemplars.get(place)
            buckets.append((name, count, exemplar) if exemplar else (name, count))
        return buckets


@dataclass
class _Series:
    seen: datetime
    answers: int = 0
    latency: _Histogram = field(default_factory=lambda: _Histogram.empty(LATENCY_SECONDS))
    first_token: _Histogram = field(default_factory=lambda: _Histogram.empty(FIRST_TOKEN_SECONDS))
    tokens: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


class Traffic:
    """A collector, filled batch by batch by one thread; other threads may collect meanwhile."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._series: dict[tuple[str, str], _Series] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def add(self, interactions: pa.Table, now: datetime) -> None:
        """Counts the interactions of a batch, given as rows of the warehouse's table."""
        joined = pc.binary_join_element_wise(interactions["workload"], interactions["model"], "\0").combine_chunks()
        coded = joined.dictionary_encode()
        codes, pairs = coded.indices.to_numpy(), coded.dictionary.to_pylist()

        def column(name: str) -> Any:
            return interactions[name].to_numpy().astype(float)

        # Computed for all pairs at once and outside of the lock, which blocks scrapes.
        ids, at = interactions["id"], now.replace(tzinfo=UTC).timestamp()
        latency = _spread(column("latency_seconds"), codes, len(pairs), LATENCY_SECONDS, ids, at)
        first_token = _spread(column("time_to_first_token_seconds"), codes, len(pairs), FIRST_TOKEN_SECONDS, ids, at)
        tokens = {
            kind: np.bincount(codes, np.nan_to_num(column(f"{kind}_tokens")), len(pairs)).tolist()
            for kind in ("input", "output")
        }
        answers = np.bincount(codes, minlength=len(pairs)).tolist()
        with self._lock:
            for place, pair in enumerate(pairs):
                workload, _, model = pair.partition("\0")
                series = self._series_of(workload, model, now)
                series.answers += answers[place]
                series.latency.add(latency, place)
                series.first_token.add(first_token, place)
                for kind, sums in tokens.items():
                    series.tokens[kind] += sums[place]

    def _series_of(self, workload: str, model: str, now: datetime) -> _Series:
        pair = next(
            pair
            for pair, most in (
                ((workload, model), MOST_SERIES),
                ((workload, OTHER), MOST_SERIES + MOST_RESTS),
                ((OTHER, OTHER), sys.maxsize),
            )
            if pair in self._series or self._has_room(most, now)
        )
        series = self._series.setdefault(pair, _Series(now))
        series.seen = now
        return series

    def _has_room(self, most: int, now: datetime) -> bool:
        """Returns whether there are fewer series, of which idle ones make room."""
        if len(self._series) >= most:
            self._series = {pair: one for pair, one in self._series.items() if now - one.seen <= IDLE}
        return len(self._series) < most

    def describe(self) -> Iterable[Metric]:
        """Returns the families without samples, so that their names are known before the first event."""
        return self._families()

    def collect(self) -> Iterable[Metric]:
        """Returns the families with their present samples."""
        answers, latency, first_token, tokens = self._families()
        with self._lock:
            for pair, series in self._series.items():
                answers.add_metric(pair, series.answers)
                for family, histogram in ((latency, series.latency), (first_token, series.first_token)):
                    if histogram.counts.any():  # no series for apps that do not report it
                        family.add_metric(pair, histogram.buckets(), histogram.total)
                for kind, count in series.tokens.items():
                    tokens.add_metric((*pair, kind), count)
        return answers, latency, first_token, tokens

    def _families(
        self,
    ) -> tuple[CounterMetricFamily, HistogramMetricFamily, HistogramMetricFamily, CounterMetricFamily]:
        return (
            CounterMetricFamily("retuned_interactions", "Answers that were read since start.", labels=_LABELS),
            HistogramMetricFamily(
                "retuned_interaction_latency_seconds", "Time that answers took, as the app measured it.", labels=_LABELS
            ),
            HistogramMetricFamily(
                "retuned_interaction_time_to_first_token_seconds",
                "Time to the first token of answers, as the app measured it.",
                labels=_LABELS,
            ),
            CounterMetricFamily(
                "retuned_interaction_tokens",
                "Tokens of interactions, by kind: input or output.",
                labels=(*_LABELS, "kind"),
            ),
        )


@dataclass(frozen=True)
class _Spread:
    """The distribution of values in each group.

    Attributes:
        counts: the number of values in each bucket, shape (groups, buckets).
        totals: the sum of the values.
        exemplars: the exemplar of each bucket, by its place.
    """

    counts: np.ndarray[Any, Any]
    totals: list[float]
    exemplars: list[dict[int, Exemplar]]


def _spread(
    values: np.ndarray[Any, Any],
    codes: np.ndarray[Any, Any],
    groups: int,
    edges: tuple[float, ...],
    ids: pa.ChunkedArray,
    at: float,
) -> _Spread:
    """Distributes values over buckets; negative and infinite values are ignored.

    Args:
        codes: the group of each value.
        ids: the interactions of the values.
        at: when they were read, Unix time.
    """
    valid = np.isfinite(values) & (values >= 0)
    kept, codes, rows = values[valid], codes[valid], valid.nonzero()[0]
    buckets = len(edges) + 1
    places = codes * buckets + np.searchsorted(np.asarray(edges), kept)  # an edge belongs to the bucket below it
    counts = np.bincount(places, minlength=groups * buckets).reshape(groups, buckets)
    latest = np.full(groups * buckets, -1)
    latest[places] = rows  # the last row of each bucket remains
    exemplars: list[dict[int, Exemplar]] = [{} for _ in range(groups)]
    for bucket in counts.ravel().nonzero()[0].tolist():
        row = int(latest[bucket])
        if labels := exemplar_labels(ids[row].as_py()):
            exemplars[bucket // buckets][bucket % buckets] = Exemplar(labels, float(values[row]), at)
    return _Spread(counts, np.bincount(codes, kept, groups).tolist(), exemplars)
