"""Metrics of the gateway."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
MOST_PAIRS = 64
"""Pairs of workload and model that have series: versions come and go, and the one not seen for longest goes."""
_LABELS = ("workload", "model_name")


class Metrics:
    """Answers, what waits for Kafka, and what is on the other side."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"retuned_gateway_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"retuned_gateway_{name}", text, labels, registry=registry)

        self.registry = registry
        self.build = gauge("build_info", "Always 1; the label tells the version.", "version")
        self._requests = counter(
            "requests_total",
            "Requests that were sent to a model server, by the status that the app got; 499: it went away before.",
            *_LABELS,
            "code",
        )
        self._latency = Histogram(
            "retuned_gateway_request_seconds",
            "From a request to the end of its answer.",
            _LABELS,
            buckets=SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "retuned_gateway_first_token_seconds",
            "From a request to the first bytes of a streamed answer.",
            _LABELS,
            buckets=FIRST_TOKEN_SECONDS,
            registry=registry,
        )
        self._fallbacks = counter(
            "fallbacks_total", "Answers of another model than the assigned one, which was on no server.", *_LABELS
        )
        self.refused = counter("refused_total", "Requests that were answered by the gateway itself.", "code")
        self.in_flight = gauge("in_flight", "Requests that are being answered.")
        self.connections = gauge("open_connections", "Connections of apps, with and without a request.")
        self.most_connections = gauge("open_connections_limit", "How many there may be.")
        self.feedback = counter("feedback_total", "Feedback that came over HTTP and is kept.")
        self.buffered_bytes = gauge("buffered_bytes", "What waits on the disk for Kafka.")
        self.buffered_seconds = gauge(
            "buffered_seconds", "For how long what waits longest has waited for Kafka; 0: nothing waits."
        )
        self.buffer_limit = gauge("buffer_limit_bytes", "What may wait at most; what comes beyond is dropped.")
        self.published = counter("published_total", "Events that Kafka has acknowledged.", "kind")
        self.dropped = counter(
            "dropped_total",
            "Events that are lost, by reason: full (the buffer), disk, too_large, unreadable (the answer).",
            "kind",
            "reason",
        )
        self.shadow = counter(
            "shadow_total",
            "Answers that a candidate was to give in shadow, by outcome: recorded, failed, unreadable, or skipped: too "
            "many were waited for, or too much waits for Kafka.",
            "outcome",
        )
        self.upstream_up = gauge("upstream_up", "Whether a model server answers.", "upstream")
        self.upstream_ejected = gauge(
            "upstream_ejected",
            "For how many models a server is passed over because it keeps failing with them.",
            "upstream",
        )
        self.ejections = counter(
            "ejections_total", "How often a server began to be passed over with a model.", "upstream"
        )
        self.daemon_up = gauge("daemon_up", "Whether the daemon answered with its routes when it was asked last.")
        self._pairs: dict[tuple[str, str], None] = {}  # the one that was seen last comes last
        for outcome in ("recorded", "failed", "unreadable", "skipped"):
            self.shadow.labels(outcome)
        for kind in ("interactions", "feedback"):
            self.published.labels(kind)
            for reason in ("full", "disk", "too_large", "unreadable"):
                self.dropped.labels(kind, reason)

    def answered(self, workload: str, model: str, code: int, seconds: float, first_token: float | None) -> None:
        """A request was answered."""
        pair = self._pair(workload, model)
        self._requests.labels(*pair, str(code)).inc()
        self._latency.labels(*pair).observe(seconds)
        if first_token is not None:
            self._first_token.labels(*pair).observe(first_token)

    def fell_back(self, workload: str, model: str) -> None:
        """This model answered in place of the assigned one."""
        self._fallbacks.labels(*self._pair(workload, model)).inc()

    def _pair(self, workload: str, model: str) -> tuple[str, str]:
        pair = (workload, model)
        if pair not in self._pairs and len(self._pairs) >= MOST_PAIRS:
            gone = dict(zip(_LABELS, next(iter(self._pairs)), strict=True))
            for metric in (self._requests, self._latency, self._first_token, self._fallbacks):
                metric.remove_by_labels(gone)
            del self._pairs[(gone["workload"], gone["model_name"])]
        self._pairs.pop(pair, None)
        self._pairs[pair] = None
        return pair
