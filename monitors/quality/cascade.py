"""What the incumbent answers by rule: share, helpful rate, cost; and the least confidence of a version's own answers.

Calibration. The labelled answers of a version are ordered by confidence. The helpful rate of the more confident half is
tested, then of the more confident 60%, and so on, until the lower end of its interval is below `helpful_rate`. A fixed
order that stops at the first failure keeps the error of one test (Angelopoulos et al., "Learn then test", 2021). A
version is calibrated once: afterwards nobody votes on the answers that were replaced.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import duckdb

from retuned.consumers.warehouse import judgements
from retuned.consumers.warehouse.connection import Warehouse, named_queries
from retuned.monitors.blindness import note
from retuned.monitors.quality.figure import ALL_MODELS, Figure
from retuned.monitors.rates.estimate import rate
from retuned.monitors.rates.votes import of_units, read_votes
from retuned.monitors.statistics import Z95, wilson
from retuned.monitors.windows import Window

QUERIES = named_queries("retuned.monitors.quality", "cascade.sql")
LEAST = 100
"""Labelled answers of a version without which it is not calibrated."""
KEPT = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""The shares of the answers that are tested. A version that should give fewer than half of them is no use."""
LABELS = timedelta(days=30)

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
    if helpful_rate is not None:
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
    """Returns the least confidence of each version that answers, once it is calibrated for this helpful rate."""
    source = f"{helpful_rate:g}"
    cursor.execute(QUERIES["thresholds"], {"workload": workload, "source": source})
    known = {model: (value, n) for model, value, n in cursor.fetchall()}
    new = [model for (model,) in cursor.execute(QUERIES["versions"]).fetchall() if model not in known]
    labels = _labels(cursor, workload, now) if new else {}
    for model in new:
        own = labels.get(model, [])
        threshold = least_confidence(own, helpful_rate)
        what = f"rated answers of {model}, by experts or by users, to calibrate cascade.helpful_rate"
        if len(own) >= LEAST and threshold is None:
            what += f"; its more confident half is not shown to be {100 * helpful_rate:g}% helpful: none is replaced"
        needed = LEAST if len(own) < LEAST else len(own) + (threshold is None)
        note(warehouse, workload, "confidence", len(own), needed, what, now)
        if threshold is not None:
            known[model] = threshold, len(own)
    return [
        Figure(workload, model, "least_confidence", source, value, value, value, n)
        for model, (value, n) in known.items()
    ]


def least_confidence(labels: Sequence[Label], helpful_rate: float) -> float | None:
    """Returns the confidence down to which answers are shown to be helpful at this rate; None: too few labels, or not
    even the more confident half is."""
    if len(labels) < LEAST:
        return None
    ordered = sorted((confidence for confidence, _, _ in labels), reverse=True)
    found = None
    for share in KEPT:
        least = ordered[round(share * len(ordered)) - 1]
        units = defaultdict[str, list[int]](lambda: [0, 0])
        for confidence, unit, good in labels:
            if confidence >= least:
                units[unit][0] += good
                units[unit][1] += 1
        _, low, _ = rate(of_units((yes, n) for yes, n in units.values()))
        if low < helpful_rate:
            break
        found = least
    return found


def _labels(cursor: duckdb.DuckDBPyConnection, workload: str, now: datetime) -> Mapping[str, list[Label]]:
    """Returns the labelled answers of each model: by experts if there are enough, else by users."""
    judgements.comparable_votes(cursor, workload, now - LABELS, now, now=now)
    found = defaultdict[tuple[str, str], list[Label]](list)
    for model, source, unit, good, confidence in cursor.execute(QUERIES["labels"], {"since": now - LABELS}).fetchall():
        found[model, source].append((confidence, unit, good))
    return {
        model: next((own for own in (found[model, "expert"],) if len(own) >= LEAST), found[model, "user"])
        for model in {model for model, _ in found}
    }
