"""Metrics of the gateway."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
LOOKUP_SECONDS = (0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
MOST_PAIRS = 64
"""The most pairs of workload and model with series. Beyond it, the least recently used pair is removed."""
_LABELS = ("workload", "model_name")


class _Family:
    """Creates metrics in a registry, with the gateway's prefix."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"retuned_gateway_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"retuned_gateway_{name}", text, labels, registry=self._registry)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"retuned_gateway_{name}", text, labels, buckets=buckets, registry=self._registry)


class _Answers:
    """Metrics with a series for each pair of workload and model."""

    def __init__(self, family: _Family) -> None:
        self.requests = family.counter(
            "requests_total",
            "Requests that were sent to a model server, by the status that the app got; 499: the app disconnected.",
            *_LABELS,
            "code",
        )
        self.latency = family.histogram(
            "request_seconds", "Time from a request to the end of its answer.", SECONDS, *_LABELS
        )
        self.first_token = family.histogram(
            "first_token_seconds",
            "Time from a request to the first bytes of a streamed answer.",
            FIRST_TOKEN_SECONDS,
            *_LABELS,
        )
        self.fallbacks = family.counter(
            "fallbacks_total",
            "Answers of another model than the assigned one, which was on no server or failed.",
            *_LABELS,
        )
        self._pairs: dict[tuple[str, str], None] = {}  # least recently used first

    def pair(self, workload: str, model: str) -> tuple[str, str]:
        """Returns the labels of a pair, and removes the series of the least recently used one beyond `MOST_PAIRS`."""
        pair = (workload, model)
        if pair not in self._pairs and len(self._pairs) >= MOST_PAIRS:
            gone = next(iter(self._pairs))
            for metric in (self.requests, self.latency, self.first_token, self.fallbacks):
                metric.remove_by_labels(dict(zip(_LABELS, gone, strict=True)))
            del self._pairs[gone]
        self._pairs.pop(pair, None)
        self._pairs[pair] = None
        return pair


class Metrics:
    """Metrics of answers, of the buffer, and of the state of model servers and daemon."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        family = _Family(registry)
        counter, gauge, histogram = family.counter, family.gauge, family.histogram
        self._answers = _Answers(family)
        self.build = gauge("build_info", "Always 1; the label is the version.", "version")
        self.refused = counter("refused_total", "Requests that the gateway itself answered with an error.", "code")
        self.in_flight = gauge("in_flight", "Requests in progress.")
        self.connections = gauge("open_connections", "Connections of apps, with and without a request.")
        self.most_connections = gauge("open_connections_limit", "Limit of the connections of apps.")
        self.feedback = counter("feedback_total", "Feedback that was accepted over HTTP.")
        self.buffered_bytes = gauge("buffered_bytes", "Bytes on the disk that wait for Kafka.")
        self.buffered_seconds = gauge(
            "buffered_seconds", "Age of the oldest record that waits for Kafka; 0: no record waits."
        )
        self.buffer_limit = gauge("buffer_limit_bytes", "Limit of the bytes that wait; further events are dropped.")
        self.published = counter("published_total", "Events that Kafka has acknowledged.", "kind")
        self.dropped = counter(
            "dropped_total",
            "Lost events, by reason: full (the buffer), disk, too_large, unreadable (the answer).",
            "kind",
            "reason",
        )
        self.shadow = counter(
            "shadow_total",
            "Shadow requests, by outcome: recorded, failed, unreadable, or skipped: too many were open, or too many "
            "bytes wait for Kafka.",
            "outcome",
        )
        self.upstream_up = gauge("upstream_up", "Whether a model server answers.", "upstream")
        self.upstream_ejected = gauge(
            "upstream_ejected", "Number of models for which a server is ejected because it keeps failing.", "upstream"
        )
        self.ejections = counter("ejections_total", "Ejections of a server for a model.", "upstream")
        self.cut = counter(
            "answers_cut_total",
            "Answers of a server that were cut because they passed a bound of gateway: max_answer_bytes, "
            "max_line_bytes or max_answer_seconds.",
            "upstream",
            "bound",
        )
        self.memory_entries = gauge("memory_entries", "Entries of the memory of corrections in force.", "workload")
        self.memory_lookups = counter(
            "memory_lookups_total",
            "Look-ups in the memory of corrections, by result: same or related (an entry helps), held_out, none (no "
            "entry), unusable (the entry's texts), not_text or too_long (the request), busy, failed, or refused (the "
            "server accepted the request only without the entry).",
            "workload",
            "result",
        )
        self.memory_seconds = histogram(
            "memory_lookup_seconds", "Time from a request to the result of its look-up in the memory.", LOOKUP_SECONDS
        )
        self.memory_up = gauge(
            "memory_up", "Whether the daemon returned its memory at the last request; 1 if no workload uses it."
        )
        self.daemon_up = gauge("daemon_up", "Whether the daemon returned its routes at the last request.")
        self.refused.labels("busy")  # starts at 0, so that the first refusals are an increase, as alerts ask for
        for outcome in ("recorded", "failed", "unreadable", "skipped"):
            self.shadow.labels(outcome)
        for kind in ("interactions", "feedback"):
            self.published.labels(kind)
            for reason in ("full", "disk", "too_large", "unreadable"):
                self.dropped.labels(kind, reason)

    def answered(self, workload: str, model: str, code: int, seconds: float, first_token: float | None) -> None:
        """Counts an answer to a request and observes its duration."""
        pair = self._answers.pair(workload, model)
        self._answers.requests.labels(*pair, str(code)).inc()
        self._answers.latency.labels(*pair).observe(seconds)
        if first_token is not None:
            self._answers.first_token.labels(*pair).observe(first_token)

    def looked_up(self, workload: str, result: str, seconds: float) -> None:
        """Counts a look-up in the memory and observes its duration."""
        self.memory_lookups.labels(workload, result).inc()
        self.memory_seconds.observe(seconds)

    def fell_back(self, workload: str, model: str) -> None:
        """Counts an answer of this model in place of the assigned one."""
        self._answers.fallbacks.labels(*self._answers.pair(workload, model)).inc()
