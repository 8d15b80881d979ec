"""What a metric is, and what it says of an answer."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from retuned.retrain.scoring.words import plain


@dataclass(frozen=True)
class Score:
    """How good one answer is.

    Attributes:
        value: 0 to 1; None: the metric abstains, because it cannot judge this answer.
        detail: why, for people; empty where there is nothing to add.
        valid: whether the answer has the form that programs read (JSON, calls of tools); None: no form is asked for.
        label: what the answer was read as, where answers are labels; None: none of the labels, or no such metric.
        tokens: that a language model was paid for, to judge it.
    """

    value: float | None
    detail: str = ""
    valid: bool | None = None
    label: str | None = None
    tokens: int = 0


class Metric(ABC):
    """How good an answer is by the approved one.

    Attributes:
        name: as in `metric.name`.
        meaning: what a score is, for people.
        structured: answers are labels, values or documents that programs read: nobody needs what else a model can do.
        in_words: answers are texts for people; else labels or documents, in which a value is not read as in a sentence.
        one_right: of two answers to one question that do not say the same (see `same`), one is right at most.
    """

    name: str
    meaning: str
    structured = False
    in_words = True
    one_right = False

    @property
    def learned(self) -> Mapping[str, Any]:
        """What it took from the approved answers, as JSON: kept with the dataset."""
        return {}

    @abstractmethod
    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """The score of one answer. `example`: the columns of the dataset's row."""

    @abstractmethod
    def same(self, one: str, other: str) -> bool:
        """Whether two answers to one question say the same."""

    def agreement(self, answer: str, before: str, example: Mapping[str, Any]) -> float | None:
        """How far an answer says what was answered before, 0 to 1; None: it cannot be told. Nobody is asked for it."""
        return self.score(answer, before, example).value

    def key(self, answer: str) -> Hashable:
        """Equal for answers that say the same, as far as that can be told of each by itself (see `same`)."""
        return plain(answer)

    def unreadable(self, answer: str, example: Mapping[str, Any]) -> str:
        """Why programs cannot read an answer, whether it is right or not; empty: they can, or no form is asked for."""
        return ""

    def groups(self, approved: str) -> list[str]:
        """The slices that a row belongs to by its approved answer, such as `label:refund` and `tool:search`.

        Topics and languages are slices of every metric.
        """
        return []
