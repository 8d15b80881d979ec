"""Scorer: what tells whether an answer's passages bear it out. By rules, models, judges or people, in one form."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Reason = Literal["no_words", "no_context", "language", "table", "code"]


@dataclass(frozen=True)
class Answer:
    """An answer, the passages it was given, and the question; the objective is what its workload is for, or empty."""

    id: str
    question: str
    passages: tuple[str, ...]
    response: str
    objective: str = ""


@dataclass(frozen=True)
class Judgement:
    """What a scorer found.

    Attributes:
        score: how well the passages bear the answer out, 0 to 1; each scorer has its own scale.
        spans: the claims that they seem not to bear out, in order, where the scorer tells them.
    """

    score: float
    spans: tuple[str, ...] = ()


@dataclass(frozen=True)
class Abstention:
    """A scorer cannot judge an answer."""

    reason: Reason


class ScorerFailed(Exception):
    """A scorer judged nothing; the text says why."""


class Scorer(Protocol):
    """What judges answers.

    Attributes:
        source: its name among the sources of hallucination rates.
        threshold: an answer with a lower score counts as invented.
    """

    source: str
    threshold: float

    def judge(self, answers: Sequence[Answer]) -> Sequence[tuple[Answer, Judgement | Abstention]]:
        """The answers it came to, each with what it found. What it did not come to may be asked again.

        Raises:
            Cancelled: it was stopped.
            ScorerFailed: it judged none of them.
        """
