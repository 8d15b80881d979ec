"""What a training makes of its rows: a simulation, fitted to real trainings (see `fit` and docs/evidence.md).

A model holds, for each topic, a distribution over answers. A training keeps KEPT of it. A topic that is taught by
questions in `k` wordings then gives the taught answer with probability `learned(k)`, as far as it was unknown, and with
`relearned(k)`, as far as the model knew another answer; else it answers as before. If the rows of a topic contradict
each other, their answers share this probability. Last comes the luck of the training: it changes the odds of each
topic's answer.
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

TOP, ROWS = 0.90, 4.0
"""How often a new topic is right after many rows, and the rows after which it is 63% of that."""
ROWS_CHANGED = 1.5
"""The rows after which 63% of what was known otherwise is replaced."""
KEPT = 0.79
LUCK = 1.1
"""Standard deviation of the log odds between two trainings of one recipe."""
POINTS = Path(__file__).with_name("points.json")

HOURS, HOURS_PER_ROW, HOURS_PER_QUESTION = 0.25, 0.002, 0.0005
"""Machine time of a training, and of an answer that is asked for an evaluation."""


def learned(wordings: npt.ArrayLike, top: float = TOP, rows: float = ROWS) -> npt.NDArray[np.float64]:
    """The probability of the taught answer after rows in so many wordings, where nothing was known."""
    return np.asarray(top * (1 - np.exp(-np.asarray(wordings, dtype=np.float64) / rows)))


def relearned(wordings: npt.ArrayLike, rows: float = ROWS_CHANGED) -> npt.NDArray[np.float64]:
    """The same where another answer was known."""
    return learned(wordings, 1.0, rows)


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
    noise = np.exp(luck.normal(0.0, LUCK, len(parent)))
    for topic in range(len(parent)):
        answers = taught.get(topic) or Counter({int(parent[topic].argmax()): 0})
        count = answers.total()
        known = parent[topic].sum()
        chance = float(known * relearned(count) + (1 - known) * learned(count))
        model[topic] *= 1 - chance
        for answer, number in answers.items():
            model[topic, answer] += chance * number / max(count, 1)
        own = list(answers)
        before = model[topic, own]
        share = min(float(before.sum()), 1 - 1e-6)
        lucky = share * noise[topic] / (1 - share + share * noise[topic])
        model[topic] *= (1 - lucky) / (1 - share)
        model[topic, own] = before * lucky / max(share, 1e-6)
    return model
