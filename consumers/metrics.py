"""The metrics of ingestion (for those of answers, see `traffic`)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from retuned.consumers.traffic import Traffic


class Metrics:
    """Counters move in the ingest loop; gauges are set there once a batch."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.traffic = Traffic(registry)
        self.events = Counter(
            "retuned_events",
            "Messages read, dead letters and duplicates among them; those of files have the topic import.",
            ["topic"],
            registry=registry,
        )
        self.duplicates = Counter(
            "retuned_event_duplicates", "Events that were not stored because their id was.", registry=registry
        )
        self.erased = Counter(
            "retuned_events_erased",
            "Events that were not stored, and dead letters without content, because of `retuned forget`.",
            registry=registry,
        )
        self.dead_letters = Counter(
            "retuned_dead_letters", "Messages that are no events.", ["reason"], registry=registry
        )
        self.passed_over = Counter(
            "retuned_events_passed_over",
            "Messages, and parts of them, that are known to be no events: other spans, calls that failed.",
            ["reason"],
            registry=registry,
        )
        self.set_aside = Gauge(
            "retuned_producers_set_aside",
            "Producers (workloads on a topic) most of whose last messages are dead letters.",
            ["topic"],
            registry=registry,
        )
        self.lost = Counter(
            "retuned_events_lost",
            "Events that the broker deleted before they were read, or holds broken.",
            ["topic"],
            registry=registry,
        )
        self.remade = Counter(
            "retuned_topics_remade",
            "Topics that were made anew under their name, and are read from their beginning.",
            ["topic"],
            registry=registry,
        )
        self.redactions = Counter(
            "retuned_redactions", "Pieces of text replaced before storage.", ["kind"], registry=registry
        )
        self.dead_letter_publish_failures = Counter(
            "retuned_dead_letter_publish_failures",
            "Failed copies of dead letters to their topic; the warehouse has them. The next try is 30 s later.",
            registry=registry,
        )
        self.lag = Gauge("retuned_ingest_lag_events", "Events on the broker that were not read yet.", registry=registry)
        self.lag_seconds = Gauge(
            "retuned_ingest_lag_seconds",
            "How long the oldest event of a topic that was not read yet has waited on the broker, at most; 0 when all "
            "are read.",
            ["topic"],
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "retuned_ingest_batch_seconds",
            "Time from a batch being read to its being stored.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=registry,
        )
        self.last_progress = Gauge(
            "retuned_ingest_last_progress_timestamp_seconds",
            "When the ingest loop last came round, events or no events, broker or no broker, Unix time.",
            registry=registry,
        )
        self.broker_up = Gauge("retuned_broker_up", "1 while the broker answers.", registry=registry)
        self.last_event = Gauge(
            "retuned_ingest_last_event_timestamp_seconds",
            "When the last event was stored, Unix time.",
            registry=registry,
        )
