"""Whether it pays to keep a model up to date: a simulated year, systems that decide, and the money that they lose.

    python tests/benchmarks/run.py loop                # 18 scenarios, 20 seeds: 20 minutes; goes on where it stopped
    python tests/benchmarks/run.py loop.change         # one scenario
    python tests/benchmarks/run.py loop.real           # four months with real trainings, 5 seeds: an hour and a half
    python tests/benchmarks/loop/external.py change 'python my_system.py'    # a system of your own

Method, results and the interface are in docs/evidence.md.
"""

import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any


def main(scenario: str = "") -> dict[str, float]:
    """All scenarios, or one; each core plays a seed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from loop import score
    from loop.world import SCENARIOS

    if scenario == "real":
        from loop import real

        return real.main()
    play = partial(_seed, [scenario] if scenario else list(SCENARIOS))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        results = [result for of_seed in pool.map(play, range(score.SEEDS)) for result in of_seed]
    names = ["oracle", *score.AGAINST, "ours", *score.WITHOUT]
    tables = [score.table(results), score.decisions(results, names), score.after_change(results)]
    tables += [score.apart(results, name) for name in score.TAKEN_APART]
    print("\n\n".join(tables), file=sys.stderr)
    return score.figures(results)


def _seed(scenarios: Sequence[str], seed: int) -> list[dict[str, Any]]:
    from loop import score

    return score.played(scenarios, [seed])
