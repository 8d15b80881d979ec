"""Series of metrics, which leave when what they are about does."""

from collections.abc import Collection
from typing import Any

from prometheus_client import Counter, Gauge, Histogram


def forget_other_workloads(metrics: Collection[Any], kept: Collection[str]) -> set[str]:
    """Remove all series of workloads that are not kept, from those of the given that are metrics.

    Returns:
        the workloads that had any.
    """
    forgotten = set[str]()
    for metric in metrics:
        if not isinstance(metric, Counter | Gauge | Histogram):
            continue
        labels = [sample.labels for family in metric.collect() for sample in family.samples]
        for workload in {of["workload"] for of in labels if "workload" in of}.difference(kept):
            metric.remove_by_labels({"workload": workload})
            forgotten.add(workload)
    return forgotten
