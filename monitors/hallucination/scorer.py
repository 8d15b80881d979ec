"""The interface of scorers, which judge whether passages support an answer: values, detector and judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Reason = Literal[
    "no_words", "no_context", "language", "code", "no_values", "numbering", "too_long", "failed", "interrupted"
]


@dataclass(frozen=True)
class Answer:
    """An answer with its passages.

    Attributes:
        question: the user's last message.
        objective: the purpose of the workload, or empty.
        conversation: all messages before the answer, with the instructions; the answer may repeat them.
        truncated: whether passages or messages are left out or incomplete.
    """

    id: str
    question: str
    passages: tuple[str, ...]
    response: str
    objective: str = ""
    conversation: tuple[str, ...] = ()
    truncated: bool = False


@dataclass(frozen=True)
class Judgement:
    """A scorer's judgement of an answer.

    Attributes:
        score: how well the passages support the answer, 0 to 1; each scorer has its own scale.
        why: the unsupported parts in order, if the scorer names them.
    """

    score: float
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Abstention:
    """A scorer cannot judge an answer.

    Attributes:
        error: why it `failed` or was `interrupted`, for the log.
    """

    reason: Reason
    error: str = ""


class ScorerFailed(Exception):
    """A scorer judged nothing; the text names the cause."""


class Scorer(Protocol):
    """Judges answers.

    Attributes:
        source: grounding (values), nli (detector) or llm (judge).
        threshold: a lower score is an alarm.
    """

    source: str
    threshold: float

    def judge(self, answers: Sequence[Answer]) -> Sequence[tuple[Answer, Judgement | Abstention]]:
        """Returns the results for the answers that it had time for; the others may be judged later.

        Raises:
            Cancelled: the scorer was stopped.
            ScorerFailed: the scorer judged no answer.
        """
