"""The interface of metrics, and their scores."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from retuned.retrain.scoring.words import plain


@dataclass(frozen=True)
class Score:
    """The score of one answer.

    Attributes:
        value: 0 to 1; None if the metric abstains, because it cannot judge this answer.
        detail: an explanation for people; may be empty.
        valid: whether the answer has the form that programs read (JSON, tool calls); None if no form is required.
        label: the label that the answer was read as; None if it is no label.
        tokens: the tokens of a language model that were paid for.
    """

    value: float | None
    detail: str = ""
    valid: bool | None = None
    label: str | None = None
    tokens: int = 0


class Metric(ABC):
    """Compares an answer with the approved one.

    Attributes:
        name: as in `metric.name`.
        meaning: a description of its scores, for people.
        structured: answers are labels, values or documents for programs, so general abilities do not matter.
        in_words: answers are texts for people; else labels or documents, whose values are not read as in a sentence.
        one_right: at most one of two answers with different meanings can be right (see `same`).
        examined_as: its name in the exam, including the judge's if one decides.
        right: the minimum score of a right answer.
    """

    name: str
    meaning: str
    structured = False
    in_words = True
    one_right = False
    right = 1.0
    examined_as = ""

    @property
    def version(self) -> str:
        """A text that changes when its scores may change: an exam counts for one version of a metric."""
        return version("retuned")

    @property
    def learned(self) -> Mapping[str, Any]:
        """What the metric derived from the approved answers, as JSON, to be stored with the dataset."""
        return {}

    @abstractmethod
    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """Returns the score of one answer. `example`: the columns of the dataset's row."""

    def compare(self, one: str, other: str) -> bool | None:
        """Returns whether two answers to one question have the same meaning; None if the metric abstains."""
        return self.key(one) == self.key(other)

    def same(self, one: str, other: str) -> bool:
        """Returns whether two answers to one question are known to have the same meaning (see `compare`)."""
        return self.compare(one, other) is True

    def agreement(self, answer: str, before: str, example: Mapping[str, Any]) -> float | None:
        """Returns the agreement of an answer with an earlier one, 0 to 1, without a judge. Abstention counts as 0."""
        value = self.score(answer, before, example).value
        return float(self.same(answer, before)) if value is None else value

    def key(self, answer: str) -> Hashable:
        """Returns a key that is equal for answers with the same meaning, as far as one answer alone shows it."""
        return plain(answer)

    def unreadable(self, answer: str, example: Mapping[str, Any], *, inferred: bool = True) -> str:
        """Returns why programs cannot read an answer; empty if they can, or if no form is required.

        Args:
            inferred: labels and a schema that were inferred from approved answers count, too, not only configured ones.
        """
        return ""

    def groups(self, approved: str) -> list[str]:
        """Returns the slices of a row by its approved answer, such as `label:refund` and `tool:search`.

        Topics and languages are slices with every metric.
        """
        return []


class Unjudged(Metric):
    """The metric `none`, for answers that no other metric can judge: it abstains on all but equal texts."""

    name = "none"
    meaning = "not judged"
    reason = "no available metric can judge these; set evaluate.judge_url or metric.name"

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        return Score(1.0) if self.compare(answer, approved) else Score(None, self.reason)

    def compare(self, one: str, other: str) -> bool | None:
        return plain(one) == plain(other) or None
