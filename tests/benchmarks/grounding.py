"""Grounding: false alarms, precision and recall of the grounding rules, by length, language and kind; and their speed.

    python tests/benchmarks/grounding.py          # the figures
    python tests/benchmarks/grounding.py --fit    # the table of monitors/hallucination/evidence.py, anew

With RETUNED_DATA set to a folder that holds halueval/qa_one-turn_data.json, that too: 500 questions of HotpotQA with a
right and an invented answer each (https://github.com/RUCAIBox/HaluEval, generation/qa; Li et al. 2023, MIT licence).
"""

import json
import math
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from grounding_pairs import Pair, halves, is_alarm, labelled, outcomes, together

from retuned.monitors.hallucination.abstention import abstention
from retuned.monitors.hallucination.rules import faults
from retuned.monitors.hallucination.sources import sources_of

ROUNDS = 3
LENGTHS = (1, 2, 4, 8)
"""So many pairs together, or passages copied, are one answer."""
PREVALENCE = 0.05
WORKLOADS = Path(__file__).parent / "workloads"
COPIES = 200


def main() -> dict[str, float]:
    """Recall is over the pairs that are invented, precision over those that the scorer takes for invented."""
    pairs = labelled()
    found, total = outcomes(pairs)
    print(f"{'group':22} {'pairs':>5} {'invented':>8} {'alarms':>6} {'precision':>9} {'recall':>7}", file=sys.stderr)
    for group in sorted(total):
        one = found[group]
        print(
            f"{group:22} {total[group]:5} {one.invented:8} {one.alarms:6} {one.precision:9.3f} {one.recall:7.3f}",
            file=sys.stderr,
        )
    balanced, count = outcomes(halves(pairs))
    figures = {
        "grounding_pairs": float(count["all"]),
        "grounding_precision": balanced["all"].precision,
        "grounding_recall": balanced["all"].recall,
        "grounding_answers_per_second": _speed(pairs),
    }
    for half in ("before", "after"):
        if half in found:
            figures |= {
                f"grounding_precision_{half}": found[half].precision,
                f"grounding_recall_{half}": found[half].recall,
            }
    return figures | _by_length(pairs) | _elsewhere() | _halueval()


def _speed(pairs: Sequence[Pair]) -> float:
    began = time.process_time()
    for _ in range(ROUNDS):
        for pair in pairs:
            is_alarm(pair)
    return ROUNDS * len(pairs) / (time.process_time() - began)


def _by_length(pairs: Sequence[Pair]) -> dict[str, float]:
    """False alarms and recall of several pairs as one answer, one of which is invented, and of copied passages."""
    figures, worst = {}, 0.0
    print(f"\n{'length':>6} {'half':8} {'false alarms':>12} {'recall':>7} {'at 5%':>6} {'copied':>7}", file=sys.stderr)
    for length in LENGTHS:
        made = together(pairs, length, seed=100 + length)
        copied = _share(_copies(pairs, length))
        worst = max(worst, copied)
        for half in ("before", "after", "all"):
            ours = [pair for pair in made if half in {pair.written, "all"}]
            false = _share([pair for pair in ours if pair.label == "grounded"])
            recall = _share([pair for pair in ours if pair.label == "invented"])
            precision = _precision(recall, false)
            print(f"{length:6} {half:8} {false:12.3f} {recall:7.3f} {precision:6.2f} {copied:7.3f}", file=sys.stderr)
        worst = max(worst, false)
        figures |= {
            f"grounding_false_alarms_{length}": false,
            f"grounding_recall_{length}": recall,
            f"grounding_precision_5pct_{length}": precision,
        }
    return figures | {
        "grounding_false_alarms_long": worst,
        "grounding_precision_5pct": figures["grounding_precision_5pct_1"],
    }


def _precision(recall: float, false_alarms: float) -> float:
    """Of alarms where PREVALENCE of the answers are invented."""
    right, wrong = PREVALENCE * recall, (1 - PREVALENCE) * false_alarms
    return right / (right + wrong) if right + wrong else 1.0


def _share(pairs: Sequence[Pair]) -> float:
    return sum(map(is_alarm, pairs)) / len(pairs)


def _copies(pairs: Sequence[Pair], length: int) -> list[Pair]:
    """Answers that are passages, word for word, among as many others."""
    rng = random.Random(length)
    passages = sorted({passage for pair in pairs for passage in pair.context})
    made = []
    for _ in range(COPIES):
        given = rng.sample(passages, 2 * length)
        made.append(Pair("", given, "", "\n".join(given[:length]), "grounded", "copy", ""))
    return made


def _elsewhere() -> dict[str, float]:
    """Faithful answers in other languages and about tables: the share judged, and false alarms among those."""
    figures = {}
    for name, answers in foreign().items():
        judged = [pair for pair in answers if abstention(pair.answer, tuple(pair.context)) is None]
        alarms = sum(map(is_alarm, judged))
        print(f"{name}: {len(judged)} of {len(answers)} judged, {alarms} false alarms", file=sys.stderr)
        figures[f"grounding_judged_{name}"] = len(judged) / len(answers)
        figures[f"grounding_alarms_{name}"] = alarms / len(answers)
    return figures


def foreign() -> dict[str, list[Pair]]:
    """Faithful answers, one to eight passages long, by language; and to passages with tables."""
    texts = {
        name: [json.loads(line)["answer"] for line in (WORKLOADS / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("german", "french", "spanish")
    }
    made = {}
    for name, answers in texts.items():
        rng = random.Random(name)
        made[name] = []
        for number, answer in enumerate(answers):
            passages = [answer, *rng.sample(answers, 7)]
            said = " ".join(passages[: LENGTHS[number % len(LENGTHS)]])
            made[name].append(Pair("", passages, "", said, "grounded", name, ""))
    rows = [("standard", 3.95, 5), ("express", 8.95, 1), ("abroad", 14.5, 9), ("bulky", 39.0, 12)]
    table = "| delivery | euros | days |\n|---|---|---|\n" + "\n".join(f"| {a} | {b} | {c} |" for a, b, c in rows)
    made["table"] = [
        Pair("", [table], "", f"{name.capitalize()} delivery costs {price} euros.", "grounded", "table", "")
        for name, price, _ in rows
    ]
    made["table"] += [Pair("", [pair.answer], "", table, "grounded", "table", "") for pair in made["table"]]
    return made


def _halueval() -> dict[str, float]:
    file = Path(os.environ.get("RETUNED_DATA", "")) / "halueval" / "qa_one-turn_data.json"
    if not os.environ.get("RETUNED_DATA") or not file.exists():
        return {}
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]

    def alarms(answer: str) -> float:
        made = [Pair("", [row["knowledge"]], row["question"], row[answer], "", "", "") for row in rows]
        return _share([pair for pair in made if abstention(pair.answer, tuple(pair.context)) is None])

    false, recall, copied = alarms("right_answer"), alarms("hallucinated_answer"), alarms("knowledge")
    return {
        "grounding_halueval_false_alarms": false,
        "grounding_halueval_recall": recall,
        "grounding_halueval_precision_5pct": _precision(recall, false),
        "grounding_halueval_copies_alarmed": copied,
    }


def fit() -> None:
    """Print FAULTS of monitors/hallucination/evidence.py, from the pairs that were written before the scorer."""
    pairs = [pair for pair in labelled() if pair.written == "before"]
    read = [
        [
            (pair, [set().union(*claim.values()) for claim in faults(pair.answer, tuple(pair.context), pair.question)])
            for pair in made
        ]
        for made in (pairs, together(pairs, LENGTHS[-1], seed=2))
    ]
    faithful = [[one for pair, found in made if pair.label == "grounded" for one in found] for made in read]
    invented = [set().union(*found) for pair, found in read[0] if pair.label == "invented"]
    often, seldom = Counter(one for kinds in invented for one in kinds), Counter(one for s in faithful[0] for one in s)
    weight = {
        fault: math.log((often[fault] + 0.5) / (len(invented) + 1) * (len(faithful[0]) + 1) / (seldom[fault] + 0.5))
        for fault in often | seldom
    }
    clauses = [median(len(sources_of(tuple(pair.context)).clauses) for pair, _ in made) for made in read]
    print(f"SHORT, LONG = {clauses[0]:.0f}, {clauses[1]:.0f}")
    for fault, telling in sorted(weight.items(), key=lambda item: -item[1]):
        rarities = []
        for sentences in faithful:
            as_telling = sum(bool(s) and sum(weight[one] for one in s) >= telling - 1e-9 for s in sentences)
            rarities.append((as_telling + 1) / (len(sentences) + 1))
        print(f'    "{fault}": Evidence({telling:.2f}, {rarities[0]:.4f}, {rarities[1]:.4f}),')


if __name__ == "__main__":
    if sys.argv[1:] == ["--fit"]:
        fit()
    else:
        json.dump(main(), sys.stdout, indent=2)
        print()
