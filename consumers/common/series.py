"""Series of metrics: exemplars, and removal of series of former workloads."""

from collections.abc import Collection
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

MOST_ID_CHARACTERS = 128 - len("interaction_id")
"""OpenMetrics 1.0 limits the names and values of an exemplar's labels to 128 characters together."""
LOST = frozenset('"\\?#%')
"""Prometheus 2.53 does not unescape quotes and backslashes in exemplars; the others have a meaning in links."""


def exemplar_labels(interaction_id: str) -> dict[str, str] | None:
    """Returns the labels of an exemplar that names an interaction.

    None: its id, which producers choose, is too long, or has characters that break a scrape or the link to its page.
    """
    if len(interaction_id) > MOST_ID_CHARACTERS or not interaction_id.isprintable() or LOST & set(interaction_id):
        return None
    return {"interaction_id": interaction_id}


def forget_other_workloads(metrics: Collection[Any], kept: Collection[str]) -> set[str]:
    """Removes all series of workloads that are not kept, and returns the workloads that had any.

    Args:
        metrics: objects other than metrics are ignored.
    """
    forgotten = set[str]()
    for metric in metrics:
        if not isinstance(metric, Counter | Gauge | Histogram):
            continue
        samples = [sample.labels for family in metric.collect() for sample in family.samples]
        for workload in {labels["workload"] for labels in samples if "workload" in labels}.difference(kept):
            metric.remove_by_labels({"workload": workload})
            forgotten.add(workload)
    return forgotten
