"""What answers took, in seconds and tokens, as histograms and counters of all interactions read since the start."""

import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

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

    @classmethod
    def empty(cls, edges: tuple[float, ...]) -> "_Histogram":
        return cls(np.asarray(edges), np.zeros(len(edges) + 1, np.int64))

    def add(self, values: np.ndarray[Any, Any]) -> None:
        values = values[np.isfinite(values) & (values >= 0)]
        places = np.searchsorted(self.edges, values)  # a value on an edge belongs below it
        self.counts += np.bincount(places, minlength=len(self.counts))
        self.total += float(values.sum())

    def buckets(self) -> list[tuple[str, float]]:
        names = [*map(str, self.edges.tolist()), "+Inf"]
        return list(zip(names, self.counts.cumsum().astype(float).tolist(), strict=True))


@dataclass
class _Series:
    seen: datetime
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
        pairs = pc.binary_join_element_wise(interactions["workload"], interactions["model"], "\0").combine_chunks()
        coded = pairs.dictionary_encode()
        codes = coded.indices.to_numpy()
        columns = {
            name: interactions[name].to_numpy().astype(float)
            for name in ("latency_seconds", "time_to_first_token_seconds", "input_tokens", "output_tokens")
        }
        with self._lock:
            for code, pair in enumerate(coded.dictionary.to_pylist()):
                workload, _, model = pair.partition("\0")
                series = self._of((workload, model), now)
                own = {name: values[codes == code] for name, values in columns.items()}
                series.latency.add(own["latency_seconds"])
                series.first_token.add(own["time_to_first_token_seconds"])
                series.tokens["input"] += float(np.nansum(own["input_tokens"]))
                series.tokens["output"] += float(np.nansum(own["output_tokens"]))

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
        latency, first_token, tokens = self._families()
        with self._lock:
            for pair, series in self._series.items():
                for family, histogram in ((latency, series.latency), (first_token, series.first_token)):
                    if histogram.counts.any():  # apps that do not tell it cost no series
                        family.add_metric(pair, histogram.buckets(), histogram.total)
                for kind, count in series.tokens.items():
                    tokens.add_metric((*pair, kind), count)
        return latency, first_token, tokens

    def _families(self) -> tuple[HistogramMetricFamily, HistogramMetricFamily, CounterMetricFamily]:
        return (
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
