"""The labelled pairs of tests/data: answers to customers and the passages they were given. All invented.

Those with `written: before` were written, in rounds, before the scorer was last changed, and it was changed for many of
them. Those with `after` are by a writer who had not seen the scorer. Their misses were read once since, and two rules
changed (farewells claim nothing; where answer and passage both deny something, less is concluded), so their figures are
a little better than those of unseen text. `halves` is as many of the one as of the other, `together` makes long ones.
"""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retuned.monitors.hallucination.rules import ground
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


def together(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """Each pair with `count` - 1 others that are grounded, in random order: as one question, answer and context."""
    rng = random.Random(seed)
    made = []
    for pair in pairs:
        others = [other for other in pairs if other.label == "grounded" and other.written == pair.written]
        chosen = [pair, *rng.sample(others, count - 1)]
        rng.shuffle(chosen)
        made.append(
            Pair(
                pair.business,
                list(dict.fromkeys(passage for one in chosen for passage in one.context)),
                " ".join(one.question for one in chosen),
                "\n".join(one.answer for one in chosen),
                pair.label,
                pair.kind,
                pair.written,
            )
        )
    return made


def score(pair: Pair) -> float:
    return ground(pair.answer, tuple(pair.context), pair.question).score


def is_alarm(pair: Pair) -> bool:
    return score(pair) < QualitySettings().grounding_threshold


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
