"""Evidence: what the faults that the rules find in an answer amount to, whatever the length of the answer.

The table FAULTS is measured on labelled pairs: `python tests/benchmarks/grounding.py --fit` prints it anew.
"""

import math
from collections.abc import Collection, Iterable
from typing import NamedTuple


class Evidence(NamedTuple):
    """What a fault of a sentence tells.

    Attributes:
        weight: the logarithm of how much more often invented answers have it than sentences that invent nothing.
        rarity: of sentences that invent nothing, the share with this much evidence against them, or more, where the
            passages are short (SHORT).
        rarity_long: the same where they are long (LONG), and a claim is more easily taken for one about something else.
    """

    weight: float
    rarity: float
    rarity_long: float


SHORT, LONG = 10, 80
"""Clauses of the passages: the medians of the pairs, with their own passages and with those of eight pairs together."""
FAULTS = {
    "value": Evidence(4.32, 0.0070, 0.0100),
    "unknown": Evidence(3.77, 0.0070, 0.0100),
    "denied": Evidence(3.74, 0.0084, 0.0120),
    "period": Evidence(3.66, 0.0084, 0.0124),
    "words_apart": Evidence(2.95, 0.0098, 0.0224),
    "name": Evidence(2.92, 0.0126, 0.0251),
    "name_elsewhere": Evidence(2.87, 0.0126, 0.0254),
    "bound": Evidence(2.87, 0.0126, 0.0254),
    "value_elsewhere": Evidence(2.66, 0.0224, 0.0487),
    "item": Evidence(2.66, 0.0266, 0.0521),
    "perhaps_denied": Evidence(2.46, 0.0351, 0.0624),
    "word_elsewhere": Evidence(2.41, 0.0435, 0.0754),
    "exclusive": Evidence(1.63, 0.0449, 0.0776),
}


def score(sentences: Iterable[Collection[str]], clauses: int) -> float:
    """The share of answers that invent nothing, and are as long, against which there is as much evidence: 0 to 1.

    So about one in twenty of them has a score below 0.05, of whatever length. Each sentence without faults counts as 1.
    Source: Simes, "An improved Bonferroni procedure for multiple tests of significance" (1986): of n sentences, the
    least of n / rank × rarity over their ranks.

    Args:
        sentences: the faults of each sentence that claims something, or of a list.
        clauses: how many the passages have.
    """
    found = sorted(rarity(faults, clauses) for faults in sentences)
    return min((min(1.0, len(found) / rank * one) for rank, one in enumerate(found, 1)), default=1.0)


def rarity(faults: Collection[str], clauses: int) -> float:
    """The share of sentences that invent nothing against which there is at least as much evidence."""
    if not faults:
        return 1.0
    weight = sum(FAULTS[fault].weight for fault in faults)
    row = max((row for row in FAULTS.values() if row.weight <= weight), key=lambda row: row.weight)
    long = min(max(math.log(max(clauses, 1) / SHORT) / math.log(LONG / SHORT), 0.0), 1.0)
    return row.rarity + long * (row.rarity_long - row.rarity)
