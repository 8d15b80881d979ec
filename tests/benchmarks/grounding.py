"""Grounding: precision and recall of finding invented answers on the labelled pairs, by half and kind, and speed."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from grounding_pairs import halves, labelled, outcomes

from retuned.monitors.hallucination.rules import grounding

ROUNDS = 10


def main() -> dict[str, float]:
    """Recall is over the pairs that are invented, precision over those that the scorer takes for invented."""
    pairs = labelled()
    found, total = outcomes(pairs)
    print(f"{'group':14} {'pairs':>5} {'invented':>8} {'alarms':>6} {'precision':>9} {'recall':>7}", file=sys.stderr)
    for group in sorted(total):
        one = found[group]
        print(
            f"{group:14} {total[group]:5} {one.invented:8} {one.alarms:6} {one.precision:9.3f} {one.recall:7.3f}",
            file=sys.stderr,
        )
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for pair in pairs:
            grounding(pair.answer, pair.context, pair.question)
    seconds = time.perf_counter() - began
    balanced, count = outcomes(halves(pairs))
    figures = {
        "grounding_pairs": float(count["all"]),
        "grounding_precision": balanced["all"].precision,
        "grounding_recall": balanced["all"].recall,
        "grounding_answers_per_second": ROUNDS * len(pairs) / seconds,
    }
    for half in ("before", "after"):
        if half in found:
            figures |= {
                f"grounding_precision_{half}": found[half].precision,
                f"grounding_recall_{half}": found[half].recall,
            }
    return figures


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
