"""The metric `label`: answers are labels of a closed set, from the configuration or from the approved answers."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retuned.retrain.scoring.score import Metric, Score
from retuned.retrain.scoring.words import plain

NO_LABEL = "(no label)"
"""An answer that is no label, in words."""
_GROUP = "label:"
_CELL = re.compile(r"confusion\[(.*?)\]\[(.*)\]")

Confusion = dict[str, Counter[str | None]]
"""A confusion matrix: right label → given label → count. None is an answer that is no label."""


class Label(Metric):
    """The metric: 1 for the label of the approved answer, else 0.

    The label is the whole answer, ignoring case, spacing, quotes and a final full stop. Underscores count, because
    programs read them. The metric abstains if the approved answer is no label.

    Args:
        labels: the closed set.
        inferred: the set is from approved answers, not from the configuration.
    """

    name = "label"
    meaning = "1 for the right label, else 0"
    structured = True
    in_words = False
    one_right = True

    def __init__(self, labels: Iterable[str], *, inferred: bool = False) -> None:
        self._labels, self._inferred = {plain(label): label for label in sorted(labels)}, inferred

    @property
    def learned(self) -> Mapping[str, Any]:
        return {"labels": list(self._labels.values())}

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        wanted, given = self._labels.get(plain(approved)), self._labels.get(plain(answer))
        if wanted is None:
            return Score(None, f"the approved answer is none of the {len(self._labels)} labels", label=given)
        if given == wanted:
            return Score(1.0, label=given)
        return Score(0.0, f"{given or 'no label'} in place of {wanted}", label=given)

    def unreadable(self, answer: str, example: Mapping[str, Any], *, inferred: bool = True) -> str:
        if plain(answer) in self._labels or (self._inferred and not inferred):
            return ""
        return f"none of the {len(self._labels)} labels"

    def groups(self, approved: str) -> list[str]:
        label = self._labels.get(plain(approved))
        return [f"{_GROUP}{label}"] if label is not None else []


def learned_labels(approved: Sequence[str]) -> list[str]:
    """Returns the labels of approved answers, each in its most frequent spelling.

    A text that occurs once is no label if others repeat: it is a remark.
    """
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in approved:
        spellings[plain(answer)][answer.strip()] += 1
    repeated = [counts for counts in spellings.values() if counts.total() > 1]
    return sorted(max(sorted(counts), key=counts.__getitem__) for counts in repeated or spellings.values())


def labels_of(groups: Iterable[str]) -> list[str]:
    """Returns the labels among the slices of a row: one, if answers are labels."""
    return [name.removeprefix(_GROUP) for name in groups if name.startswith(_GROUP)]


def confusion(pairs: Iterable[tuple[str, str | None]]) -> Confusion:
    """Returns the confusion matrix of pairs of a right label and a given one."""
    table: Confusion = defaultdict(Counter)
    for right, given in pairs:
        table[right][given] += 1
    return dict(sorted(table.items()))


def as_figures(table: Mapping[str, Counter[str | None]]) -> dict[str, float]:
    """Returns a confusion matrix as figures of a decision.

    Their names are such as `confusion[refund][exchange]`, and `confusion[refund][]` for answers that are no label.
    """
    return {
        f"confusion[{right}][{given or ''}]": float(times)
        for right, row in table.items()
        for given, times in row.items()
    }


def in_figures(figures: Mapping[str, float]) -> Confusion:
    """Returns the confusion matrix in the figures of a decision; empty if answers are no labels."""
    table: Confusion = defaultdict(Counter)
    for name, times in figures.items():
        if cell := _CELL.fullmatch(name):
            table[cell[1]][cell[2] or None] = int(times)
    return dict(table)


def mistaken(table: Mapping[str, Counter[str | None]]) -> list[tuple[str, int, int, str]]:
    """Returns each right label with the number of answers, of right answers, and the wrong answers; worst first."""
    rows = []
    for label, given in table.items():
        wrong = ", ".join(f"{times} {other or NO_LABEL}" for other, times in given.most_common() if other != label)
        rows.append((label, given.total(), given[label], wrong))
    return sorted(rows, key=lambda row: (row[2] / row[1], row[0]))


def macro_f1(table: Mapping[str, Counter[str | None]]) -> float:
    """Returns the mean F1 of the right labels, 0 to 1. `table` is a confusion matrix that is not empty."""
    given = sum(table.values(), Counter[str | None]())
    return sum(2 * row[label] / (row.total() + given[label]) for label, row in table.items()) / len(table)
