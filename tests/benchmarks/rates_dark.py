"""The helpful rate of answers that nobody rated: how far its estimate is from the truth, beside that of the raw rate.

    RETUNED_DATA=/path/to/data python tests/benchmarks/run.py rates.dark

Questions of PolyAI's banking77 (see banking77.py), 20,000 answers in the current window and as many in the reference,
1.5% of which are rated. A segment is an intent. How often its answers are helpful depends on the intent and on the
model, and customers of some intents vote four times as often as those of others. Half of what changes it from one
window to the next is common to all intents.
"""

import csv
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from banking77 import _data

from retuned.monitors.drift.vectors import WordVectors
from retuned.monitors.quality.estimate import Estimate, Rated, Rows, estimate

ANSWERS, RATED, RUNS, LEARNED = 20_000, 0.015, 12, 1_000
Array = np.ndarray[Any, Any]


def main() -> dict[str, float]:
    """Mean absolute errors over intents, of the estimate and the raw rate, and how often intervals hold the truth."""
    folder = _data()
    if folder is None:
        return {}
    asked: dict[str, list[str]] = {}
    with (folder / "train.csv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            asked.setdefault(row["category"], []).append(row["text"])
    found = [_run(asked, np.random.default_rng(seed)) for seed in range(RUNS)]
    figures = {
        name: float(np.mean([one[name] for one in found]))
        for name in ("segment_error", "segment_error_raw", "segments_held", "error", "error_raw", "held")
    }
    return {f"dark_{name}": value for name, value in figures.items()}


def _run(asked: dict[str, list[str]], rng: np.random.Generator) -> dict[str, float]:
    intents = np.asarray(list(asked))
    usual = rng.normal(1.0, 1.0, len(intents))
    models = rng.normal(0.0, 0.4, (len(intents), 2))
    votes_more = np.exp(rng.normal(0.0, 0.7, len(intents)))
    words = WordVectors([_question(asked[name], rng) for name in rng.choice(intents, LEARNED)], 0)
    assert words.prompts.any()  # the space that others are projected into

    def window(change: Array) -> tuple[Rows, Rated, Array, Array]:
        intent, model = rng.integers(0, len(intents), ANSWERS), rng.integers(0, 2, ANSWERS)
        chance = 1 / (1 + np.exp(-(usual + change)[intent] - models[intent, model]))
        helpful = (rng.random(ANSWERS) < chance).astype(float)
        rated = rng.random(ANSWERS) < RATED * votes_more[intent] / votes_more.mean()
        texts = words.project([_question(asked[intents[one]], rng) for one in intent])
        features = np.column_stack([texts, model])
        names = intents[intent].tolist()
        rows = Rows(features, {"intent": names})
        votes = Rated(features[rated], {"intent": intents[intent][rated].tolist()}, helpful[rated])
        truth = np.asarray([chance[intent == one].mean() for one in range(len(intents))])
        return rows, votes, truth, np.asarray(chance.mean())

    answers_before, votes_before, _, _ = window(np.zeros(len(intents)))
    answers, votes, truth, overall = window(-0.5 + rng.normal(0.0, 0.5, len(intents)))
    found = estimate(answers, votes, answers_before, votes_before)
    assert isinstance(found, Estimate)
    of = {one.value: one for one in found.segments}
    of_rated = np.asarray(votes.segments["intent"])
    raw_overall = float(votes.helpful.mean())
    raw = [float(votes.helpful[of_rated == one].mean()) if (of_rated == one).any() else raw_overall for one in intents]
    return {
        "segment_error": float(np.mean([abs(of[one].rate - true) for one, true in zip(intents, truth, strict=True)])),
        "segment_error_raw": float(np.mean(np.abs(np.asarray(raw) - truth))),
        "segments_held": float(
            np.mean([of[one].low <= true <= of[one].high for one, true in zip(intents, truth, strict=True)])
        ),
        "error": abs(found.rate - float(overall)),
        "error_raw": abs(raw_overall - float(overall)),
        "held": float(found.low <= overall <= found.high),
    }


def _question(texts: list[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


if __name__ == "__main__":
    json.dump(main(), sys.stdout, indent=2)
    print()
