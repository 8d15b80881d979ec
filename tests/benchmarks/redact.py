"""Redaction: recall by kind on the labelled strings, false alarms on ordinary texts, and speed on both mixed."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.feedback.personal_data import HOSTILE, held_out, labelled, ordinary, recall
from retuned.consumers.privacy.redactor import Redactor

ROUNDS = 20


def growth(piece: str) -> float:
    """By how much a text that is eight times as long takes longer. Eight is right; quadratic work would make it 64."""

    def seconds(size: int) -> float:
        text, began = piece * (size // len(piece)), time.thread_time()
        Redactor().text(text)
        return time.thread_time() - began

    return min(seconds(160_000) for _ in range(2)) / max(min(seconds(20_000) for _ in range(3)), 0.001)


def main() -> dict[str, float]:
    """Names of people are left out: finding them needs the extra `names`."""
    found, total = recall(Redactor())
    print(f"{'kind':12} {'found':>5} {'of':>4} {'recall':>7}", file=sys.stderr)
    for group in sorted(total):
        print(f"{group:12} {found[group]:5} {total[group]:4} {found[group] / total[group]:7.3f}", file=sys.stderr)
    clean = ordinary()
    changed = [text for text in clean if Redactor().text(text) != text]
    texts = [item.text for item in labelled() if item.kind != "NAME"] + clean
    redactor = Redactor()
    began = time.perf_counter()
    for _ in range(ROUNDS):
        for text in texts:
            redactor.text(text)
    seconds = time.perf_counter() - began
    right, held = held_out(Redactor())
    print("\nby another writer, who had not seen the patterns", file=sys.stderr)
    for group in sorted(held):
        print(f"{group:12} {right[group]:5} {held[group]:4} {right[group] / held[group]:7.3f}", file=sys.stderr)
    return {
        "redact_held_out_recall": right["personal"] / held["personal"],
        "redact_held_out_kept": right["keep"] / held["keep"],
        "redact_strings_per_second": ROUNDS * len(texts) / seconds,
        "redact_recall": found["all"] / total["all"],
        "redact_recall_before": found["before"] / total["before"],
        "redact_recall_after": found["after"] / total["after"],
        "redact_growth_of_eight": max(growth(piece) for piece in HOSTILE),
        "redact_false_alarms": len(changed) / len(clean),
    } | {
        f"redact_recall_{kind.lower()}": found[kind] / total[kind]
        for kind in sorted(total)
        if kind.isupper() and kind != "NAME"
    }


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
