"""The labelled pairs of tests/data: answers to customers and the passages they were given. All invented.

Those with `written: before` were written, in rounds, before the scorer was last changed, and it was changed for many of
them. Those with `after` are by a writer who had not seen the scorer, and nothing was changed for them, so their figures
are the honest ones. `halves` is as many of the one as of the other.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from retuned.monitors.hallucination.rules import grounding
from retuned.monitors.settings import QualitySettings

PAIRS = Path(__file__).parent / "data" / "grounding_pairs.jsonl"


@dataclass(frozen=True)
class Pair:
    """An answer, and whether the passages say it (`grounded`) or not (`invented`)."""

    business: str
    context: list[str]
    question: str
    answer: str
    label: str
    kind: str
    written: str


@dataclass
class Outcome:
    """How the scorer's alarms meet the labels; an alarm is an answer that it takes for invented."""

    alarms: int = 0
    invented: int = 0
    both: int = 0

    @property
    def precision(self) -> float:
        return self.both / self.alarms if self.alarms else 1.0

    @property
    def recall(self) -> float:
        return self.both / self.invented if self.invented else 1.0


def labelled() -> list[Pair]:
    return [Pair(**json.loads(line)) for line in PAIRS.read_text(encoding="utf-8").splitlines()]


def halves(pairs: list[Pair]) -> list[Pair]:
    """All pairs of `after`, and as many of `before`, at even distances."""
    before, after = ([pair for pair in pairs if pair.written == half] for half in ("before", "after"))
    return [before[number * len(before) // len(after)] for number in range(len(after))] + after


def is_alarm(pair: Pair) -> bool:
    return grounding(pair.answer, pair.context, pair.question) < QualitySettings().grounding_threshold


def outcomes(pairs: list[Pair]) -> tuple[dict[str, Outcome], Counter[str]]:
    """Outcomes, and pairs in all: by kind, by half (before, after), and over all."""
    found: dict[str, Outcome] = {}
    total: Counter[str] = Counter()
    for pair in pairs:
        alarm, invented = is_alarm(pair), pair.label == "invented"
        for group in (pair.kind, pair.written, "all"):
            outcome = found.setdefault(group, Outcome())
            outcome.alarms += alarm
            outcome.invented += invented
            outcome.both += alarm and invented
            total[group] += 1
    return found, total
