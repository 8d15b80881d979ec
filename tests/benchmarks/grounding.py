"""Grounding: false alarms, precision and recall of compared values, by length, language and kind; and their speed.

    python tests/benchmarks/grounding.py

With RETUNED_DATA set to a folder that holds halueval/qa_one-turn_data.json, that too: 500 questions of HotpotQA with a
right and an invented answer each (https://github.com/RUCAIBox/HaluEval, generation/qa; Li et al. 2023, MIT licence).
"""

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fixtures.feedback.grounding_pairs import Pair, is_alarm, labelled, outcome, together
from retuned.consumers.common import languages
from retuned.consumers.common.values import read
from retuned.monitors.hallucination.values import sentences

ROUNDS = 3
LENGTHS = (1, 2, 4, 8)
"""So many pairs together, or passages copied, are one answer."""
PREVALENCE = 0.05
WORKLOADS = Path(__file__).parent / "workloads"
COPIES = 200


def main() -> dict[str, float]:
    """Recall is over the pairs that are invented, precision over the alarms at equal numbers of either kind."""
    pairs = labelled()
    counts = Counter((pair.kind, pair.label, outcome(pair)) for pair in pairs)
    for (kind, label, found), count in sorted(counts.items()):
        print(f"{kind:22} {label:9} {found:10} {count:5}", file=sys.stderr)
    false, recall = (_share([pair for pair in pairs if pair.label == label]) for label in ("grounded", "invented"))
    figures = {
        "grounding_pairs": float(len(pairs)),
        "grounding_precision": recall / (recall + false),
        "grounding_recall": recall,
        "grounding_judged": sum(outcome(pair) in ("alarm", "clear") for pair in pairs) / len(pairs),
        "grounding_answers_per_second": _speed(pairs),
    }
    return figures | _by_length(pairs) | _elsewhere() | _halueval()


def _speed(pairs: Sequence[Pair]) -> float:
    began = time.process_time()
    for _ in range(ROUNDS):
        for cached in (read._remembered, languages._among, sentences):
            cached.cache_clear()
        for pair in pairs:
            is_alarm(pair)
    return ROUNDS * len(pairs) / (time.process_time() - began)


def _by_length(pairs: Sequence[Pair]) -> dict[str, float]:
    """False alarms and recall of several pairs as one answer, one of which is invented, and of copied passages."""
    figures, worst = {}, 0.0
    print(f"\n{'length':>6} {'false alarms':>12} {'recall':>7} {'at 5%':>6} {'copied':>7}", file=sys.stderr)
    for length in LENGTHS:
        made = together(pairs, length, seed=100 + length)
        copied = _share(_copies(pairs, length))
        false = _share([pair for pair in made if pair.label == "grounded"])
        recall = _share([pair for pair in made if pair.label == "invented"])
        precision = _precision(recall, false)
        print(f"{length:6} {false:12.3f} {recall:7.3f} {precision:6.2f} {copied:7.3f}", file=sys.stderr)
        worst = max(worst, copied, false)
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
    """Faithful answers in other languages and about tables: the share judged, and false alarms among all of them."""
    figures = {}
    for name, answers in foreign().items():
        judged = [pair for pair in answers if outcome(pair) in ("alarm", "clear")]
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
        return _share(made)

    false, recall, copied = alarms("right_answer"), alarms("hallucinated_answer"), alarms("knowledge")
    return {
        "grounding_halueval_false_alarms": false,
        "grounding_halueval_recall": recall,
        "grounding_halueval_precision_5pct": _precision(recall, false),
        "grounding_halueval_copies_alarmed": copied,
    }


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
