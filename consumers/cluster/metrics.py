"""The metrics of segments."""

from prometheus_client import CollectorRegistry, Counter, Gauge


def store_up(registry: CollectorRegistry) -> Gauge:
    """Returns the gauge of an ingester, or of a daemon that follows segments."""
    return Gauge(
        "retuned_store_up", "1 while the database and the object storage of the cluster answer.", registry=registry
    )


class DaemonMetrics:
    """The additional metrics of a daemon in a cluster."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.leader = Gauge(
            "retuned_leader", "1 for the daemon of a cluster that leads, 0 for one that stands by.", registry=registry
        )
        self.store_up = store_up(registry)
        self.deleted = Counter(
            "retuned_segment_files_deleted",
            "Files without a segment that the leading daemon deleted.",
            registry=registry,
        )


class Metrics:
    """The additional metrics of an ingester."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.build = Gauge("retuned_ingester_build_info", "1; its version.", ["version"], registry=registry)
        self.segments = Counter("retuned_segments", "Segments that this ingester has recorded.", registry=registry)
        self.bytes = Counter(
            "retuned_segment_bytes", "Bytes of their files, as they are in object storage.", registry=registry
        )
        self.reassigned = Counter(
            "retuned_segments_reassigned",
            "Batches that were dropped and read again because another ingester got a partition.",
            registry=registry,
        )
        self.store_up = store_up(registry)
