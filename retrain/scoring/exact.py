"""The metric `exact`: equality with the approved answer, ignoring case, spacing, quotes and a final full stop."""

from collections.abc import Mapping
from typing import Any

from retuned.retrain.scoring.score import Metric, Score


class Exact(Metric):
    """The metric."""

    name = "exact"
    meaning = "1 for the approved answer, else 0"
    structured = True

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        return Score(float(self.same(answer, approved)))
