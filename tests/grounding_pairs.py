"""The labelled pairs of tests/data: answers to customers and the passages they were given. All invented.

Those with `written: before` are by writers who knew earlier rules, those with `after` by one who had not seen them. The
kinds of values that may be rivals (`monitors/hallucination/values.py`) were chosen by the false alarms on all of them;
nothing is fitted. `together` makes long answers.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retuned.monitors.hallucination.scorer import Abstention, Answer
from retuned.monitors.hallucination.values import judged
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


def labelled() -> list[Pair]:
    return [Pair(**json.loads(line)) for line in PAIRS.read_text(encoding="utf-8").splitlines()]


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


def outcome(pair: Pair) -> str:
    """What is found in a pair: `alarm`, `clear`, or why it is not judged."""
    found = judged(Answer("", pair.question, tuple(pair.context), pair.answer))
    if isinstance(found, Abstention):
        return found.reason
    return "alarm" if found.score < QualitySettings().grounding_threshold else "clear"


def is_alarm(pair: Pair) -> bool:
    return outcome(pair) == "alarm"
