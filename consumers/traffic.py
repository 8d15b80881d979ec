"""Answers, and what they took in seconds and tokens: counters and histograms of all that was read since the start.

Each bucket of a histogram has an exemplar, the latest answer that fell into it, by its id. OpenMetrics carries them.
"""

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
"""Pairs of workload and model that are told apart; both names come from producers, who may send anything."""
IDLE = timedelta(hours=6)
"""A pair that was not seen for so long makes room for a new one, as a replaced model does."""
OTHER = ("other", "other")

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
        found = list[tuple[str, float] | tuple[str, float, Exemplar]]()
        for place, (name, count) in enumerate(zip(names, self.counts.cumsum().astype(float).tolist(), strict=True)):
            exemplar = self.exemplars.get(place)
            found.append((name, count, exemplar) if exemplar else (name, count))
        return found


@dataclass
class _Series:
    seen: datetime
    answers: int = 0
    latency: _Histogram = field(default_factory=lambda: _Histogram.empty(LATENCY_SECONDS))
    first_token: _Histogram = field(default_factory=lambda: _Histogram.empty(FIRST_TOKEN_SECONDS))
    tokens: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


class Traffic:
    """A collector: filled a batch at a time, by one thread; another one may collect meanwhile."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._series: dict[tuple[str, str], _Series] = {}
        self._lock = threading.Lock()
        registry.register(self)

    def add(self, interactions: pa.Table, now: datetime) -> None:
        """Count the interactions of a batch, rows as in the warehouse's table."""
        joined = pc.binary_join_element_wise(interactions["workload"], interactions["model"], "\0").combine_chunks()
        coded = joined.dictionary_encode()
        codes, pairs = coded.indices.to_numpy(), coded.dictionary.to_pylist()

        def column(name: str) -> Any:
            return interactions[name].to_numpy().astype(float)

        # All pairs in one go and outside of the lock, for which a scrape would have to wait.
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
                series = self._of((workload, model), now)
                series.answers += answers[place]
                series.latency.add(latency, place)
                series.first_token.add(first_token, place)
                for kind, sums in tokens.items():
                    series.tokens[kind] += sums[place]

    def _of(self, pair: tuple[str, str], now: datetime) -> _Series:
        if pair not in self._series and len(self._series) >= MOST_SERIES:
            idle = min(self._series, key=lambda pair: self._series[pair].seen)
            if now - self._series[idle].seen > IDLE:
                del self._series[idle]
            else:
                pair = OTHER
        series = self._series.setdefault(pair, _Series(now))
        series.seen = now
        return series

    def describe(self) -> Iterable[Metric]:
        """The families without samples: their names are known before the first event."""
        return self._families()

    def collect(self) -> Iterable[Metric]:
        """The families as they are now."""
        answers, latency, first_token, tokens = self._families()
        with self._lock:
            for pair, series in self._series.items():
                answers.add_metric(pair, series.answers)
                for family, histogram in ((latency, series.latency), (first_token, series.first_token)):
                    if histogram.counts.any():  # apps that do not tell it cost no series
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
    """Of each group: how many values lie in each bucket, their sum, and by its place the exemplar of each bucket."""

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
    """Spread values over buckets. What is no length of time is left out.

    Args:
        codes: the group of each value.
        ids: of the interactions that the values are of.
        at: when they were read, Unix time.
    """
    told = np.isfinite(values) & (values >= 0)
    kept, codes, rows = values[told], codes[told], told.nonzero()[0]
    buckets = len(edges) + 1
    places = codes * buckets + np.searchsorted(np.asarray(edges), kept)  # a value on an edge belongs below it
    counts = np.bincount(places, minlength=groups * buckets).reshape(groups, buckets)
    latest = np.full(groups * buckets, -1)
    latest[places] = rows  # of several rows the last one stays
    exemplars: list[dict[int, Exemplar]] = [{} for _ in range(groups)]
    for bucket in counts.ravel().nonzero()[0].tolist():
        row = int(latest[bucket])
        if labels := exemplar_labels(ids[row].as_py()):
            exemplars[bucket // buckets][bucket % buckets] = Exemplar(labels, float(values[row]), at)
    return _Spread(counts, np.bincount(codes, kept, groups).tolist(), exemplars)
