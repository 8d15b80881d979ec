"""What the incumbent answers by rule: share, helpful rate, cost; and the least confidence of a version's own answers.

Calibration. The first LEAST labels of a version set the confidences above which its more confident half, 60% and so on
lie. In this order their helpful rates are tested, until one is not shown to be above `helpful_rate`. A fixed order that
stops at the first failure keeps the error of one test (Angelopoulos et al., "Learn then test", 2021). A version is
calibrated once: afterwards nobody votes on the answers that were replaced.

Error. Labels are tested at each look until the version is calibrated, by an e-value that may be examined at any time:
the confidences are set beforehand, and votes are divided by their design effect (rates/sequential.py). No look reads
more than LABELS. So the time since the version came into service is divided into periods of that length with labels of
their own, and the k-th has ERROR / (k (k + 1)), half of it for experts' labels and half for users'.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors.blindness import note
from retuned.monitors.quality.figure import ALL_MODELS, Figure
from retuned.monitors.rates.estimate import evidence_effect, rate
from retuned.monitors.rates.sequential import log_e_value_of_rate
from retuned.monitors.rates.votes import of_units, read_votes
from retuned.monitors.statistics import Z95, wilson
from retuned.monitors.windows import Window

QUERIES = named_queries("retuned.monitors.quality", "cascade.sql")
LEAST = 100
"""Labelled answers of a version without which it is not calibrated."""
KEPT = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The shares of the answers that are tested. A version that should give fewer than half of them is no use."""
LABELS = timedelta(days=90)
ERROR = 0.025
"""The chance that a version is ever calibrated wrongly: its kept answers are helpful at a lower rate."""

Label = tuple[float, str, bool]
"""Confidence, unit and vote."""


def figures(
    warehouse: Warehouse,
    cursor: duckdb.DuckDBPyConnection,
    workload: str,
    window: Window,
    now: datetime,
    helpful_rate: float | None,
) -> list[Figure]:
    """Returns the figures of what is answered by rule. Reads the temporary tables of `measure`.

    Args:
        helpful_rate: the configured one; None: answers are not replaced for their confidence.
    """
    found = _answered(cursor, workload, window)
    if helpful_rate is None:
        note(warehouse, workload, "confidence", 0, 0, "", now)
    else:
        found += _thresholds(warehouse, cursor, workload, now, helpful_rate)
    return found


def _answered(cursor: duckdb.DuckDBPyConnection, workload: str, window: Window) -> list[Figure]:
    span = {"workload": workload, "start": window.start, "end": window.end}
    found = []
    for rule, n, all_, paid, cost, spread in cursor.execute(QUERIES["answered"], span).fetchall():
        found.append(Figure(workload, ALL_MODELS, "cascade_share", rule, *wilson(n, all_), all_))
        if paid:
            half = Z95 * (spread or 0.0) / math.sqrt(paid)
            found.append(
                Figure(workload, ALL_MODELS, "cascade_cost", rule, cost, max(cost - half, 0.0), cost + half, paid)
            )
    cursor.execute(QUERIES["votes"])
    for (_, source, _), votes in read_votes(cursor).items():
        n = round(votes.sums[1])
        found.append(Figure(workload, ALL_MODELS, "cascade_helpful_rate", source, *rate(votes), n))
    return found


def _thresholds(
    warehouse: Warehouse, cursor: duckdb.DuckDBPyConnection, workload: str, now: datetime, helpful_rate: float
) -> list[Figure]:
    """Returns the least confidence of each version that answers, once it is calibrated for this helpful rate.

    The monitor is blind by the version that lacks most labels.
    """
    source = f"{helpful_rate:g}"
    cursor.execute(QUERIES["thresholds"], {"workload": workload, "source": source})
    known = {model: (value, n) for model, value, n in cursor.fetchall()}
    versions = cursor.execute(QUERIES["versions"], {"workload": workload}).fetchall()
    lacking = [(0, 0, "")]
    for model, served_since in versions:
        if model in known:
            continue
        period = max(math.floor((now - served_since) / LABELS), 0)
        own = _labels(cursor, workload, model, served_since + period * LABELS, now)
        threshold = least_confidence(own, helpful_rate, ERROR / 2 / ((period + 1) * (period + 2)))
        what = f"rated answers of {model}, by experts or by users, to calibrate cascade.helpful_rate"
        if len(own) >= LEAST and threshold is None:
            what += f"; its more confident half is not shown to be {100 * helpful_rate:g}% helpful: none is replaced"
        needed = LEAST if len(own) < LEAST else len(own) + (threshold is None)
        lacking.append((len(own), needed, what))
        if threshold is not None:
            known[model] = threshold, len(own)
    note(warehouse, workload, "confidence", *max(lacking, key=lambda item: item[1] - item[0]), now)
    return [
        Figure(workload, model, "least_confidence", source, value, value, value, n)
        for model, (value, n) in known.items()
    ]


def least_confidence(labels: Sequence[Label], helpful_rate: float, error: float) -> float | None:
    """Returns the confidence down to which answers are shown to be helpful at this rate; None: too few labels, or not
    even the more confident half is.

    Args:
        labels: in the order of their votes.
        error: the chance of a wrong result, however many of the labels are tested, one after the other.
    """
    if len(labels) < LEAST:
        return None
    first = sorted((confidence for confidence, _, _ in labels[:LEAST]), reverse=True)
    found = None
    for share in KEPT:
        least = first[round(share * LEAST) - 1]
        units = defaultdict[str, list[int]](lambda: [0, 0])
        for confidence, unit, good in labels:
            if confidence >= least:
                units[unit][0] += good
                units[unit][1] += 1
        votes = of_units((yes, n) for yes, n in units.values())
        yes, n, _, _ = votes.sums
        effect = evidence_effect(votes)
        if log_e_value_of_rate(yes / effect, n / effect, helpful_rate) < -math.log(error):
            break
        found = least
    return found


def _labels(
    cursor: duckdb.DuckDBPyConnection, workload: str, model: str, since: datetime, now: datetime
) -> list[Label]:
    """Returns the labelled answers of a model in the order of their votes: by experts if there are enough, else by
    users."""
    judgements.comparable_votes(cursor, workload, since, now, now=now)
    found = defaultdict[str, list[Label]](list)
    for source, *label in cursor.execute(QUERIES["labels"], {"model": model, "since": since}).fetchall():
        found[source].append(tuple(label))
    return found["expert"] if len(found["expert"]) >= LEAST else found["user"]
