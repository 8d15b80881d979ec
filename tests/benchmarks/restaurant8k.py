"""The score of JSON answers on real text: slots of restaurant bookings (restaurant8k).

    RETUNED_DATA=../data python tests/benchmarks/restaurant8k.py

The data are PolyAI's, CC BY 4.0 (Coope et al. 2020, "Span-ConveRT"): `restaurant8k/train_1.json` and `test.json` of
https://github.com/PolyAI-LDN/task-specific-datasets (the folder span_extraction), in the folder that RETUNED_DATA
names. An answer is a JSON object of the slots that an utterance fills.

Gold answers are broken in ways that a program would stumble over, and the gate's score stands beside exact match. No
model is asked: that is in the benchmark `workloads`.
"""

import json
import sys
from collections.abc import Callable
from statistics import fmean

from workloads import bookings
from workloads.task import Skipped

from retuned.retrain.scoring.facts import Facts

Slots = dict[str, str]


def main() -> dict[str, float]:
    """Nothing is returned without the data."""
    try:
        task = bookings.task()
    except Skipped as reason:
        print(f"restaurant8k is skipped: {reason}", file=sys.stderr)
        return {}
    return _corrupted([item.answer for item in task.exam])


def _rotated(slots: Slots) -> str:
    values = list(slots.values())
    return json.dumps(dict(zip(slots, values[1:] + values[:1], strict=True)))


CORRUPTIONS: dict[str, Callable[[Slots], str]] = {
    "none": json.dumps,
    "closing brace cut": lambda slots: json.dumps(slots)[:-1],
    "values without keys": lambda slots: ", ".join(slots.values()),
    "Python quotes": str,
    "keys rotated": _rotated,
    "an invented name": lambda slots: json.dumps(slots | {"first_name": "Quillon"}),
    "one value lost": lambda slots: json.dumps(dict(list(slots.items())[1:])),
    "another key": lambda slots: json.dumps({f"{name}s": value for name, value in slots.items()}),
    "words before it": lambda slots: f"Here you are: {json.dumps(slots)}",
    "a code fence": lambda slots: f"```json\n{json.dumps(slots)}\n```",
}


def _corrupted(answers: list[str]) -> dict[str, float]:
    """Each corruption of the gold answers that it changes: the gate's score beside exact match."""
    print(f"{'corruption':24}{'answers':>9}{'score':>8}{'exact':>8}{'wrong that score 1':>20}", file=sys.stderr)
    figures = {}
    for name, corrupt in CORRUPTIONS.items():
        pairs = []
        for answer in answers:
            slots = json.loads(answer)
            broken = corrupt(slots)
            if name == "none" or (slots and not _exact(broken, answer)):
                pairs.append((broken, answer))
        scores, exact, fooled = _judged(pairs)
        print(f"{name:24}{len(pairs):9}{scores:8.3f}{exact:8.3f}{fooled:20}", file=sys.stderr)
        figures[f"restaurant8k_score_{name.replace(' ', '_').lower()}"] = scores
    return figures


def _judged(pairs: list[tuple[str, str]]) -> tuple[float, float, int]:
    """Mean score, share of exact matches, and how many wrong answers have a score of 1."""
    scores = [Facts().score(answer, gold, {}).value or 0.0 for answer, gold in pairs]
    exact = [_exact(answer, gold) for answer, gold in pairs]
    return fmean(scores), fmean(exact), sum(s == 1 and not e for s, e in zip(scores, exact, strict=True))


def _exact(answer: str, gold: str) -> bool:
    """Whether a program that reads JSON gets the same object."""
    try:
        found: object = json.loads(answer)
    except ValueError:
        return False
    return found == json.loads(gold)


if __name__ == "__main__":
    print(json.dumps(main(), indent=2))
