"""The score of JSON answers on real text: slots of restaurant bookings (restaurant8k).

    RETUNED_DATA=../data python tests/benchmarks/restaurant8k.py

The data are PolyAI's, CC BY 4.0 (Coope et al. 2020, "Span-ConveRT"): `restaurant8k/train_1.json` and `test.json` of
https://github.com/PolyAI-LDN/task-specific-datasets (the folder span_extraction), in the folder that RETUNED_DATA
names. An answer is a JSON object of the slots that an utterance fills.

First without a model: gold answers are broken in ways that a program would stumble over, and the gate's score stands
beside exact match. Then the demo's base model learns from 400 utterances and answers 300 of the test split.
"""

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retuned.consumers.common.process import run_child
from retuned.daemon.demo.model import base_model
from retuned.retrain.data.dataset import Dataset
from retuned.retrain.decision.evaluate import CANDIDATE, evaluate
from retuned.retrain.scoring.facts import score
from retuned.retrain.settings import EvaluateSettings, ModelsSettings, Settings, TrainSettings

BASE = Path(__file__).parents[2] / "build" / "smollm2-135m-instruct"
SOURCE = "https://github.com/PolyAI-LDN/task-specific-datasets (span_extraction/restaurant8k)"
TRAIN, VALIDATION, TEST = 400, 40, 300
SYSTEM = "Answer with a JSON object of what the guest states: people, date, time, first_name, last_name."
SETTINGS = TrainSettings(threads=1)
Slots = dict[str, str]


def main() -> dict[str, float]:
    """Corruptions take a second, the model some ten minutes on one core. Nothing is returned without the data."""
    folder = Path(os.environ.get("RETUNED_DATA", "")) / "restaurant8k"
    if "RETUNED_DATA" not in os.environ or not folder.is_dir():
        print(f"restaurant8k is skipped: RETUNED_DATA names no folder with it; it comes from {SOURCE}", file=sys.stderr)
        return {}
    train, test = (_rows(folder / name) for name in ("train_1.json", "test.json"))
    return _corrupted(test) | _trained(train, test)


def _rows(file: Path) -> list[dict[str, Any]]:
    """The utterances in an order of their own, the same each time, as rows of a dataset."""
    found = []
    for number, one in enumerate(json.loads(file.read_text(encoding="utf-8"))):
        text = one["userInput"]["text"]
        slots = {}
        for label in one.get("labels", ()):
            span = label.get("valueSpan", {})
            slots[label["slot"]] = text[span.get("startIndex", 0) : span.get("endIndex", len(text))]
        wanted = ", ".join(one.get("context", {}).get("requestedSlots", ()))
        asked = f"Asked for: {wanted or 'nothing'}\nGuest: {text}"
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]
        found.append(
            {
                "row_id": str(number),
                "messages": json.dumps(turns),
                "completion": json.dumps(slots, ensure_ascii=False),
                "context": None,
            }
        )
    random.Random(8).shuffle(found)
    return found


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


def _corrupted(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Each corruption of the gold answers that it changes: the gate's score beside exact match."""
    print(f"{'corruption':24}{'answers':>9}{'score':>8}{'exact':>8}{'wrong that score 1':>20}", file=sys.stderr)
    figures = {}
    for name, corrupt in CORRUPTIONS.items():
        pairs = []
        for row in rows:
            slots = json.loads(row["completion"])
            broken = corrupt(slots)
            if name == "none" or (slots and not _exact(broken, row["completion"])):
                pairs.append((broken, row["completion"]))
        scores, exact, fooled = _judged(pairs)
        print(f"{name:24}{len(pairs):9}{scores:8.3f}{exact:8.3f}{fooled:20}", file=sys.stderr)
        figures[f"restaurant8k_score_{name.replace(' ', '_').lower()}"] = scores
    return figures


def _trained(train: list[dict[str, Any]], test: list[dict[str, Any]]) -> dict[str, float]:
    """Base model and adapter on the test split."""
    base_model(BASE)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, rows in {
            "train": train[:TRAIN],
            "validation": train[TRAIN : TRAIN + VALIDATION],
            "holdout": test[:TEST],
        }.items():
            pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
        pq.write_table(pa.Table.from_pylist(test[:1]).slice(0, 0), folder / "regression.parquet")
        job = {
            "base": str(BASE),
            "parent": None,
            "dataset": str(folder),
            "folder": str(folder / "train"),
            "settings": SETTINGS.model_dump(mode="json"),
        }
        training = run_child("retuned.retrain.training.train", job, folder / "train", timeout_seconds=3_600)
        settings = Settings(
            models=ModelsSettings(base=BASE, directory=folder / "models"),
            train=SETTINGS,
            evaluate=EvaluateSettings(max_new_tokens=64, maximum_examples=TEST),
        )
        exam = Dataset("exam", "bookings", datetime.now(UTC), folder, {"holdout": TEST}, 0, {})
        found, _ = evaluate(exam, None, Path(training["adapter"]), settings, training["dtype"], folder / "evaluate")
    wanted = {row["row_id"]: row["completion"] for row in test[:TEST]}
    figures = {"restaurant8k_train_seconds": training["seconds"]}
    for model in dict.fromkeys(one.model for one in found):
        answers = [(one.output, wanted[one.row_id]) for one in found if one.model == model]
        scores, exact, fooled = _judged(answers)
        print(f"{model:24}{len(answers):9}{scores:8.3f}{exact:8.3f}{fooled:20}", file=sys.stderr)
        if model == CANDIDATE:
            figures |= {
                "restaurant8k_score": scores,
                "restaurant8k_exact": exact,
                "restaurant8k_wrong_that_score_1": float(fooled),
            }
    return figures


def _judged(pairs: list[tuple[str, str]]) -> tuple[float, float, int]:
    """Mean score, share of exact matches, and how many wrong answers have a score of 1."""
    scores = [score(answer, gold) for answer, gold in pairs]
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
