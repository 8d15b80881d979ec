"""Fits the learner to real trainings: `points.json` for what is new to a model, `loop.real` for what it knew.

    python tests/benchmarks/loop/fit.py        # after `run.py loop.real`; prints what `learner` states, rounded

The luck makes real and simulated trainings scatter alike, and is rounded first; all else is fitted by least squares.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq, least_squares

from loop.learner import LUCK, POINTS, learned, relearned
from loop.real import Point, points
from loop.world import WORDINGS

Numbers = npt.NDArray[np.float64]


def lucky(share: npt.ArrayLike, luck: float) -> tuple[Numbers, Numbers]:
    """The mean of shares after the luck of their trainings, and the variance of what so many questions show of them."""
    normal, weights = np.polynomial.hermite_e.hermegauss(31)
    odds = np.exp(luck * normal)
    before = np.minimum(np.asarray(share, dtype=np.float64), 1 - 1e-6)[:, None]
    after = before * odds / (1 - before + before * odds)
    weights /= weights.sum()
    mean = after @ weights
    return mean, ((after - mean[:, None]) ** 2 + after * (1 - after) / WORDINGS) @ weights


def fitted_new(luck: float) -> tuple[Numbers, float]:
    """TOP and ROWS, and the root of the mean squared error."""
    known = json.loads(POINTS.read_text(encoding="utf-8"))
    rows, right = (np.array([point[name] for point in known], dtype=np.float64) for name in ("rows", "right"))
    found = least_squares(lambda fit: lucky(learned(rows, *fit), luck)[0] - right, (0.9, 4.0))
    return found.x, float(np.sqrt(np.mean(found.fun**2)))


def fitted_known(trainings: Sequence[Point], luck: float) -> tuple[Numbers, float, float]:
    """ROWS_CHANGED and KEPT, and the scatter of the real trainings around the fit, and of the simulated ones."""
    rows, before, parent, right = np.array([(one.rows, one.before, one.parent, one.right) for one in trainings]).T
    new, _ = fitted_new(luck)

    def share(fit: Numbers) -> Numbers:
        chance = parent * relearned(rows, fit[0]) + (1 - parent) * learned(rows, *new)
        return np.asarray(before * fit[1] * (1 - chance) + chance)

    found = least_squares(lambda fit: lucky(share(fit), luck)[0] - right, (2.0, 0.8), bounds=([0.1, 0.1], [20.0, 1.0]))
    return found.x, float(np.sqrt(np.mean(found.fun**2))), float(np.sqrt(lucky(share(found.x), luck)[1].mean()))


def main() -> None:
    """Prints the constants, and each point of `points.json` beside the learner."""
    trainings = list(points())
    luck = LUCK
    if trainings:

        def excess(luck: float) -> float:
            _, real, simulated = fitted_known(trainings, luck)
            return simulated - real

        luck = round(brentq(excess, 0.1, 3.0), 1)
        (changed, kept), real, _ = fitted_known(trainings, luck)
        print(f"{len(trainings)} topics: ROWS_CHANGED {changed:.1f}, KEPT {kept:.2f}, LUCK {luck}; scatter {real:.2f}")
    else:
        print("no real trainings here: run `run.py loop.real` before, to fit ROWS_CHANGED, KEPT and LUCK")
    (top, rows), error = fitted_new(luck)
    print(f"TOP {top:.2f}, ROWS {rows:.1f}; root of the mean squared error {error:.2f}")
    for point in json.loads(POINTS.read_text(encoding="utf-8")):
        shown = lucky(learned([point["rows"]], top, rows), luck)[0].item()
        print(f"{point['what']:76} {point['rows']:5} rows {point['right']:.2f} right, learner {shown:.2f}")


if __name__ == "__main__":
    main()
