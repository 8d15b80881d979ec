"""Rates of grounding on answers of a writer who has not seen the code: `rates.grounding`.

    RETUNED_DATA=FOLDER python tests/benchmarks/rates_grounding.py

FOLDER/grounding/*.jsonl has an object a line: `passages`, `answer`, `invented` (true or false), and `language`. What is
published at several true rates is simulated from them, with 100 labels as label requests draw them.
"""

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).parents[1]))

from retuned.consumers.common.calibration import Stratum, draws
from retuned.monitors.hallucination.scorer import Abstention, Answer
from retuned.monitors.hallucination.values import judged, sentences
from retuned.monitors.settings import QualitySettings
from retuned.monitors.statistics import stratified_rate

RATES = (0.01, 0.05, 0.2)
LABELS, WINDOW, POOL, TIMES = 100, 500, 5_000, 300
LONG = 5
"""Sentences of a long answer, or more."""


@dataclass(frozen=True)
class Row:
    """An answer, whether it is invented, and what is found in it: an alarm, nothing, or None where it is not judged."""

    language: str
    sentences: int
    invented: bool
    alarm: bool | None


def main() -> dict[str, float]:
    """False alarms and recall of the unseen answers; precision and calibrated rate at several true rates."""
    files = sorted((Path(os.environ.get("RETUNED_DATA", "")) / "grounding").glob("*.jsonl"))
    if not os.environ.get("RETUNED_DATA") or not files:
        return {}
    rows = [_row(json.loads(line)) for file in files for line in file.read_text("utf-8").splitlines() if line.strip()]
    _table(rows)
    return summary(rows)


def summary(rows: Sequence[Row]) -> dict[str, float]:
    """The figures of some rows."""
    faithful, invented = ([row for row in rows if row.invented is kind] for kind in (False, True))
    false, recall = _alarms(faithful), _alarms(invented)
    figures = {
        "grounding_false_alarms_unseen": false,
        "grounding_recall_unseen": recall,
        "grounding_judged_unseen": fmean(row.alarm is not None for row in rows),
    }
    for rate in RATES:
        raised = rate * recall + (1 - rate) * false
        name = f"{rate:.0%}".replace("%", "pct")
        if raised:
            figures[f"grounding_precision_{name}_unseen"] = rate * recall / raised
        figures[f"grounding_alarm_rate_{name}_unseen"] = raised
        estimate, width, held = _calibrated(rate, recall, false)
        figures |= {
            f"grounding_calibrated_{name}_unseen": estimate,
            f"grounding_calibrated_width_{name}_unseen": width,
            f"grounding_calibrated_coverage_{name}_unseen": held,
        }
    return figures


def _row(one: dict[str, object]) -> Row:
    passages, answer = one["passages"], str(one["answer"])
    assert isinstance(passages, list)
    found = judged(Answer("", str(one.get("question") or ""), tuple(map(str, passages)), answer))
    alarm = None if isinstance(found, Abstention) else found.score < QualitySettings().grounding_threshold
    return Row(str(one.get("language")), len(sentences(answer)), bool(one["invented"]), alarm)


def _alarms(rows: Sequence[Row]) -> float:
    """The share of alarms among answers, judged or not."""
    return fmean(bool(row.alarm) for row in rows) if rows else 0.0


def _table(rows: Sequence[Row]) -> None:
    groups = {"all": rows, "long": [row for row in rows if row.sentences >= LONG]}
    groups["short"] = [row for row in rows if row.sentences < LONG]
    for language in sorted({row.language for row in rows}):
        groups[language] = [row for row in rows if row.language == language]
    print(f"{'group':8} {'faithful':>8} {'alarms':>6} {'invented':>8} {'alarms':>6} {'judged':>6}", file=sys.stderr)
    for name, of in groups.items():
        counts = Counter((row.invented, bool(row.alarm)) for row in of)
        judged_share = fmean(row.alarm is not None for row in of) if of else 0.0
        print(
            f"{name:8} {counts[False, True] + counts[False, False]:8} {counts[False, True]:6} "
            f"{counts[True, True] + counts[True, False]:8} {counts[True, True]:6} {judged_share:6.0%}",
            file=sys.stderr,
        )


def _calibrated(rate: float, recall: float, false: float) -> tuple[float, float, float]:
    """The mean estimate after LABELS labels, the mean width of its interval, and how often that holds the true rate."""
    rng = random.Random(f"{rate}")
    raised = rate * recall + (1 - rate) * false
    right = rate * recall / raised if raised else 0.0
    missed = rate * (1 - recall) / (1 - raised)
    estimates, widths, held = [], [], 0
    for _ in range(TIMES):
        left = Counter(rng.random() < raised for _ in range(POOL))
        asked, invented = Counter[bool](), Counter[bool]()
        while asked.total() < LABELS:
            strata = [Stratum(alarm, left[alarm], asked[alarm], invented[alarm]) for alarm in (True, False)]
            for alarm, count in draws(strata, 4).items():
                left[alarm] -= count
                asked[alarm] += count
                invented[alarm] += sum(rng.random() < (right if alarm else missed) for _ in range(count))
        sizes = Counter(rng.random() < raised for _ in range(WINDOW))
        found = stratified_rate([(sizes[alarm], asked[alarm], invented[alarm]) for alarm in (True, False)])
        if found is None:
            continue
        estimates.append(found[0])
        widths.append(found[2] - found[1])
        held += found[1] <= rate <= found[2]
    return fmean(estimates), fmean(widths), held / len(estimates)


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
