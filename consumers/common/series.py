"""Series of metrics: they leave when what they are about does, and name an interaction as their exemplar."""

from collections.abc import Collection
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

MOST_ID_CHARACTERS = 128 - len("interaction_id")
"""Of an exemplar: OpenMetrics 1.0 limits the names and values of its labels to 128 characters together."""
LOST = frozenset('"\\?#%')
"""Prometheus 2.53 leaves quotes and backslashes in exemplars escaped; the others have a meaning in links."""


def exemplar_labels(interaction_id: str) -> dict[str, str] | None:
    """The labels of the exemplar that an interaction is.

    None where its id, which producers choose, is too long, or has characters that do not survive a scrape or the link
    to its page: some would even break off the scrape.
    """
    if len(interaction_id) > MOST_ID_CHARACTERS or not interaction_id.isprintable() or LOST & set(interaction_id):
        return None
    return {"interaction_id": interaction_id}


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
