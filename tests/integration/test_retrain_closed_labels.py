"""Closed sets of labels: what corrections and votes leave of each class, at the error rates of people."""

import random
from collections import Counter
from datetime import datetime, timedelta

import pytest

from retuned.retrain.data.examples import Example
from retuned.retrain.data.identity import text_hash
from retuned.retrain.data.table import decide
from retuned.retrain.scoring.label import Label
from retuned.retrain.scoring.metric import Chosen

START = datetime(2026, 3, 2, 9)
SYLLABLES = ("ba", "do", "fi", "gu", "ke", "lo", "mi", "nu", "pa", "re", "si", "to", "vu", "wa", "ze")
STYLES = ("snake", "title", "code", "stars")


def named(style: str, number: int, word: str) -> str:
    """A label as people spell them."""
    return {
        "snake": f"{word}_{word[::-1]}",
        "title": f"{word.title()} {word[::-1].title()}",
        "code": f"T{number}",
        "stars": str(number + 1),
    }[style]


class Desk:
    """Tickets with one right label each, a third of them labelled by 21 accounts and the others by one, in a month.

    Production is right in a quarter of its answers, or by chance. An answer that has the label that the account would
    give is called helpful, another one is corrected. A share `errors` of what accounts say is wrong.
    """

    def __init__(self, labels: int, errors: float, style: str, seed: int) -> None:
        luck = random.Random(seed)
        words = sorted({"".join(luck.choices(SYLLABLES, k=3)) for _ in range(4 * labels + 20)})
        luck.shuffle(words)
        self.labels = [named(style, number, words[number]) for number in range(labels)]
        self.truth: dict[str, str] = {}
        self.said: list[Example] = []
        tickets = max(3 * labels, 30 * min(labels, 10))
        for number in range(tickets):
            asked = " ".join("".join(luck.choices(SYLLABLES, k=3)) for _ in range(6))
            self.truth[asked] = self.labels[number % labels]
            for _ in range(21 if number // labels % 3 == 0 else 1):
                self._label(asked, luck, errors)
        self.first_seen = {f"u{number}": START - timedelta(days=30) for number in range(40)}

    def _label(self, asked: str, luck: random.Random, errors: float) -> None:
        right, shown = self.truth[asked], luck.choice(self.labels)
        if luck.random() < 0.25:
            shown = right
        label = luck.choice([one for one in self.labels if one != right]) if luck.random() < errors else right
        when = START + timedelta(minutes=luck.randrange(30 * 24 * 60))
        number = len(self.said)
        self.said.append(
            Example(
                row_id=text_hash(f"{asked} {label}"),
                prompt_hash=text_hash(asked),
                prompt=asked,
                question=asked,
                messages=f'[{{"role": "user", "content": "{asked}"}}]',
                completion=label,
                kind="accepted" if label == shown else "correction",
                source="user",
                rejected=None if label == shown else shown,
                context=None,
                interaction_id=f"i{number}",
                feedback_id=f"f{number}",
                timestamp=when,
                received_at=when,
                user_id=f"u{luck.randrange(40)}",
            )
        )

    def kept(self) -> tuple[dict[str, float], float]:
        """Of each class the share of tickets that keep a right row among those that somebody labelled rightly; and the
        share of tickets with a wrong one."""
        metric = Chosen(Label(self.labels), "of the tests")
        valid = decide(self.said, self.first_seen, metric).rows
        possible, found = Counter[str](), Counter[str]()
        good = {row.prompt for row in valid if row.completion == self.truth[row.prompt]}
        for asked in {row.prompt for row in self.said if row.completion == self.truth[row.prompt]}:
            possible[self.truth[asked]] += 1
            found[self.truth[asked]] += asked in good
        wrong = sum(row.completion != self.truth[row.prompt] for row in valid)
        return {label: found[label] / possible[label] for label in possible}, wrong / len(self.truth)


CASES = [
    *((labels, errors) for labels in (2, 5, 10) for errors in (0.0, 0.1, 0.2, 0.3)),
    *((77, errors) for errors in (0.0, 0.3)),
    *((100, errors) for errors in (0.1, 0.2)),
]


@pytest.mark.parametrize(("labels", "errors"), CASES)
def test_every_class_keeps_its_right_rows(labels: int, errors: float) -> None:
    """Wrong rows stay where nobody else labelled the ticket.

    With two labels and 30% errors, a run of errors can look like a change of the answer, and an honest account like a
    bad one: there, over twelve seeds, 0.94 of the right rows stay.
    """
    right, wrong = Desk(labels, errors, "title", seed=labels).kept()
    assert len(right) == labels
    assert min(right.values()) >= (0.85 if (labels, errors) == (2, 0.3) else 0.95)
    assert wrong <= 0.25


def test_the_spelling_of_labels_makes_no_difference() -> None:
    kept = [Desk(5, 0.3, style, seed=1).kept() for style in STYLES]
    assert len({(tuple(sorted(right.values())), wrong) for right, wrong in kept}) == 1
    right, wrong = kept[0]
    assert min(right.values()) >= 0.9
    assert wrong <= 0.25
