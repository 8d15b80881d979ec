"""What a training makes of its rows: a simulation, fitted to real trainings (see `calibrate` and docs/evidence.md).

A model holds, for each topic, a distribution over answers. Taught an answer by questions in `k` wordings, it gives that
answer with probability TOP · (1 − exp(−k / ROWS)), more or less by the luck of the training; else it answers as before.
If the rows of a topic contradict each other, their answers share this probability. Topics without rows keep KEPT of
what was known.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Answers = npt.NDArray[np.float64]
"""Shape (topics, answers): the probability of each answer. What is missing to 1 are answers that are never right."""

Rows = Iterable[tuple[int, int, int]]
"""Topic, wording and answer of each row."""

TOP, ROWS = 0.87, 2.9
KEPT = 0.8
LUCK = 0.25
"""Standard deviation of the log odds between two trainings of one recipe."""
POINTS = Path(__file__).with_name("points.json")

HOURS, HOURS_PER_ROW, HOURS_PER_QUESTION = 0.25, 0.002, 0.0005
"""Machine time of a training, and of an answer that is asked for an evaluation."""


def learned(wordings: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The probability of the taught answer after rows in so many wordings."""
    return np.asarray(TOP * (1 - np.exp(-np.asarray(wordings, dtype=np.float64) / ROWS)))


class Learner(Protocol):
    """What makes models of rows."""

    def first(self) -> Answers:
        """The model in service on day 0, `v0`."""

    def train(self, version: str, parent: str, model: Answers, rows: Rows, luck: np.random.Generator) -> Answers:
        """The model of a new version, trained on from its parent's; `base` is a parent without an own model."""


class Simulated:
    """Trains by `train`, from a first model that is given."""

    def __init__(self, first: Answers) -> None:
        self._first = first

    def first(self) -> Answers:
        return self._first.copy()

    def train(self, version: str, parent: str, model: Answers, rows: Rows, luck: np.random.Generator) -> Answers:  # noqa: ARG002
        return train(model, rows, luck)


def train(parent: Answers, rows: Rows, luck: np.random.Generator) -> Answers:
    """The model after a simulated training; a wording counts once for each answer."""
    taught: dict[int, Counter[int]] = defaultdict(Counter)
    for topic, _, answer in sorted(set(rows)):
        taught[topic][answer] += 1
    model = parent * KEPT
    noise = luck.normal(0.0, LUCK, len(parent))
    for topic, answers in taught.items():
        count = sum(answers.values())
        chance = float(learned(count))
        odds = np.exp(np.log(chance / (1 - chance)) + noise[topic])
        chance = min(float(odds / (1 + odds)), 0.99)
        model[topic] = parent[topic] * (1 - chance)
        for answer, number in answers.items():
            model[topic, answer] += chance * number / count
    return model
