"""The metric `exact`: the approved answer or none. Case, spacing, quotes and a full stop at the end do not count."""

from collections.abc import Mapping
from typing import Any

from retuned.retrain.scoring.score import Metric, Score
from retuned.retrain.scoring.words import plain


class Exact(Metric):
    """The metric."""

    name = "exact"
    meaning = "1 for the approved answer, else 0"
    structured = True

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """1 for the approved answer, else 0."""
        return Score(float(self.same(answer, approved)))

    def same(self, one: str, other: str) -> bool:
        """Equal, as plain text."""
        return plain(one) == plain(other)
