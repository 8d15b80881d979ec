"""The metric `label`: answers are labels, of a set that the configuration names or the approved answers show."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retuned.retrain.scoring.score import Metric, Score
from retuned.retrain.scoring.words import plain

OTHER = "other"
"""In a confusion matrix: an answer that is no label."""
_GROUP = "label:"
_CELL = re.compile(r"confusion\[(.*?)\]\[(.*)\]")


class Label(Metric):
    """The metric: 1 for the label of the approved answer, else 0.

    A label is the whole answer. Case, spacing, quotes and a full stop at the end do not count; underscores do, as a
    program reads them. It abstains where the approved answer is no label.

    Args:
        labels: the set, each as it is written.
    """

    name = "label"
    meaning = "1 for the right label, else 0"
    structured = True
    in_words = False
    one_right = True

    def __init__(self, labels: Iterable[str]) -> None:
        self._labels = {plain(label): label for label in sorted(labels)}

    @property
    def learned(self) -> Mapping[str, Any]:
        """The labels."""
        return {"labels": list(self._labels.values())}

    def score(self, answer: str, approved: str, example: Mapping[str, Any]) -> Score:
        """The score, and as which label the answer was read."""
        wanted, given = self._labels.get(plain(approved)), self._labels.get(plain(answer))
        if wanted is None:
            return Score(None, f"the approved answer is none of the {len(self._labels)} labels", label=given)
        if given == wanted:
            return Score(1.0, label=given)
        return Score(0.0, f"{given or 'no label'} in place of {wanted}", label=given)

    def same(self, one: str, other: str) -> bool:
        """One label, or the same text where they are none."""
        return plain(one) == plain(other)

    def unreadable(self, answer: str, example: Mapping[str, Any]) -> str:
        """That it is none of the labels."""
        return "" if plain(answer) in self._labels else f"none of the {len(self._labels)} labels"

    def groups(self, approved: str) -> list[str]:
        """`label:` and the label."""
        label = self._labels.get(plain(approved))
        return [f"{_GROUP}{label}"] if label is not None else []


def learned_labels(approved: Sequence[str]) -> list[str]:
    """The labels of approved answers, each in its most frequent spelling."""
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    for answer in approved:
        spellings[plain(answer)][answer.strip()] += 1
    return sorted(max(sorted(found), key=found.__getitem__) for found in spellings.values())


def labels_of(groups: Iterable[str]) -> list[str]:
    """The labels among the slices of a row: one, where answers are labels."""
    return [name.removeprefix(_GROUP) for name in groups if name.startswith(_GROUP)]


def confusion(pairs: Iterable[tuple[str, str | None]]) -> dict[str, Counter[str]]:
    """Of pairs of the right label and the given one, how often each was given for each; no label is OTHER."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for right, given in pairs:
        found[right][given or OTHER] += 1
    return dict(sorted(found.items()))


def as_figures(table: Mapping[str, Counter[str]]) -> dict[str, float]:
    """A table of `confusion` as figures of a decision, under names such as `confusion[refund][exchange]`."""
    return {
        f"confusion[{right}][{given}]": float(times) for right, row in table.items() for given, times in row.items()
    }


def in_figures(figures: Mapping[str, float]) -> dict[str, Counter[str]]:
    """The table among the figures of a decision; empty where answers are no labels."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for name, times in figures.items():
        if cell := _CELL.fullmatch(name):
            found[cell[1]][cell[2]] = int(times)
    return dict(found)


def mistaken(table: Mapping[str, Counter[str]]) -> list[tuple[str, int, int, str]]:
    """Each right label with its answers, how many of them are right, and what the wrong ones were; the worst first."""
    found = []
    for label, given in table.items():
        wrong = ", ".join(f"{times} {other}" for other, times in given.most_common() if other != label)
        found.append((label, given.total(), given[label], wrong))
    return sorted(found, key=lambda one: (one[2] / one[1], one[0]))


def macro_f1(table: Mapping[str, Counter[str]]) -> float:
    """Mean over the right labels of the F1 of each, 0 to 1. `table`: of `confusion`; not empty."""
    given = sum(table.values(), Counter[str]())
    return sum(2 * row[label] / (row.total() + given[label]) for label, row in table.items()) / len(table)
