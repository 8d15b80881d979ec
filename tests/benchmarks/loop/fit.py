"""Shows the learner beside the real trainings in `points.json`.

python tests/benchmarks/loop/fit.py
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from loop.learner import POINTS, learned


def main() -> float:
    """Prints each point, and returns the root of the mean squared error."""
    points = json.loads(POINTS.read_text(encoding="utf-8"))
    errors = [float(learned(point["rows"])) - point["right"] for point in points]
    for point, error in zip(points, errors, strict=True):
        shown = f"{point['rows']:5} rows {point['right']:.2f} right, learner {point['right'] + error:.2f}"
        print(f"{point['what']:76} {shown}")
    return float((sum(error**2 for error in errors) / len(errors)) ** 0.5)


if __name__ == "__main__":
    print(f"root of the mean squared error: {main():.3f}")
