"""Features of all answers and of the rated answers of both windows, for the estimate of the helpful rate."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from retuned.monitors.drift.columns import ANSWERS, NUMBERS, SAMPLES, SATISFACTION, Columns, Window
from retuned.monitors.quality.estimate import Rated, Rows, estimate, lacking

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

CURRENT: Window = "current"
REFERENCE: Window = "reference"
FLAGS = ("refusal", "has_context")
# Computed for the sample of all answers only.
LEFT_OUT = "new_words"


def estimated(columns: Columns) -> dict[str, Any]:
    """Returns the estimated helpful rate (`estimate`, an `Estimate`) or what it lacks (`lacking`) as plain values."""
    rated = {window: _rated(columns, window) for window in (CURRENT, REFERENCE)}
    if lack := lacking(_helpful(rated[CURRENT]), _helpful(rated[REFERENCE])):
        return {"estimate": None, "lacking": asdict(lack)}
    answers = {window: _sampled(columns, window, ANSWERS) for window in rated}
    result = estimate(
        Rows(*_features(columns, answers[CURRENT])), _votes(columns, rated[CURRENT]),
        Rows(*_features(columns, answers[REFERENCE])), _votes(columns, rated[REFERENCE]),
    )  # fmt: skip
    return {"estimate": asdict(result) if result else None, "lacking": None}


def _sampled(columns: Columns, window: Window, sample: str) -> "pd.DataFrame":
    table = columns.table
    return table[(table["window"] == window) & (table["sample"] == sample)]


def _rated(columns: Columns, window: Window) -> "pd.DataFrame":
    rows = _sampled(columns, window, SAMPLES[SATISFACTION])
    return rows[rows["helpful"].notna()]


def _votes(columns: Columns, rows: "pd.DataFrame") -> Rated:
    return Rated(*_features(columns, rows), _helpful(rows), rows["unit"].tolist())


def _helpful(rows: "pd.DataFrame") -> "NDArray[np.float64]":
    import numpy as np

    return np.asarray(rows["helpful"] == "yes", dtype=np.float64)


def _features(columns: Columns, rows: "pd.DataFrame") -> tuple["NDArray[np.float64]", dict[str, list[str | None]]]:
    """Returns the features of rows (prompt vectors, logarithms of numbers, flags) and their segments."""
    import numpy as np
    import pandas as pd

    numbers = [pd.to_numeric(rows[name], errors="coerce").fillna(0.0) for name in NUMBERS if name != LEFT_OUT]
    flags = [rows[name] == "yes" for name in FLAGS]
    logarithms = [np.log1p(np.maximum(values, 0.0)) for values in numbers]
    features = np.column_stack([*logarithms, *flags]).astype(np.float64)
    if columns.topics:
        features = np.hstack([features, columns.topics.vectors.project(list(rows["prompt"]))])
    segments = {name: [str(value) if pd.notna(value) else None for value in rows[name]] for name in columns.estimated}
    return features, segments
