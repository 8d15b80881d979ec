"""Shows the learner beside the real trainings in `points.json`, in which the model learns what is new to it.

python tests/benchmarks/loop/fit.py
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from loop.learner import LUCK, POINTS, learned


def main() -> float:
    """Prints each point, and returns the root of the mean squared error."""
    points = json.loads(POINTS.read_text(encoding="utf-8"))
    chances = learned([point["rows"] for point in points])
    odds = np.exp(np.random.default_rng(0).normal(0.0, LUCK, (10_000, 1))) * chances / (1 - chances)
    means = (odds / (1 + odds)).mean(axis=0)
    errors = [float(mean) - point["right"] for mean, point in zip(means, points, strict=True)]
    for point, error in zip(points, errors, strict=True):
        shown = f"{point['rows']:5} rows {point['right']:.2f} right, learner {point['right'] + error:.2f}"
        print(f"{point['what']:76} {shown}")
    return float((sum(error**2 for error in errors) / len(errors)) ** 0.5)


if __name__ == "__main__":
    print(f"root of the mean squared error: {main():.3f}")
